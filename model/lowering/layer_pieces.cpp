#include "model/lowering/layer_pieces.h"

#include <algorithm>
#include <stdexcept>
#include <variant>

#include "model/lowering/layout.h"

namespace meshwright {
namespace {

const Layout kWhole = Layout::replicate(), kSequence = Layout::shard(0), kSummand = Layout::partial();
constexpr std::int64_t kAttentionBlock = 128;
constexpr std::int64_t kLogitElements = std::int64_t{1} << 26;  // of one chunk of logits, at most

// What a layer's forward keeps for its backward: in the stash, or in temporaries when it is recomputed.
struct Saved {
  View rstd0, zk, qn, qr, kv, attended, lse, x1, rstd1;  // attention
  View hidden;                                           // feed-forward or experts, before the activation
  View scores, choice, slot, gate, rows, fraction;
};

class LayerWriter {
 public:
  LayerWriter(const PieceContext& context, const LayerSpec& layer, const Block* block, std::string name)
      : c_(context),
        attention_(std::get<MlaSpec>(layer.attention)),
        ffn_(layer.ffn),
        b_(std::move(name), context.set, block),
        tp_(context.set.mesh.tp),
        rows_(context.rows()),
        own_(context.own_rows()),
        width_(context.width) {}

  // All of it, where recomputation and the stash must agree on: names, extents, order.
  Saved declare_saved(bool in_stash) {
    const auto keep = [&](std::string_view name, std::int64_t rows, std::int64_t cols, DType dtype) {
      return in_stash ? b_.stashed(name, rows, cols, dtype) : b_.temporary(name, rows, cols, dtype);
    };
    const DType compute = b_.compute(), state = c_.set.state;
    Saved s;
    s.rstd0 = keep("rstd0", own_, 1, state);
    s.zk = keep("zk", rows_, latent() + attention_.rope_width, compute);
    s.qn = keep("qn", rows_, heads() * attention_.head_dim, compute);
    if (rope()) s.qr = keep("qr", rows_, heads() * attention_.rope_width, compute);
    s.kv = keep("kv", rows_, 2 * heads() * attention_.head_dim, compute);
    s.attended = keep("attended", rows_, heads() * attention_.head_dim, compute);
    s.lse = keep("lse", c_.batch() * heads(), c_.tokens(), state);
    s.x1 = keep("x1", own_, width_, compute);
    s.rstd1 = keep("rstd1", own_, 1, state);
    if (const auto* moe = std::get_if<MoeSpec>(&ffn_)) {
      const RouteShape r = route_shape(*moe);
      s.hidden = keep("hidden", r.experts * r.row_capacity(), moe->hidden / tp_, compute);
      s.scores = keep("scores", rows_, r.experts, state);
      s.choice = keep("choice", rows_, r.choices, DType::kI32);
      s.slot = keep("slot", rows_, r.choices, DType::kI32);
      s.gate = keep("gate", rows_, r.choices, state);
      s.rows = keep("rows", 1, r.experts, DType::kI32);
      s.fraction = keep("fraction", c_.batch(), r.experts, state);
    } else {
      s.hidden = keep("hidden", rows_, std::get<DenseFfnSpec>(ffn_).hidden / tp_, compute);
    }
    return s;
  }

  // `metrics`: routing statistics are counted (not when recomputed). `y`: where the layer's output goes; none: it stops
  // once everything that the backward needs is there.
  void forward(const Saved& s, bool metrics, View y) {
    attention_forward(s);
    if (const auto* moe = std::get_if<MoeSpec>(&ffn_))
      moe_forward(*moe, s, metrics, y);
    else
      ffn_forward(s, y);
  }

  void backward(const Saved& s) {
    if (const auto* moe = std::get_if<MoeSpec>(&ffn_))
      moe_backward(*moe, s);
    else
      ffn_backward(s);
    attention_backward(s);
  }

  View x() { return b_.at(Frame::kX, "x", own_, width_, b_.compute()); }
  View y() { return b_.at(Frame::kXOut, "y", own_, width_, b_.compute()); }
  View d() { return b_.at(Frame::kD, "d", own_, width_, b_.compute()); }

