#include "executor/kernels/rms_norm.h"

#include <cmath>

#include "executor/kernels/norm_sums.h"
#include "executor/kernels/vector_math.h"

namespace meshwright::kernels {
namespace {

template <class Real>
void apply_row(std::int64_t width, const Real* in, Real scale, const Real* gain, const Real* beta, Real* out) {
  if (beta) {
    for (std::int64_t c = 0; c < width; ++c) out[c] = in[c] * scale * gain[c] + beta[c];
  } else {
    for (std::int64_t c = 0; c < width; ++c) out[c] = in[c] * scale * gain[c];
  }
}

}  // namespace

template <class Real>
void rms_norm(std::int64_t rows, std::int64_t width, const Real* x, const NormWeights<Real>& weights, double epsilon,
              Real* y, Real* rstd) {
  const Gains<Real> gains(weights, width);
  for (std::int64_t r = 0; r < rows; ++r) {
    const Real* in = x + r * width;
    rstd[r] = Real(1) / std::sqrt(dot(width, in, in) / Real(width) + Real(epsilon));
    apply_row(width, in, rstd[r], gains.data(), weights.beta, y + r * width);
  }
}

template <class Real>
void rms_norm_apply(std::int64_t rows, std::int64_t width, const Real* x, const Real* rstd,
                    const NormWeights<Real>& weights, Real* y) {
  const Gains<Real> gains(weights, width);
  for (std::int64_t r = 0; r < rows; ++r)
    apply_row(width, x + r * width, rstd[r], gains.data(), weights.beta, y + r * width);
}

template <class Real>
void rms_norm_backward(std::int64_t rows, std::int64_t width, const Real* x, const Real* rstd,
                       const NormWeights<Real>& weights, const Real* dy, const NormGradients<Real>& gradients) {
  const Gains<Real> gains(weights, width);
  const Real* gain = gains.data();
  ParameterSums<Real> sums(width);
  Real* gamma_sums = sums.gamma();
  Real* beta_sums = sums.beta();
  for (std::int64_t r = 0; r < rows; ++r) {
    const Real* in = x + r * width;
    const Real* d = dy + r * width;
    Real* dx = gradients.dx + r * width;
    const Real scale = rstd[r];
    for (std::int64_t c = 0; c < width; ++c) {
      gamma_sums[c] += d[c] * in[c] * scale;
      beta_sums[c] += d[c];
    }
    sums.row_done(r, rows);
    // rstd * n * mean(g n) = x * rstd^3 * mean(g x)
    const Real along = scale * scale * scale * dot(width, d, gain, in) / Real(width);
    if (gradients.accumulate_dx) {
      for (std::int64_t c = 0; c < width; ++c) dx[c] += scale * d[c] * gain[c] - along * in[c];
    } else {
      for (std::int64_t c = 0; c < width; ++c) dx[c] = scale * d[c] * gain[c] - along * in[c];
    }
  }
  sums.store(gradients);
}

template <class Real>
void row_mean_square(std::int64_t rows, std::int64_t width, const Real* x, std::int64_t whole_width, Real* out) {
  for (std::int64_t r = 0; r < rows; ++r) out[r] = dot(width, x + r * width, x + r * width) / Real(whole_width);
}

template <class Real>
void row_mean_square_backward(std::int64_t rows, std::int64_t width, const Real* d, const Real* x,
                              std::int64_t whole_width, bool accumulate, Real* dx) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const Real factor = Real(2) * d[r] / Real(whole_width);
    const Real* in = x + r * width;
    Real* out = dx + r * width;
    if (accumulate) {
      for (std::int64_t c = 0; c < width; ++c) out[c] += factor * in[c];
    } else {
      for (std::int64_t c = 0; c < width; ++c) out[c] = factor * in[c];
    }
  }
}

template <class Real>
void rms_scale(std::int64_t rows, std::int64_t width, const Real* x, const Real* mean_square, const Real* gamma,
               double epsilon, Real* y) {
  for (std::int64_t r = 0; r < rows; ++r)
    apply_row<Real>(width, x + r * width, Real(1) / std::sqrt(mean_square[r] + Real(epsilon)), gamma, nullptr,
                    y + r * width);
}

template <class Real>
void rms_scale_backward(std::int64_t rows, std::int64_t width, const Real* x, const Real* mean_square,
                        const Real* gamma, double epsilon, const Real* dy, const NormGradients<Real>& gradients,
                        Real* dmean_square) {
  ParameterSums<Real> sums(width);
  Real* gamma_sums = sums.gamma();
  for (std::int64_t r = 0; r < rows; ++r) {
    const Real* in = x + r * width;
    const Real* d = dy + r * width;
    Real* dx = gradients.dx + r * width;
    const Real scale = Real(1) / std::sqrt(mean_square[r] + Real(epsilon));
    for (std::int64_t c = 0; c < width; ++c) gamma_sums[c] += d[c] * in[c] * scale;
    sums.row_done(r, rows);
    dmean_square[r] = Real(-0.5) * scale * scale * scale * dot(width, d, gamma, in);
    if (gradients.accumulate_dx) {
      for (std::int64_t c = 0; c < width; ++c) dx[c] += scale * d[c] * gamma[c];
    } else {
      for (std::int64_t c = 0; c < width; ++c) dx[c] = scale * d[c] * gamma[c];
    }
  }
  sums.store(gradients);
}

#define MESHWRIGHT_INSTANTIATE(Real)                                                                                   \
  template void rms_norm(std::int64_t, std::int64_t, const Real*, const NormWeights<Real>&, double, Real*, Real*);     \
  template void rms_norm_apply(std::int64_t, std::int64_t, const Real*, const Real*, const NormWeights<Real>&, Real*); \
  template void rms_norm_backward(std::int64_t, std::int64_t, const Real*, const Real*, const NormWeights<Real>&,      \
                                  const Real*, const NormGradients<Real>&);                                            \
  template void row_mean_square(std::int64_t, std::int64_t, const Real*, std::int64_t, Real*);                         \
  template void row_mean_square_backward(std::int64_t, std::int64_t, const Real*, const Real*, std::int64_t, bool,     \
                                         Real*);                                                                       \
  template void rms_scale(std::int64_t, std::int64_t, const Real*, const Real*, const Real*, double, Real*);           \
  template void rms_scale_backward(std::int64_t, std::int64_t, const Real*, const Real*, const Real*, double,          \
                                   const Real*, const NormGradients<Real>&, Real*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
