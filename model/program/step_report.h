// What a step cost, predicted or measured. The simulator and the executor return the same type, so that validation is
// the difference of two reports.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "model/program/mesh.h"
#include "model/program/op.h"
#include "model/program/tensor.h"
#include "model/program/units.h"

namespace meshwright {

// One operation on one stream, seconds from the step's begin.
struct Interval {
  Stream stream = Stream::kCompute;
  Seconds begin, end;
  std::string name;   // "gemm"
  std::string where;  // "F m2 L7"
  Bytes bytes;        // sent
  Flops flops;
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
  Bytes peak_bytes;  // high-water mark of the arena
  std::array<std::int64_t, kMemoryClasses> bytes_by_class{};
  Seconds exposed_comm;            // compute stream waits only for communication
  Seconds bubble;                  // compute stream waits for another stage
  Seconds compute;                 // compute stream works
  std::vector<Interval> timeline;  // only when asked for
};

struct StepReport {
  Seconds step_time;
  std::vector<RankReport> ranks;
};

// Of a simulated step: throws std::logic_error, naming the figure, its value and its range, if one is impossible, such as
// a wait that is negative or longer than the step.
void check_figures(const StepReport& report);

}  // namespace meshwright