  // Gradient buffers that are reduced per microbatch are shared by blocks of other sizes: padding must not carry theirs.
  void clear_padding(const Block& block) {
    for (const Unit& unit : block.units)
      if (const std::int64_t pad = unit.padded - unit.elements)
        b_.add(Fill{b_.at(Frame::kGrads, "d." + unit.name + ".padding", 1, pad, c_.set.state,
                          (unit.offset + unit.elements) * size_of(c_.set.state))});
  }
  void free_saved(const Saved& s) {
    b_.free(s.rstd0, s.zk, s.qn, s.qr, s.kv, s.attended, s.lse, s.x1, s.rstd1, s.hidden, s.scores, s.choice, s.slot,
            s.gate, s.rows, s.fraction);
  }
  PieceBuilder& builder() { return b_; }

 private:
  bool rope() const { return attention_.rope_width > 0; }
  std::int64_t latent() const { return attention_.kv_latent + attention_.q_latent; }
  std::int64_t heads() const { return attention_.heads / tp_; }  // of this rank
  bool accumulate() const { return c_.accumulate_grads; }
  AttentionShape attention_shape() const {
    return {c_.tokens(),
            c_.batch(),
            heads(),
            attention_.head_dim,
            attention_.rope_width,
            std::min(kAttentionBlock, c_.tokens())};
  }
  RouteShape route_shape(const MoeSpec& moe) const {
    return {c_.tokens(), c_.batch(), moe.experts, moe.choices,
            c_.train ? expert_capacity(moe, c_.tokens()) : c_.tokens()};
  }

  // `rstd_known`: again, in the backward.
  View norm(View x, std::string_view which, View rstd, bool rstd_known = false) {
    const std::string prefix(which);
    View h = b_.temporary("h." + prefix, own_, width_);
    b_.add(RmsNorm{x, b_.param(prefix + ".gamma"), b_.param(prefix + ".beta"), h, rstd, rstd_known});
    return h;
  }
  void norm_backward(View dh, View x, View rstd, std::string_view which) {
    const std::string prefix(which);
    b_.add(RmsNormBackward{dh, x, rstd, b_.param(prefix + ".gamma"), d(), b_.grad(prefix + ".gamma"),
                           b_.grad(prefix + ".beta"), accumulate()});
    b_.free(dh);
  }
  // Gradients of a linear map y = x W + b: dW (+)= x^T dy, db (+)= sum of dy.
  void linear_gradients(View x, View dy, const std::string& kernel, bool bias = true) {
    b_.add(Gemm{.a = x, .b = dy, .c = b_.grad(kernel + ".kernel"), .ta = true, .accumulate = accumulate()});
    if (bias) b_.add(ColumnSum{dy, b_.grad(kernel + ".bias"), 1, accumulate()});
  }

