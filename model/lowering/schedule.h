// Pipeline schedules as data: the order in which a stage runs its microbatches' forwards and backwards.
#pragma once

#include <vector>

#include "model/plan.h"

namespace meshwright {

struct StageAction {
  bool forward = true;
  int microbatch = 0;
  bool operator==(const StageAction&) const = default;
};

// GPipe (Huang et al. 2019): all forwards, then all backwards. 1F1B (PipeDream-flush, Narayanan et al. 2021): stage s of
// p first runs min(m, p-1-s) forwards, then one forward and one backward in turn, then the backwards that are left.
// Backwards come in the order of the forwards.
std::vector<StageAction> stage_actions(Schedule schedule, int stage, int stages, int microbatches);

// An evaluation's forwards come one after the other, whatever the schedule and the stage.
std::vector<StageAction> forward_actions(int microbatches);

}  // namespace meshwright
