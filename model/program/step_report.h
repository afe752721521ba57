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

// One rank; in a prediction: one rank per stage stands for all that do the same.
struct RankReport {
  MeshCoordinates rank;
  Seconds end;  // when its last operation finished
  Flops executed_flops;
  Traffic traffic;
  Bytes peak_bytes;  // of the arena: its size in a prediction, the end of the highest tensor touched in a measurement
  std::array<std::int64_t, kMemoryClasses> bytes_by_class{};
  Seconds exposed_comm;            // compute stream waits only for communication
  Seconds bubble;                  // compute stream waits for another stage
  Seconds compute;                 // compute stream works
  std::vector<Interval> timeline;  // only when asked for; in program order
  std::vector<Wait> waits;         // with the timeline of a prediction: they add up to exposed_comm and bubble
};

struct StepReport {
  Seconds step_time;
  std::vector<RankReport> ranks;
};

// Of a simulated step: throws std::logic_error, naming the figure, its value and its range, if one is impossible, such as
// a wait that is negative or longer than the step.
void check_figures(const StepReport& report);

}  // namespace meshwright
