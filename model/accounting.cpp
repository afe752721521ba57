#include "model/accounting.h"

#include <fmt/format.h>

#include <cassert>
#include <cmath>
#include <utility>

namespace meshwright {
namespace {

template <class... Ts>
struct Overloaded : Ts... {
  using Ts::operator()...;
};
template <class... Ts>
Overloaded(Ts...) -> Overloaded<Ts...>;  // clang before 17 does not find this by itself

// Lists tensors under one layer's name.
class Lister {
 public:
  Lister(std::vector<ParameterSpec>& out, std::string prefix, int layer)
      : out_(out), prefix_(std::move(prefix)), layer_(layer) {}

  void norm(const std::string& name, std::int64_t width, ModuleKind module) {
    add(name + ".gamma", {width}, module, Init::kOnes, 0);
    add(name + ".beta", {width}, module, Init::kZeros, 0);
  }

  void dense(const std::string& name, std::int64_t in, std::int64_t out, bool bias, ModuleKind module) {
    add(name + ".kernel", {in, out}, module, Init::kTruncatedNormal, in);
    if (bias) add(name + ".bias", {out}, module, Init::kZeros, 0);
  }

  void expert_dense(const std::string& name, std::int64_t experts, std::int64_t in, std::int64_t out) {
    add(name + ".kernel", {experts, in, out}, ModuleKind::kExperts, Init::kTruncatedNormal, in);
    add(name + ".bias", {experts, out}, ModuleKind::kExperts, Init::kZeros, 0);
  }

  void add(const std::string& name, Shape shape, ModuleKind module, Init init, std::int64_t fan_in) {
    out_.push_back({prefix_ + name, std::move(shape), module, init, fan_in, layer_});
  }

 private:
  std::vector<ParameterSpec>& out_;
  std::string prefix_;
  int layer_;
};

void list_layer(std::vector<ParameterSpec>& out, const LayerSpec& layer, std::int64_t C, int index) {
  Lister list(out, index == kNoLayer ? std::string() : fmt::format("layers.{}.", index), index);
  list.norm("norm0", C, ModuleKind::kNorm);
  list.norm("norm1", C, ModuleKind::kNorm);
  std::visit(Overloaded{[&](const MlaSpec& a) {
                          constexpr ModuleKind kind = ModuleKind::kAttention;
                          const std::int64_t latent = a.kv_latent + a.q_latent, inner = a.heads * a.head_dim;
                          list.dense("mla.down", C, latent, true, kind);
                          if (a.rope_width > 0) {
                            list.dense("mla.kr", latent, a.rope_width, true, kind);
                            list.dense("mla.qr", latent, a.rope_width * a.heads, true, kind);
                          }
                          list.dense("mla.kvup", a.kv_latent, 2 * inner, true, kind);
                          list.dense("mla.qup", a.q_latent, inner, true, kind);
                          list.dense("mla.out", inner, C, true, kind);
                        },
                        [&](const MhaSpec& a) {
                          constexpr ModuleKind kind = ModuleKind::kAttention;
                          list.dense("mha.qkv", C, (a.heads + 2 * a.kv_heads) * a.head_dim, a.bias, kind);
                          list.dense("mha.out", a.heads * a.head_dim, C, a.bias, kind);
                        }},
             layer.attention);
  std::visit(Overloaded{[&](const DenseFfnSpec& f) {
                          list.dense("ffn.0", C, f.hidden, f.bias, ModuleKind::kFfn);
                          if (f.gated) list.dense("ffn.gate", C, f.hidden, f.bias, ModuleKind::kFfn);
                          list.dense("ffn.1", f.hidden, C, f.bias, ModuleKind::kFfn);
                        },
                        [&](const MoeSpec& m) {
                          if (m.shared > 0) list.dense("moe.shared", C, m.shared * C, true, ModuleKind::kShared);
                          list.dense("moe.router", C, m.experts, true, ModuleKind::kRouter);
                          list.expert_dense("moe.expert.0", m.experts, C, m.hidden);
                          list.expert_dense("moe.expert.1", m.experts, m.hidden, C);
                        }},
             layer.ffn);
}

// k of E experts take part in a token's forward; 1 of 1 where there are none.
std::pair<std::int64_t, std::int64_t> choices_of_experts(const LayerSpec& layer) {
  if (const auto* moe = std::get_if<MoeSpec>(&layer.ffn)) return {moe->choices, moe->experts};
  return {1, 1};
}

LayerParameters count_layer(const LayerSpec& layer, std::int64_t width) {
  std::vector<ParameterSpec> tensors;
  list_layer(tensors, layer, width, kNoLayer);
  LayerParameters count;
  for (const ParameterSpec& tensor : tensors) {
    const std::int64_t size = elements(tensor.shape);
    switch (tensor.module) {
      case ModuleKind::kNorm:
        count.norms += size;
        break;
      case ModuleKind::kAttention:
        count.attention += size;
        break;
      case ModuleKind::kFfn:
        count.ffn += size;
        break;
      case ModuleKind::kShared:
        count.shared += size;
        break;
      case ModuleKind::kRouter:
        count.router += size;
        break;
      case ModuleKind::kExperts:
        count.experts += size;
        break;
      case ModuleKind::kEmbedding:
      case ModuleKind::kPositions:
      case ModuleKind::kFinalNorm:
      case ModuleKind::kHead:
        assert(false);
        break;
    }
  }
  const auto [choices, experts] = choices_of_experts(layer);
  count.chosen_experts = count.experts / experts * choices;
  return count;
}

}  // namespace

std::vector<ParameterSpec> parameters(const ModelSpec& model) {
  std::vector<ParameterSpec> all;
  Lister list(all, "", kNoLayer);
  const std::int64_t V = model.vocab, C = model.width;
  list.add("embedding.embedding", {V, C}, ModuleKind::kEmbedding, Init::kNormal, 0);
  if (model.learned_positions > 0) {
    list.add("embedding.positions", {model.learned_positions, C}, ModuleKind::kPositions, Init::kNormal, 0);
  }
  for (std::size_t i = 0; i < model.layers.size(); ++i) list_layer(all, model.layers[i], C, static_cast<int>(i));
  list.norm("embedding.norm", C, ModuleKind::kFinalNorm);
  if (!model.tied_embedding) list.dense("head", C, V, /*bias=*/false, ModuleKind::kHead);
  return all;
}

std::int64_t ParameterCount::total() const {
  std::int64_t sum = embedding + positions + final_norm + head;
  for (const LayerParameters& layer : layers) sum += layer.total();
  return sum;
}

std::int64_t ParameterCount::active() const {
  std::int64_t sum = 0;
  for (const LayerParameters& layer : layers) sum += layer.active();
  return sum;
}

ParameterCount count_parameters(const ModelSpec& model) {
  ParameterCount count{.embedding = model.vocab * model.width,
                       .positions = model.learned_positions * model.width,
                       .layers = {},
                       .final_norm = 2 * model.width,
                       .head = model.tied_embedding ? 0 : model.vocab * model.width};
  count.layers.reserve(model.layers.size());
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    // Layers repeat, with a period that is seldom more than a block: look for the same one among those
    // counted.
    std::size_t same = 0;
    while (same < i && !(model.layers[same] == model.layers[i])) ++same;
    count.layers.push_back(same < i ? count.layers[same] : count_layer(model.layers[i], model.width));
  }
  return count;
}

