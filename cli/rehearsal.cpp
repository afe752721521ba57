#include "cli/rehearsal.h"

#include <algorithm>
#include <cmath>
#include <cstdint>

namespace meshwright {

TrainingConfig rehearsal(const TrainingConfig& config, const Plan& plan) {
  TrainingConfig small = config;
  JaxformerDimensions& d = small.dimensions;
  d.model_dimension = std::min<std::int64_t>(d.model_dimension, 4 * d.n_head);
  d.latent_dim = std::min<std::int64_t>(d.latent_dim, 8);
  d.dhR = std::min<std::int64_t>(d.dhR, 4);
  d.vocab_size = std::min<std::int64_t>(d.vocab_size, 512);
  // Every expert takes a token at least, and tp cuts the sequence.
  const double needed = std::ceil(static_cast<double>(d.n_experts) / (static_cast<double>(d.k) * d.capacity_factor));
  const auto tokens = std::max<std::int64_t>(32, static_cast<std::int64_t>(needed));
  const std::int64_t tp = plan.mesh.tp;
  small.sequence_length = std::min(config.sequence_length, (tokens + tp - 1) / tp * tp);
  small.model = jaxformer(config.name, d, config.alpha);
  small.mesh = plan.mesh;
  small.train_batch_size = small.microbatches = plan.microbatches;
  small.grad_step = 1;
  return small;
}

}  // namespace meshwright
