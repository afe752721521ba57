#include "model/spec.h"

#include <cassert>
#include <cmath>

namespace meshwright {

std::int64_t heads(const AttentionSpec& attention) {
  return std::visit([](const auto& a) { return a.heads; }, attention);
}

std::int64_t kv_heads(const AttentionSpec& attention) {
  if (const auto* mha = std::get_if<MhaSpec>(&attention)) return mha->kv_heads;
  return heads(attention);  // latent attention expands the latent to keys and values of every head
}

std::int64_t expert_capacity(const MoeSpec& moe, std::int64_t tokens) {
  const double rows =
      static_cast<double>(tokens * moe.choices) * moe.capacity_factor / static_cast<double>(moe.experts);
  return rows >= static_cast<double>(tokens) ? tokens : static_cast<std::int64_t>(std::floor(rows));
}

ModelSpec jaxformer(const std::string& name, const JaxformerDimensions& d, double balance_weight) {
  assert(d.n_head > 0 && d.model_dimension % d.n_head == 0);
  const std::int64_t hidden = 4 * d.model_dimension;
  MlaSpec attention{.heads = d.n_head,
                    .head_dim = d.model_dimension / d.n_head,
                    .kv_latent = d.latent_dim,
                    .q_latent = d.latent_dim,
                    .rope_width = d.dhR};
  const LayerSpec dense{
      .norm = NormKind::kRmsNormWithShift, .attention = attention, .ffn = DenseFfnSpec{.hidden = hidden}};
  attention.rope_width = 0;
  const LayerSpec moe{.norm = NormKind::kRmsNormWithShift,
                      .attention = attention,
                      .ffn = MoeSpec{.experts = d.n_experts,
                                     .choices = d.k,
                                     .shared = d.n_shared,
                                     .hidden = hidden,
                                     .capacity_factor = d.capacity_factor}};

  ModelSpec spec{.name = name,
                 .vocab = d.vocab_size,
                 .width = d.model_dimension,
                 .layers = {},
                 .tied_embedding = true,
                 .learned_positions = 0,
                 .final_norm = NormKind::kRmsNormWithShift,
                 .dropout = d.dropout_rate,
                 .balance_weight = balance_weight};
  for (std::int64_t block = 0; block < d.blocks; ++block) {
    spec.layers.insert(spec.layers.end(), static_cast<std::size_t>(d.layers_per_block - 1), dense);
    spec.layers.push_back(moe);
  }
  return spec;
}

ModelSpec gpt2(const std::string& name, const Gpt2Dimensions& d) {
  assert(d.heads > 0 && d.width % d.heads == 0);
  const LayerSpec layer{
      .norm = NormKind::kLayerNorm,
      .attention = MhaSpec{.heads = d.heads, .kv_heads = d.heads, .head_dim = d.width / d.heads, .bias = true},
      .ffn = DenseFfnSpec{.hidden = 4 * d.width}};
  return {.name = name,
          .vocab = d.vocab,
          .width = d.width,
          .layers = std::vector<LayerSpec>(static_cast<std::size_t>(d.layers), layer),
          .tied_embedding = true,
          .learned_positions = d.positions,
          .final_norm = NormKind::kLayerNorm,
          .dropout = d.dropout,
          .balance_weight = 0};
}

}  // namespace meshwright