LayerFlops layer_forward_flops(const LayerSpec& layer, std::int64_t width, std::int64_t sequence_length) {
  std::vector<ParameterSpec> tensors;
  list_layer(tensors, layer, width, kNoLayer);
  const std::int64_t T = sequence_length;
  const auto [choices, experts] = choices_of_experts(layer);
  LayerFlops flops;
  for (const ParameterSpec& tensor : tensors) {
    if (tensor.init != Init::kTruncatedNormal) continue;  // only kernels multiply
    const std::int64_t size = elements(tensor.shape);
    switch (tensor.module) {
      case ModuleKind::kAttention:
        flops.projections.value += 2 * T * size;
        break;
      case ModuleKind::kFfn:
        flops.ffn.value += 2 * T * size;
        break;
      case ModuleKind::kShared:
        flops.shared.value += 2 * T * size;
        break;
      case ModuleKind::kRouter:
        flops.router.value += 2 * T * size;
        break;
      case ModuleKind::kExperts:
        flops.experts.value += 2 * T * (size / experts * choices);
        break;
      case ModuleKind::kNorm:
      case ModuleKind::kEmbedding:
      case ModuleKind::kPositions:
      case ModuleKind::kFinalNorm:
      case ModuleKind::kHead:
        assert(false);
        break;
    }
  }
  flops.scores.value = std::visit(
      Overloaded{[&](const MlaSpec& a) { return T * T * a.heads * ((a.head_dim + a.rope_width) + a.head_dim); },
                 [&](const MhaSpec& a) { return T * T * a.heads * (a.head_dim + a.head_dim); }},
      layer.attention);
  return flops;
}

Flops logits_forward_flops(const ModelSpec& model, std::int64_t sequence_length) {
  return {2 * sequence_length * model.width * model.vocab};
}

Flops forward_flops(const ModelSpec& model, std::int64_t sequence_length) {
  Flops sum = logits_forward_flops(model, sequence_length);
  for (const LayerSpec& layer : model.layers) {
    sum += layer_forward_flops(layer, model.width, sequence_length).total();
  }
  return sum;
}

double model_flops(const ModelSpec& model, std::int64_t sequence_length, std::int64_t sequences) {
  return 3.0 * static_cast<double>(sequences) * static_cast<double>(forward_flops(model, sequence_length).value);
}

double expected_initial_loss(const ModelSpec& model) { return std::log(static_cast<double>(model.vocab)) + 0.5; }

}  // namespace meshwright
