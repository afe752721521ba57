#include "model/modules/latent_attention.h"

#include <algorithm>
#include <string>

#include "model/modules/scores.h"

namespace meshwright {

LatentAttention LatentAttention::reduced() const {
  LatentAttention small = *this;
  small.key_dim = std::min<std::int64_t>(key_dim, 4);
  small.value_dim = std::min<std::int64_t>(value_dim, 4);
  small.rope_width = std::min<std::int64_t>(rope_width, 4);
  small.kv_latent = std::min<std::int64_t>(kv_latent, 8);
  small.q_latent = std::min<std::int64_t>(q_latent, 8);
  return small;
}

void LatentAttention::list(ParameterList& list) const {
  constexpr ModuleKind kModule = ModuleKind::kAttention;
  const std::int64_t C = list.width(), from = q_latent > 0 ? q_latent : C;
  const Layout columns = Layout::shard(1);
  if (q_latent > 0) {
    list.linear("mla.q_down", C, q_latent, bias, kModule);
    latent_norm.list(list, "mla.q_norm", q_latent, kModule);
  }
  list.linear("mla.qup", from, heads * key_dim, false, kModule, columns);
  list.linear("mla.qr", from, heads * rope_width, false, kModule, columns);
  list.linear("mla.kv_down", C, kv_latent, bias, kModule);
  list.linear("mla.kr", C, rope_width, bias, kModule);
  latent_norm.list(list, "mla.kv_norm", kv_latent, kModule);
  list.linear("mla.kup", kv_latent, heads * key_dim, false, kModule, columns);
  list.linear("mla.vup", kv_latent, heads * value_dim, false, kModule, columns);
  list.linear("mla.out", heads * value_dim, C, bias, kModule, Layout::shard(0), {}, true);
}

View LatentAttention::forward(Forward& f, const View& own) const {
  const auto latent = [&](const std::string& which, std::int64_t width) {
    const View c = f.value("c." + which, f.own_rows(), width);
    f.linear(own, "mla." + which + "_down", c);
    return f.whole(latent_norm.forward(f, c, "mla." + which + "_norm", "c." + which + ".own"), "c." + which);
  };
  const View c = latent("kv", kv_latent);
  const View own_kr = f.value("kr.own", f.own_rows(), rope_width);
  f.linear(own, "mla.kr", own_kr);
  rotate(f, own_kr, 1, rope_width, rope_width, rope, true);
  const View kr = f.whole(own_kr, "kr");
  const View cq = q_latent > 0 ? latent("q", q_latent) : f.whole(own, "h.attention");

  const std::int64_t mine = heads / f.tp();
  const View qr = f.value("qr", f.rows(), mine * rope_width), q = f.value("q", f.rows(), mine * key_dim),
             k = f.value("k", f.rows(), mine * key_dim), v = f.value("v", f.rows(), mine * value_dim);
  f.linear(cq, "mla.qr", qr);
  rotate(f, qr, mine, rope_width, rope_width, rope, false);
  f.linear(cq, "mla.qup", q);
  f.linear(c, "mla.kup", k);
  f.linear(c, "mla.vup", v);
  return attend(f, {.q = q, .k = k, .v = v, .qr = qr, .kr = kr},
                {.heads = mine,
                 .kv_heads = mine,
                 .head_dim = key_dim,
                 .value_dim = value_dim,
                 .rope_width = rope_width,
                 .scale = scale},
                0, "mla.out.kernel");
}

View LatentAttention::output_bias(Forward& f) const { return f.param_if("mla.out.bias"); }

}  // namespace meshwright
