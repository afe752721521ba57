#pragma once

#include <cstdint>

#include "executor/kernels/bf16.h"
#include "executor/kernels/dropout.h"
#include "model/program/op.h"

namespace meshwright::kernels {

// Causal attention of the heads of one rank (meshwright::AttentionShape):
//   score(t, t') = scale * (q_t . k_t' + qr_t . kr_t')  for t' <= t, and t - t' < window where there is one
//   o_t = sum over t' of mask(t, t') softmax(score)(t, t') v_t'
// Multi-head, grouped-query (Ainslie et al. 2023) and multi-head latent attention (DeepSeek-V2 2024), with decoupled rotary
// parts that all heads' keys share.
//
// For every (sequence, head), rows are taken in blocks of `block`: block i covers rows [i*block, min(T, (i+1)*block)) and
// the columns from the first that its first row sees to its own end. Executed FLOPs: attention_flops() and
// attention_backward_flops() (op_work.h).

// Row t*B + b, of token t of sequence b, at data + (t*B + b) * ld.
template <class T>
struct TokenMatrix {
  T* data = nullptr;
  std::int64_t ld = 0;
};

// Scores and probabilities are Arithmetic<T>; where T is narrower, probabilities are rounded to T for their products, and
// sums over blocks of rows and over heads are kept in scratch and rounded once.
template <class T>
struct AttentionInputs {
  TokenMatrix<const T> q;   // heads * head_dim columns
  TokenMatrix<const T> k;   // kv_heads * head_dim
  TokenMatrix<const T> v;   // kv_heads * value_dim
  TokenMatrix<const T> qr;  // heads * rope_width, rotated; unused when rope_width is 0
  TokenMatrix<const T> kr;  // rope_width, rotated, shared by the heads; unused like qr
};

template <class T>
struct AttentionGradients {  // of the inputs, all overwritten; dk, dv, dkr are sums over the heads that read k, v, kr
  TokenMatrix<T> dq, dk, dv, dqr, dkr;
};

// Of probabilities: element ((sequence * heads + head) * T + row) * T + column, numbered over all ranks.
struct AttentionDropout {
  Dropout dropout;
  const std::int64_t* sequence_index = nullptr;  // (B), global
  std::int64_t first_head = 0, heads = 0;        // of this rank's heads among the model's, and how many those are
};

// Elements of scratch that the two passes need: min(block, T) * block_columns(), and twice that; for the backward of a
// narrower T another tokens * (head_dim + value_dim + rope_width).
std::int64_t attention_forward_scratch(const AttentionShape& shape);
std::int64_t attention_backward_scratch(const AttentionShape& shape, bool narrow = false);

// o (T, B, heads*value_dim); lse (B, heads, T): log of the sum over t' of e^score(t, t').
template <class T>
void attention_forward(const AttentionShape& shape, const AttentionInputs<T>& in, const AttentionDropout& dropout,
                       const TokenMatrix<T>& o, Arithmetic<T>* lse, Arithmetic<T>* scratch);

// do_ is the gradient of o. Probabilities are recomputed from lse.
template <class T>
void attention_backward(const AttentionShape& shape, const AttentionInputs<T>& in, const AttentionDropout& dropout,
                        const Arithmetic<T>* lse, const TokenMatrix<const T>& do_, const AttentionGradients<T>& out,
                        Arithmetic<T>* scratch);

}  // namespace meshwright::kernels
