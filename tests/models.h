// Models that several tests count or run.
#pragma once

#include "model/spec.h"

namespace meshwright {

// GPT-2 as released, the small one (Radford et al. 2019).
inline ModelSpec gpt2_small() {
  const Norm norm{.kind = Norm::Kind::kLayer, .epsilon = 1e-5};
  const Layer layer{
      .norm = norm,
      .attention = MultiHeadAttention{.heads = 12, .kv_heads = 12, .head_dim = 64, .bias = true, .out_bias = true},
      .ffn = FeedForward{.hidden = 4 * 768},
      .dropout = 0.1};
  return {.name = "gpt2",
          .width = 768,
          .embedding = {.vocab = 50257, .positions = 1024, .dropout = 0.1},
          .layers = std::vector<Layer>(12, layer),
          .head = {.norm = norm}};
}

}  // namespace meshwright
