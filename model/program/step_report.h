// What a step cost, predicted or measured. The simulator and the executor return the same type, so that validation is
// the difference of two reports.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/program/mesh.h"
#include "model/program/op.h"
#include "model/program/program.h"
#include "model/program/tensor.h"
#include "model/program/units.h"

namespace meshwright {

// One operation on one stream, seconds from the step's begin.
struct Interval {
  Stream stream = Stream::kCompute;
  Seconds begin, end;
  std::string_view name;  // op_name() of the operation: "gemm"
  OpPlace place;          // in the program of its stage: who prints it finds layer, weight and microbatch there
  Bytes bytes;            // sent
  Flops flops;
};

// A wait of the compute stream, seconds from the step's begin. sim/simulate.h says what is which.
struct Wait {
  enum class Kind : std::uint8_t { kBubble, kExposedComm } kind = Kind::kBubble;
  Seconds begin, end;
};

// Operation ("all-gather", "send", ...) and group ("tp", "dp", "pp", "pp-ends") to bytes that one rank sends in a step.
using TrafficKey = std::pair<std::string, std::string>;
using Traffic = std::map<TrafficKey, Bytes>;

// The most bytes that are live at a time, in program order: from first write to end (program.h). Predicted by a walk of the
// Program (live_memory.h), counted by the executor as it runs.
struct MemoryPeak {
  std::int64_t bytes = 0;                               // of all classes together
  std::array<std::int64_t, kMemoryClasses> at_peak{};   // what they are where that is reached first
  std::array<std::int64_t, kMemoryClasses> of_class{};  // the most of each class by itself
  bool operator==(const MemoryPeak&) const = default;
};

// One rank; in a prediction: one rank per stage stands for all that do the same.
struct RankReport {
  MeshCoordinates rank;
  Seconds end;  // when its last operation finished
  Flops executed_flops;
  Traffic traffic;
  MemoryPeak live;
  Bytes arena_bytes;    // its size in a prediction, the end of the highest tensor touched in a measurement
  Bytes outside_bytes;  // of a measurement: what the executor holds for the step beside the arena, exactly
  // Compute stream waits only for communication; waits for another stage; works. Measured by a rank that does one thing at a
  // time: in communication operations, without what is bubble; until a neighbour begins to send, until it has taken what was
  // sent, until all stages have come to a reduction among stages, and until the slowest rank ends the step; the rest.
  Seconds exposed_comm;
  Seconds bubble;
  Seconds compute;
  std::vector<Interval> timeline;  // only when asked for; in program order
  std::vector<Wait> waits;         // with the timeline of a prediction: they add up to exposed_comm and bubble
};

// What placement loses: arena bytes over the peak of live bytes, less 1; 0 where nothing is live.
double placement_loss(const RankReport& rank);

struct StepReport {
  Seconds step_time;
  std::vector<RankReport> ranks;
};

// Of a simulated step: throws std::logic_error, naming the figure, its value and its range, if one is impossible, such as
// a wait that is negative or longer than the step.
void check_figures(const StepReport& report);

}  // namespace meshwright
