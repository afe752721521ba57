#include "model/modules/joint_latent_attention.h"

#include <algorithm>
#include <cmath>

#include "model/modules/scores.h"

namespace meshwright {

JointLatentAttention JointLatentAttention::reduced() const {
  JointLatentAttention small = *this;
  small.head_dim = std::min<std::int64_t>(head_dim, 4);
  small.kv_latent = std::min<std::int64_t>(kv_latent, 8);
  small.q_latent = std::min<std::int64_t>(q_latent, 8);
  small.rope_width = std::min<std::int64_t>(rope_width, 4);
  return small;
}

void JointLatentAttention::list(ParameterList& list) const {
  constexpr ModuleKind kModule = ModuleKind::kAttention;
  const std::int64_t latent = kv_latent + q_latent, inner = heads * head_dim;
  list.linear("mla.down", list.width(), latent, true, kModule);
  if (rope_width > 0) {
    list.linear("mla.kr", latent, rope_width, true, kModule);
    list.linear("mla.qr", latent, rope_width * heads, true, kModule, Layout::shard(1), Layout::shard(0));
  }
  // Keys of all heads, then values of all heads.
  list.linear("mla.kvup", kv_latent, 2 * inner, true, kModule, Layout::shard(1, 2), Layout::shard(0, 2));
  list.linear("mla.qup", q_latent, inner, true, kModule, Layout::shard(1), Layout::shard(0));
  list.linear("mla.out", inner, list.width(), true, kModule, Layout::shard(0), {}, true);
}

View JointLatentAttention::forward(Forward& f, const View& own) const {
  const std::int64_t latent = kv_latent + q_latent, mine = heads / f.tp(), inner = mine * head_dim;
  const View own_zk = f.value("zk.own", f.own_rows(), latent + rope_width), own_z = own_zk.columns(0, latent);
  f.linear(own, "mla.down", own_z);
  if (rope_width > 0) {
    const View own_kr = own_zk.columns(latent, rope_width);
    f.linear(own_z, "mla.kr", own_kr);
    rotate(f, own_kr, 1, rope_width, rope_width, rope, true);
  }
  const View zk = f.whole(own_zk, "zk");

  const View kv = f.value("kv", f.rows(), 2 * inner), q = f.value("qn", f.rows(), inner);
  View qr, kr;
  if (rope_width > 0) {
    qr = f.value("qr", f.rows(), mine * rope_width);
    kr = zk.columns(latent, rope_width);
    f.linear(zk.columns(0, latent), "mla.qr", qr);
    rotate(f, qr, mine, rope_width, rope_width, rope, false);
  }
  f.linear(zk.columns(kv_latent, q_latent), "mla.qup", q);
  f.linear(zk.columns(0, kv_latent), "mla.kvup", kv);
  return attend(f, {.q = q, .k = kv.columns(0, inner), .v = kv.columns(inner, inner), .qr = qr, .kr = kr},
                {.heads = mine,
                 .kv_heads = mine,
                 .head_dim = head_dim,
                 .value_dim = head_dim,
                 .rope_width = rope_width,
                 .scale = 1.0 / std::sqrt(static_cast<double>(head_dim + rope_width))},
                0, "mla.out.kernel");
}

View JointLatentAttention::output_bias(Forward& f) const { return f.param("mla.out.bias"); }

}  // namespace meshwright
