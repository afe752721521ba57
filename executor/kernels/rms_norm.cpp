#include "executor/kernels/rms_norm.h"

#include <cmath>

#include "executor/kernels/norm_sums.h"
#include "executor/kernels/vector_math.h"

namespace meshwright::kernels {
namespace {

template <class T, class Gain>
void apply_row(std::int64_t width, const T* in, Arithmetic<T> scale, const Gain* gain, const T* beta, T* out) {
  if (beta) {
    for (std::int64_t c = 0; c < width; ++c) out[c] = in[c] * scale * gain[c] + beta[c];
  } else {
    for (std::int64_t c = 0; c < width; ++c) out[c] = in[c] * scale * gain[c];
  }
}

}  // namespace

template <class T>
void rms_norm(std::int64_t rows, std::int64_t width, const T* x, const NormWeights<T>& weights, double epsilon, T* y,
              Arithmetic<T>* rstd) {
  using Real = Arithmetic<T>;
  const Gains<T> gains(weights, width);
  for (std::int64_t r = 0; r < rows; ++r) {
    const T* in = x + r * width;
    rstd[r] = Real(1) / std::sqrt(dot(width, in, in) / Real(width) + Real(epsilon));
    apply_row(width, in, rstd[r], gains.data(), weights.beta, y + r * width);
  }
}

template <class T>
void rms_norm_apply(std::int64_t rows, std::int64_t width, const T* x, const Arithmetic<T>* rstd,
                    const NormWeights<T>& weights, T* y) {
  const Gains<T> gains(weights, width);
  for (std::int64_t r = 0; r < rows; ++r)
    apply_row(width, x + r * width, rstd[r], gains.data(), weights.beta, y + r * width);
}

template <class T>
void rms_norm_backward(std::int64_t rows, std::int64_t width, const T* x, const Arithmetic<T>* rstd,
                       const NormWeights<T>& weights, const T* dy, const NormGradients<T>& gradients) {
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

template <class T>
void row_mean_square(std::int64_t rows, std::int64_t width, const T* x, std::int64_t whole_width, Arithmetic<T>* out) {
  using Real = Arithmetic<T>;
  for (std::int64_t r = 0; r < rows; ++r) out[r] = dot(width, x + r * width, x + r * width) / Real(whole_width);
}

template <class T>
void row_mean_square_backward(std::int64_t rows, std::int64_t width, const Arithmetic<T>* d, const T* x,
                              std::int64_t whole_width, bool accumulate, T* dx) {
  using Real = Arithmetic<T>;
  for (std::int64_t r = 0; r < rows; ++r) {
    const Real factor = Real(2) * d[r] / Real(whole_width);
    const T* in = x + r * width;
    T* out = dx + r * width;
    if (accumulate) {
      for (std::int64_t c = 0; c < width; ++c) out[c] += factor * in[c];
    } else {
      for (std::int64_t c = 0; c < width; ++c) out[c] = factor * in[c];
    }
  }
}

template <class T>
void rms_scale(std::int64_t rows, std::int64_t width, const T* x, const Arithmetic<T>* mean_square, const T* gamma,
               double epsilon, T* y) {
  using Real = Arithmetic<T>;
  for (std::int64_t r = 0; r < rows; ++r)
    apply_row<T>(width, x + r * width, Real(1) / std::sqrt(mean_square[r] + Real(epsilon)), gamma, nullptr,
                 y + r * width);
}

template <class T>
void rms_scale_backward(std::int64_t rows, std::int64_t width, const T* x, const Arithmetic<T>* mean_square,
                        const T* gamma, double epsilon, const T* dy, const NormGradients<T>& gradients,
                        Arithmetic<T>* dmean_square) {
  using Real = Arithmetic<T>;
  ParameterSums<T> sums(width);
  Real* gamma_sums = sums.gamma();
  for (std::int64_t r = 0; r < rows; ++r) {
    const T* in = x + r * width;
    const T* d = dy + r * width;
    T* dx = gradients.dx + r * width;
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

#define MESHWRIGHT_INSTANTIATE(T)                                                                                     \
  template void rms_norm<T>(std::int64_t, std::int64_t, const T*, const NormWeights<T>&, double, T*, Arithmetic<T>*); \
  template void rms_norm_apply<T>(std::int64_t, std::int64_t, const T*, const Arithmetic<T>*, const NormWeights<T>&,  \
                                  T*);                                                                                \
  template void rms_norm_backward<T>(std::int64_t, std::int64_t, const T*, const Arithmetic<T>*,                      \
                                     const NormWeights<T>&, const T*, const NormGradients<T>&);                       \
  template void row_mean_square<T>(std::int64_t, std::int64_t, const T*, std::int64_t, Arithmetic<T>*);               \
  template void row_mean_square_backward<T>(std::int64_t, std::int64_t, const Arithmetic<T>*, const T*, std::int64_t, \
                                            bool, T*);                                                                \
  template void rms_scale<T>(std::int64_t, std::int64_t, const T*, const Arithmetic<T>*, const T*, double, T*);       \
  template void rms_scale_backward<T>(std::int64_t, std::int64_t, const T*, const Arithmetic<T>*, const T*, double,   \
                                      const T*, const NormGradients<T>&, Arithmetic<T>*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
MESHWRIGHT_INSTANTIATE(Bf16)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
