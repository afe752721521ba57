#pragma once

#include <cstdint>

namespace meshwright::kernels {

// y(r, c) = x(r, c) * rstd[r] * gamma[c] + beta[c],  rstd[r] = 1 / sqrt(mean over c of x(r, c)^2 + 1e-6).
// x and y are contiguous, rows x width. rstd (rows) is what the backward pass needs.   y may be x.
template <class Real>
void rms_norm(std::int64_t rows, std::int64_t width, const Real* x, const Real* gamma, const Real* beta, Real* y,
              Real* rstd);

// The same y from an rstd that is already known: recomputes the output in the backward pass.
template <class Real>
void rms_norm_apply(std::int64_t rows, std::int64_t width, const Real* x, const Real* rstd, const Real* gamma,
                    const Real* beta, Real* y);

template <class Real>
struct RmsNormGradients {
  Real* dx = nullptr;                  // rows x width
  bool accumulate_dx = true;           // added to dx, or overwriting it
  Real* dgamma = nullptr;              // (width)
  Real* dbeta = nullptr;               // (width)
  bool accumulate_parameters = false;  // added to dgamma and dbeta, or overwriting them
};

// With n = x * rstd and g = dy * gamma:
//   dx += rstd * (g - n * mean over c of g*n)
//   dgamma = sum over rows of dy * n;   dbeta = sum over rows of dy      in blocks (row_sums.h)
// dx may be dy if it is overwritten.
template <class Real>
void rms_norm_backward(std::int64_t rows, std::int64_t width, const Real* x, const Real* rstd, const Real* gamma,
                       const Real* dy, const RmsNormGradients<Real>& gradients);

}  // namespace meshwright::kernels
