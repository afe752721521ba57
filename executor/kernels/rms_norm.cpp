#include "executor/kernels/rms_norm.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "executor/kernels/row_sums.h"
#include "executor/kernels/vector_math.h"

namespace meshwright::kernels {

template <class Real>
void rms_norm(std::int64_t rows, std::int64_t width, const Real* x, const Real* gamma, const Real* beta, Real* y,
              Real* rstd) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const Real* in = x + r * width;
    rstd[r] = Real(1) / std::sqrt(dot(width, in, in) / Real(width) + Real(1e-6));
    rms_norm_apply(1, width, in, rstd + r, gamma, beta, y + r * width);
  }
}

template <class Real>
void rms_norm_apply(std::int64_t rows, std::int64_t width, const Real* x, const Real* rstd, const Real* gamma,
                    const Real* beta, Real* y) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const Real* in = x + r * width;
    Real* out = y + r * width;
    const Real scale = rstd[r];
    for (std::int64_t c = 0; c < width; ++c) out[c] = in[c] * scale * gamma[c] + beta[c];
  }
}

template <class Real>
void rms_norm_backward(std::int64_t rows, std::int64_t width, const Real* x, const Real* rstd, const Real* gamma,
                       const Real* dy, const RmsNormGradients<Real>& gradients) {
  std::vector<double> totals(static_cast<std::size_t>(2 * width), 0.0);
  std::vector<Real> sums(static_cast<std::size_t>(2 * width), Real(0));
  double* gamma_totals = totals.data();
  double* beta_totals = gamma_totals + width;
  Real* gamma_sums = sums.data();
  Real* beta_sums = gamma_sums + width;
  for (std::int64_t r = 0; r < rows; ++r) {
    const Real* in = x + r * width;
    const Real* d = dy + r * width;
    Real* dx = gradients.dx + r * width;
    const Real scale = rstd[r];
    for (std::int64_t c = 0; c < width; ++c) {
      gamma_sums[c] += d[c] * in[c] * scale;
      beta_sums[c] += d[c];
    }
    if ((r + 1) % kSumRows == 0 || r + 1 == rows) {
      add_block(width, gamma_sums, gamma_totals);
      add_block(width, beta_sums, beta_totals);
    }
    // rstd * n * mean(g n) = x * rstd^3 * mean(g x)
    const Real along = scale * scale * scale * dot(width, d, gamma, in) / Real(width);
    if (gradients.accumulate_dx) {
      for (std::int64_t c = 0; c < width; ++c) dx[c] += scale * d[c] * gamma[c] - along * in[c];
    } else {
      for (std::int64_t c = 0; c < width; ++c) dx[c] = scale * d[c] * gamma[c] - along * in[c];
    }
  }
  store_sums(width, gamma_totals, gradients.accumulate_parameters, gradients.dgamma);
  store_sums(width, beta_totals, gradients.accumulate_parameters, gradients.dbeta);
}

#define MESHWRIGHT_INSTANTIATE(Real)                                                                                   \
  template void rms_norm(std::int64_t, std::int64_t, const Real*, const Real*, const Real*, Real*, Real*);             \
  template void rms_norm_apply(std::int64_t, std::int64_t, const Real*, const Real*, const Real*, const Real*, Real*); \
  template void rms_norm_backward(std::int64_t, std::int64_t, const Real*, const Real*, const Real*, const Real*,      \
                                  const RmsNormGradients<Real>&);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
