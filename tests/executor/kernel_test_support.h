#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <random>
#include <vector>

// Shared by the tests of executor/kernels: inputs, comparisons and finite differences. References are written
// in double.
namespace meshwright::kernels {

using Values = std::vector<double>;

inline Values random_values(std::int64_t n, unsigned seed, double low = -1, double high = 1) {
  std::mt19937_64 engine(seed);
  std::uniform_real_distribution<double> draw(low, high);
  Values values(n);
  for (double& v : values) v = draw(engine);
  return values;
}

// Input of a kernel in its own type. `stored` rounds a reference's input the same way, so that only the
// kernel's own rounding is compared.
template <class Real>
std::vector<Real> as(const Values& values) {
  return std::vector<Real>(values.begin(), values.end());
}
template <class Real>
Values stored(const Values& values) {
  const auto rounded = as<Real>(values);
  return Values(rounded.begin(), rounded.end());
}

// Output buffers start as NaN: what a kernel should overwrite but does not shows.
template <class Real>
std::vector<Real> unwritten(std::int64_t n) {
  return std::vector<Real>(n, std::numeric_limits<Real>::quiet_NaN());
}

template <class Real>
constexpr double kRounding = sizeof(Real) == 4 ? 3e-6 : 1e-13;

// Largest error over the largest expected value (at least 1).
template <class Real>
void expect_close(const std::vector<Real>& actual, const Values& expected, double tolerance = kRounding<Real>) {
  ASSERT_EQ(actual.size(), expected.size());
  double scale = 1;
  for (const double e : expected) scale = std::max(scale, std::abs(e));
  for (std::size_t i = 0; i < actual.size(); ++i)
    ASSERT_NEAR(static_cast<double>(actual[i]), expected[i], tolerance * scale) << "element " << i;
}

// Compares `gradient` with central differences of f at x.
inline void expect_gradient(const std::function<double(const Values&)>& f, Values x, const Values& gradient,
                            double tolerance = 1e-7) {
  ASSERT_EQ(x.size(), gradient.size());
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double at = x[i], step = 1e-5;
    x[i] = at + step;
    const double above = f(x);
    x[i] = at - step;
    const double below = f(x);
    x[i] = at;
    ASSERT_NEAR(gradient[i], (above - below) / (2 * step), tolerance * std::max(1.0, std::abs(gradient[i])))
        << "element " << i;
  }
}

inline double inner(const Values& a, const Values& b) {
  double total = 0;
  for (std::size_t i = 0; i < a.size(); ++i) total += a[i] * b[i];
  return total;
}

template <class Real>
class InBothPrecisions : public ::testing::Test {};
using Precisions = ::testing::Types<float, double>;

}  // namespace meshwright::kernels
