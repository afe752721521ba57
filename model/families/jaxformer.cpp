#include "model/families/jaxformer.h"

#include "model/program/check.h"

namespace meshwright {

ModelSpec jaxformer(const std::string& name, const JaxformerDimensions& d, double balance_weight) {
  check(d.n_head > 0 && d.model_dimension % d.n_head == 0, "jaxformer: {} heads, width {}", d.n_head,
        d.model_dimension);
  const std::int64_t hidden = 4 * d.model_dimension;
  JointLatentAttention attention{.heads = d.n_head,
                                 .head_dim = d.model_dimension / d.n_head,
                                 .kv_latent = d.latent_dim,
                                 .q_latent = d.latent_dim,
                                 .rope_width = d.dhR};
  const Layer dense{.attention = attention, .ffn = FeedForward{.hidden = hidden}, .dropout = d.dropout_rate};
  attention.rope_width = 0;
  const Layer moe{.attention = attention,
                  .ffn = Experts{.experts = d.n_experts,
                                 .choices = d.k,
                                 .hidden = hidden,
                                 .capacity_factor = d.capacity_factor,
                                 .shared = LinearShared{d.n_shared},
                                 .dropout = d.dropout_rate},
                  .dropout = d.dropout_rate};

  ModelSpec model{.name = name, .width = d.model_dimension, .embedding = {.vocab = d.vocab_size}};
  model.balance_weight = balance_weight;
  for (std::int64_t block = 0; block < d.blocks; ++block) {
    model.layers.insert(model.layers.end(), static_cast<std::size_t>(d.layers_per_block - 1), dense);
    model.layers.push_back(moe);
  }
  return model;
}

}  // namespace meshwright
