#include "model/accounting.h"

#include <cmath>
#include <map>
#include <memory>
#include <utility>
#include <variant>

#include "model/lowering/placement.h"
#include "model/modules/forward.h"
#include "model/program/check.h"
#include "model/program/op_work.h"

namespace meshwright {
namespace {

// k of E experts take part in a token's forward; 1 of 1 where there are none.
std::pair<std::int64_t, std::int64_t> choices_of_experts(const Layer& layer) {
  if (const auto* moe = std::get_if<Experts>(&layer.ffn)) return {moe->choices, moe->experts};
  return {1, 1};
}

LayerParameters count_layer(const ModelSpec& model, const Layer& layer) {
  LayerParameters count;
  for (const ParameterSpec& p : parameters(model, layer)) {
    if (!p.trained) continue;
    const std::int64_t size = elements(p.shape);
    switch (p.module) {
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
        check(false, "{}: no part of a layer", p.name);
    }
  }
  const auto [choices, experts] = choices_of_experts(layer);
  count.chosen_experts = count.experts / experts * choices;
  return count;
}

// Calls f(i, same) for every layer; `same`: an earlier one that equals it, or i. Layers repeat with a short period.
template <class F>
void for_each_layer(const ModelSpec& model, F&& f) {
  std::vector<std::size_t> distinct;
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    std::size_t same = i;
    for (const std::size_t d : distinct)
      if (model.layers[d] == model.layers[i]) same = d;
    if (same == i) distinct.push_back(i);
    f(i, same);
  }
}

// One sequence on one rank.
ProgramSet one_rank(const ModelSpec& model, std::int64_t tokens) {
  ProgramSet set;
  set.step = {.sequences = 1, .tokens = tokens, .microbatch = 1, .microbatches = 1};
  set.state_layout = std::make_shared<const StateLayout>(place_parameters(model, set.mesh));
  set_experts(model, set);
  return set;
}

// Of one sequence, by half of the square of scores, as model FLOPs are counted.
std::int64_t causal_flops(const AttentionShape& s) {
  const std::int64_t T = s.tokens, seen = s.window > 0 && s.window < T ? s.window * (2 * T - s.window) : T * T;
  return seen * s.heads * (s.head_dim + s.rope_width + s.value_dim);
}

}  // namespace

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
  ParameterCount count;
  ModelSpec outside = model;
  outside.layers.clear();
  for (const ParameterSpec& p : parameters(outside)) {
    std::int64_t& part = p.module == ModuleKind::kEmbedding   ? count.embedding
                         : p.module == ModuleKind::kPositions ? count.positions
                         : p.module == ModuleKind::kFinalNorm ? count.final_norm
                                                              : count.head;
    part += elements(p.shape);
  }
  for_each_layer(model, [&](std::size_t i, std::size_t same) {
    count.layers.push_back(same < i ? count.layers[same] : count_layer(model, model.layers[i]));
  });
  return count;
}

LayerFlops layer_forward_flops(const ModelSpec& model, const Layer& layer, std::int64_t sequence_length) {
  ModelSpec alone = model;
  alone.layers = {layer};
  const ProgramSet set = one_rank(alone, sequence_length);
  const StepContext context{.set = set, .width = model.width, .train = false};  // nothing is dropped
  Forward f("layer", context, &set.blocks().front());
  layer.forward(f, f.at(Frame::kX, "x", f.rows(), f.width(), f.compute()),
                f.at(Frame::kXOut, "y", f.rows(), f.width(), f.compute()));
  const Piece piece = f.take();

  std::map<std::string, ModuleKind, std::less<>> module_of;
  for (const ParameterSpec& p : parameters(model, layer)) module_of.emplace(p.name, p.module);
  LayerFlops flops;
  for (const Op& op : piece.ops) {
    if (const auto* attention = std::get_if<Attention>(&op)) flops.scores.value += causal_flops(attention->shape);
    if (!is_product(kind_of(op))) continue;
    for_each_operand(op, [&](std::string_view field, const View& v, Access) {
      const Tensor& t = piece.tensors[static_cast<std::size_t>(v.tensor)];
      if (t.frame != Frame::kWeights || field == "bias") return;
      const Flops work = work_of(op, piece).flops;
      switch (module_of.at(t.name)) {
        case ModuleKind::kAttention:
          flops.projections += work;
          break;
        case ModuleKind::kFfn:
          flops.ffn += work;
          break;
        case ModuleKind::kShared:
          flops.shared += work;
          break;
        case ModuleKind::kRouter:
          flops.router += work;
          break;
        case ModuleKind::kExperts:
          flops.experts += work;
          break;
        default:
          check(false, "{} multiplies nothing", t.name);
      }
    });
  }
  return flops;
}

Flops logits_forward_flops(const ModelSpec& model, std::int64_t sequence_length) {
  ModelSpec outside = model;
  outside.layers.clear();
  const ProgramSet set = one_rank(outside, sequence_length);
  const StepContext context{.set = set, .width = model.width};
  Forward f("head", context, &set.blocks().front());
  model.head.forward(f, model.vocab(), f.at(Frame::kX, "x", f.rows(), f.width(), f.compute()));
  const Piece piece = f.take();
  Flops flops;
  for (const Op& op : piece.ops)
    if (std::holds_alternative<LmHead>(op)) flops += work_of(op, piece).flops;
  return {flops.value / 3};  // the operation computes the logits and both of their gradients
}

namespace {

// Calls f(flops) for every layer, and for the logits.
template <class F>
void for_each_forward(const ModelSpec& model, std::int64_t sequence_length, F&& f) {
  f(logits_forward_flops(model, sequence_length));
  std::vector<Flops> of_layer;
  for_each_layer(model, [&](std::size_t i, std::size_t same) {
    of_layer.push_back(same < i ? of_layer[same]
                                : layer_forward_flops(model, model.layers[i], sequence_length).total());
    f(of_layer.back());
  });
}

}  // namespace

Flops forward_flops(const ModelSpec& model, std::int64_t sequence_length) {
  Flops sum;
  for_each_forward(model, sequence_length, [&](Flops flops) { sum += flops; });
  return sum;
}

double model_flops(const ModelSpec& model, std::int64_t sequence_length, std::int64_t sequences) {
  double sum = 0;
  for_each_forward(model, sequence_length, [&](Flops flops) { sum += static_cast<double>(flops.value); });
  return 3.0 * static_cast<double>(sequences) * sum;
}

double expected_initial_loss(const ModelSpec& model) { return std::log(static_cast<double>(model.vocab())) + 0.5; }

}  // namespace meshwright
