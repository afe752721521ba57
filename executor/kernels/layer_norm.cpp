#include "executor/kernels/layer_norm.h"

#include <cmath>

#include "executor/kernels/norm_sums.h"
#include "executor/kernels/vector_math.h"

namespace meshwright::kernels {
namespace {

template <class T>
void apply_row(std::int64_t width, const T* in, Arithmetic<T> mean, Arithmetic<T> scale, const Arithmetic<T>* gain,
               const T* beta, T* out) {
  if (beta) {
    for (std::int64_t c = 0; c < width; ++c) out[c] = (in[c] - mean) * scale * gain[c] + beta[c];
  } else {
    for (std::int64_t c = 0; c < width; ++c) out[c] = (in[c] - mean) * scale * gain[c];
  }
}

// Sum over i < n of (x[i] - mean)^2.
template <class T>
Arithmetic<T> squares_around(std::int64_t n, const T* x, Arithmetic<T> mean) {
  using Real = Arithmetic<T>;
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
template <class T>
Arithmetic<T> dot_around(std::int64_t n, const T* a, const Arithmetic<T>* b, const T* x, Arithmetic<T> mean) {
  using Real = Arithmetic<T>;
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

template <class T>
void layer_norm(std::int64_t rows, std::int64_t width, const T* x, const NormWeights<T>& weights, double epsilon, T* y,
                Arithmetic<T>* mean, Arithmetic<T>* rstd) {
  using Real = Arithmetic<T>;
  const Gains<T> gains(weights, width);
  for (std::int64_t r = 0; r < rows; ++r) {
    const T* in = x + r * width;
    mean[r] = sum(width, in) / Real(width);
    rstd[r] = Real(1) / std::sqrt(squares_around<T>(width, in, mean[r]) / Real(width) + Real(epsilon));
    apply_row<T>(width, in, mean[r], rstd[r], gains.data(), weights.beta, y + r * width);
  }
}

template <class T>
void layer_norm_apply(std::int64_t rows, std::int64_t width, const T* x, const Arithmetic<T>* mean,
                      const Arithmetic<T>* rstd, const NormWeights<T>& weights, T* y) {
  const Gains<T> gains(weights, width);
  for (std::int64_t r = 0; r < rows; ++r)
    apply_row<T>(width, x + r * width, mean[r], rstd[r], gains.data(), weights.beta, y + r * width);
}

template <class T>
void layer_norm_backward(std::int64_t rows, std::int64_t width, const T* x, const Arithmetic<T>* mean,
                         const Arithmetic<T>* rstd, const NormWeights<T>& weights, const T* dy,
                         const NormGradients<T>& gradients) {
  using Real = Arithmetic<T>;
  const Gains<T> gains(weights, width);
  const Real* gain = gains.data();
  ParameterSums<T> sums(width);
  Real* gamma_sums = sums.gamma();
  Real* beta_sums = sums.beta();
  for (std::int64_t r = 0; r < rows; ++r) {
    const T* in = x + r * width;
    const T* d = dy + r * width;
    T* dx = gradients.dx + r * width;
    const Real middle = mean[r], scale = rstd[r];
    for (std::int64_t c = 0; c < width; ++c) {
      gamma_sums[c] += d[c] * (in[c] - middle) * scale;
      beta_sums[c] += d[c];
    }
    sums.row_done(r, rows);
    // rstd * n * mean(g n) = (x - mean) * rstd^3 * mean(g (x - mean))
    const Real along = scale * scale * scale * dot_around<T>(width, d, gain, in, middle) / Real(width);
    const Real level = scale * dot(width, d, gain) / Real(width);
    if (gradients.accumulate_dx) {
      for (std::int64_t c = 0; c < width; ++c) dx[c] += scale * d[c] * gain[c] - level - along * (in[c] - middle);
    } else {
      for (std::int64_t c = 0; c < width; ++c) dx[c] = scale * d[c] * gain[c] - level - along * (in[c] - middle);
    }
  }
  sums.store(gradients);
}

#define MESHWRIGHT_INSTANTIATE(T)                                                                                      \
  template void layer_norm<T>(std::int64_t, std::int64_t, const T*, const NormWeights<T>&, double, T*, Arithmetic<T>*, \
                              Arithmetic<T>*);                                                                         \
  template void layer_norm_apply<T>(std::int64_t, std::int64_t, const T*, const Arithmetic<T>*, const Arithmetic<T>*,  \
                                    const NormWeights<T>&, T*);                                                        \
  template void layer_norm_backward<T>(std::int64_t, std::int64_t, const T*, const Arithmetic<T>*,                     \
                                       const Arithmetic<T>*, const NormWeights<T>&, const T*,                          \
                                       const NormGradients<T>&);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
MESHWRIGHT_INSTANTIATE(Bf16)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
