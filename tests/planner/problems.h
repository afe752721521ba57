// Problems that the planner's tests search.
#pragma once

#include "model/config.h"
#include "model/families/jaxformer.h"
#include "planner/space.h"

namespace meshwright {

inline TrainingConfig published_config() {
  return read_config(std::filesystem::path(REPOSITORY "/configs/jaxformer-moe1b.json"));
}

// The published configuration in bf16: 256 sequences of 1,024 tokens.
inline Problem published_problem(int devices) {
  const TrainingConfig config = published_config();
  return {config.model,
          {.sequences = config.sequences, .tokens = config.sequence_length, .compute = DType::kBF16},
          devices};
}

// 4 layers, 4 heads, 16 sequences of 32 tokens, f32.
inline Problem small_problem(int devices) {
  const JaxformerDimensions dimensions{.model_dimension = 32,
                                       .vocab_size = 64,
                                       .n_head = 4,
                                       .blocks = 2,
                                       .layers_per_block = 2,
                                       .latent_dim = 8,
                                       .dhR = 8,
                                       .dropout_rate = 0.1,
                                       .k = 2,
                                       .n_experts = 4,
                                       .n_shared = 1,
                                       .capacity_factor = 1.5};
  return {jaxformer("small", dimensions, 1e-4), {.sequences = 16, .tokens = 32}, devices};
}

}  // namespace meshwright
