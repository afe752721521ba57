#include "model/program/derivative.h"

#include <stdexcept>
#include <string>
#include <utility>

#include "model/program/check.h"

namespace meshwright {

View Backward::overwrite(const View& read) {
  const Into to = into(read);
  check(!to.accumulate, "a gradient that can only be overwritten is added to another");
  return to.view;
}

namespace {

// One rule a kind of operation. y: what was written, d: its gradient.
struct Rule {
  Backward& b;

  // c = op(a) op(b) + bias:  dop(a) = dc op(b)^T,  dop(b) = op(a)^T dc,  dbias = column sums of dc.
  void operator()(const Gemm& op) {
    const View d = b.gradient(op.c);
    if (!d) return;
    if (const auto db = b.into(op.b)) {
      const View a = b.value(op.a);
      b.add(op.tb ? Gemm{.a = d, .b = a, .c = db.view, .ta = true, .tb = op.ta, .accumulate = db.accumulate}
                  : Gemm{.a = a, .b = d, .c = db.view, .ta = !op.ta, .accumulate = db.accumulate});
    }
    bias(op.bias, d);
    if (const auto da = b.into(op.a)) {
      const View w = b.value(op.b);
      b.add(op.ta ? Gemm{.a = w, .b = d, .c = da.view, .ta = op.tb, .tb = true, .accumulate = da.accumulate}
                  : Gemm{.a = d, .b = w, .c = da.view, .tb = !op.tb, .accumulate = da.accumulate});
    }
  }
  void bias(const View& bias, const View& d) {
    if (!bias) return;
    if (const auto to = b.into(bias)) b.add(ColumnSum{d, to.view, 1, to.accumulate});
  }

  // The same for each expert on its rows.
  void operator()(const GroupedGemm& op) {
    check(!op.ta && !op.accumulate, "grouped_gemm: only products of rows are differentiated");
    const View d = b.gradient(op.c);
    if (!d) return;
    const View rows = b.value(op.rows);
    const auto product = [&](View x, View y, Backward::Into to, bool ta, bool tb) {
      b.add(GroupedGemm{.a = x,
                        .b = y,
                        .c = to.view,
                        .rows = rows,
                        .experts = op.experts,
                        .capacity = op.capacity,
                        .ta = ta,
                        .tb = tb,
                        .accumulate = to.accumulate});
    };
    if (const auto dw = b.into(op.b)) {
      check(!op.tb, "grouped_gemm: weights that are read transposed have no gradient yet");
      product(b.value(op.a), d, dw, true, false);
    }
    if (op.bias)
      if (const auto to = b.into(op.bias))
        b.add(GroupedColumnSum{.in = d,
                               .rows = rows,
                               .out = to.view,
                               .experts = op.experts,
                               .capacity = op.capacity,
                               .accumulate = to.accumulate});
    product(d, b.value(op.b), {b.overwrite(op.a)}, false, !op.tb);
  }

  void operator()(const RmsNorm& op) {
    const View dy = b.gradient(op.out);
    if (!dy) return;
    const View x = b.value(op.x), rstd = b.value(op.rstd), gamma = b.value(op.gamma);
    const auto [dgamma, dbeta] = norm_parameters(op.gamma, op.beta);
    const auto dx = b.into(op.x);
    b.add(RmsNormBackward{.dy = dy,
                          .x = x,
                          .rstd = rstd,
                          .gamma = gamma,
                          .dx = dx.view,
                          .dgamma = dgamma.view,
                          .dbeta = dbeta.view,
                          .accumulate = dgamma.accumulate,
                          .accumulate_dx = dx.accumulate,
                          .gamma_offset = op.gamma_offset});
  }
  std::pair<Backward::Into, Backward::Into> norm_parameters(const View& gamma, const View& beta) {
    const auto dgamma = b.into(gamma), dbeta = beta ? b.into(beta) : Backward::Into{};
    check(!beta || dgamma.accumulate == dbeta.accumulate, "norm: gradients of gamma and beta are kept alike");
    return {dgamma, dbeta};
  }

  void operator()(const LayerNorm& op) {
    const View dy = b.gradient(op.out);
    if (!dy) return;
    const View x = b.value(op.x), mean = b.value(op.mean), rstd = b.value(op.rstd), gamma = b.value(op.gamma);
    const auto [dgamma, dbeta] = norm_parameters(op.gamma, op.beta);
    const auto dx = b.into(op.x);
    b.add(LayerNormBackward{.dy = dy,
                            .x = x,
                            .mean = mean,
                            .rstd = rstd,
                            .gamma = gamma,
                            .dx = dx.view,
                            .dgamma = dgamma.view,
                            .dbeta = dbeta.view,
                            .accumulate = dgamma.accumulate,
                            .accumulate_dx = dx.accumulate});
  }

  void operator()(const RowMeanSquare& op) {
    const View d = b.gradient(op.out);
    if (!d) return;
    const View x = b.value(op.x);
    const auto dx = b.into(op.x);
    b.add(RowMeanSquareBackward{d, x, dx.view, op.width, dx.accumulate});
  }

