#include "model/lowering/layer_pieces.h"

#include <algorithm>
#include <utility>
#include <variant>

#include "model/lowering/layout.h"
#include "model/lowering/piece_builder.h"

namespace meshwright {
namespace {

const Layout kWhole = Layout::replicate(), kSequence = Layout::shard(0), kSummand = Layout::partial();
constexpr std::int64_t kAttentionBlock = 128;
constexpr std::int64_t kLogitElements = std::int64_t{1} << 26;  // of one chunk of logits, at most

class LayerWriter {
 public:
  LayerWriter(const PieceContext& context, const LayerSpec& layer, const Block& block)
      : c_(context),
        attention_(std::get<MlaSpec>(layer.attention)),
        b_("layer", context.set, &block),
        tp_(context.set.mesh.tp),
        rows_(context.rows()),
        own_(context.own_rows()),
        width_(context.width) {
    const View x = b_.at(Frame::kX, "x", own_, width_, b_.compute()),
               y = b_.at(Frame::kXOut, "y", own_, width_, b_.compute());
    const View x1 = attention(x);
    if (const auto* moe = std::get_if<MoeSpec>(&layer.ffn))
      experts(*moe, x1, y);
    else
      feed_forward(std::get<DenseFfnSpec>(layer.ffn), x1, y);
  }
  Piece take() { return b_.take(); }

 private:
  // This rank's C/tp columns of a gathered row.
  View own_columns(View v) const {
    if (tp_ == 1) return v;
    v.cols = width_ / tp_;
    v.own_cols = true;
    return v;
  }

  View norm(const View& x, const std::string& which) {
    const View h = b_.value("h." + which, own_, width_), rstd = b_.value("rstd." + which, own_, 1, c_.set.state);
    b_.add(RmsNorm{x, b_.param(which + ".gamma"), b_.param(which + ".beta"), h, rstd});
    return h;
  }
  // x W + b into `out`.
  void linear(const View& x, const std::string& name, const View& out) {
    b_.add(Gemm{.a = x, .b = b_.param(name + ".kernel"), .c = out, .bias = b_.param(name + ".bias")});
  }

  View attention(const View& x) {
    const std::int64_t kv_latent = attention_.kv_latent, q_latent = attention_.q_latent, latent = kv_latent + q_latent;
    const std::int64_t rope_width = attention_.rope_width, heads = attention_.heads / tp_;
    const View own = b_.value("zk.own", own_, latent + rope_width), own_z = own.columns(0, latent);
    linear(norm(x, "norm0"), "mla.down", own_z);
    if (rope_width > 0) {
      const View own_kr = own.columns(latent, rope_width);
      linear(own_z, "mla.kr", own_kr);
      b_.add(Rope{own_kr, 1, rope_width, c_.batch(), true, false});
    }
    const View zk = b_.reshard(own, kSequence, kWhole, "zk");

    const View kv = b_.value("kv", rows_, 2 * heads * attention_.head_dim),
               qn = b_.value("qn", rows_, heads * attention_.head_dim);
    View qr, kr;
    if (rope_width > 0) {
      qr = b_.value("qr", rows_, heads * rope_width);
      kr = zk.columns(latent, rope_width);
      linear(zk.columns(0, latent), "mla.qr", qr);
      b_.add(Rope{qr, heads, rope_width, c_.batch(), false, false});
    }
    linear(zk.columns(kv_latent, q_latent), "mla.qup", qn);
    linear(zk.columns(0, kv_latent), "mla.kvup", kv);
    const AttentionShape shape{c_.tokens(),         c_.batch(), heads,
                               attention_.head_dim, rope_width, std::min(kAttentionBlock, c_.tokens())};
    const View attended = b_.value("attended", rows_, qn.cols);
    b_.add(AttentionForward{.qn = qn,
                            .kv = kv,
                            .qr = qr,
                            .kr = kr,
                            .out = attended,
                            .lse = b_.value("lse", c_.batch() * heads, c_.tokens(), c_.set.state),
                            .scratch = b_.value("scores", shape.block, shape.tokens, c_.set.state),
                            .shape = shape});
    const View projected = b_.value("projected", rows_, width_);
    b_.add(Gemm{.a = attended, .b = b_.param("mla.out.kernel"), .c = projected});
    const View x1 = b_.value("x1", own_, width_);
    b_.add(Residual{x, b_.reshard(projected, kSummand, kSequence, "projected.own"), b_.param("mla.out.bias"), x1, 1,
                    c_.batch(), c_.dropout, DropoutSite::kAttention});
    return x1;
  }

  void feed_forward(const DenseFfnSpec& ffn, const View& x1, const View& y) {
    const View h = b_.reshard(norm(x1, "norm1"), kSequence, kWhole, "h");
    const View hidden = b_.value("hidden", rows_, ffn.hidden / tp_),
               activated = b_.value("activated", rows_, hidden.cols);
    linear(h, "ffn.0", hidden);
    b_.add(Gelu{hidden, activated});
    const View projected = b_.value("projected", rows_, width_);
    b_.add(Gemm{.a = activated, .b = b_.param("ffn.1.kernel"), .c = projected});
    b_.add(Residual{x1, b_.reshard(projected, kSummand, kSequence, "projected.own"), b_.param("ffn.1.bias"), y, 1,
                    c_.batch(), c_.dropout, DropoutSite::kFfn});
  }

