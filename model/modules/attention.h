// Multi-head attention; fewer key-value heads than heads is grouped-query attention, one is multi-query attention.
//
//   q, k, v = h Wq, h Wk, h Wv;  q and k normed, rotated;  out = softmax(scale q k^T, causal) v Wo
//
// Query head h reads key-value head h / (heads / kv_heads). Heads are cut over tp; the sequence is whole inside.
#pragma once

#include <cstdint>
#include <optional>

#include "model/modules/forward.h"
#include "model/modules/norm.h"
#include "model/modules/parameter.h"
#include "model/program/rope.h"

namespace meshwright {

struct MultiHeadAttention {
  std::int64_t heads = 1, kv_heads = 1;
  std::int64_t head_dim = 1;
  bool bias = false;      // on q, k and v
  bool out_bias = false;  // on out
  enum class QkNorm : std::uint8_t { kNone, kPerHead, kWholeProjection } qk_norm = QkNorm::kNone;
  double qk_norm_epsilon = 1e-6;
  std::int64_t rope_width = 0;  // the first channels of every head that are rotated; 0: no rotary positions
  RopeSpec rope;
  std::int64_t window = 0;  // keys at this distance and beyond are masked; 0: none
  double dropout = 0;       // of the probabilities

  bool operator==(const MultiHeadAttention&) const = default;

  MultiHeadAttention reduced() const;  // heads of at most 4 channels
  void list(ParameterList& list) const;
  // `own`: this rank's part of the sequence. Gives a summand of the output, without out's bias, of the whole sequence.
  View forward(Forward& f, const View& own) const;
  // The bias to be added to the sum, if there is one.
  View output_bias(Forward& f) const;
};

}  // namespace meshwright
