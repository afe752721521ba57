#pragma once

#include <cstdint>

#include "executor/kernels/bf16.h"
#include "model/program/op.h"

// The functions of ActivationKind (op.h) and their derivatives. On the whole real line: at -infinity 0 (to 1e-32), at
// +infinity u, and 1. NaN stays NaN.
// float: error below 3e-7 * max(1, |a|), gelu_erf's below 1e-6; double: as std::exp and std::erfc.
namespace meshwright::kernels {

// a = act(u).   In place allowed.
template <class T>
void activation(ActivationKind kind, std::int64_t n, const T* u, T* a);

// du = da * act'(u).   du may be da or u.
template <class T>
void activation_backward(ActivationKind kind, std::int64_t n, const T* u, const T* da, T* du);

// a (rows, width) = act(gate) * up,  u (rows, 2 width) = gate | up, both contiguous.
template <class T>
void gated_activation(ActivationKind kind, std::int64_t rows, std::int64_t width, const T* u, T* a);

// du (rows, 2 width) = da up act'(gate) | da act(gate).   du may be u.
template <class T>
void gated_activation_backward(ActivationKind kind, std::int64_t rows, std::int64_t width, const T* u, const T* da,
                               T* du);

}  // namespace meshwright::kernels
