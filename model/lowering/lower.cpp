#include "model/lowering/lower.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "model/accounting.h"
#include "model/lowering/stage_writer.h"
#include "model/lowering/step_pieces.h"
#include "model/program/check.h"

namespace meshwright {
namespace {

std::string divisors(std::int64_t n, std::int64_t at_most = std::numeric_limits<std::int64_t>::max()) {
  std::vector<std::int64_t> all;
  for (std::int64_t d = 1; d <= std::min(n, at_most); ++d)
    if (n % d == 0) all.push_back(d);
  return fmt::format("{}", fmt::join(all, ", "));
}

}  // namespace

std::optional<std::string> not_lowerable(const ModelSpec& model) {
  for (const LayerSpec& layer : model.layers) {
    if (!std::holds_alternative<MlaSpec>(layer.attention)) return "multi-head attention";
    if (layer.norm != NormKind::kRmsNormWithShift) return "LayerNorm";
    if (const auto* ffn = std::get_if<DenseFfnSpec>(&layer.ffn)) {
      if (ffn->gated) return "a gated feed-forward";
      if (!ffn->bias) return "a feed-forward without biases";
      if (ffn->activation != Activation::kGeluTanh) return "an activation other than GELU";
    }
  }
  if (!model.tied_embedding) return "an untied embedding";
  if (model.learned_positions) return "learned positions";
  if (model.final_norm != NormKind::kRmsNormWithShift) return "LayerNorm";
  return std::nullopt;
}

std::optional<Illegality> unschedulable(int pp, std::int64_t microbatches) {
  if (microbatches <= kLargestSchedule / pp) return std::nullopt;
  return Illegality{"more microbatches than a schedule is written for",
                    fmt::format("{} microbatches on {} {}", microbatches, pp, pp == 1 ? "stage" : "stages"),
                    fmt::format("at most {}", kLargestSchedule / pp)};
}

std::vector<Illegality> illegalities(const ModelSpec& model, const TrainingShape& shape, const Plan& plan) {
  std::vector<Illegality> found;
  const auto [dp, pp, tp] = plan.mesh;
  std::int64_t heads_gcd = 0;
  for (const LayerSpec& layer : model.layers)
    heads_gcd = std::gcd(heads_gcd, std::gcd(heads(layer.attention), kv_heads(layer.attention)));
  if (heads_gcd % tp)
    found.push_back({"tp does not divide the heads", fmt::format("{} heads, tp {}", heads_gcd, tp),
                     "tp from " + divisors(heads_gcd)});
  if (shape.tokens % tp)
    found.push_back({"tp does not divide the sequence length", fmt::format("{} tokens, tp {}", shape.tokens, tp),
                     "a power of two, or a tp that divides it"});
  for (const LayerSpec& layer : model.layers) {
    const auto* moe = std::get_if<MoeSpec>(&layer.ffn);
    const std::int64_t hidden = moe ? moe->hidden : std::get<DenseFfnSpec>(layer.ffn).hidden;
    if (hidden % tp || (moe && model.width % tp)) {
      found.push_back({"tp does not divide the feed-forward",
                       fmt::format("hidden width {}, width {}, tp {}", hidden, model.width, tp),
                       "tp from " + divisors(std::gcd(hidden, model.width), 64)});
      break;
    }
  }
  if (const auto layers = static_cast<std::int64_t>(model.layers.size()); pp > layers)
    found.push_back(
        {"more stages than layers", fmt::format("{} layers, pp {}", layers, pp), fmt::format("pp at most {}", layers)});
  if (shape.sequences % dp)
    found.push_back({"dp does not divide the global batch", fmt::format("{} sequences, dp {}", shape.sequences, dp),
                     "dp from " + divisors(shape.sequences, 4096)});
  else if (auto too_many = unschedulable(pp, plan.microbatches))
    found.push_back(*std::move(too_many));
  else if (shape.sequences / dp % plan.microbatches)
    found.push_back({"microbatches do not divide a dp shard's sequences",
                     fmt::format("{} sequences, {} microbatches", shape.sequences / dp, plan.microbatches),
                     "microbatches from " + divisors(shape.sequences / dp, 4096)});
  if (plan.fsdp != 0 && dp == 1)
    found.push_back(
        {"FSDP without data parallelism", fmt::format("fsdp {}, dp 1", plan.fsdp), "fsdp=0, or dp above 1"});
  return found;
}

std::vector<int> balanced_stages(const ModelSpec& model, const TrainingShape& shape, int stages) {
  const int layers = static_cast<int>(model.layers.size());
  // Costs in FLOPs of one sequence forward; the logits come after the last layer.
  std::vector<double> before(static_cast<std::size_t>(layers) + 1, 0.0);
  for (int i = 0; i < layers; ++i)
    before[i + 1] =
        before[i] + static_cast<double>(layer_forward_flops(model.layers[i], model.width, shape.tokens).total().value);
  const double logits = static_cast<double>(logits_forward_flops(model, shape.tokens).value);
  const auto cost = [&](int from, int to, bool last) { return before[to] - before[from] + (last ? logits : 0.0); };
  // best[s][i]: (costliest stage, sum of squares) of the first i layers in s stages; the last stage also has the logits.
  using Score = std::pair<double, double>;
  const Score none{std::numeric_limits<double>::infinity(), 0};
  std::vector<std::vector<Score>> best(static_cast<std::size_t>(stages) + 1,
                                       std::vector<Score>(static_cast<std::size_t>(layers) + 1, none));
  std::vector<std::vector<int>> cut(best.size(), std::vector<int>(static_cast<std::size_t>(layers) + 1, 0));
  best[0][0] = {0, 0};
  for (int s = 1; s <= stages; ++s)
    for (int i = s; i <= layers; ++i)
      for (int j = s - 1; j < i; ++j) {
        if (best[s - 1][j] == none) continue;
        const double c = cost(j, i, s == stages);
        const Score score{std::max(best[s - 1][j].first, c), best[s - 1][j].second + c * c};
        if (score <= best[s][i]) {
          best[s][i] = score;
          cut[s][i] = j;
        }
      }
  std::vector<int> sizes(static_cast<std::size_t>(stages));
  for (int s = stages, i = layers; s > 0; --s) {
    sizes[s - 1] = i - cut[s][i];
    i = cut[s][i];
  }
  return sizes;
}

ProgramSet lower(const ModelSpec& model, const TrainingShape& shape, const Plan& plan,
                 const std::optional<std::vector<int>>& stage_layers) {
  check(!not_lowerable(model), "lower: {}", not_lowerable(model).value_or(""));
  const auto faults = illegalities(model, shape, plan);
  check(faults.empty(), "lower: {}", faults.empty() ? "" : faults.front().reason + ": " + faults.front().detail);
  StepPieces pieces = make_step_pieces(model, shape, plan);
  const std::vector<int> layers = stage_layers ? *stage_layers : balanced_stages(model, shape, plan.mesh.pp);
  for (int stage = 0, first = 0; stage < plan.mesh.pp; first += layers[static_cast<std::size_t>(stage++)])
    write_stage(pieces, stage, first, layers[static_cast<std::size_t>(stage)]);
  return std::move(pieces.set);
}

}  // namespace meshwright
