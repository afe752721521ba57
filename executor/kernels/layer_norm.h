#pragma once

#include <cstdint>

#include "executor/kernels/rms_norm.h"

namespace meshwright::kernels {

// y(r, c) = (x(r, c) - mean[r]) * rstd[r] * (gamma_offset + gamma[c]) + beta[c],  rstd[r] = 1 / sqrt(mean over c of
// (x(r, c) - mean[r])^2 + epsilon). x and y are contiguous, rows x width. mean and rstd (rows) are what the backward pass
// needs.   y may be x.
template <class T>
void layer_norm(std::int64_t rows, std::int64_t width, const T* x, const NormWeights<T>& weights, double epsilon, T* y,
                Arithmetic<T>* mean, Arithmetic<T>* rstd);

// The same y from mean and rstd that are already known.
template <class T>
void layer_norm_apply(std::int64_t rows, std::int64_t width, const T* x, const Arithmetic<T>* mean,
                      const Arithmetic<T>* rstd, const NormWeights<T>& weights, T* y);

// With n = (x - mean) * rstd and g = dy * (gamma_offset + gamma):
//   dx (+)= rstd * (g - mean over c of g - n * mean over c of g*n)
//   dgamma = sum over rows of dy * n;   dbeta = sum over rows of dy      in blocks (row_sums.h)
// dx may be dy if it is overwritten.
template <class T>
void layer_norm_backward(std::int64_t rows, std::int64_t width, const T* x, const Arithmetic<T>* mean,
                         const Arithmetic<T>* rstd, const NormWeights<T>& weights, const T* dy,
                         const NormGradients<T>& gradients);

}  // namespace meshwright::kernels
