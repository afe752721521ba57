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
#include "model/program/layout.h"
#include "tests/executor_mpi/training_case.h"

namespace meshwright {
namespace {

constexpr std::int64_t kVocab = 7;
constexpr double kBalanceWeight = 0.3;

// A computation in the making: tokens and sequences of one microbatch on one rank, parameters as they are asked for.
struct Computation {
  std::int64_t tokens = 4, batch = 2;
  int tp = 1;                             // ranks that share the work
  std::int64_t experts = 0, choices = 0;  // of the routing, if there is any
  Balance balance = Balance::kSequence;
  Piece piece{.name = "computation", .tensors = {}, .ops = {}, .workspace_bytes = 0};
  std::vector<Parameter> parameters;
  std::vector<Layout> layouts;  // of parameters, over tp
  std::int64_t parameter_elements = 0;

  std::int64_t rows() const { return tokens * batch; }
  std::int64_t own_rows() const { return rows() / tp; }
  View declare(std::string name, std::int64_t rows, std::int64_t cols, DType dtype, Frame frame, std::int64_t offset) {
    piece.tensors.push_back({std::move(name), {rows, cols}, dtype, frame, offset});
    return {static_cast<TensorId>(piece.tensors.size()) - 1, rows, cols, cols, 0};
  }
  View value(const std::string& name, std::int64_t r, std::int64_t cols, DType dtype = DType::kF64) {
    return declare(name, r, cols, dtype, Frame::kWorkspace, 0);
  }
  // Of r x cols on this rank.
  View parameter(const std::string& name, std::int64_t r, std::int64_t cols, Layout layout = Layout::replicate()) {
    const View v = declare(name, r, cols, DType::kF64, Frame::kWeights, parameter_elements * 8);
    Shape whole{r, cols};
    if (layout.kind == Layout::Kind::kShard) whole[static_cast<std::size_t>(layout.dim)] *= tp;
    parameters.push_back({name, whole});
    layouts.push_back(layout);
    parameter_elements += r * cols;
    return v;
  }
  View grad(const View& of) {
    const Tensor t = piece.tensors[static_cast<std::size_t>(of.tensor)];
    return declare("d." + t.name, of.rows, of.cols, DType::kF64, Frame::kGrads, t.offset);
  }
  View metrics() { return declare("metrics", 1, kLoadFirst + experts, DType::kF64, Frame::kMetrics, 0); }
  View token_ids(bool targets) {
    return declare(targets ? "targets" : "inputs", own_rows(), 1, DType::kI32, Frame::kTokens,
                   targets ? align_up(own_rows() * 4) : 0);
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
  void lose(const View& x, std::int64_t chunk = 3, bool with_bias = false) {
    const View table = parameter("table", kVocab, x.cols),
               bias = with_bias ? parameter("head.bias", 1, kVocab) : View{};
    add(LmHead{.x = x,
               .table = table,
               .targets = token_ids(true),
               .dx = value("dx", x.rows, x.cols),
               .dtable = grad(table),
               .logits = value("logits", chunk, kVocab),
               .metrics = metrics(),
               .bias = bias,
               .dbias = with_bias ? grad(bias) : View{},
               .scale = 1.0 / static_cast<double>(rows())});
  }
};

double number(std::uint64_t tensor, std::uint64_t i) {  // in (-1, 1)
  return static_cast<double>(kernels::mix64(tensor * 1000003 + i) >> 11) * 0x1p-52 - 1;
}

// The computation as the only thing that a step does.
ProgramSet as_step(Computation c) {
  ProgramSet set;
  set.mesh.tp = c.tp;
  set.step = {.sequences = c.batch, .tokens = c.tokens, .microbatch = c.batch, .microbatches = 1};
  set.compute = set.state = DType::kF64;
  set.experts = c.experts;
  set.choices = c.choices;
  set.balance_weight = kBalanceWeight;
  set.balance = c.balance;
  set.moe_layers = 1;
  const auto layout = std::make_shared<StateLayout>();
  layout->parameters = c.parameters;
  Unit unit{.name = "all", .elements = c.parameter_elements, .padded = c.parameter_elements};
  std::int64_t at = 0;
  for (int p = 0; p < static_cast<int>(c.parameters.size()); ++p) {
    const Layout& layout = c.layouts[static_cast<std::size_t>(p)];
    const Shape shape = local_shape(c.parameters[static_cast<std::size_t>(p)].shape, layout, c.tp);
    unit.parameters.push_back({p, layout, shape, at});
    at += elements(shape);
  }
  layout->blocks = {Block{.name = "all", .layer = 0, .units = {unit}, .padded = unit.padded}};

  const std::int64_t metrics_elements = kLoadFirst + c.experts, tokens_bytes = 2 * align_up(c.rows() * 4);
  set.pieces.push_back(
      {"clear",
       {{"grads", {1, unit.padded}, DType::kF64, Frame::kGrads, 0},
        {"metrics", {1, metrics_elements}, DType::kF64, Frame::kMetrics, 0}},
       {Fill{{0, 1, unit.padded, unit.padded, 0}}, Fill{{1, 1, metrics_elements, metrics_elements, 0}}},
       0});
  if (c.experts > 0) {
    Piece& clear = set.pieces.back();
    clear.tensors.push_back({"fraction", {1, c.experts}, DType::kF64, Frame::kBalance, 0});
    clear.ops.emplace_back(Fill{{2, 1, c.experts, c.experts, 0}});
  }
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
  s.moment1 = region("moment 1", MemoryClass::kOptimizer, state);
  s.moment2 = region("moment 2", MemoryClass::kOptimizer, state);
  layout->stages = {{{s}, program.regions, program.arena_bytes}};
  set.state_layout = layout;
  const std::int64_t gradients = region("gradients", MemoryClass::kGradients, state);
  program.buffers = {{.grads = gradients, .grad_shard = gradients}};
  const std::int64_t metrics = region("metrics", MemoryClass::kData, metrics_elements * 8),
                     balance = region("balance", MemoryClass::kData, c.experts * 8),
                     tokens = region("tokens", MemoryClass::kData, tokens_bytes),
                     workspace = region("workspace", MemoryClass::kWorkspace, set.pieces.back().workspace_bytes);
  for (int piece = 0; piece < 2; ++piece) {
    Call call{.piece = piece, .block = 0, .layer = 0};
    const std::pair<Frame, std::int64_t> frames[] = {{Frame::kWeights, s.weights}, {Frame::kGrads, gradients},
                                                     {Frame::kMetrics, metrics},   {Frame::kBalance, balance},
                                                     {Frame::kTokens, tokens},     {Frame::kWorkspace, workspace}};
    for (const auto& [frame, base] : frames) call.base[static_cast<std::size_t>(frame)] = base;
    program.chunks.push_back({set.pieces[static_cast<std::size_t>(piece)].name, {call}});
    program.slots.push_back(
        {.action = piece == 0 ? Action::kBegin : Action::kBackward, .microbatch = piece == 0 ? -1 : 0, .chunk = piece});
  }
  set.stages = {program};
  return set;
}

// `comm`: of c.tp ranks. With several, only parameters that they cut are looked at: the gradients of the others are summands.
void expect_derivatives(const Computation& c, MPI_Comm comm = MPI_COMM_SELF) {
  const ProgramSet set = as_step(c);
  Executor executor(set, comm, {.seed = 5});
  std::vector<std::vector<double>> weights;
  for (std::size_t p = 0; p < set.parameters().size(); ++p) {
    weights.emplace_back(static_cast<std::size_t>(elements(set.parameters()[p].shape)));
    for (std::size_t i = 0; i < weights[p].size(); ++i) weights[p][i] = number(p, i);
  }
  const auto run = [&] {
    executor.load_parameters([&](int p, std::int64_t first, std::int64_t n, double* out) {
      std::copy_n(weights[static_cast<std::size_t>(p)].begin() + first, n, out);
    });
    double loss = executor
                      .run_step({.fill =
                                     [&](int, std::int32_t* inputs, std::int32_t* targets) {
                                       for (std::int64_t i = 0; i < c.own_rows(); ++i) {
                                         inputs[i] = static_cast<std::int32_t>(i * 5 % kVocab);
                                         targets[i] = static_cast<std::int32_t>(i * 3 % kVocab);
                                       }
                                     }})
                      .loss;
    MPI_Allreduce(MPI_IN_PLACE, &loss, 1, MPI_DOUBLE, MPI_SUM, comm);
    return loss;
  };
  run();
  const auto gradients = executor.gather(Executor::State::kGradients);
  double scale = 0;  // the largest gradient: one that is 0 in exact arithmetic has an error, too
  for (const auto& g : gradients)
    for (const double x : g) scale = std::max(scale, std::abs(x));
  ASSERT_GT(scale, 1e-4) << "nothing depends on anything";
  constexpr double kStep = 1e-5;
  for (std::size_t p = 0; p < weights.size(); ++p) {
    if (c.tp > 1 && c.layouts[p].kind == Layout::Kind::kReplicate) continue;
    const std::size_t stride = std::max<std::size_t>(1, weights[p].size() / 24);
    for (std::size_t i = 0; i < weights[p].size(); i += stride) {
      const double at = weights[p][i];
      weights[p][i] = at + kStep;
      const double above = run();
      weights[p][i] = at - kStep;
      const double below = run();
      weights[p][i] = at;
      EXPECT_NEAR(gradients[p][i], (above - below) / (2 * kStep), 1e-7 * scale + 1e-9)
          << set.parameters()[p].name << " element " << i;
    }
  }
}

// ---- the table -----------------------------------------------------------------------------------------------------------

template <class O>
using Of = std::type_identity<O>;
using Cases = std::vector<std::pair<std::string, std::function<void(Computation&)>>>;

struct Mixture {
  std::int64_t capacity = 0;  // 0: nothing is dropped
  double dropout = 0;
  bool bias = true, bias_scale = false, accumulate = false, softmax = false, gated = false, correction = false;
  Balance balance = Balance::kSequence;
  std::int64_t experts = 3;
  RoutingRule rule{};
};

// Experts of the rows of h, from their scores to their combined output.
void mixture(Computation& c, const Mixture& m) {
  constexpr std::int64_t kWidth = 4, kHidden = 5;
  c.experts = m.experts, c.choices = 2, c.balance = m.balance;
  const RouteShape shape{c.tokens, c.batch, c.experts, c.choices, m.capacity};
  const std::int64_t buffer = shape.buffer_rows();
  const View scores = c.made("scores", c.rows(), c.experts), h = c.made("h", c.rows(), kWidth);
  const View choice = c.value("choice", c.rows(), c.choices, DType::kI32),
             slot = c.value("slot", c.rows(), c.choices, DType::kI32), gate = c.value("gate", c.rows(), c.choices),
             rows = c.value("rows", 1, c.experts, DType::kI32);
  const std::int64_t inner = m.gated ? 2 * kHidden : kHidden;
  const View in = c.value("in", buffer, kWidth), hidden = c.value("hidden", buffer, inner),
             activated = c.value("activated", buffer, kHidden), out = c.value("out", c.rows(), kWidth);
  if (m.softmax)
    c.add(Softmax{scores});
  else
    c.add(Sigmoid{scores});
  c.add(Route{
      .scores = scores,
      .choice = choice,
      .slot = slot,
      .gate = gate,
      .rows = rows,
      .fraction = m.balance == Balance::kSequence
                      ? c.value("fraction", c.batch, c.experts)
                      : c.declare("fraction", 1, c.experts, DType::kF64, Frame::kBalance, 0),
      .metrics = c.metrics(),
      .shape = shape,
      .balance_gradient = kBalanceWeight * static_cast<double>(c.experts) / static_cast<double>(c.choices * c.batch),
      .bias = m.correction ? c.parameter("correction", 1, c.experts) : View{},
      .rule = m.rule,
      .fraction_tokens = m.balance == Balance::kSequence ? 0 : c.rows()});
  if (m.accumulate) c.add(Gemm{.a = h, .b = c.parameter("shared", kWidth, kWidth), .c = out});
  c.add(Dispatch{h, slot, in, shape}, GroupedGemm{.a = in,
                                                  .b = c.parameter("w0", c.experts * kWidth, inner),
                                                  .c = hidden,
                                                  .bias = m.bias ? c.parameter("b0", c.experts, inner) : View{},
                                                  .rows = rows,
                                                  .experts = c.experts,
                                                  .capacity = shape.row_capacity()});
  if (m.gated)
    c.add(GatedActivation{ActivationKind::kSilu, hidden, activated, rows, c.experts, shape.row_capacity()});
  else
    c.add(Activation{ActivationKind::kGeluTanh, hidden, activated, rows, c.experts, shape.row_capacity()});
  c.add(ExpertCombine{.a = activated,
                      .w = c.parameter("w1", c.experts * kHidden, kWidth),
                      .choice = choice,
                      .slot = slot,
                      .gate = gate,
                      .rows = rows,
                      .bias = m.bias ? c.parameter("b1", c.experts, kWidth) : View{},
                      .product = c.value("product", buffer, kWidth),
                      .out = out,
                      .shape = shape,
                      .bias_scale = m.bias_scale ? 0.5 : 1.0,
                      .dropout = m.dropout,
                      .accumulate = m.accumulate});
  c.lose(out);
}
template <class F>
std::pair<std::string, std::function<void(Computation&)>> mixture_case(const char* name, F&& change) {
  Mixture m;
  change(m);
  return {name, [m](Computation& c) { mixture(c, m); }};
}
const Cases kMixtures{
    mixture_case("of which none is dropped", [](Mixture& m) { m.capacity = 4; }),
    mixture_case("beyond the capacity", [](Mixture& m) { m.capacity = 2; }),
    mixture_case("with dropout and half a bias",
                 [](Mixture& m) { m.capacity = 3, m.dropout = 0.3, m.bias_scale = true; }),
    mixture_case("beside a shared expert",
                 [](Mixture& m) { m.capacity = 3, m.dropout = 0.3, m.bias_scale = m.accumulate = true; }),
    mixture_case("packed", [](Mixture&) {}),
    mixture_case("balanced over all tokens", [](Mixture& m) { m.balance = Balance::kLayer, m.softmax = true; }),
    mixture_case("packed, gated, without biases, of softmax scores",
                 [](Mixture& m) { m.bias = false, m.gated = m.softmax = true; }),
    mixture_case("gated, beyond the capacity, not normalised",
                 [](Mixture& m) { m.capacity = 2, m.gated = true, m.rule.normalise = false, m.rule.scale = 1.7; }),
    mixture_case("packed, of groups by their two largest, with a correction of the choice",
                 [](Mixture& m) {
                   m.experts = 6, m.bias = false, m.gated = m.correction = true;
                   m.rule = {.epsilon = 0.05, .scale = 2.5, .groups = 3, .kept_groups = 2, .group_by_two = true};
                 }),
    mixture_case("of softmax scores, of groups by their largest, not normalised", [](Mixture& m) {
      m.capacity = 3, m.experts = 4, m.softmax = true;
      m.rule = {.normalise = false, .scale = 1.5, .groups = 2, .kept_groups = 1};
    })};

struct AttentionCase {
  std::int64_t heads = 2, kv_heads = 2, value_dim = 3, rope_width = 0, block = 7, window = 0;
  double dropout = 0;
  bool joint = false;  // q, k and v are columns of one tensor
};
void attention(Computation& c, const AttentionCase& a) {
  constexpr std::int64_t kHead = 3;
  c.tokens = 7;
  const AttentionShape shape{.tokens = c.tokens,
                             .batch = c.batch,
                             .heads = a.heads,
                             .kv_heads = a.kv_heads,
                             .head_dim = kHead,
                             .value_dim = a.value_dim,
                             .rope_width = a.rope_width,
                             .block = a.block,
                             .window = a.window,
                             .scale = 0.7};
  Attention op;
  const std::int64_t q = a.heads * kHead, k = a.kv_heads * kHead, v = a.kv_heads * a.value_dim;
  if (a.joint) {
    const View qkv = c.made("qkv", c.rows(), q + k + v);
    op.q = qkv.columns(0, q), op.k = qkv.columns(q, k), op.v = qkv.columns(q + k, v);
  } else {
    op.q = c.made("q", c.rows(), q), op.k = c.made("k", c.rows(), k), op.v = c.made("v", c.rows(), v);
  }
  if (a.rope_width > 0) {
    op.qr = c.made("qr", c.rows(), a.heads * a.rope_width);
    op.kr = c.made("kr", c.rows(), a.rope_width);
  }
  op.out = c.value("out", c.rows(), a.heads * a.value_dim);
  op.lse = c.value("lse", c.batch * a.heads, c.tokens);
  op.scratch = c.value("scratch", a.block, shape.block_columns());
  op.shape = shape;
  op.dropout = a.dropout;
  c.add(op);
  c.lose(op.out);
}

// The parts of a norm that is cut over tp, on one rank, and a use of its rows beside it.
void cut_norm(Computation& c, bool used_again) {
  const View x = c.made("x", c.rows(), 5), y = c.value("y", c.rows(), 5), ms = c.value("mean_square", c.rows(), 1);
  c.add(RowMeanSquare{x, ms, 10}, RmsScale{x, ms, c.parameter("gamma", 1, 5), y, 0.1});
  if (!used_again) return c.lose(y);
  const View in = c.value("in", c.rows(), 5), z = c.value("z", c.rows(), 5);
  c.add(Gemm{.a = y, .b = c.parameter("w", 5, 5), .c = in}, Residual{.x = x, .in = in, .out = z, .batch = c.batch});
  c.lose(z);
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
    Cases cases{{"of values that are used again",
                 [](Computation& c) {
                   const View x = c.made("x", c.rows(), 5), h = c.value("h", c.rows(), 5),
                              in = c.value("in", c.rows(), 5), y = c.value("y", c.rows(), 5);
                   c.add(RmsNorm{.x = x,
                                 .gamma = c.parameter("gamma", 1, 5),
                                 .beta = c.parameter("beta", 1, 5),
                                 .out = h,
                                 .rstd = c.value("rstd", c.rows(), 1)},
                         Gemm{.a = h, .b = c.parameter("w", 5, 5), .c = in},
                         Residual{.x = x, .in = in, .bias = c.parameter("bias", 1, 5), .out = y, .batch = c.batch});
                   c.lose(y);
                 }},
                {"of each head, which turns and attends as a row of heads", [](Computation& c) {
                   const std::int64_t heads = 2, width = 4;
                   const View x = c.made("x", c.rows(), heads * width), y = c.value("y", c.rows(), heads * width);
                   const auto by_head = [&](View v) { return View{v.tensor, v.rows * heads, width, width, 0}; };
                   c.add(RmsNorm{.x = by_head(x),
                                 .gamma = c.parameter("gamma", 1, width),
                                 .out = by_head(y),
                                 .rstd = c.value("rstd", c.rows() * heads, 1)},
                         Rope{y, heads, width, width, c.batch, {.pairing = RopePairing::kHalf}, false, false});
                   const View out = c.value("out", c.rows(), heads * width);
                   c.add(Attention{.q = y,
                                   .k = c.made("k", c.rows(), width),
                                   .v = c.made("v", c.rows(), width),
                                   .out = out,
                                   .lse = c.value("lse", c.batch * heads, c.tokens),
                                   .scratch = c.value("scratch", c.tokens, c.tokens),
                                   .shape = {.tokens = c.tokens,
                                             .batch = c.batch,
                                             .heads = heads,
                                             .kv_heads = 1,
                                             .head_dim = width,
                                             .value_dim = width,
                                             .block = c.tokens,
                                             .scale = 0.5}});
                   c.lose(out);
                 }}};
    for (const bool beta : {false, true})
      cases.push_back({"of 1 + gamma, beta " + std::to_string(beta), [=](Computation& c) {
                         const View y = c.value("y", c.rows(), 5);
                         c.add(RmsNorm{.x = c.made("x", c.rows(), 5),
                                       .gamma = c.parameter("gamma", 1, 5),
                                       .beta = beta ? c.parameter("beta", 1, 5) : View{},
                                       .out = y,
                                       .rstd = c.value("rstd", c.rows(), 1),
                                       .epsilon = 0.1,
                                       .gamma_offset = 1});
                         c.lose(y);
                       }});
    return cases;
  }
  Cases operator()(Of<LayerNorm>) const {
    Cases cases;
    for (const bool beta : {false, true})
      for (const bool used_again : {false, true})
        cases.push_back(
            {"beta " + std::to_string(beta) + ", of values that are used again " + std::to_string(used_again),
             [=](Computation& c) {
               const View x = c.made("x", c.rows(), 5), h = c.value("h", c.rows(), 5);
               c.add(LayerNorm{.x = x,
                               .gamma = c.parameter("gamma", 1, 5),
                               .beta = beta ? c.parameter("beta", 1, 5) : View{},
                               .out = h,
                               .mean = c.value("mean", c.rows(), 1),
                               .rstd = c.value("rstd", c.rows(), 1),
                               .epsilon = 0.1});
               if (!used_again) return c.lose(h);
               const View in = c.value("in", c.rows(), 5), y = c.value("y", c.rows(), 5);
               c.add(Gemm{.a = h, .b = c.parameter("w", 5, 5), .c = in},
                     Residual{.x = x, .in = in, .out = y, .batch = c.batch});
               c.lose(y);
             }});
    return cases;
  }
  Cases operator()(Of<RowMeanSquare>) const {
    return {{"of half a row", [](Computation& c) { cut_norm(c, false); }}};
  }
  Cases operator()(Of<RmsScale>) const {
    return {{"of values that are used again", [](Computation& c) { cut_norm(c, true); }}};
  }
  Cases operator()(Of<Rope>) const {
    Cases cases;
    const std::pair<const char*, RopeSpec> specs[] = {{"adjacent", {}},
                                                      {"half", {.pairing = RopePairing::kHalf, .theta = 500}},
                                                      {"yarn, with a factor of attention",
                                                       {.pairing = RopePairing::kHalf,
                                                        .scaling = RopeScaling::kYarn,
                                                        .factor = 4,
                                                        .original_positions = 3,
                                                        .attention_factor = 1.3}}};
    for (const auto& [name, spec] : specs) {
      cases.push_back({std::string(name) + ", of two heads", [spec = spec](Computation& c) {
                         const View x = c.made("x", c.rows(), 8);
                         c.add(Rope{x, 2, 4, 4, c.batch, spec, false, false});
                         c.lose(x);
                       }});
      cases.push_back({std::string(name) + ", of some channels of each head", [spec = spec](Computation& c) {
                         const View x = c.made("x", c.rows(), 14);
                         c.add(Rope{x, 2, 7, 4, c.batch, spec, false, false});
                         c.lose(x);
                       }});
    }
    cases.push_back({"of some channels, in place", [](Computation& c) {
                       const View x = c.made("x", c.rows(), 7);
                       c.add(Rope{x.columns(3, 4), 1, 4, 4, c.batch, {}, false, false});
                       c.lose(x);
                     }});
    return cases;
  }
  Cases operator()(Of<Attention>) const {
    const std::pair<const char*, AttentionCase> all[] = {
        {"in one block", {}},
        {"in blocks", {.heads = 1, .kv_heads = 1, .block = 3}},
        {"with a rotary part", {.rope_width = 2, .block = 3}},
        {"of groups", {.heads = 4, .kv_heads = 2, .block = 3}},
        {"of one key for all, values of another width", {.heads = 3, .kv_heads = 1, .value_dim = 2, .rope_width = 2}},
        {"in a window", {.heads = 2, .kv_heads = 1, .rope_width = 2, .block = 2, .window = 3}},
        {"with dropout", {.heads = 2, .kv_heads = 1, .rope_width = 2, .block = 3, .dropout = 0.3}},
        {"with dropout in a window, of columns of one tensor",
         {.heads = 2, .kv_heads = 1, .value_dim = 4, .block = 3, .window = 4, .dropout = 0.3, .joint = true}}};
    Cases cases;
    for (const auto& [name, a] : all) cases.push_back({name, [a = a](Computation& c) { attention(c, a); }});
    return cases;
  }
  Cases operator()(Of<Activation>) const {
    Cases cases = kMixtures;  // of experts' rows
    for (int kind = 0; kind < static_cast<int>(kActivationNames.size()); ++kind)
      cases.push_back(
          {"of every row, " + std::string(kActivationNames[static_cast<std::size_t>(kind)]), [=](Computation& c) {
             const View x = c.made("x", c.rows(), 5), y = c.value("y", c.rows(), 5);
             c.add(Activation{static_cast<ActivationKind>(kind), x, y});
             c.lose(y);
           }});
    return cases;
  }
  Cases operator()(Of<GatedActivation>) const {
    Cases cases = kMixtures;
    for (int kind = 0; kind < static_cast<int>(kActivationNames.size()); ++kind)
      cases.push_back(
          {"of every row, " + std::string(kActivationNames[static_cast<std::size_t>(kind)]), [=](Computation& c) {
             const View x = c.made("x", c.rows(), 10), y = c.value("y", c.rows(), 5);
             c.add(GatedActivation{static_cast<ActivationKind>(kind), x, y});
             c.lose(y);
           }});
    return cases;
  }
  Cases operator()(Of<Residual>) const {
    Cases cases;
    for (const double dropout : {0.0, 0.4})
      for (const bool x : {false, true})
        for (const std::int64_t chunks : {0, 1, 2})
          cases.push_back({"dropout " + std::to_string(dropout) + ", x " + std::to_string(x) + ", bias chunks " +
                               std::to_string(chunks),
                           [=](Computation& c) {
                             const View y = c.value("y", c.rows(), 4);
                             c.add(Residual{.x = x ? c.made("x", c.rows(), 4) : View{},
                                            .in = c.made("in", c.rows(), 4),
                                            .bias = chunks ? c.parameter("bias", 1, 4 * chunks) : View{},
                                            .out = y,
                                            .bias_chunks = std::max<std::int64_t>(chunks, 1),
                                            .batch = c.batch,
                                            .dropout = dropout,
                                            .site = DropoutSite::kEmbedding});
                             c.lose(y);
                           }});
    return cases;
  }
  Cases operator()(Of<Sigmoid>) const { return kMixtures; }
  Cases operator()(Of<Softmax>) const { return kMixtures; }
  Cases operator()(Of<Route>) const { return kMixtures; }
  Cases operator()(Of<Dispatch>) const { return kMixtures; }
  Cases operator()(Of<ExpertCombine>) const { return kMixtures; }
  Cases operator()(Of<Embed>) const {
    Cases cases;
    for (const bool positions : {false, true})
      cases.push_back({"of tokens that come twice, positions " + std::to_string(positions), [=](Computation& c) {
                         const View y = c.value("y", c.rows(), 4);
                         c.add(Embed{.table = c.parameter("words", kVocab, 4),
                                     .tokens = c.token_ids(false),
                                     .positions = positions ? c.parameter("positions", c.tokens + 2, 4) : View{},
                                     .out = y,
                                     .scale = positions ? 1.5 : 1.0,
                                     .batch = c.batch});
                         c.lose(y);
                       }});
    return cases;
  }
  Cases operator()(Of<LmHead>) const {
    Cases cases;
    for (const bool bias : {false, true})
      for (const std::int64_t chunk : {8, 3})
        cases.push_back({"in chunks of " + std::to_string(chunk) + ", bias " + std::to_string(bias),
                         [=](Computation& c) { c.lose(c.made("x", c.rows(), 4), chunk, bias); }});
    return cases;
  }
  // Over groups of several ranks, which the golden vectors and mesh invariance check on every mesh.
  Cases operator()(Of<Collective>) const { return {}; }