  void operator()(const RmsScale& op) {
    const View dy = b.gradient(op.out);
    if (!dy) return;
    const View x = b.value(op.x), mean_square = b.value(op.mean_square), gamma = b.value(op.gamma);
    const auto dgamma = b.into(op.gamma), dx = b.into(op.x);
    b.add(RmsScaleBackward{.dy = dy,
                           .x = x,
                           .mean_square = mean_square,
                           .gamma = gamma,
                           .dx = dx.view,
                           .dmean_square = b.overwrite(op.mean_square),
                           .dgamma = dgamma.view,
                           .epsilon = op.epsilon,
                           .accumulate = dgamma.accumulate,
                           .accumulate_dx = dx.accumulate});
  }

  // Linear: the gradient goes through its transpose.
  void operator()(const Rope& op) {
    Rope back = op;
    back.x = b.changeable_gradient(op.x);
    back.inverse = !op.inverse;
    if (back.x) b.add(back);
  }

  void operator()(const Attention& op) {
    const View dout = b.gradient(op.out);
    if (!dout) return;
    AttentionBackward back{.q = b.value(op.q), .k = b.value(op.k), .v = b.value(op.v)};
    if (op.qr) back.qr = b.value(op.qr), back.kr = b.value(op.kr);
    back.lse = b.value(op.lse);
    back.dout = dout;
    back.dq = b.overwrite(op.q), back.dk = b.overwrite(op.k), back.dv = b.overwrite(op.v);
    if (op.qr) back.dqr = b.overwrite(op.qr), back.dkr = b.overwrite(op.kr);
    // Of operands narrower than scores, one head's dk, dv and dkr too: sums over blocks of rows are rounded once.
    const std::int64_t sums = op.shape.tokens * (op.shape.head_dim + op.shape.value_dim + op.shape.rope_width),
                       columns = op.shape.block_columns();
    const std::int64_t rows =
        2 * op.shape.block + (b.dtype(op.q) == b.dtype(op.scratch) ? 0 : (sums + columns - 1) / columns);
    back.scratch = b.temporary("d." + std::string(Attention::kName) + ".scratch", rows, columns, b.dtype(op.scratch));
    back.shape = op.shape;
    back.dropout = op.dropout;
    b.add(back);
  }

  void operator()(const Activation& op) {
    const View d = b.changeable_gradient(op.out);
    if (!d) return;
    ActivationBackward back{.kind = op.kind, .in = b.value(op.in), .d = d};
    if (op.rows) back.rows = b.value(op.rows), back.experts = op.experts, back.capacity = op.capacity;
    b.add(back);
    b.pass(op.in, d);
  }

  void operator()(const GatedActivation& op) {
    const View d = b.gradient(op.out);
    if (!d) return;
    GatedActivationBackward back{.kind = op.kind, .in = b.value(op.in), .d = d};
    if (op.rows) back.rows = b.value(op.rows), back.experts = op.experts, back.capacity = op.capacity;
    back.din = b.overwrite(op.in);
    b.add(back);
  }

  // out = x + dropout(in + bias): x gets the gradient itself.
  void operator()(const Residual& op) {
    const View d = b.gradient(op.out);
    if (!d) return;
    if (op.dropout > 0) {
      const auto dbias = op.bias ? b.into(op.bias) : Backward::Into{};
      b.add(ResidualBackward{d, b.overwrite(op.in), dbias.view, op.bias_chunks, op.batch, op.dropout, op.site,
                             dbias.accumulate});
    } else {
      if (op.bias)
        if (const auto to = b.into(op.bias)) b.add(ColumnSum{d, to.view, op.bias_chunks, to.accumulate});
      b.pass(op.in, d);
    }
    if (op.x) b.pass(op.x, d);
  }

  void operator()(const Sigmoid& op) {
    const View d = b.changeable_gradient(op.x);
    if (d) b.add(SigmoidBackward{b.value(op.x), d});
  }

  void operator()(const Softmax& op) {
    const View d = b.changeable_gradient(op.x);
    if (d) b.add(SoftmaxBackward{b.value(op.x), d});
  }

  // The bias only chooses: its gradient is 0.
  void operator()(const Route& op) {
    const View dgate = b.gradient(op.gate);
    if (!dgate) return;
    b.add(RouteBackward{dgate, b.value(op.scores), b.value(op.choice), b.value(op.gate), b.value(op.fraction),
                        b.overwrite(op.scores), op.shape, op.balance_gradient / b.mesh().tp, op.rule,
                        op.fraction_tokens > 0 ? b.value(op.metrics) : View{}});
    if (op.bias)
      if (const auto to = b.into(op.bias); to && !to.accumulate) b.add(Fill{to.view});
  }

  void operator()(const Dispatch& op) {
    const View d = b.gradient(op.out);
    if (!d) return;
    const View slot = b.value(op.slot);
    const auto dh = b.into(op.h);
    b.add(DispatchBackward{d, slot, dh.view, op.shape, dh.accumulate});
  }

