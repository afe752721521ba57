#include "model/rehearsal.h"

#include <algorithm>

namespace meshwright {

Rehearsal rehearse(const ModelSpec& model, const TrainingShape& shape, const Plan& plan) {
  constexpr std::int64_t kHeadDim = 4, kLatent = 8, kRope = 4, kVocabulary = 512, kTokensPerRank = 8, kTokens = 16;
  Rehearsal r{model, shape, balanced_stages(model, shape, plan.mesh.pp)};
  r.model.name += " (rehearsal)";
  r.model.vocab = std::min(r.model.vocab, kVocabulary);
  r.model.width = heads(model.layers.front().attention) * kHeadDim;
  for (LayerSpec& layer : r.model.layers) {
    if (auto* mla = std::get_if<MlaSpec>(&layer.attention)) {
      mla->head_dim = kHeadDim;
      mla->kv_latent = mla->q_latent = kLatent;
      mla->rope_width = std::min(mla->rope_width, kRope);
    }
    const auto narrow = [&](std::int64_t hidden) { return std::max<std::int64_t>(1, hidden / model.width) * r.model.width; };
    if (auto* moe = std::get_if<MoeSpec>(&layer.ffn)) moe->hidden = narrow(moe->hidden);
    else if (auto* ffn = std::get_if<DenseFfnSpec>(&layer.ffn)) ffn->hidden = narrow(ffn->hidden);
  }
  r.shape.compute = DType::kF32;
  r.shape.tokens = std::max(kTokens, kTokensPerRank * plan.mesh.tp);
  r.shape.sequences = std::int64_t{plan.mesh.dp} * plan.microbatches;
  return r;
}

}  // namespace meshwright
