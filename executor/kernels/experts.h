#pragma once

#include <cstdint>

#include "executor/kernels/activation.h"
#include "executor/kernels/dropout.h"
#include "executor/kernels/gemm.h"

namespace meshwright::kernels {

// Everything around the experts' matrix multiplications (expert_gemm). Forward, for the kept assignments:
//   packed = dispatch(h);  u = packed We0 + b0;  a = act(u);  y = a We1
//   out = combine: sum over the choices of gate * mask * (y + bias_scale * b1)
// Backward, without y. On a tp rank with a slice of the hidden units, dgate, db1 and dh are partial sums:
//   masked, row_gate = combine_backward(dout)         masked = mask * dout, not yet times the gate
//   da_raw = masked We1^T
//   dgate = gate_gradient: a . da_raw + bias_scale * masked . b1     (= masked . (y + bias_scale * b1))
//   du = row_gate * da_raw * act'(u);  dWe0 = packed^T du;  db0 = column sums of du
//   dWe1 = (row_gate * a)^T masked;  db1 = bias_scale * column sums of row_gate * masked
//   dh = dispatch_backward(du We0^T).
// The packed buffer and `slot`, `choice`, `gate`, `rows` are those of routing.h; (T, B, k) and (T, B, C) have
// row t*B + b.

// packed row slot[r*k + j] = h row r, for `rows` tokens of `width`. Dropped assignments (slot -1) are
// skipped.
template <class T>
void dispatch(std::int64_t rows, std::int64_t choices, std::int64_t width, const std::int32_t* slot, const T* h,
              T* packed);

// dh row r += sum over j of dpacked row slot[r*k + j].
template <class T>
void dispatch_backward(std::int64_t rows, std::int64_t choices, std::int64_t width, const std::int32_t* slot,
                       const T* dpacked, T* dh);

template <class T>
struct Combine {
  TokenRows rows;  // whole sequences, as routing has them
  std::int64_t experts = 0;
  std::int64_t choices = 0;
  std::int64_t width = 0;                // C
  Dropout dropout;                       // on expert outputs: element (global_token * E + e) * C + c
  const std::int32_t* choice = nullptr;  // (T, B, k)
  const std::int32_t* slot = nullptr;    // (T, B, k)
  const Arithmetic<T>* gate = nullptr;   // (T, B, k)
};

// out (T, B, C) (+)= sum over the kept j of gate_j * mask * (y row slot_j + bias_scale * bias[choice_j]);  bias
// is (E, C), or null: 0. bias_scale is 1/tp where y is a partial sum over tp ranks. Added to out if `accumulate`.
template <class T>
void combine(const Combine<T>& combine, const T* y, const T* bias, Arithmetic<T> bias_scale, bool accumulate, T* out);

// For every kept assignment: masked row slot_j = mask * dout row,  row_gate[slot_j] = gate_j.
template <class T>
void combine_backward(const Combine<T>& combine, const T* dout, T* masked, Arithmetic<T>* row_gate);

// dgate (T, B, k), overwritten: for kept assignments a row . da_raw row + bias_scale * masked row .
// bias[choice_j] (bias null: 0), 0 for dropped ones. a and da_raw have rows of `hidden`.
template <class T>
void gate_gradient(const Combine<T>& combine, std::int64_t hidden, const T* a, const T* da_raw, const T* masked,
                   const T* bias, Arithmetic<T> bias_scale, Arithmetic<T>* dgate);

// Kernels on the filled rows of a packed buffer, n columns wide and contiguous.

// x row i *= row_gate[i].
template <class T>
void expert_scale_rows(const ExpertRows& experts, std::int64_t n, const Arithmetic<T>* row_gate, T* x);

// x rows of expert e += bias[e]; bias is (E, n).
template <class T>
void expert_add_bias(const ExpertRows& experts, std::int64_t n, const T* bias, T* x);

// out[e] = scale * sum over the rows of e of row_gate[i] * x row i (weights 1 if row_gate is null), added if
// `accumulate`; out is (E, n). Summed in blocks (row_sums.h): the error does not grow with the rows.
template <class T>
void expert_column_sum(const ExpertRows& experts, std::int64_t n, const T* x, const Arithmetic<T>* row_gate,
                       Arithmetic<T> scale, bool accumulate, Arithmetic<T>* out);

// activation.h's, gated: u is 2n wide.
template <class T>
void expert_activation(const ExpertRows& experts, ActivationKind kind, std::int64_t n, const T* u, T* a);
template <class T>
void expert_activation_backward(const ExpertRows& experts, ActivationKind kind, std::int64_t n, const T* u, const T* da,
                                T* du);
template <class T>
void expert_gated_activation(const ExpertRows& experts, ActivationKind kind, std::int64_t n, const T* u, T* a);
template <class T>
void expert_gated_activation_backward(const ExpertRows& experts, ActivationKind kind, std::int64_t n, const T* u,
                                      const T* da, T* du);

}  // namespace meshwright::kernels
