#include "model/modules/layer.h"

namespace meshwright {

Layer Layer::reduced() const {
  Layer small = *this;
  std::visit([](auto& a) { a = a.reduced(); }, small.attention);
  std::visit([&](auto& m) { m = m.reduced(16 * heads(attention)); }, small.ffn);
  return small;
}

void Layer::list(ParameterList& list) const {
  norm.list(list, "norm0", list.width(), ModuleKind::kNorm);
  if (place != NormPlace::kParallel) norm.list(list, "norm1", list.width(), ModuleKind::kNorm);
  std::visit([&](const auto& module) { module.list(list); }, attention);
  std::visit([&](const auto& module) { module.list(list); }, ffn);
}

void Layer::forward(Forward& f, const View& x, const View& y) const {
  const auto added_to = [&](const View& stream, const View& summand, const View& bias, std::int64_t chunks,
                            DropoutSite site, double p, const View& out) {
    f.add(Residual{.x = stream,
                   .in = f.own_sum(summand, "projected.own"),
                   .bias = bias,
                   .out = out,
                   .bias_chunks = chunks,
                   .batch = f.batch(),
                   .dropout = f.dropout(p),
                   .site = site});
  };
  const auto attend = [&](const View& h) {
    f.from(RecomputeKind::kAttentionProjections);
    const auto out = std::visit([&](const auto& a) { return std::pair(a.forward(f, h), a.output_bias(f)); }, attention);
    f.from(std::nullopt);
    return out;
  };
  const auto feed = [&](const View& h) {
    f.from(std::holds_alternative<Experts>(ffn) ? RecomputeKind::kExperts : RecomputeKind::kFeedForward);
    const auto out = std::visit([&](const auto& m) { return std::pair(m.forward(f, h), m.output_bias(f)); }, ffn);
    f.from(std::nullopt);
    return out;
  };
  const auto* experts = std::get_if<Experts>(&ffn);
  // Experts drop out what each of them gives, before the gate.
  const double ffn_dropout = experts ? 0 : dropout;
  const std::int64_t chunks = experts ? experts->bias_chunks() : 1;
  const auto stream = [&](const char* name) { return f.value(name, f.own_rows(), f.width()); };

  switch (place) {
    case NormPlace::kBefore: {
      const View x1 = stream("x1");
      const auto [a, a_bias] = attend(norm.forward(f, x, "norm0", "h.norm0"));
      added_to(x, a, a_bias, 1, DropoutSite::kAttention, dropout, x1);
      const auto [m, m_bias] = feed(norm.forward(f, x1, "norm1", "h.norm1"));
      added_to(x1, m, m_bias, chunks, DropoutSite::kFfn, ffn_dropout, y);
      return;
    }
    case NormPlace::kParallel: {
      const View x1 = stream("x1"), h = norm.forward(f, x, "norm0", "h.norm0");
      const auto [a, a_bias] = attend(h);
      added_to(x, a, a_bias, 1, DropoutSite::kAttention, dropout, x1);
      const auto [m, m_bias] = feed(h);
      added_to(x1, m, m_bias, chunks, DropoutSite::kFfn, ffn_dropout, y);
      return;
    }
    case NormPlace::kAfter: {
      const View sum0 = stream("sum0"), sum1 = stream("sum1");
      const auto [a, a_bias] = attend(x);
      added_to(x, a, a_bias, 1, DropoutSite::kAttention, dropout, sum0);
      const View x1 = norm.forward(f, sum0, "norm0", "x1");
      const auto [m, m_bias] = feed(x1);
      added_to(x1, m, m_bias, chunks, DropoutSite::kFfn, ffn_dropout, sum1);
      norm.forward_into(f, sum1, "norm1", y);
      return;
    }
    case NormPlace::kBehind: {
      const View x1 = stream("x1"), branch0 = stream("branch0"), branch1 = stream("branch1");
      const auto [a, a_bias] = attend(x);
      added_to({}, a, a_bias, 1, DropoutSite::kAttention, 0, branch0);
      f.add(Residual{.x = x,
                     .in = norm.forward(f, branch0, "norm0", "normed0"),
                     .out = x1,
                     .batch = f.batch(),
                     .dropout = f.dropout(dropout),
                     .site = DropoutSite::kAttention});
      const auto [m, m_bias] = feed(x1);
      added_to({}, m, m_bias, chunks, DropoutSite::kFfn, 0, branch1);
      f.add(Residual{.x = x1,
                     .in = norm.forward(f, branch1, "norm1", "normed1"),
                     .out = y,
                     .batch = f.batch(),
                     .dropout = f.dropout(ffn_dropout),
                     .site = DropoutSite::kFfn});
      return;
    }
  }
}

std::int64_t heads(const AttentionModule& attention) {
  return std::visit([](const auto& a) { return a.heads; }, attention);
}

std::int64_t kv_heads(const AttentionModule& attention) {
  if (const auto* mha = std::get_if<MultiHeadAttention>(&attention)) return mha->kv_heads;
  return heads(attention);
}

}  // namespace meshwright