  void attention_forward(const Saved& s) {
    const View h = norm(x(), "norm0", s.rstd0);
    const View zk = tp_ > 1 ? b_.temporary("zk.own", own_, latent() + attention_.rope_width) : s.zk;
    const View z = zk.columns(0, latent());
    b_.add(Gemm{.a = h, .b = b_.param("mla.down.kernel"), .c = z, .bias = b_.param("mla.down.bias")});
    b_.free(h);
    if (rope()) {
      const View kr = zk.columns(latent(), attention_.rope_width);
      b_.add(Gemm{.a = z, .b = b_.param("mla.kr.kernel"), .c = kr, .bias = b_.param("mla.kr.bias")},
             Rope{kr, 1, attention_.rope_width, c_.batch(), true, false});
    }
    b_.reshard(zk, kSequence, kWhole, "zk", s.zk);

    const View c = s.zk.columns(0, attention_.kv_latent), u = s.zk.columns(attention_.kv_latent, attention_.q_latent);
    b_.add(Gemm{.a = c, .b = b_.param("mla.kvup.kernel"), .c = s.kv, .bias = b_.param("mla.kvup.bias")});
    b_.add(Gemm{.a = u, .b = b_.param("mla.qup.kernel"), .c = s.qn, .bias = b_.param("mla.qup.bias")});
    View kr;
    if (rope()) {
      b_.add(Gemm{.a = s.zk.columns(0, latent()),
                  .b = b_.param("mla.qr.kernel"),
                  .c = s.qr,
                  .bias = b_.param("mla.qr.bias")},
             Rope{s.qr, heads(), attention_.rope_width, c_.batch(), false, false});
      kr = s.zk.columns(latent(), attention_.rope_width);
    }
    const AttentionShape shape = attention_shape();
    const View scratch = b_.temporary("scores", shape.block, shape.tokens, c_.set.state);
    b_.add(AttentionForward{.qn = s.qn,
                            .kv = s.kv,
                            .qr = s.qr,
                            .kr = kr,
                            .out = s.attended,
                            .lse = s.lse,
                            .scratch = scratch,
                            .shape = shape});
    b_.free(scratch);
    const View p = b_.temporary("projected", rows_, width_);
    b_.add(Gemm{.a = s.attended, .b = b_.param("mla.out.kernel"), .c = p});
    const View own = b_.reshard(p, kSummand, kSequence, "projected.own");
    b_.add(Residual{x(), own, b_.param("mla.out.bias"), s.x1, 1, c_.batch(), c_.dropout, DropoutSite::kAttention});
    b_.free(own);
  }

  void ffn_forward(const Saved& s, View y) {
    const View h = b_.reshard(norm(s.x1, "norm1", s.rstd1), kSequence, kWhole, "h");
    b_.add(Gemm{.a = h, .b = b_.param("ffn.0.kernel"), .c = s.hidden, .bias = b_.param("ffn.0.bias")});
    b_.free(h);
    if (!y) return;
    const View a = b_.temporary("activated", rows_, s.hidden.cols);
    b_.add(Gelu{s.hidden, a});
    const View p = b_.temporary("projected", rows_, width_);
    b_.add(Gemm{.a = a, .b = b_.param("ffn.1.kernel"), .c = p});
    b_.free(a);
    const View own = b_.reshard(p, kSummand, kSequence, "projected.own");
    b_.add(Residual{s.x1, own, b_.param("ffn.1.bias"), y, 1, c_.batch(), c_.dropout, DropoutSite::kFfn});
    b_.free(own);
  }

  void moe_forward(const MoeSpec& moe, const Saved& s, bool metrics, View y) {
    const RouteShape shape = route_shape(moe);
    const View own_h = norm(s.x1, "norm1", s.rstd1);
    const View own_scores = tp_ > 1 ? b_.temporary("scores.own", own_, shape.experts, c_.set.state) : s.scores;
    b_.add(Gemm{.a = own_h, .b = b_.param("moe.router.kernel"), .c = own_scores, .bias = b_.param("moe.router.bias")},
           Sigmoid{own_scores});
    b_.reshard(own_scores, kSequence, kWhole, "scores", s.scores);
    const View h = b_.reshard(own_h, kSequence, kWhole, "h");
    b_.add(Route{s.scores, s.choice, s.slot, s.gate, s.rows, s.fraction, metrics ? metrics_view() : View{}, shape});

    const std::int64_t buffer = shape.experts * shape.row_capacity();
    const View in = b_.temporary("expert.in", buffer, width_);
    b_.add(Dispatch{h, s.slot, in, shape});
    b_.add(GroupedGemm{.a = in,
                       .b = b_.param("moe.expert.0.kernel"),
                       .c = s.hidden,
                       .bias = b_.param("moe.expert.0.bias"),
                       .rows = s.rows,
                       .experts = shape.experts,
                       .capacity = shape.row_capacity()});
    b_.free(in);
    if (!y) {
      b_.free(h);
      return;
    }
    const View a = b_.temporary("activated", buffer, s.hidden.cols);
    b_.add(Gelu{s.hidden, a, s.rows, shape.experts, shape.row_capacity()});
    const View out = b_.temporary("expert.out", buffer, width_);
    b_.add(GroupedGemm{.a = a,
                       .b = b_.param("moe.expert.1.kernel"),
                       .c = out,
                       .rows = s.rows,
                       .experts = shape.experts,
                       .capacity = shape.row_capacity()});
    b_.free(a);
    const View p = b_.temporary("combined", rows_, width_);
    b_.add(Combine{out, s.choice, s.slot, s.gate, b_.param("moe.expert.1.bias"), p, shape, 1.0 / tp_, c_.dropout});
    b_.free(out);
    for (std::int64_t i = 0; i < moe.shared; ++i)
      b_.add(Gemm{.a = own_columns(h),
                  .b = b_.param("moe.shared.kernel").columns(i * width_, width_),
                  .c = p,
                  .accumulate = true});
    b_.free(h);
    const View own = b_.reshard(p, kSummand, kSequence, "combined.own");
    b_.add(Residual{s.x1, own, moe.shared ? b_.param("moe.shared.bias") : View{}, y, moe.shared, c_.batch(), 0.0,
                    DropoutSite::kFfn});
    b_.free(own);
  }

