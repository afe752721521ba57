#pragma once

#include <cstdint>

namespace meshwright::kernels {

// Causal attention of the heads of one rank, with decoupled rotary parts (multi-head latent attention,
// DeepSeek-V2 2024):
//   score(t, t') = (qn_t . k_t' + qr_t . kr_t') / sqrt(dh + R)  for t' <= t
//   o_t = sum over t' of softmax(score)(t, t') v_t'
// T: tokens, B: sequences, H: heads of this rank, dh: head width, R: rotary width (0: no rotary part).
// Row t*B + b of every matrix belongs to token t of sequence b.
//
// For every (sequence, head), rows are taken in blocks of `block`: block i covers rows [i*block, min(T,
// (i+1)*block)) and the columns [0, min(T, (i+1)*block)), so what lies above the diagonal is skipped up to
// the block. Executed FLOPs:
//   forward:  sum over blocks of 2 * rows * cols * ((dh+R) + dh)        scores; o
//   backward: sum over blocks of 2 * rows * cols * (3*(dh+R) + 2*dh)    scores again, dq, dk; dP, dv
struct AttentionShape {
  std::int64_t tokens = 0;
  std::int64_t sequences = 0;
  std::int64_t heads = 0;
  std::int64_t head_width = 0;
  std::int64_t rope_width = 0;
  std::int64_t block = 0;  // rows of a block, >= 1
};

template <class Real>
struct AttentionInputs {
  const Real* qn = nullptr;  // (T, B, H*dh)
  const Real* qr = nullptr;  // (T, B, H*R), rotated; unused when R == 0
  const Real* kv = nullptr;  // (T, B, 2*H*dh): the keys of all heads, then the values of all heads
  const Real* kr = nullptr;  // row r at kr + r*kr_ld, R columns, rotated, shared by the heads; unused like qr
  std::int64_t kr_ld = 0;
};

template <class Real>
struct AttentionGradients {  // same layouts as the inputs, all overwritten
  Real* dqn = nullptr;
  Real* dqr = nullptr;
  Real* dkv = nullptr;
  Real* dkr = nullptr;  // summed over the heads
  std::int64_t dkr_ld = 0;
  bool accumulate_dkr = false;  // dkr is added to what is there
};

// Elements of scratch that the two passes need: min(block, T) * T, and twice that.
std::int64_t attention_forward_scratch(const AttentionShape& shape);
std::int64_t attention_backward_scratch(const AttentionShape& shape);

// o (T, B, H*dh); lse (B, H, T): log of the sum over t' <= t of e^score(t, t').
template <class Real>
void attention_forward(const AttentionShape& shape, const AttentionInputs<Real>& in, Real* o, Real* lse, Real* scratch);

// do_ (T, B, H*dh) is the gradient of o. Probabilities are recomputed from lse.
template <class Real>
void attention_backward(const AttentionShape& shape, const AttentionInputs<Real>& in, const Real* lse, const Real* do_,
                        const AttentionGradients<Real>& out, Real* scratch);

}  // namespace meshwright::kernels
