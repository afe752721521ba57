#include "executor/kernels/adamw.h"

#include <algorithm>
#include <cmath>

#include "executor/kernels/vector_math.h"

namespace meshwright::kernels {

template <class Real>
double sum_squares(std::int64_t n, const Real* x) {
  constexpr std::int64_t kRun = 512;  // squared in double at a time, on the stack
  double values[kRun];
  double total = 0;
  for (std::int64_t first = 0; first < n; first += kRun) {
    const std::int64_t run = std::min(kRun, n - first);
    for (std::int64_t i = 0; i < run; ++i) values[i] = static_cast<double>(x[first + i]);
    total += dot(run, values, values);
  }
  return total;
}

template <class Real>
void adamw(const AdamWStep& step, std::int64_t n, const Real* __restrict gradients, Real* __restrict parameters,
           Real* __restrict m, Real* __restrict v) {
  const double t = static_cast<double>(step.step + 1);
  const Real factor = static_cast<Real>(step.gradient_factor), lr = static_cast<Real>(step.learning_rate);
  const Real b1 = static_cast<Real>(step.beta1), one_minus_b1 = static_cast<Real>(1 - step.beta1);
  const Real b2 = static_cast<Real>(step.beta2), one_minus_b2 = static_cast<Real>(1 - step.beta2);
  const Real m_correction = static_cast<Real>(1 / (1 - std::pow(step.beta1, t)));
  const Real v_correction = static_cast<Real>(1 / (1 - std::pow(step.beta2, t)));
  const Real epsilon = static_cast<Real>(step.epsilon), decay = static_cast<Real>(step.weight_decay);
  for (std::int64_t i = 0; i < n; ++i) {
    const Real g = factor * gradients[i];
    const Real m_new = b1 * m[i] + one_minus_b1 * g;
    const Real v_new = b2 * v[i] + one_minus_b2 * g * g;
    m[i] = m_new;
    v[i] = v_new;
    parameters[i] -= lr * (m_new * m_correction / (std::sqrt(v_new * v_correction) + epsilon) + decay * parameters[i]);
  }
}

#define MESHWRIGHT_INSTANTIATE(Real)                      \
  template double sum_squares(std::int64_t, const Real*); \
  template void adamw(const AdamWStep&, std::int64_t, const Real*, Real*, Real*, Real*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