  // The gradient that enters a feed-forward or attention from the residual stream, whole over the sequence.
  View enter(View x, std::string_view name) { return b_.reshard(x, kSequence, kWhole, name); }

  void ffn_backward(const Saved& s) {
    const View own = b_.temporary("dp.own", own_, width_);
    b_.add(
        ResidualBackward{d(), own, b_.grad("ffn.1.bias"), 1, c_.batch(), c_.dropout, DropoutSite::kFfn, accumulate()});
    const View dp = enter(own, "dp");
    const View a = b_.temporary("activated", rows_, s.hidden.cols);
    b_.add(Gelu{s.hidden, a});
    linear_gradients(a, dp, "ffn.1", false);
    b_.free(a);
    const View du = b_.temporary("du", rows_, s.hidden.cols);
    b_.add(Gemm{.a = dp, .b = b_.param("ffn.1.kernel"), .c = du, .tb = true});
    b_.free(dp);
    b_.add(GeluBackward{s.hidden, du});
    const View h = b_.reshard(norm(s.x1, "norm1", s.rstd1, true), kSequence, kWhole, "h");
    linear_gradients(h, du, "ffn.0");
    b_.free(h);
    const View dh = b_.temporary("dh", rows_, width_);
    b_.add(Gemm{.a = du, .b = b_.param("ffn.0.kernel"), .c = dh, .tb = true});
    b_.free(du);
    norm_backward(b_.reshard(dh, kSummand, kSequence, "dh.own"), s.x1, s.rstd1, "norm1");
  }

