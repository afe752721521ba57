#pragma once

#include <cstdint>

namespace meshwright::kernels {

// All matrices here are contiguous, rows x width.

template <class Real>
struct NormWeights {
  const Real* gamma = nullptr;  // (width)
  const Real* beta = nullptr;   // (width), or none: 0
  double gamma_offset = 0;      // added to gamma
};

// y(r, c) = x(r, c) * rstd[r] * (gamma_offset + gamma[c]) + beta[c],
// rstd[r] = 1 / sqrt(mean over c of x(r, c)^2 + epsilon).
// rstd (rows) is what the backward pass needs.   y may be x.
template <class Real>
void rms_norm(std::int64_t rows, std::int64_t width, const Real* x, const NormWeights<Real>& weights, double epsilon,
              Real* y, Real* rstd);

// The same y from an rstd that is already known: recomputes the output in the backward pass.
template <class Real>
void rms_norm_apply(std::int64_t rows, std::int64_t width, const Real* x, const Real* rstd,
                    const NormWeights<Real>& weights, Real* y);

template <class Real>
struct NormGradients {
  Real* dx = nullptr;                  // rows x width
  bool accumulate_dx = true;           // added to dx, or overwriting it
  Real* dgamma = nullptr;              // (width)
  Real* dbeta = nullptr;               // (width), or none
  bool accumulate_parameters = false;  // added to dgamma and dbeta, or overwriting them
};

// With n = x * rstd and g = dy * (gamma_offset + gamma):
//   dx += rstd * (g - n * mean over c of g*n)
//   dgamma = sum over rows of dy * n;   dbeta = sum over rows of dy      in blocks (row_sums.h)
// dx may be dy if it is overwritten.
template <class Real>
void rms_norm_backward(std::int64_t rows, std::int64_t width, const Real* x, const Real* rstd,
                       const NormWeights<Real>& weights, const Real* dy, const NormGradients<Real>& gradients);

// An RMS norm of which `width` columns are here, of `whole_width`:
//   out[r] = sum over c of x(r, c)^2 / whole_width
template <class Real>
void row_mean_square(std::int64_t rows, std::int64_t width, const Real* x, std::int64_t whole_width, Real* out);

// dx (+)= 2 d[r] x / whole_width.
template <class Real>
void row_mean_square_backward(std::int64_t rows, std::int64_t width, const Real* d, const Real* x,
                              std::int64_t whole_width, bool accumulate, Real* dx);

// y = x / sqrt(mean_square[r] + epsilon) * gamma[c].
template <class Real>
void rms_scale(std::int64_t rows, std::int64_t width, const Real* x, const Real* mean_square, const Real* gamma,
               double epsilon, Real* y);

// With r = 1 / sqrt(mean_square + epsilon):  dx (+)= dy gamma r;  dmean_square = -r^3/2 * sum over c of dy gamma x;
// dgamma (+)= sum over rows of dy x r. Of `gradients`, dbeta is not used.
template <class Real>
void rms_scale_backward(std::int64_t rows, std::int64_t width, const Real* x, const Real* mean_square,
                        const Real* gamma, double epsilon, const Real* dy, const NormGradients<Real>& gradients,
                        Real* dmean_square);

}  // namespace meshwright::kernels
