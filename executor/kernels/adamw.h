#pragma once

#include <cstdint>

namespace meshwright::kernels {

// Sum of x[i]^2 in double. The order of the sum depends on n alone.
template <class Real>
double sum_squares(std::int64_t n, const Real* x);

struct AdamWStep {
  std::int64_t step = 0;       // t, counted from 0
  double learning_rate = 0;    // lr(t)
  double gradient_factor = 1;  // every gradient is multiplied by this first: the clip
  double beta1 = 0.9;
  double beta2 = 0.999;
  double epsilon = 1e-8;
  double weight_decay = 1e-4;
};

// One step over n parameters, in one pass (Loshchilov & Hutter 2019):
//   g = gradient_factor * gradient;   m = beta1 m + (1-beta1) g;   v = beta2 v + (1-beta2) g^2
//   m' = m / (1 - beta1^(t+1));   v' = v / (1 - beta2^(t+1))
//   parameter -= lr * (m' / (sqrt(v') + epsilon) + weight_decay * parameter)
// The arrays must not overlap.
template <class Real>
void adamw(const AdamWStep& step, std::int64_t n, const Real* gradients, Real* parameters, Real* m, Real* v);

}  // namespace meshwright::kernels