  void moe_backward(const MoeSpec& moe, const Saved& s) {
    const RouteShape shape = route_shape(moe);
    const std::int64_t capacity = shape.row_capacity(), buffer = shape.experts * capacity;
    if (moe.shared) b_.add(ColumnSum{d(), b_.grad("moe.shared.bias"), moe.shared, accumulate()});
    const View dp = enter(d(), "dp");
    const View own_h = norm(s.x1, "norm1", s.rstd1, true);
    View h = own_h;
    if (tp_ > 1) {  // the router needs its own part, too: gather beside it
      h = b_.temporary("h", rows_, width_);
      b_.add(Collective{.kind = *reshard(kSequence, kWhole), .group = Group::kTp, .src = own_h, .dst = h});
    }

    // Experts, from the gradient of their gated and combined output.
    const View dout = b_.temporary("d.expert.out", buffer, width_),
               row_gate = b_.temporary("row_gate", buffer, 1, c_.set.state);
    b_.add(CombineBackward{dp, s.choice, s.slot, s.gate, dout, row_gate, shape, c_.dropout});
    const View a = b_.temporary("activated", buffer, s.hidden.cols);
    b_.add(Gelu{s.hidden, a, s.rows, shape.experts, capacity});
    const View da = b_.temporary("d.activated", buffer, s.hidden.cols);
    b_.add(GroupedGemm{.a = dout,
                       .b = b_.param("moe.expert.1.kernel"),
                       .c = da,
                       .rows = s.rows,
                       .experts = shape.experts,
                       .capacity = capacity,
                       .tb = true});
    const View dgate = b_.temporary("dgate", rows_, shape.choices, c_.set.state);
    b_.add(GateBackward{a, da, dout, b_.param("moe.expert.1.bias"), s.choice, s.slot, dgate, shape, 1.0 / tp_});
    b_.add(RowScale{row_gate, s.rows, a, shape});
    b_.add(GroupedGemm{.a = a,
                       .b = dout,
                       .c = b_.grad("moe.expert.1.kernel"),
                       .rows = s.rows,
                       .experts = shape.experts,
                       .capacity = capacity,
                       .ta = true,
                       .accumulate = accumulate()});
    b_.free(a);
    b_.add(GroupedColumnSum{.in = dout,
                            .rows = s.rows,
                            .out = b_.grad("moe.expert.1.bias"),
                            .weight = row_gate,
                            .experts = shape.experts,
                            .capacity = capacity,
                            .scale = 1.0 / tp_,
                            .accumulate = accumulate()});
    b_.free(dout);
    b_.add(RowScale{row_gate, s.rows, da, shape});
    b_.free(row_gate);
    b_.add(GeluBackward{s.hidden, da, s.rows, shape.experts, capacity});
    const View in = b_.temporary("expert.in", buffer, width_);
    b_.add(Dispatch{h, s.slot, in, shape});
    b_.add(GroupedGemm{.a = in,
                       .b = da,
                       .c = b_.grad("moe.expert.0.kernel"),
                       .rows = s.rows,
                       .experts = shape.experts,
                       .capacity = capacity,
                       .ta = true,
                       .accumulate = accumulate()});
    b_.free(in);
    b_.add(GroupedColumnSum{.in = da,
                            .rows = s.rows,
                            .out = b_.grad("moe.expert.0.bias"),
                            .experts = shape.experts,
                            .capacity = capacity,
                            .accumulate = accumulate()});
    const View din = b_.temporary("d.expert.in", buffer, width_);
    b_.add(GroupedGemm{.a = da,
                       .b = b_.param("moe.expert.0.kernel"),
                       .c = din,
                       .rows = s.rows,
                       .experts = shape.experts,
                       .capacity = capacity,
                       .tb = true});
    b_.free(da);
    const View dh = b_.temporary("dh", rows_, width_);
    b_.add(DispatchBackward{din, s.slot, dh, shape});
    b_.free(din);

    // Shared experts: linear, the chunks of their output summed.
    for (std::int64_t i = 0; i < moe.shared; ++i) {
      b_.add(Gemm{.a = own_columns(h),
                  .b = dp,
                  .c = b_.grad("moe.shared.kernel").columns(i * width_, width_),
                  .ta = true,
                  .accumulate = accumulate()});
      b_.add(Gemm{.a = dp,
                  .b = b_.param("moe.shared.kernel").columns(i * width_, width_),
                  .c = own_columns(dh),
                  .tb = true,
                  .accumulate = true});
    }
    if (tp_ > 1) b_.free(h, dp);

    // Router, on this rank's part of the sequence.
    const View dscores_sum = b_.temporary("dscores", rows_, shape.experts, c_.set.state);
    b_.add(RouteBackward{dgate, s.scores, s.choice, s.gate, dscores_sum, shape});
    b_.free(dgate);
    const View dscores = b_.reshard(dscores_sum, kSummand, kSequence, "dscores.own");
    View scores = s.scores;
    scores.rows = own_;
    scores.own_rows = true;
    b_.add(RouterScoreBackward{scores, s.fraction, dscores, shape,
                               c_.balance_weight * static_cast<double>(shape.experts) /
                                   static_cast<double>(shape.choices * c_.set.step.sequences)});
    linear_gradients(own_h, dscores, "moe.router");
    const View own_dh = b_.reshard(dh, kSummand, kSequence, "dh.own");
    b_.add(Gemm{.a = dscores, .b = b_.param("moe.router.kernel"), .c = own_dh, .tb = true, .accumulate = true});
    b_.free(dscores, own_h);
    norm_backward(own_dh, s.x1, s.rstd1, "norm1");
  }

