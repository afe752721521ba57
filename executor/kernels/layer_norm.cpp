#include "executor/kernels/layer_norm.h"

#include <cmath>

#include "executor/kernels/norm_sums.h"
#include "executor/kernels/vector_math.h"

namespace meshwright::kernels {
namespace {

template <class Real>
void apply_row(std::int64_t width, const Real* in, Real mean, Real scale, const Real* gain, const Real* beta,
               Real* out) {
  if (beta) {
    for (std::int64_t c = 0; c < width; ++c) out[c] = (in[c] - mean) * scale * gain[c] + beta[c];
  } else {
    for (std::int64_t c = 0; c < width; ++c) out[c] = (in[c] - mean) * scale * gain[c];
  }
}

// Sum over i < n of (x[i] - mean)^2.
template <class Real>
Real squares_around(std::int64_t n, const Real* x, Real mean) {
  using Vector = typename Lanes<Real>::Vector;
  return sum_in_lanes<Real>(
      n,
      [=](std::int64_t i, Vector& v) {
        load(x + i, v);
        v -= mean;
        v *= v;
      },
      [=](std::int64_t i) { return (x[i] - mean) * (x[i] - mean); });
}

// Sum over i < n of a[i] * b[i] * (x[i] - mean).
template <class Real>
Real dot_around(std::int64_t n, const Real* a, const Real* b, const Real* x, Real mean) {
  using Vector = typename Lanes<Real>::Vector;
  return sum_in_lanes<Real>(
      n,
      [=](std::int64_t i, Vector& v) {
        Vector w, u;
        load(a + i, v), load(b + i, w), load(x + i, u);
        v = v * w * (u - mean);
      },
      [=](std::int64_t i) { return a[i] * b[i] * (x[i] - mean); });
}

}  // namespace

template <class Real>
void layer_norm(std::int64_t rows, std::int64_t width, const Real* x, const NormWeights<Real>& weights, double epsilon,
                Real* y, Real* mean, Real* rstd) {
  const Gains<Real> gains(weights, width);
  for (std::int64_t r = 0; r < rows; ++r) {
    const Real* in = x + r * width;
    mean[r] = sum(width, in) / Real(width);
    rstd[r] = Real(1) / std::sqrt(squares_around(width, in, mean[r]) / Real(width) + Real(epsilon));
    apply_row(width, in, mean[r], rstd[r], gains.data(), weights.beta, y + r * width);
  }
}

template <class Real>
void layer_norm_apply(std::int64_t rows, std::int64_t width, const Real* x, const Real* mean, const Real* rstd,
                      const NormWeights<Real>& weights, Real* y) {
  const Gains<Real> gains(weights, width);
  for (std::int64_t r = 0; r < rows; ++r)
    apply_row(width, x + r * width, mean[r], rstd[r], gains.data(), weights.beta, y + r * width);
}

template <class Real>
void layer_norm_backward(std::int64_t rows, std::int64_t width, const Real* x, const Real* mean, const Real* rstd,
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
    const Real middle = mean[r], scale = rstd[r];
    for (std::int64_t c = 0; c < width; ++c) {
      gamma_sums[c] += d[c] * (in[c] - middle) * scale;
      beta_sums[c] += d[c];
    }
    sums.row_done(r, rows);
    // rstd * n * mean(g n) = (x - mean) * rstd^3 * mean(g (x - mean))
    const Real along = scale * scale * scale * dot_around(width, d, gain, in, middle) / Real(width);
    const Real level = scale * dot(width, d, gain) / Real(width);
    if (gradients.accumulate_dx) {
      for (std::int64_t c = 0; c < width; ++c) dx[c] += scale * d[c] * gain[c] - level - along * (in[c] - middle);
    } else {
      for (std::int64_t c = 0; c < width; ++c) dx[c] = scale * d[c] * gain[c] - level - along * (in[c] - middle);
    }
  }
  sums.store(gradients);
}

#define MESHWRIGHT_INSTANTIATE(Real)                                                                                \
  template void layer_norm(std::int64_t, std::int64_t, const Real*, const NormWeights<Real>&, double, Real*, Real*, \
                           Real*);                                                                                  \
  template void layer_norm_apply(std::int64_t, std::int64_t, const Real*, const Real*, const Real*,                 \
                                 const NormWeights<Real>&, Real*);                                                  \
  template void layer_norm_backward(std::int64_t, std::int64_t, const Real*, const Real*, const Real*,              \
                                    const NormWeights<Real>&, const Real*, const NormGradients<Real>&);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