  void experts(const MoeSpec& moe, const View& x1, const View& y) {
    const RouteShape shape{c_.tokens(), c_.batch(), moe.experts, moe.choices,
                           c_.train ? expert_capacity(moe, c_.tokens()) : c_.tokens()};
    const DType state = c_.set.state;
    const View own_h = norm(x1, "norm1"), own_scores = b_.value("scores.own", own_, shape.experts, state);
    linear(own_h, "moe.router", own_scores);
    b_.add(Sigmoid{own_scores});
    const View scores = b_.reshard(own_scores, kSequence, kWhole, "scores");
    const View h = b_.reshard(own_h, kSequence, kWhole, "h");
    const View choice = b_.value("choice", rows_, shape.choices, DType::kI32),
               slot = b_.value("slot", rows_, shape.choices, DType::kI32),
               gate = b_.value("gate", rows_, shape.choices, state),
               rows = b_.value("rows", 1, shape.experts, DType::kI32);
    b_.add(Route{.scores = scores,
                 .choice = choice,
                 .slot = slot,
                 .gate = gate,
                 .rows = rows,
                 .fraction = b_.value("fraction", c_.batch(), shape.experts, state),
                 .metrics = b_.at(Frame::kMetrics, "metrics", 1, kLoadFirst + c_.set.experts, DType::kF64),
                 .shape = shape,
                 .balance_gradient = c_.balance_weight * static_cast<double>(shape.experts) /
                                     static_cast<double>(shape.choices * c_.set.step.sequences)});

    const View combined = b_.value("combined", rows_, width_);
    // Shared experts: linear, the chunks of their output summed.
    for (std::int64_t i = 0; i < moe.shared; ++i)
      b_.add(Gemm{.a = own_columns(h),
                  .b = b_.param("moe.shared.kernel").columns(i * width_, width_),
                  .c = combined,
                  .accumulate = i > 0});
    const std::int64_t capacity = shape.row_capacity(), buffer = shape.experts * capacity;
    const View in = b_.value("expert.in", buffer, width_), hidden = b_.value("hidden", buffer, moe.hidden / tp_),
               activated = b_.value("activated", buffer, hidden.cols);
    b_.add(Dispatch{h, slot, in, shape});
    b_.add(GroupedGemm{.a = in,
                       .b = b_.param("moe.expert.0.kernel"),
                       .c = hidden,
                       .bias = b_.param("moe.expert.0.bias"),
                       .rows = rows,
                       .experts = shape.experts,
                       .capacity = capacity});
    b_.add(Gelu{hidden, activated, rows, shape.experts, capacity});
    b_.add(ExpertCombine{.a = activated,
                         .w = b_.param("moe.expert.1.kernel"),
                         .choice = choice,
                         .slot = slot,
                         .gate = gate,
                         .rows = rows,
                         .bias = b_.param("moe.expert.1.bias"),
                         .product = b_.value("expert.out", buffer, width_),
                         .out = combined,
                         .shape = shape,
                         .bias_scale = 1.0 / static_cast<double>(tp_),
                         .dropout = c_.dropout,
                         .accumulate = moe.shared > 0});
    b_.add(Residual{x1, b_.reshard(combined, kSummand, kSequence, "combined.own"),
                    moe.shared ? b_.param("moe.shared.bias") : View{}, y, moe.shared, c_.batch(), 0.0,
                    DropoutSite::kFfn});
  }

  const PieceContext& c_;
  const MlaSpec& attention_;
  PieceBuilder b_;
  std::int64_t tp_, rows_, own_, width_;
};

}  // namespace

Differentiated layer_pieces(const PieceContext& c, const LayerSpec& layer, const Block& block, Recompute recompute,
                            const std::string& name) {
  return differentiate(LayerWriter(c, layer, block).take(), c.set.mesh, {c.set.state, c.accumulate_grads, &block},
                       recompute, name);
}

Differentiated embedding_pieces(const PieceContext& c, const Block& block) {
  PieceBuilder b("embedding", c.set, &block);
  b.add(Embed{b.param("embedding.embedding"), b.at(Frame::kTokens, "inputs", c.own_rows(), 1, DType::kI32),
              b.at(Frame::kXOut, "y", c.own_rows(), c.width, b.compute())});
  return differentiate(b.take(), c.set.mesh, {c.set.state}, Recompute::kNone, "embedding");
}

Piece head(const PieceContext& c, const Block& block) {
  PieceBuilder b("head", c.set, &block);
  const std::int64_t rows = c.own_rows();
  const View x = b.at(Frame::kX, "x", rows, c.width, b.compute());
  const View targets = b.at(Frame::kTokens, "targets", rows, 1, DType::kI32, align_up(rows * size_of(DType::kI32)));
  const View h = b.value("h", rows, c.width);
  b.add(RmsNorm{x, b.param("embedding.norm.gamma"), b.param("embedding.norm.beta"), h,
                b.value("rstd", rows, 1, c.set.state)});
  const std::int64_t chunk = std::min(rows, std::max<std::int64_t>(16, kLogitElements / c.vocab / 16 * 16));
  b.add(LmHead{.x = h,
               .table = b.param("embedding.embedding"),
               .targets = targets,
               .dx = b.value("dh", rows, c.width),
               .dtable = b.grad("embedding.embedding"),
               .logits = b.value("logits", chunk, c.vocab),
               .metrics = b.at(Frame::kMetrics, "metrics", 1, kLoadFirst + c.set.experts, DType::kF64),
               .scale = 1.0 / static_cast<double>(c.set.step.sequences * c.set.step.tokens)});
  return differentiate_at_once(b.take(), c.set.mesh, {c.set.state});
}

}  // namespace meshwright