  void attention_backward(const Saved& s) {
    const View own = b_.temporary("dp.own", own_, width_);
    b_.add(ResidualBackward{d(), own, b_.grad("mla.out.bias"), 1, c_.batch(), c_.dropout, DropoutSite::kAttention,
                            accumulate()});
    const View dp = enter(own, "dp");
    linear_gradients(s.attended, dp, "mla.out", false);
    const View dout = b_.temporary("d.attended", rows_, s.attended.cols);
    b_.add(Gemm{.a = dp, .b = b_.param("mla.out.kernel"), .c = dout, .tb = true});
    b_.free(dp);

    const AttentionShape shape = attention_shape();
    const View dqn = b_.temporary("dqn", rows_, s.qn.cols), dkv = b_.temporary("dkv", rows_, s.kv.cols);
    const View dzk = b_.temporary("dzk", rows_, s.zk.cols);
    const View scratch = b_.temporary("dscores", 2 * shape.block, shape.tokens, c_.set.state);
    AttentionBackward op{
        .qn = s.qn, .kv = s.kv, .lse = s.lse, .dout = dout, .dqn = dqn, .dkv = dkv, .scratch = scratch, .shape = shape};
    if (rope()) {
      op.qr = s.qr;
      op.kr = s.zk.columns(latent(), attention_.rope_width);
      op.dqr = b_.temporary("dqr", rows_, s.qr.cols);
      op.dkr = dzk.columns(latent(), attention_.rope_width);
    }
    const View dqr = op.dqr;
    b_.add(std::move(op));
    b_.free(scratch, dout);

    const View c = s.zk.columns(0, attention_.kv_latent), u = s.zk.columns(attention_.kv_latent, attention_.q_latent);
    b_.add(Gemm{.a = dkv, .b = b_.param("mla.kvup.kernel"), .c = dzk.columns(0, attention_.kv_latent), .tb = true});
    linear_gradients(c, dkv, "mla.kvup");
    b_.add(Gemm{.a = dqn,
                .b = b_.param("mla.qup.kernel"),
                .c = dzk.columns(attention_.kv_latent, attention_.q_latent),
                .tb = true});
    linear_gradients(u, dqn, "mla.qup");
    b_.free(dkv, dqn);
    if (rope()) {
      b_.add(Rope{dqr, heads(), attention_.rope_width, c_.batch(), false, true});
      linear_gradients(s.zk.columns(0, latent()), dqr, "mla.qr");
      b_.add(Gemm{
          .a = dqr, .b = b_.param("mla.qr.kernel"), .c = dzk.columns(0, latent()), .tb = true, .accumulate = true});
      b_.free(dqr);
    }
    const View own_dzk = b_.reshard(dzk, kSummand, kSequence, "dzk.own");
    const View dz = own_dzk.columns(0, latent());
    if (rope()) {
      const View dkr = own_dzk.columns(latent(), attention_.rope_width);
      View z = s.zk.columns(0, latent());
      z.rows = own_;
      z.own_rows = true;
      b_.add(Rope{dkr, 1, attention_.rope_width, c_.batch(), true, true});
      linear_gradients(z, dkr, "mla.kr");
      b_.add(Gemm{.a = dkr, .b = b_.param("mla.kr.kernel"), .c = dz, .tb = true, .accumulate = true});
    }
    const View h = norm(x(), "norm0", s.rstd0, true);
    linear_gradients(h, dz, "mla.down");
    b_.free(h);
    const View dh = b_.temporary("dh", own_, width_);
    b_.add(Gemm{.a = dz, .b = b_.param("mla.down.kernel"), .c = dh, .tb = true});
    b_.free(own_dzk);
    norm_backward(dh, x(), s.rstd0, "norm0");
  }

