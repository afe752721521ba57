#include "model/modules/attention.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "model/modules/scores.h"

namespace meshwright {

MultiHeadAttention MultiHeadAttention::reduced() const {
  MultiHeadAttention small = *this;
  small.head_dim = std::min<std::int64_t>(head_dim, 4);
  if (rope_width > 0) small.rope_width = rope_width < head_dim ? 2 : small.head_dim / 2 * 2;
  return small;
}

void MultiHeadAttention::list(ParameterList& list) const {
  constexpr ModuleKind kModule = ModuleKind::kAttention;
  const std::int64_t C = list.width(), q = heads * head_dim, kv = kv_heads * head_dim;
  const Layout columns = Layout::shard(1), rows = Layout::shard(0);
  list.linear("attention.q", C, q, bias, kModule, columns, rows);
  list.linear("attention.k", C, kv, bias, kModule, columns, rows);
  list.linear("attention.v", C, kv, bias, kModule, columns, rows);
  if (qk_norm == QkNorm::kPerHead) {
    list.constant("attention.q_norm.gamma", {head_dim}, 1, kModule);
    list.constant("attention.k_norm.gamma", {head_dim}, 1, kModule);
  } else if (qk_norm == QkNorm::kWholeProjection) {
    list.constant("attention.q_norm.gamma", {q}, 1, kModule, rows);
    list.constant("attention.k_norm.gamma", {kv}, 1, kModule, rows);
  }
  list.linear("attention.out", q, C, out_bias, kModule, Layout::shard(0), {}, true);
}

View MultiHeadAttention::forward(Forward& f, const View& own) const {
  const View h = f.whole(own, "h.attention");
  // Queries or keys, `n` heads of this rank of `all`.
  const auto projected = [&](const char* which, std::int64_t n, std::int64_t all) {
    const std::string name = std::string("attention.") + which;
    const std::int64_t columns = n * head_dim;
    View x = f.value(which, f.rows(), columns);
    f.linear(h, name, x);
    if (qk_norm == QkNorm::kPerHead) {
      const View of_heads{x.tensor, f.rows() * n, head_dim, head_dim, 0};
      const Norm norm{.epsilon = qk_norm_epsilon, .shift = false};
      x.tensor = norm.forward(f, of_heads, name + "_norm", std::string(which) + ".normed").tensor;
    } else if (qk_norm == QkNorm::kWholeProjection) {
      const View mean_square = f.value(std::string("mean_square.") + which, f.rows(), 1, f.state());
      f.add(RowMeanSquare{.x = x, .out = mean_square, .width = all * head_dim});
      const View sum =
          f.reshard(mean_square, Layout::partial(), Layout::replicate(), std::string("mean_square.") + which);
      const View out = f.value(std::string(which) + ".normed", f.rows(), columns);
      f.add(RmsScale{
          .x = x, .mean_square = sum, .gamma = f.param(name + "_norm.gamma"), .out = out, .epsilon = qk_norm_epsilon});
      x = out;
    }
    if (rope_width > 0) rotate(f, x, n, head_dim, rope_width, rope, false);
    return x;
  };
  const std::int64_t mine = heads / f.tp(), kv_mine = kv_heads / f.tp();
  const View q = projected("q", mine, heads), k = projected("k", kv_mine, kv_heads);
  const View v = f.value("v", f.rows(), kv_mine * head_dim);
  f.linear(h, "attention.v", v);
  return attend(f, {.q = q, .k = k, .v = v},
                {.heads = mine,
                 .kv_heads = kv_mine,
                 .head_dim = head_dim,
                 .value_dim = head_dim,
                 .window = window,
                 .scale = 1.0 / std::sqrt(static_cast<double>(head_dim))},
                dropout, "attention.out.kernel");
}

View MultiHeadAttention::output_bias(Forward& f) const { return f.param_if("attention.out.bias"); }

}  // namespace meshwright
