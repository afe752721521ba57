// Every rule of model/program/derivative.h against finite differences, in f64: a small computation that holds the operation
// and ends in the loss, whose parameters are everything that the operation reads. One table: an operation without an entry
// does not compile.
#include "model/program/derivative.h"

#include <gtest/gtest.h>
#include <mpi.h>

#include <cmath>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "executor/executor.h"
#include "executor/kernels/philox.h"
#include "model/lowering/differentiate.h"
#include "model/lowering/piece_builder.h"

namespace meshwright {
namespace {

constexpr std::int64_t kVocab = 7;
constexpr double kBalanceWeight = 0.3;

// A computation in the making: tokens and sequences of one microbatch on one rank, parameters as they are asked for.
struct Computation {
  std::int64_t tokens = 4, batch = 2;
  std::int64_t experts = 0, choices = 0;  // of the routing, if there is any
  Piece piece{.name = "computation", .tensors = {}, .ops = {}, .workspace_bytes = 0};
  std::vector<Parameter> parameters;
  std::int64_t parameter_elements = 0;

  std::int64_t rows() const { return tokens * batch; }
  View declare(std::string name, std::int64_t rows, std::int64_t cols, DType dtype, Frame frame, std::int64_t offset) {
    piece.tensors.push_back({std::move(name), {rows, cols}, dtype, frame, offset});
    return {static_cast<TensorId>(piece.tensors.size()) - 1, rows, cols, cols, 0};
  }
  View value(const std::string& name, std::int64_t r, std::int64_t cols, DType dtype = DType::kF64) {
    return declare(name, r, cols, dtype, Frame::kWorkspace, 0);
  }
  View parameter(const std::string& name, std::int64_t r, std::int64_t cols) {
    const View v = declare(name, r, cols, DType::kF64, Frame::kWeights, parameter_elements * 8);
    parameters.push_back({name, {r, cols}});
    parameter_elements += r * cols;
    return v;
  }
  View grad(const View& of) {
    const Tensor t = piece.tensors[static_cast<std::size_t>(of.tensor)];
    return declare("d." + t.name, of.rows, of.cols, DType::kF64, Frame::kGrads, t.offset);
  }
  View metrics() { return declare("metrics", 1, kLoadFirst + experts, DType::kF64, Frame::kMetrics, 0); }
  View token_ids(bool targets) {
    return declare(targets ? "targets" : "inputs", rows(), 1, DType::kI32, Frame::kTokens,
                   targets ? align_up(rows() * 4) : 0);
  }
  template <class... Ops>
  void add(Ops&&... ops) {
    (piece.ops.emplace_back(std::forward<Ops>(ops)), ...);
  }
  // A value that is worth differentiating, as the product of two parameters: for operations that change it in place.
  View made(const std::string& name, std::int64_t r, std::int64_t cols) {
    const View v = value(name, r, cols);
    add(Gemm{.a = parameter(name + ".left", r, 3), .b = parameter(name + ".right", 3, cols), .c = v});
    return v;
  }
  // The loss of `x` against the targets.
  void lose(const View& x, std::int64_t chunk = 3) {
    const View table = parameter("table", kVocab, x.cols);
    add(LmHead{.x = x,
               .table = table,
               .targets = token_ids(true),
               .dx = value("dx", x.rows, x.cols),
               .dtable = grad(table),
               .logits = value("logits", chunk, kVocab),
               .metrics = metrics(),
               .scale = 1.0 / static_cast<double>(x.rows)});
  }
};

double number(std::uint64_t tensor, std::uint64_t i) {  // in (-1, 1)
  return static_cast<double>(kernels::mix64(tensor * 1000003 + i) >> 11) * 0x1p-52 - 1;
}

// The computation as the only thing that a step does.
ProgramSet as_step(Computation c) {
  ProgramSet set;
  set.step = {.sequences = c.batch, .tokens = c.tokens, .microbatch = c.batch, .microbatches = 1};
  set.compute = set.state = DType::kF64;
  set.experts = c.experts;
  set.choices = c.choices;
  set.balance_weight = kBalanceWeight;
  set.parameters = c.parameters;
  Unit unit{.name = "all", .elements = c.parameter_elements, .padded = c.parameter_elements};
  std::int64_t at = 0;
  for (int p = 0; p < static_cast<int>(c.parameters.size()); ++p) {
    const Shape& shape = c.parameters[static_cast<std::size_t>(p)].shape;
    unit.parameters.push_back({p, Layout::replicate(), shape, at});
    at += elements(shape);
  }
  set.blocks = {Block{.name = "all", .layer = 0, .units = {unit}, .padded = unit.padded}};

  const std::int64_t metrics_elements = kLoadFirst + c.experts, tokens_bytes = 2 * align_up(c.rows() * 4);
  set.pieces.push_back(
      {"clear",
       {{"grads", {1, unit.padded}, DType::kF64, Frame::kGrads, 0},
        {"metrics", {1, metrics_elements}, DType::kF64, Frame::kMetrics, 0}},
       {Fill{{0, 1, unit.padded, unit.padded, 0}}, Fill{{1, 1, metrics_elements, metrics_elements, 0}}},
       0});
  set.pieces.push_back(differentiate_at_once(std::move(c.piece), set.mesh, {.state = DType::kF64}));

  Program program{.layers = 1};
  const auto region = [&](const char* name, MemoryClass memory, std::int64_t bytes) {
    const std::int64_t begin = program.arena_bytes;
    program.regions.push_back({name, memory, begin, bytes});
    program.arena_bytes += align_up(bytes);
    return begin;
  };
  const std::int64_t state = unit.padded * 8;
  BlockState s{.block = 0};
  s.weights = s.master = region("master weights", MemoryClass::kParameters, state);
  s.grads = s.grad_shard = region("gradients", MemoryClass::kGradients, state);
  s.moment1 = region("moment 1", MemoryClass::kOptimizer, state);
  s.moment2 = region("moment 2", MemoryClass::kOptimizer, state);
  const std::int64_t metrics = region("metrics", MemoryClass::kData, metrics_elements * 8),
                     tokens = region("tokens", MemoryClass::kData, tokens_bytes),
                     workspace = region("workspace", MemoryClass::kWorkspace, set.pieces.back().workspace_bytes);
  for (int piece = 0; piece < 2; ++piece) {
    Call call{.piece = piece, .block = 0, .layer = 0};
    const std::pair<Frame, std::int64_t> frames[] = {{Frame::kWeights, s.weights},
                                                     {Frame::kGrads, s.grads},
                                                     {Frame::kMetrics, metrics},
                                                     {Frame::kTokens, tokens},
                                                     {Frame::kWorkspace, workspace}};
    for (const auto& [frame, base] : frames) call.base[static_cast<std::size_t>(frame)] = base;
    program.chunks.push_back({set.pieces[static_cast<std::size_t>(piece)].name, {call}});
    program.slots.push_back(
        {.action = piece == 0 ? Action::kBegin : Action::kBackward, .microbatch = piece == 0 ? -1 : 0, .chunk = piece});
  }
  set.stages = {program};
  set.state_of = {{s}};
  return set;
}

void expect_derivatives(const Computation& c) {
  const ProgramSet set = as_step(c);
  Executor<double> executor(set, MPI_COMM_SELF, {.seed = 5});
  std::vector<std::vector<double>> weights;
  for (std::size_t p = 0; p < set.parameters.size(); ++p) {
    weights.emplace_back(static_cast<std::size_t>(elements(set.parameters[p].shape)));
    for (std::size_t i = 0; i < weights[p].size(); ++i) weights[p][i] = number(p, i);
  }
  const auto run = [&] {
    executor.load_parameters([&](int p, std::int64_t first, std::int64_t n, double* out) {
      std::copy_n(weights[static_cast<std::size_t>(p)].begin() + first, n, out);
    });
    return executor
        .run_step({.fill =
                       [&](int, std::int32_t* inputs, std::int32_t* targets) {
                         for (std::int64_t i = 0; i < c.rows(); ++i) {
                           inputs[i] = static_cast<std::int32_t>(i * 5 % kVocab);
                           targets[i] = static_cast<std::int32_t>(i * 3 % kVocab);
                         }
                       }})
        .loss;
  };
  run();
  const auto gradients = executor.gather(Executor<double>::State::kGradients);
  double scale = 0;  // the largest gradient: one that is 0 in exact arithmetic has an error, too
  for (const auto& g : gradients)
    for (const double x : g) scale = std::max(scale, std::abs(x));
  ASSERT_GT(scale, 1e-4) << "nothing depends on anything";
  constexpr double kStep = 1e-5;
  for (std::size_t p = 0; p < weights.size(); ++p) {
    const std::size_t stride = std::max<std::size_t>(1, weights[p].size() / 24);
    for (std::size_t i = 0; i < weights[p].size(); i += stride) {
      const double at = weights[p][i];
      weights[p][i] = at + kStep;
      const double above = run();
      weights[p][i] = at - kStep;
      const double below = run();
      weights[p][i] = at;
      EXPECT_NEAR(gradients[p][i], (above - below) / (2 * kStep), 1e-7 * scale + 1e-9)
          << set.parameters[p].name << " element " << i;
    }
  }
}

// ---- the table -----------------------------------------------------------------------------------------------------------

template <class O>
using Of = std::type_identity<O>;
using Cases = std::vector<std::pair<std::string, std::function<void(Computation&)>>>;

// Experts of the rows of h, from their scores to their combined output.
void mixture(Computation& c, std::int64_t capacity, double dropout, bool bias_scale, bool accumulate) {
  constexpr std::int64_t kWidth = 4, kHidden = 5;
  c.experts = 3, c.choices = 2;
  const RouteShape shape{c.tokens, c.batch, c.experts, c.choices, capacity};
  const std::int64_t buffer = c.experts * shape.row_capacity();
  const View scores = c.made("scores", c.rows(), c.experts), h = c.made("h", c.rows(), kWidth);
  const View choice = c.value("choice", c.rows(), c.choices, DType::kI32),
             slot = c.value("slot", c.rows(), c.choices, DType::kI32), gate = c.value("gate", c.rows(), c.choices),
             rows = c.value("rows", 1, c.experts, DType::kI32);
  const View in = c.value("in", buffer, kWidth), hidden = c.value("hidden", buffer, kHidden),
             activated = c.value("activated", buffer, kHidden), out = c.value("out", c.rows(), kWidth);
  c.add(Sigmoid{scores}, Route{.scores = scores,
                               .choice = choice,
                               .slot = slot,
                               .gate = gate,
                               .rows = rows,
                               .fraction = c.value("fraction", c.batch, c.experts),
                               .metrics = c.metrics(),
                               .shape = shape,
                               .balance_gradient = kBalanceWeight * static_cast<double>(c.experts) /
                                                   static_cast<double>(c.choices * c.batch)});
  if (accumulate) c.add(Gemm{.a = h, .b = c.parameter("shared", kWidth, kWidth), .c = out});
  c.add(Dispatch{h, slot, in, shape},
        GroupedGemm{.a = in,
                    .b = c.parameter("w0", c.experts * kWidth, kHidden),
                    .c = hidden,
                    .bias = c.parameter("b0", c.experts, kHidden),
                    .rows = rows,
                    .experts = c.experts,
                    .capacity = shape.row_capacity()},
        Gelu{hidden, activated, rows, c.experts, shape.row_capacity()},
        ExpertCombine{.a = activated,
                      .w = c.parameter("w1", c.experts * kHidden, kWidth),
                      .choice = choice,
                      .slot = slot,
                      .gate = gate,
                      .rows = rows,
                      .bias = c.parameter("b1", c.experts, kWidth),
                      .product = c.value("product", buffer, kWidth),
                      .out = out,
                      .shape = shape,
                      .bias_scale = bias_scale ? 0.5 : 1.0,
                      .dropout = dropout,
                      .accumulate = accumulate});
  c.lose(out);
}
const Cases kMixtures{{"of which none is dropped", [](Computation& c) { mixture(c, 4, 0, false, false); }},
                      {"beyond the capacity", [](Computation& c) { mixture(c, 2, 0, false, false); }},
                      {"with dropout and half a bias", [](Computation& c) { mixture(c, 3, 0.3, true, false); }},
                      {"beside a shared expert", [](Computation& c) { mixture(c, 3, 0.3, true, true); }}};

void attention(Computation& c, std::int64_t heads, std::int64_t rope_width, std::int64_t block) {
  constexpr std::int64_t kHead = 3;
  c.tokens = 7;
  const AttentionShape shape{c.tokens, c.batch, heads, kHead, rope_width, block};
  AttentionForward op{.qn = c.made("qn", c.rows(), heads * kHead),
                      .kv = c.made("kv", c.rows(), 2 * heads * kHead)};
  if (rope_width > 0) {
    op.qr = c.made("qr", c.rows(), heads * rope_width);
    op.kr = c.made("kr", c.rows(), rope_width);
  }
  op.out = c.value("out", c.rows(), heads * kHead);
  op.lse = c.value("lse", c.batch * heads, c.tokens);
  op.scratch = c.value("scratch", block, c.tokens);
  op.shape = shape;
  c.add(op);
  c.lose(op.out);
}

struct Table {
  Cases operator()(Of<Gemm>) const {
    Cases cases;
    for (const bool ta : {false, true})
      for (const bool tb : {false, true})
        for (const bool bias : {false, true})
          cases.push_back({"ta " + std::to_string(ta) + " tb " + std::to_string(tb) + " bias " + std::to_string(bias),
                           [=](Computation& c) {
                             const std::int64_t m = c.rows(), n = 4, k = 5;
                             const View out = c.value("out", m, n);
                             c.add(Gemm{.a = ta ? c.parameter("a", k, m) : c.parameter("a", m, k),
                                        .b = tb ? c.parameter("b", n, k) : c.parameter("b", k, n),
                                        .c = out,
                                        .bias = bias ? c.parameter("bias", 1, n) : View{},
                                        .ta = ta,
                                        .tb = tb});
                             c.lose(out);
                           }});
    cases.push_back({"into one window, from windows of one tensor and of one kernel", [](Computation& c) {
                       const View x = c.made("x", c.rows(), 6), wide = c.parameter("wide", 4, 8),
                                  out = c.value("out", c.rows(), 4);
                       c.add(Gemm{.a = x.columns(0, 4), .b = wide.columns(0, 4), .c = out},
                             Gemm{.a = x.columns(2, 4), .b = wide.columns(4, 4), .c = out, .accumulate = true});
                       c.lose(out);
                     }});
    return cases;
  }
  Cases operator()(Of<GroupedGemm>) const { return kMixtures; }
  Cases operator()(Of<RmsNorm>) const {
    return {{"of values that are used again", [](Computation& c) {
               const View x = c.made("x", c.rows(), 5), h = c.value("h", c.rows(), 5), in = c.value("in", c.rows(), 5),
                          y = c.value("y", c.rows(), 5);
               c.add(RmsNorm{x, c.parameter("gamma", 1, 5), c.parameter("beta", 1, 5), h, c.value("rstd", c.rows(), 1)},
                     Gemm{.a = h, .b = c.parameter("w", 5, 5), .c = in},
                     Residual{.x = x, .in = in, .bias = c.parameter("bias", 1, 5), .out = y, .batch = c.batch});
               c.lose(y);
             }}};
  }
  Cases operator()(Of<Rope>) const {
    return {{"of two heads",
             [](Computation& c) {
               const View x = c.made("x", c.rows(), 8);
               c.add(Rope{x, 2, 4, c.batch, false, false});
               c.lose(x);
             }},
            {"of some channels, in place", [](Computation& c) {
               const View x = c.made("x", c.rows(), 7);
               c.add(Rope{x.columns(3, 4), 1, 4, c.batch, false, false});
               c.lose(x);
             }}};
  }
  Cases operator()(Of<AttentionForward>) const {
    return {{"in one block", [](Computation& c) { attention(c, 2, 0, 7); }},
            {"in blocks", [](Computation& c) { attention(c, 1, 0, 3); }},
            {"with a rotary part", [](Computation& c) { attention(c, 2, 2, 3); }}};
  }
  Cases operator()(Of<Gelu>) const {
    Cases cases = kMixtures;  // of experts' rows
    cases.push_back({"of every row", [](Computation& c) {
                       const View x = c.made("x", c.rows(), 5), y = c.value("y", c.rows(), 5);
                       c.add(Gelu{x, y});
                       c.lose(y);
                     }});
    return cases;
  }
  Cases operator()(Of<Residual>) const {
    Cases cases;
    for (const double dropout : {0.0, 0.4})
      for (const std::int64_t chunks : {1, 2})
        cases.push_back(
            {"dropout " + std::to_string(dropout) + ", bias chunks " + std::to_string(chunks), [=](Computation& c) {
               const View y = c.value("y", c.rows(), 4);
               c.add(Residual{.x = c.made("x", c.rows(), 4),
                              .in = c.made("in", c.rows(), 4),
                              .bias = c.parameter("bias", 1, 4 * chunks),
                              .out = y,
                              .bias_chunks = chunks,
                              .batch = c.batch,
                              .dropout = dropout});
               c.lose(y);
             }});
    return cases;
  }
  Cases operator()(Of<Sigmoid>) const { return kMixtures; }
  Cases operator()(Of<Route>) const { return kMixtures; }
  Cases operator()(Of<Dispatch>) const { return kMixtures; }
  Cases operator()(Of<ExpertCombine>) const { return kMixtures; }
  Cases operator()(Of<Embed>) const {
    return {{"of tokens that come twice", [](Computation& c) {
               const View y = c.value("y", c.rows(), 4);
               c.add(Embed{c.parameter("words", kVocab, 4), c.token_ids(false), y});
               c.lose(y);
             }}};
  }
  Cases operator()(Of<LmHead>) const {
    return {{"in one chunk", [](Computation& c) { c.lose(c.made("x", c.rows(), 4), c.rows()); }},
            {"in chunks", [](Computation& c) { c.lose(c.made("x", c.rows(), 4), 3); }}};
  }
  // Over groups of several ranks, which the golden vectors and mesh invariance check on every mesh.
  Cases operator()(Of<Collective>) const { return {}; }