  // This rank's C/tp columns of a gathered row.
  View own_columns(View v) const {
    v.cols = width_ / tp_;
    v.own_cols = true;
    return v;
  }
  View metrics_view() { return b_.at(Frame::kMetrics, "metrics", 1, kLoadFirst + c_.set.experts, DType::kF64); }

  const PieceContext& c_;
  const MlaSpec& attention_;
  const FfnSpec& ffn_;
  PieceBuilder b_;
  std::int64_t tp_, rows_, own_, width_;
};

}  // namespace

Piece layer_forward(const PieceContext& context, const LayerSpec& layer, const Block& block, bool recompute,
                    std::string name) {
  LayerWriter w(context, layer, &block, std::move(name));
  const Saved saved = w.declare_saved(!recompute);
  w.forward(saved, true, w.y());
  w.free_saved(saved);
  return w.builder().finish();
}

Piece layer_backward(const PieceContext& context, const LayerSpec& layer, const Block& block, bool recompute,
                     std::string name) {
  LayerWriter w(context, layer, &block, std::move(name));
  const Saved saved = w.declare_saved(!recompute);
  if (recompute) w.forward(saved, false, {});
  if (!context.accumulate_grads) w.clear_padding(block);
  w.backward(saved);
  w.free_saved(saved);
  return w.builder().finish();
}

std::int64_t layer_stash_bytes(const PieceContext& context, const LayerSpec& layer) {
  LayerWriter w(context, layer, nullptr, "stash");
  w.declare_saved(true);
  return w.builder().stash_bytes();
}

namespace {

View inputs(PieceBuilder& b, const PieceContext& c) {
  return b.at(Frame::kTokens, "inputs", c.own_rows(), 1, DType::kI32);
}

}  // namespace

Piece embed_forward(const PieceContext& c, const Block& block) {
  PieceBuilder b("embed", c.set, &block);
  b.add(
      Embed{b.param("embedding.embedding"), inputs(b, c), b.at(Frame::kXOut, "y", c.own_rows(), c.width, b.compute())});
  return b.finish();
}

Piece embed_backward(const PieceContext& c, const Block& block) {
  PieceBuilder b("embed.backward", c.set, &block);
  b.add(EmbedBackward{b.at(Frame::kD, "d", c.own_rows(), c.width, b.compute()), inputs(b, c),
                      b.grad("embedding.embedding")});
  return b.finish();
}

Piece head(const PieceContext& c, const Block& block) {
  PieceBuilder b("head", c.set, &block);
  const std::int64_t rows = c.own_rows();
  const View x = b.at(Frame::kX, "x", rows, c.width, b.compute()), d = b.at(Frame::kD, "d", rows, c.width, b.compute());
  const View targets = b.at(Frame::kTokens, "targets", rows, 1, DType::kI32, align_up(rows * size_of(DType::kI32)));
  const View rstd = b.temporary("rstd", rows, 1, c.set.state), h = b.temporary("h", rows, c.width);
  b.add(RmsNorm{x, b.param("embedding.norm.gamma"), b.param("embedding.norm.beta"), h, rstd});
  const View dh = b.temporary("dh", rows, c.width);
  const std::int64_t chunk = std::min(rows, std::max<std::int64_t>(16, kLogitElements / c.vocab / 16 * 16));
  const View logits = b.temporary("logits", chunk, c.vocab);
  const double tokens = static_cast<double>(c.set.step.sequences * c.set.step.tokens);
  b.add(LmHead{h, b.param("embedding.embedding"), targets, dh, b.grad("embedding.embedding"), logits,
               b.at(Frame::kMetrics, "metrics", 1, kLoadFirst + c.set.experts, DType::kF64), 1.0 / tokens});
  b.free(logits, h);
  b.add(RmsNormBackward{dh, x, rstd, b.param("embedding.norm.gamma"), d, b.grad("embedding.norm.gamma"),
                        b.grad("embedding.norm.beta"), true, false});
  b.free(dh, rstd);
  return b.finish();
}

}  // namespace meshwright