  // With d = mask * dout / keep, not yet gated, and da = d W^T:  dgate = a . da + bias_scale d . bias;  then both a and da
  // are gated:  dW = (gate a)^T d,  dbias = bias_scale * sums of gate d,  and gate da is the gradient of a.
  void operator()(const ExpertCombine& op) {
    const View dout = b.gradient(op.out);
    if (!dout) return;
    const View choice = b.value(op.choice), slot = b.value(op.slot), gate = b.value(op.gate), rows = b.value(op.rows),
               w = b.value(op.w);
    const std::int64_t capacity = op.shape.row_capacity(), buffer = op.shape.buffer_rows();
    const View d = b.temporary("d.product", buffer, op.product.cols, b.dtype(op.product)),
               row_gate = b.temporary("row_gate", buffer, 1, b.dtype(op.gate));
    b.add(CombineBackward{dout, choice, slot, gate, d, row_gate, op.shape, op.dropout});
    const View a = b.changeable_value(op.a), da = b.overwrite(op.a);
    b.add(GroupedGemm{
        .a = d, .b = w, .c = da, .rows = rows, .experts = op.shape.experts, .capacity = capacity, .tb = true});
    b.add(GateBackward{.a = a,
                       .da = da,
                       .d = d,
                       .bias = op.bias ? b.value(op.bias) : View{},
                       .choice = choice,
                       .slot = slot,
                       .dgate = b.overwrite(op.gate),
                       .shape = op.shape,
                       .bias_scale = op.bias_scale});
    b.add(RowScale{row_gate, rows, a, op.shape});
    const auto dw = b.into(op.w), dbias = op.bias ? b.into(op.bias) : Backward::Into{};
    b.add(GroupedGemm{.a = a,
                      .b = d,
                      .c = dw.view,
                      .rows = rows,
                      .experts = op.shape.experts,
                      .capacity = capacity,
                      .ta = true,
                      .accumulate = dw.accumulate});
    if (dbias)
      b.add(GroupedColumnSum{.in = d,
                             .rows = rows,
                             .out = dbias.view,
                             .weight = row_gate,
                             .experts = op.shape.experts,
                             .capacity = capacity,
                             .scale = op.bias_scale,
                             .accumulate = dbias.accumulate});
    b.add(RowScale{row_gate, rows, da, op.shape});
  }

  void operator()(const Embed& op) {
    const View d = b.gradient(op.out);
    if (!d) return;
    const auto table = b.into(op.table), positions = op.positions ? b.into(op.positions) : Backward::Into{};
    check(table.accumulate && (!positions || positions.accumulate), "embed: gradients of tables are accumulators");
    b.add(EmbedBackward{.d = d,
                        .tokens = b.value(op.tokens),
                        .dtable = table.view,
                        .dpositions = positions.view,
                        .scale = op.scale,
                        .batch = op.batch,
                        .padding = op.padding});
  }

  // It has left its gradients already.
  void operator()(const LmHead& op) {
    b.pass(op.x, b.value(op.dx));
    b.pass(op.table, b.value(op.dtable));
    if (op.bias) b.pass(op.bias, b.value(op.dbias));
  }

  // Over a group of which each member does its part of the work behind a gathered tensor, that tensor's gradient is a
  // summand: gathering and scattering sums are each other's transposes, and summing everywhere is its own.
  void operator()(const Collective& op) {
    if (op.kind == CollectiveKind::kAllReduce) return sum(op);
    const View d = b.gradient(op.dst);
    if (!d) return;
    if (op.kind == CollectiveKind::kAllGather) {
      const auto to = b.into(op.src);
      b.add(Collective{.kind = CollectiveKind::kReduceScatter,
                       .group = op.group,
                       .algorithm = op.algorithm,
                       .src = d,
                       .dst = to.view,
                       .scratch = b.temporary("recv", 1, op.src.rows * op.src.cols, b.dtype(op.src)),
                       .accumulate = to.accumulate});
    } else {
      b.add(Collective{.kind = CollectiveKind::kAllGather,
                       .group = op.group,
                       .algorithm = op.algorithm,
                       .src = d,
                       .dst = b.overwrite(op.src)});
    }
  }
  void sum(const Collective& op) {
    Collective back = op;
    back.src = back.dst = b.changeable_gradient(op.dst);
    if (!back.src) return;
    back.scratch = b.temporary("recv", op.scratch.rows, op.scratch.cols, b.dtype(op.scratch));
    b.add(back);
  }

  // Kinds that only backward passes, the end of a step, and the borders of stages have.
  template <class O>
  void operator()(const O&) {
    static_assert(kOpKinds == 44, "a new kind of operation: write its derivative here");
    throw std::logic_error("no derivative of " + std::string(O::kName) + ": no forward pass has it");
  }
};

}  // namespace

void differentiate(const Op& op, Backward& backward) { std::visit(Rule{backward}, op); }

bool is_cheap_again(const Op& op) {
  return std::holds_alternative<RmsNorm>(op) || std::holds_alternative<LayerNorm>(op) ||
         std::holds_alternative<RmsScale>(op) || std::holds_alternative<Activation>(op) ||
         std::holds_alternative<GatedActivation>(op) || std::holds_alternative<Dispatch>(op);
}

}  // namespace meshwright