  // No forward pass has these: their rule is to say so.
  Cases operator()(Of<ColumnSum>) const { return {}; }
  Cases operator()(Of<GroupedColumnSum>) const { return {}; }
  Cases operator()(Of<RmsNormBackward>) const { return {}; }
  Cases operator()(Of<AttentionBackward>) const { return {}; }
  Cases operator()(Of<LayerNormBackward>) const { return {}; }
  Cases operator()(Of<RowMeanSquareBackward>) const { return {}; }
  Cases operator()(Of<RmsScaleBackward>) const { return {}; }
  Cases operator()(Of<ActivationBackward>) const { return {}; }
  Cases operator()(Of<GatedActivationBackward>) const { return {}; }
  Cases operator()(Of<ResidualBackward>) const { return {}; }
  Cases operator()(Of<SigmoidBackward>) const { return {}; }
  Cases operator()(Of<SoftmaxBackward>) const { return {}; }
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

// A norm over rows that two ranks cut: sums of summands, in place, forward and backward.
TEST(Derivatives, OfANormOverRowsThatAreCutOverTpAreThoseOfFiniteDifferences) {
  const FirstRanks ranks(2);
  if (!ranks) return;
  Computation c;
  c.tp = 2;
  const std::int64_t part = 3;
  const View x = c.value("x", c.rows(), part), ms = c.value("mean_square", c.rows(), 1),
             y = c.value("y", c.rows(), part), projected = c.value("projected", c.rows(), 4),
             own = c.value("own", c.own_rows(), 4);
  c.add(Gemm{.a = c.parameter("left", c.rows(), 3), .b = c.parameter("right", 3, part, Layout::shard(1)), .c = x},
        RowMeanSquare{x, ms, 2 * part},
        Collective{.kind = CollectiveKind::kAllReduce,
                   .group = Group::kTp,
                   .src = ms,
                   .dst = ms,
                   .scratch = c.value("ms.recv", 1, ring_scratch(c.rows(), 2, DType::kF64)),
                   .in_place = true},
        RmsScale{x, ms, c.parameter("gamma", 1, part, Layout::shard(1)), y, 0.1},
        Gemm{.a = y, .b = c.parameter("out", part, 4, Layout::shard(0)), .c = projected},
        Collective{.kind = CollectiveKind::kReduceScatter,
                   .group = Group::kTp,
                   .src = projected,
                   .dst = own,
                   .scratch = c.value("own.recv", 1, ring_scratch(c.rows() * 4, 2, DType::kF64))});
  c.lose(own);
  expect_derivatives(c, ranks.get());
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
