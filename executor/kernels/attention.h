#pragma once

#include <cstdint>

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
template <class Real>
struct TokenMatrix {
  Real* data = nullptr;
  std::int64_t ld = 0;
};

template <class Real>
struct AttentionInputs {
  TokenMatrix<const Real> q;   // heads * head_dim columns
  TokenMatrix<const Real> k;   // kv_heads * head_dim
  TokenMatrix<const Real> v;   // kv_heads * value_dim
  TokenMatrix<const Real> qr;  // heads * rope_width, rotated; unused when rope_width is 0
  TokenMatrix<const Real> kr;  // rope_width, rotated, shared by the heads; unused like qr
};

template <class Real>
struct AttentionGradients {  // of the inputs, all overwritten; dk, dv, dkr are sums over the heads that read k, v, kr
  TokenMatrix<Real> dq, dk, dv, dqr, dkr;
};

// Of probabilities: element ((sequence * heads + head) * T + row) * T + column, numbered over all ranks.
struct AttentionDropout {
  Dropout dropout;
  const std::int64_t* sequence_index = nullptr;  // (B), global
  std::int64_t first_head = 0, heads = 0;        // of this rank's heads among the model's, and how many those are
};

// Elements of scratch that the two passes need: min(block, T) * block_columns(), and twice that.
std::int64_t attention_forward_scratch(const AttentionShape& shape);
std::int64_t attention_backward_scratch(const AttentionShape& shape);

// o (T, B, heads*value_dim); lse (B, heads, T): log of the sum over t' of e^score(t, t').
template <class Real>
void attention_forward(const AttentionShape& shape, const AttentionInputs<Real>& in, const AttentionDropout& dropout,
                       const TokenMatrix<Real>& o, Real* lse, Real* scratch);

// do_ is the gradient of o. Probabilities are recomputed from lse.
template <class Real>
void attention_backward(const AttentionShape& shape, const AttentionInputs<Real>& in, const AttentionDropout& dropout,
                        const Real* lse, const TokenMatrix<const Real>& do_, const AttentionGradients<Real>& out,
                        Real* scratch);

}  // namespace meshwright::kernels
