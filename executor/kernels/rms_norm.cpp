#include "executor/kernels/rms_norm.h"

#include <algorithm>
#include <cmath>

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
  if (!gradients.accumulate_parameters) {
    std::fill(gradients.dgamma, gradients.dgamma + width, Real(0));
    std::fill(gradients.dbeta, gradients.dbeta + width, Real(0));
  }
  Real* dgamma = gradients.dgamma;
  Real* dbeta = gradients.dbeta;
  for (std::int64_t r = 0; r < rows; ++r) {
    const Real* in = x + r * width;
    const Real* d = dy + r * width;
    Real* dx = gradients.dx + r * width;
    const Real scale = rstd[r];
    for (std::int64_t c = 0; c < width; ++c) {
      dgamma[c] += d[c] * in[c] * scale;
      dbeta[c] += d[c];
    }
    // rstd * n * mean(g n) = x * rstd^3 * mean(g x)
    const Real along = scale * scale * scale * dot(width, d, gamma, in) / Real(width);
    if (gradients.accumulate_dx) {
      for (std::int64_t c = 0; c < width; ++c) dx[c] += scale * d[c] * gamma[c] - along * in[c];
    } else {
      for (std::int64_t c = 0; c < width; ++c) dx[c] = scale * d[c] * gamma[c] - along * in[c];
    }
  }
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
