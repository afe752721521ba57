#include "model/lowering/schedule.h"

#include <algorithm>

namespace meshwright {

std::vector<StageAction> stage_actions(Schedule schedule, int stage, int stages, int microbatches) {
  const int ahead = schedule == Schedule::kGPipe ? microbatches : std::min(microbatches, stages - 1 - stage);
  std::vector<StageAction> actions;
  actions.reserve(2 * static_cast<std::size_t>(microbatches));
  for (int m = 0; m < ahead; ++m) actions.push_back({true, m});
  for (int m = ahead; m < microbatches; ++m) {
    actions.push_back({true, m});
    actions.push_back({false, m - ahead});
  }
  for (int m = microbatches - ahead; m < microbatches; ++m) actions.push_back({false, m});
  return actions;
}

std::vector<StageAction> forward_actions(int microbatches) {
  std::vector<StageAction> actions;
  actions.reserve(static_cast<std::size_t>(microbatches));
  for (int m = 0; m < microbatches; ++m) actions.push_back({true, m});
  return actions;
}

}  // namespace meshwright
