#include "cli/rehearsal.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace meshwright {

TrainingConfig rehearsal(const TrainingConfig& config, const Plan& plan) {
  TrainingConfig small = config;
  small.model = reduced(config.model);
  // Every expert takes a token at least, and tp cuts the sequence.
  std::int64_t tokens = 32;
  for (const Layer& layer : config.model.layers)
    if (const auto* moe = std::get_if<Experts>(&layer.ffn); moe && moe->capacity_factor > 0)
      tokens = std::max(
          tokens, static_cast<std::int64_t>(std::ceil(static_cast<double>(moe->experts) /
                                                      (static_cast<double>(moe->choices) * moe->capacity_factor))));
  const std::int64_t tp = plan.mesh.tp;
  small.sequence_length = std::min(config.sequence_length, (tokens + tp - 1) / tp * tp);
  small.mesh = plan.mesh;
  small.train_batch_size = small.val_batch_size = small.microbatches = plan.microbatches;
  small.grad_step = 1;
  small.sequences = std::int64_t{plan.mesh.dp} * plan.microbatches;
  return small;
}

}  // namespace meshwright
