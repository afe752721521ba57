// JAXformer's latent attention: one down-projection for both latents, no norms on them, rotary parts from both together,
// biases everywhere.
//
//   z = h Wdown (kv_latent | q_latent);  k, v = z_kv Wkvup;  q = z_q Wqup
//   rope_width > 0:  kr = rope(z Wkr), one for all heads;  qr = rope(z Wqr), per head
//   out = softmax((q k^T + qr kr^T) / sqrt(head_dim + rope_width), causal) v Wo
#pragma once

#include <cstdint>

#include "model/modules/forward.h"
#include "model/modules/parameter.h"
#include "model/program/rope.h"

namespace meshwright {

struct JointLatentAttention {
  std::int64_t heads = 1;
  std::int64_t head_dim = 1;
  std::int64_t kv_latent = 1;
  std::int64_t q_latent = 1;
  std::int64_t rope_width = 0;  // per head; 0: no rotary part, no Wkr and Wqr
  RopeSpec rope;

  bool operator==(const JointLatentAttention&) const = default;

  JointLatentAttention reduced() const;  // heads and rotary parts of at most 4 channels, latents of at most 8
  void list(ParameterList& list) const;
  View forward(Forward& f, const View& own) const;  // as MultiHeadAttention's
  View output_bias(Forward& f) const;
};

}  // namespace meshwright
