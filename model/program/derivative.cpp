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
    const auto dgamma = b.into(op.gamma), dbeta = b.into(op.beta), dx = b.into(op.x);
    check(dgamma.accumulate == dbeta.accumulate, "rms_norm: gradients of gamma and beta are kept alike");
    b.add(RmsNormBackward{dy, x, rstd, gamma, dx.view, dgamma.view, dbeta.view, dgamma.accumulate, dx.accumulate});
  }

  // A rotation: its transpose is its inverse.
  void operator()(const Rope& op) {
    Rope back = op;
    back.x = b.changeable_gradient(op.x);
    back.inverse = !op.inverse;
    if (back.x) b.add(back);
  }

  void operator()(const AttentionForward& op) {
    const View dout = b.gradient(op.out);
    if (!dout) return;
    AttentionBackward back{.qn = b.value(op.qn), .kv = b.value(op.kv)};
    if (op.qr) back.qr = b.value(op.qr), back.kr = b.value(op.kr);
    back.lse = b.value(op.lse);
    back.dout = dout;
    back.dqn = b.overwrite(op.qn), back.dkv = b.overwrite(op.kv);
    if (op.qr) back.dqr = b.overwrite(op.qr), back.dkr = b.overwrite(op.kr);
    back.scratch = b.temporary("d." + std::string(AttentionForward::kName) + ".scratch", 2 * op.shape.block,
                               op.shape.tokens, b.dtype(op.scratch));
    back.shape = op.shape;
    b.add(back);
  }

  void operator()(const Gelu& op) {
    const View d = b.changeable_gradient(op.out);
    if (!d) return;
    GeluBackward back{b.value(op.in), d};
    if (op.rows) back.rows = b.value(op.rows), back.experts = op.experts, back.capacity = op.capacity;
    b.add(back);
    b.pass(op.in, d);
  }

  // out = x + dropout(in + bias): x gets the gradient itself.
  void operator()(const Residual& op) {
    const View d = b.gradient(op.out);
    if (!d) return;
    if (op.dropout > 0) {
      check(static_cast<bool>(op.bias), "residual: dropout without a bias has no derivative yet");
      const auto dbias = b.into(op.bias);
      b.add(ResidualBackward{d, b.overwrite(op.in), dbias.view, op.bias_chunks, op.batch, op.dropout, op.site,
                             dbias.accumulate});
    } else {
      if (op.bias)
        if (const auto to = b.into(op.bias)) b.add(ColumnSum{d, to.view, op.bias_chunks, to.accumulate});
      b.pass(op.in, d);
    }
    b.pass(op.x, d);
  }

  void operator()(const Sigmoid& op) {
    const View d = b.changeable_gradient(op.x);
    if (d) b.add(SigmoidBackward{b.value(op.x), d});
  }

  void operator()(const Route& op) {
    const View dgate = b.gradient(op.gate);
    if (!dgate) return;
    b.add(RouteBackward{dgate, b.value(op.scores), b.value(op.choice), b.value(op.gate), b.value(op.fraction),
                        b.overwrite(op.scores), op.shape, op.balance_gradient / b.mesh().tp});
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
    const std::int64_t capacity = op.shape.row_capacity(), buffer = op.shape.experts * capacity;
    const View d = b.temporary("d.product", buffer, op.product.cols, b.dtype(op.product)),
               row_gate = b.temporary("row_gate", buffer, 1, b.dtype(op.gate));
    b.add(CombineBackward{dout, choice, slot, gate, d, row_gate, op.shape, op.dropout});
    const View a = b.changeable_value(op.a), da = b.overwrite(op.a);
    b.add(GroupedGemm{
        .a = d, .b = w, .c = da, .rows = rows, .experts = op.shape.experts, .capacity = capacity, .tb = true});
    b.add(GateBackward{a, da, d, b.value(op.bias), choice, slot, b.overwrite(op.gate), op.shape, op.bias_scale});
    b.add(RowScale{row_gate, rows, a, op.shape});
    const auto dw = b.into(op.w), dbias = b.into(op.bias);
    b.add(GroupedGemm{.a = a,
                      .b = d,
                      .c = dw.view,
                      .rows = rows,
                      .experts = op.shape.experts,
                      .capacity = capacity,
                      .ta = true,
                      .accumulate = dw.accumulate});
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
    const auto to = b.into(op.table);
    check(to.accumulate, "embed: the table's gradient is an accumulator");
    b.add(EmbedBackward{d, b.value(op.tokens), to.view});
  }

  // It has left its gradients already.
  void operator()(const LmHead& op) {
    b.pass(op.x, b.value(op.dx));
    b.pass(op.table, b.value(op.dtable));
  }

  // Over a group of which each member does its part of the work behind a gathered tensor, that tensor's gradient is a
  // summand: gathering and scattering sums are each other's transposes.
  void operator()(const Collective& op) {
    const View d = b.gradient(op.dst);
    if (!d) return;
    switch (op.kind) {
      case CollectiveKind::kAllGather: {
        const auto to = b.into(op.src);
        const std::int64_t part = op.src.rows * op.src.cols;
        b.add(Collective{.kind = CollectiveKind::kReduceScatter,
                         .group = op.group,
                         .algorithm = op.algorithm,
                         .src = d,
                         .dst = to.view,
                         .scratch = b.temporary("recv", 1, part, b.dtype(op.src)),
                         .accumulate = to.accumulate});
        return;
      }
      case CollectiveKind::kReduceScatter:
        b.add(Collective{.kind = CollectiveKind::kAllGather,
                         .group = op.group,
                         .algorithm = op.algorithm,
                         .src = d,
                         .dst = b.overwrite(op.src)});
        return;
      case CollectiveKind::kAllReduce:
        break;
    }
    throw std::logic_error("no derivative of an all-reduce: no forward pass has one");
  }

  // Kinds that only backward passes, the end of a step, and the borders of stages have.
  template <class O>
  void operator()(const O&) {
    static_assert(kOpKinds == 34, "a new kind of operation: write its derivative here");
    throw std::logic_error("no derivative of " + std::string(O::kName) + ": no forward pass has it");
  }
};

}  // namespace

void differentiate(const Op& op, Backward& backward) { std::visit(Rule{backward}, op); }

bool is_cheap_again(const Op& op) {
  return std::holds_alternative<RmsNorm>(op) || std::holds_alternative<Gelu>(op) ||
         std::holds_alternative<Dispatch>(op);
}

}  // namespace meshwright
