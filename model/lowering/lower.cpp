#include "model/lowering/lower.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <limits>
#include <numeric>

#include "model/lowering/placement.h"
#include "model/lowering/stage_writer.h"
#include "model/lowering/step_pieces.h"
#include "model/program/check.h"
#include "model/program/op_work.h"

namespace meshwright {
namespace {

std::string divisors(std::int64_t n, std::int64_t at_most = std::numeric_limits<std::int64_t>::max()) {
  std::vector<std::int64_t> all;
  for (std::int64_t d = 1; d <= std::min(n, at_most); ++d)
    if (n % d == 0) all.push_back(d);
  return fmt::format("{}", fmt::join(all, ", "));
}

// What the channels that tp cuts in feed-forwards and experts, all layers together, have in common as a divisor.
std::int64_t cut_channels(const ModelSpec& model) {
  std::int64_t common = 0;
  std::vector<const Layer*> kinds;
  for (const Layer& layer : model.layers) {
    if (std::ranges::any_of(kinds, [&](const Layer* kind) { return *kind == layer; })) continue;
    kinds.push_back(&layer);
    for (const ParameterSpec& p : parameters(model, layer))
      if (p.tp.kind == Layout::Kind::kShard && p.module != ModuleKind::kAttention)
        common = std::gcd(common, p.shape[static_cast<std::size_t>(p.tp.dim)] / p.tp.blocks);
  }
  return common;
}

}  // namespace

std::optional<Illegality> unschedulable(int pp, std::int64_t microbatches) {
  if (microbatches <= kLargestSchedule / pp) return std::nullopt;
  return Illegality{"more microbatches than a schedule is written for",
                    fmt::format("{} microbatches on {} {}", microbatches, pp, pp == 1 ? "stage" : "stages"),
                    fmt::format("at most {}", kLargestSchedule / pp)};
}

std::optional<Illegality> unbalanced(const ModelSpec& model, Schedule schedule, std::int64_t microbatches) {
  if (model.balance == Balance::kSequence || microbatches == 1) return std::nullopt;
  if (std::ranges::none_of(model.layers, [](const Layer& l) { return std::holds_alternative<Experts>(l.ffn); }))
    return std::nullopt;
  if (model.balance == Balance::kPooled)
    return Illegality{"a balance loss over all layers' tokens needs one microbatch",
                      fmt::format("training.balance pooled, {} microbatches", microbatches),
                      "microbatches=1, or training.balance=sequence"};
  if (schedule == Schedule::kGPipe) return std::nullopt;
  return Illegality{"a balance loss over a layer's tokens needs GPipe or one microbatch",
                    fmt::format("training.balance layer, schedule {}, {} microbatches", name(schedule), microbatches),
                    "schedule=gpipe, microbatches=1, or training.balance=sequence"};
}

std::vector<Illegality> illegalities(const ModelSpec& model, const TrainingShape& shape, const Plan& plan) {
  std::vector<Illegality> found;
  const auto [dp, pp, tp] = plan.mesh;
  // Plans also come from a database. Without these nothing else can be asked.
  if (dp < 1 || pp < 1 || tp < 1 || plan.microbatches < 1 || plan.fsdp < 0 || plan.fsdp > 3)
    return {{"numbers that no plan has",
             fmt::format("mesh {}, microbatches {}, fsdp {}", to_string(plan.mesh), plan.microbatches, plan.fsdp),
             "mesh and microbatches at least 1, fsdp 0 to 3"}};
  std::int64_t heads_gcd = 0;
  for (const Layer& layer : model.layers)
    heads_gcd = std::gcd(heads_gcd, std::gcd(heads(layer.attention), kv_heads(layer.attention)));
  if (heads_gcd % tp)
    found.push_back({"tp does not divide the heads", fmt::format("{} heads, tp {}", heads_gcd, tp),
                     "tp from " + divisors(heads_gcd)});
  if (shape.tokens % tp)
    found.push_back({"tp does not divide the sequence length", fmt::format("{} tokens, tp {}", shape.tokens, tp),
                     "a power of two, or a tp that divides it"});
  if (const std::int64_t channels = cut_channels(model); channels % tp)
    found.push_back({"tp does not divide the feed-forward",
                     fmt::format("all that it would cut is a multiple of {} channels, tp {}", channels, tp),
                     "tp from " + divisors(channels, 64)});
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
  if (auto why = unbalanced(model, plan.schedule, plan.microbatches)) found.push_back(*std::move(why));
  if (plan.fsdp != 0 && dp == 1)
    found.push_back(
        {"FSDP without data parallelism", fmt::format("fsdp {}, dp 1", plan.fsdp), "fsdp=0, or dp above 1"});
  if (!plan.layers.empty()) {
    std::int64_t sum = 0;
    for (const int n : plan.layers) sum += n;
    const auto layers = static_cast<std::int64_t>(model.layers.size());
    if (plan.layers.size() != static_cast<std::size_t>(pp) || std::ranges::min(plan.layers) < 1)
      found.push_back({"layers that are not those of the stages",
                       fmt::format("{} stages, the least layers of one {}, pp {}", plan.layers.size(),
                                   std::ranges::min(plan.layers), pp),
                       "a number of layers for every stage, at least 1"});
    else if (sum != layers)
      found.push_back({"layers that do not add up to the model's",
                       fmt::format("{} layers, the model has {}", sum, layers),
                       "change some, or leave layers out: then cut by simulated cost, and written into the plan"});
  }
  return found;
}

Lowering::Lowering(const ModelSpec& model, const TrainingShape& shape, const Plan& plan) {
  const auto faults = illegalities(model, shape, plan);
  check(faults.empty(), "lower: {}", faults.empty() ? "" : faults.front().reason + ": " + faults.front().detail);
  pieces_ = std::make_unique<StepPieces>(make_step_pieces(model, shape, plan));
}

Lowering::~Lowering() = default;

namespace {

PieceCost& operator+=(PieceCost& a, const PieceCost& b) {
  a.busy += b.busy;
  a.beside += b.beside;
  return a;
}

// Calls f(piece) for what a layer of this kind calls for every microbatch: FSDP gathers its weights once each way.
template <class F>
void for_each_layer_piece(const BlockPieces& kind, F&& f) {
  for (const int piece : {kind.gather, kind.forward, kind.gather, kind.backward, kind.reduce_each})
    if (piece >= 0) f(piece);
}

}  // namespace

std::vector<int> Lowering::microbatch_pieces() const {
  std::vector<int> all{pieces_->embed, pieces_->embed_backward, pieces_->head};
  for (const BlockPieces& kind : pieces_->kinds) for_each_layer_piece(kind, [&](int piece) { all.push_back(piece); });
  std::ranges::sort(all);
  all.erase(std::ranges::unique(all).begin(), all.end());
  return all;
}

std::vector<int> Lowering::balanced(const std::vector<PieceCost>& cost) const {
  const int stages = pieces_->plan.mesh.pp, layers = static_cast<int>(pieces_->kind_of_layer.size());
  if (stages == 1) return {layers};
  std::vector<PieceCost> of_kind, before(static_cast<std::size_t>(layers) + 1);  // before: of the layers up to one
  for (const BlockPieces& kind : pieces_->kinds) {
    of_kind.emplace_back();
    for_each_layer_piece(kind, [&](int piece) { of_kind.back() += cost[piece]; });
  }
  for (int i = 0; i < layers; ++i) {
    before[i + 1] = before[i];
    before[i + 1] += of_kind[pieces_->kind_of_layer[i]];
  }
  PieceCost first = cost[pieces_->embed];
  first += cost[pieces_->embed_backward];
  const PieceCost last = cost[pieces_->head];
  const auto of_stage = [&](int stage, int from, int to) {
    PieceCost c{before[to].busy - before[from].busy, before[to].beside - before[from].beside};
    if (stage == 1) c += first;
    if (stage == stages) c += last;
    return std::max(c.busy, c.beside);
  };
  // The least of `value` over all cuts of all layers, where none of the stages costs more than `limit`; begin[s][i]: where
  // the last of s stages begins, of the first i layers. What a stage costs grows with its layers.
  std::vector<std::vector<int>> begin(static_cast<std::size_t>(stages) + 1,
                                      std::vector<int>(static_cast<std::size_t>(layers) + 1, 0));
  const auto least = [&](double limit, auto&& value) {
    constexpr double kNone = std::numeric_limits<double>::infinity();
    std::vector<double> best(static_cast<std::size_t>(layers) + 1, kNone), fewer;
    best[0] = 0;
    for (int s = 1; s <= stages; ++s) {
      std::swap(fewer, best);
      best.assign(fewer.size(), kNone);
      for (int i = s; i <= layers - (stages - s); ++i)
        for (int j = i - 1; j >= s - 1; --j) {
          const double c = of_stage(s, j, i);
          if (c > limit || value(0, c) >= best[i]) break;
          if (const double v = value(fewer[j], c); v < best[i]) {
            best[i] = v;
            begin[s][i] = j;
          }
        }
    }
    return best[static_cast<std::size_t>(layers)];
  };
  const double costliest =
      least(std::numeric_limits<double>::infinity(), [](double others, double c) { return std::max(others, c); });
  least(costliest, [](double others, double c) { return others + c * c; });
  std::vector<int> sizes(static_cast<std::size_t>(stages));
  for (int s = stages, i = layers; s > 0; --s) {
    sizes[s - 1] = i - begin[s][i];
    i = begin[s][i];
  }
  return sizes;
}

std::vector<int> Lowering::balanced_by_flops() const {
  std::vector<PieceCost> flops(pieces_->set.pieces.size());
  for (const int index : microbatch_pieces()) {
    const Piece& piece = pieces_->set.pieces[index];
    for (const Op& op : piece.ops) flops[index].busy += static_cast<double>(work_of(op, piece).flops.value);
  }
  return balanced(flops);
}

std::vector<int> Lowering::even() const {
  const int stages = pieces_->plan.mesh.pp, layers = static_cast<int>(pieces_->kind_of_layer.size());
  std::vector<int> sizes(static_cast<std::size_t>(stages), layers / stages);
  for (int s = 0; s < layers % stages; ++s) ++sizes[s];
  return sizes;
}

const ProgramSet& Lowering::cut(const std::vector<int>& layers) & {
  StepPieces& p = *pieces_;
  check(layers.size() == static_cast<std::size_t>(p.plan.mesh.pp) &&
            std::accumulate(layers.begin(), layers.end(), 0) == static_cast<int>(p.kind_of_layer.size()),
        "lower: {} layers cut into {}", p.kind_of_layer.size(), fmt::join(layers, "-"));
  p.set.stages.clear();
  if (p.layout.use_count() > 2)  // a copy of an earlier cut, or a set that evaluates one, refers to it
    p.set.state_layout = p.layout = std::make_shared<StateLayout>(*p.layout);
  p.layout->stages.clear();
  for (int stage = 0, first = 0; stage < p.plan.mesh.pp; first += layers[static_cast<std::size_t>(stage++)]) {
    p.layout->stages.push_back(place_state(p.set, stage, first, layers[static_cast<std::size_t>(stage)]));
    write_stage(p, stage, first, layers[static_cast<std::size_t>(stage)]);
  }
  return p.set;
}

ProgramSet Lowering::cut(const std::vector<int>& layers) && {
  cut(layers);  // this is an lvalue here
  return std::move(pieces_->set);
}

std::vector<int> stage_layers(const ModelSpec& model, const TrainingShape& shape, const Plan& plan) {
  return plan.layers.empty() ? Lowering(model, shape, plan).balanced_by_flops() : plan.layers;
}

ProgramSet lower(const ModelSpec& model, const TrainingShape& shape, const Plan& plan) {
  Lowering lowering(model, shape, plan);
  return std::move(lowering).cut(plan.layers.empty() ? lowering.balanced_by_flops() : plan.layers);
}

int evaluation_microbatches(std::int64_t sequences, std::int64_t largest) {
  check(sequences > 0 && largest > 0, "lower: {} sequences in microbatches of {}", sequences, largest);
  std::int64_t m = (sequences + largest - 1) / largest;
  while (sequences % m != 0) ++m;
  return static_cast<int>(m);
}

ProgramSet lower_evaluation(const ModelSpec& model, const TrainingShape& shape, const Plan& plan,
                            const ProgramSet& trained) {
  const auto faults = illegalities(model, shape, plan);
  check(faults.empty(), "lower: {}", faults.empty() ? "" : faults.front().reason + ": " + faults.front().detail);
  check(plan.mesh == trained.mesh && plan.fsdp == trained.fsdp && shape.compute == trained.compute,
        "lower: an evaluation of another plan's state");
  StepPieces pieces = make_evaluation_pieces(model, shape, plan, trained);
  for (const Program& stage : trained.stages) write_stage(pieces, stage.stage, stage.first_layer, stage.layers);
  return std::move(pieces.set);
}

}  // namespace meshwright
