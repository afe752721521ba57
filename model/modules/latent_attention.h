// Multi-head latent attention with decoupled rotary positions (DeepSeek-V2, section 2.1), without absorption.
//
//   c = norm(h Wkv_down), kr = rope(h Wkr), one for all heads;   cq = norm(h Wq_down), or h itself where q_latent is 0
//   k, v = c Wkup, c Wvup;   q = cq Wqup;   qr = rope(cq Wqr), per head
//   out = softmax(scale (q k^T + qr kr^T), causal) v Wo
//
// Latents are computed on this rank's part of the sequence, heads are cut over tp.
#pragma once

#include <cstdint>

#include "model/modules/forward.h"
#include "model/modules/norm.h"
#include "model/modules/parameter.h"
#include "model/program/rope.h"

namespace meshwright {

struct LatentAttention {
  std::int64_t heads = 1;
  std::int64_t key_dim = 1, value_dim = 1;  // per head, without the rotary part
  std::int64_t rope_width = 2;              // per head
  std::int64_t kv_latent = 1;
  std::int64_t q_latent = 0;  // 0: queries straight from h
  bool bias = false;          // on q_down, kv_down, kr and out
  Norm latent_norm{.epsilon = 1e-6, .shift = false};
  RopeSpec rope;
  double scale = 1;  // of the scores

  bool operator==(const LatentAttention&) const = default;

  LatentAttention reduced() const;  // heads and rotary parts of at most 4 channels, latents of at most 8
  void list(ParameterList& list) const;
  View forward(Forward& f, const View& own) const;  // as MultiHeadAttention's
  View output_bias(Forward& f) const;
};

}  // namespace meshwright
