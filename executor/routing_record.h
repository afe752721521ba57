// Which experts took which tokens in a step: to run the same routing again on another mesh, where rounding could
// otherwise turn a near-tie.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

namespace meshwright {

struct SequenceRouting {
  std::vector<std::int32_t> choice;  // (T, k): expert
  std::vector<std::uint8_t> kept;    // (T, k): 1, or 0 where the expert was full
};

// By (layer, sequence of the step).
using RoutingRecord = std::map<std::pair<int, std::int64_t>, SequenceRouting>;

}  // namespace meshwright
