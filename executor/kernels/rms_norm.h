#pragma once

#include <cstdint>

#include "executor/kernels/bf16.h"

namespace meshwright::kernels {

// All matrices here are contiguous, rows x width.

template <class T>
struct NormWeights {
  const T* gamma = nullptr;  // (width)
  const T* beta = nullptr;   // (width), or none: 0
  double gamma_offset = 0;   // added to gamma
};

// y(r, c) = x(r, c) * rstd[r] * (gamma_offset + gamma[c]) + beta[c],
// rstd[r] = 1 / sqrt(mean over c of x(r, c)^2 + epsilon).
// rstd (rows) is what the backward pass needs.   y may be x.
template <class T>
void rms_norm(std::int64_t rows, std::int64_t width, const T* x, const NormWeights<T>& weights, double epsilon, T* y,
              Arithmetic<T>* rstd);

// The same y from an rstd that is already known: recomputes the output in the backward pass.
template <class T>
void rms_norm_apply(std::int64_t rows, std::int64_t width, const T* x, const Arithmetic<T>* rstd,
                    const NormWeights<T>& weights, T* y);

template <class T>
struct NormGradients {
  T* dx = nullptr;                     // rows x width
  bool accumulate_dx = true;           // added to dx, or overwriting it
  Arithmetic<T>* dgamma = nullptr;     // (width)
  Arithmetic<T>* dbeta = nullptr;      // (width), or none
  bool accumulate_parameters = false;  // added to dgamma and dbeta, or overwriting them
};

// With n = x * rstd and g = dy * (gamma_offset + gamma):
//   dx += rstd * (g - n * mean over c of g*n)
//   dgamma = sum over rows of dy * n;   dbeta = sum over rows of dy      in blocks (row_sums.h)
// dx may be dy if it is overwritten.
template <class T>
void rms_norm_backward(std::int64_t rows, std::int64_t width, const T* x, const Arithmetic<T>* rstd,
                       const NormWeights<T>& weights, const T* dy, const NormGradients<T>& gradients);

// An RMS norm of which `width` columns are here, of `whole_width`:
//   out[r] = sum over c of x(r, c)^2 / whole_width
template <class T>
void row_mean_square(std::int64_t rows, std::int64_t width, const T* x, std::int64_t whole_width, Arithmetic<T>* out);

// dx (+)= 2 d[r] x / whole_width.
template <class T>
void row_mean_square_backward(std::int64_t rows, std::int64_t width, const Arithmetic<T>* d, const T* x,
                              std::int64_t whole_width, bool accumulate, T* dx);

// y = x / sqrt(mean_square[r] + epsilon) * gamma[c].
template <class T>
void rms_scale(std::int64_t rows, std::int64_t width, const T* x, const Arithmetic<T>* mean_square, const T* gamma,
               double epsilon, T* y);

// With r = 1 / sqrt(mean_square + epsilon):  dx (+)= dy gamma r;  dmean_square = -r^3/2 * sum over c of dy gamma x;
// dgamma (+)= sum over rows of dy x r. Of `gradients`, dbeta is not used.
template <class T>
void rms_scale_backward(std::int64_t rows, std::int64_t width, const T* x, const Arithmetic<T>* mean_square,
                        const T* gamma, double epsilon, const T* dy, const NormGradients<T>& gradients,
                        Arithmetic<T>* dmean_square);

}  // namespace meshwright::kernels