  // No forward pass has these: their rule is to say so.
  Cases operator()(Of<ColumnSum>) const { return {}; }
  Cases operator()(Of<GroupedColumnSum>) const { return {}; }
  Cases operator()(Of<RmsNormBackward>) const { return {}; }
  Cases operator()(Of<AttentionBackward>) const { return {}; }
  Cases operator()(Of<GeluBackward>) const { return {}; }
  Cases operator()(Of<ResidualBackward>) const { return {}; }
  Cases operator()(Of<SigmoidBackward>) const { return {}; }
  Cases operator()(Of<RouteBackward>) const { return {}; }
  Cases operator()(Of<DispatchBackward>) const { return {}; }
  Cases operator()(Of<CombineBackward>) const { return {}; }
  Cases operator()(Of<GateBackward>) const { return {}; }
  Cases operator()(Of<RowScale>) const { return {}; }
  Cases operator()(Of<EmbedBackward>) const { return {}; }
  Cases operator()(Of<Fill>) const { return {}; }
  Cases operator()(Of<Cast>) const { return {}; }
  Cases operator()(Of<SumSquares>) const { return {}; }
  Cases operator()(Of<AdamW>) const { return {}; }
  Cases operator()(Of<Send>) const { return {}; }
  Cases operator()(Of<Recv>) const { return {}; }
  Cases operator()(Of<Free>) const { return {}; }
};

template <class F, std::size_t... I>
void for_each_kind(F&& f, std::index_sequence<I...>) {
  (f(Of<std::variant_alternative_t<I, Op>>()), ...);
}

TEST(Derivatives, OfEveryKindOfOperationAreThoseOfFiniteDifferencesInF64) {
  int rank = 0, ranks = 1, turn = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  for_each_kind(
      [&]<class O>(Of<O> kind) {
        for (const auto& [name, write] : Table()(kind)) {
          if (turn++ % ranks != rank) continue;
          SCOPED_TRACE(std::string(O::kName) + " " + name);
          Computation c;
          write(c);
          expect_derivatives(c);
        }
      },
      std::make_index_sequence<kOpKinds>());
}

// A rule that gives nothing where nothing is asked: with no gradient coming in, none is made.
struct NoGradient final : Backward {
  int emitted = 0;
  View gradient(const View&) override { return {}; }
  View changeable_gradient(const View&) override { return {}; }
  Into into(const View&) override { return ADD_FAILURE(), Into{}; }
  void pass(const View&, const View&) override { ADD_FAILURE(); }
  View value(const View& v) override { return v; }
  View changeable_value(const View& v) override { return v; }
  DType dtype(const View&) const override { return DType::kF64; }
  View temporary(const std::string&, std::int64_t, std::int64_t, DType) override { return {}; }
  void add(Op) override { ++emitted; }
  const MeshShape& mesh() const override { return mesh_; }

 private:
  MeshShape mesh_;
};

TEST(Derivatives, OfWhatNothingDependsOnAreNotComputed) {
  for_each_kind(
      []<class O>(Of<O> kind) {
        if (Table()(kind).empty() || std::is_same_v<O, LmHead>) return;
        NoGradient none;
        differentiate(Op(O{}), none);
        EXPECT_EQ(none.emitted, 0) << O::kName;
      },
      std::make_index_sequence<kOpKinds>());
}

TEST(Derivatives, OfWhatNoForwardPassHasAreRefusedByName) {
  for_each_kind(
      []<class O>(Of<O> kind) {
        if (!Table()(kind).empty() || std::is_same_v<O, Collective>) return;
        NoGradient none;
        try {
          differentiate(Op(O{}), none);
          ADD_FAILURE() << O::kName;
        } catch (const std::logic_error& error) {
          EXPECT_NE(std::string(error.what()).find(O::kName), std::string::npos);
        }
      },
      std::make_index_sequence<kOpKinds>());
}

}  // namespace
}  // namespace meshwright
