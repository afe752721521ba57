#include "executor/kernels/activation.h"
#include "executor/kernels/elementwise.h"
#include "tests/executor/kernel_test_support.h"

namespace meshwright::kernels {
namespace {

constexpr ActivationKind kGelu = ActivationKind::kGeluTanh;

template <class Real>
class Elementwise : public InBothPrecisions<Real> {};
TYPED_TEST_SUITE(Elementwise, Precisions);

double gelu_of(double u) {  // as the semantics write it
  return 0.5 * u * (1 + std::tanh(std::sqrt(2 / M_PI) * (u + 0.044715 * u * u * u)));
}

TYPED_TEST(Elementwise, gelu_equals_its_formula) {
  using Real = TypeParam;
  Values u = stored<Real>(random_values(4099, 1, -12, 12));
  u[0] = 0;
  std::vector<Real> a = as<Real>(u);
  activation<Real>(kGelu, a.size(), a.data(), a.data());  // in place
  for (std::size_t i = 0; i < u.size(); ++i) {
    const double expected = gelu_of(u[i]);
    ASSERT_NEAR(a[i], expected, (sizeof(Real) == 4 ? 3e-7 : 1e-15) * std::max(1.0, std::abs(expected))) << u[i];
  }
}

TEST(Gelu, of_large_floats_stays_finite) {
  const std::vector<float> u = {-1e4f, -100.f, 100.f, 1e4f};
  std::vector<float> a(4), du(4);
  const std::vector<float> da(4, 1.f);
  activation<float>(kGelu, 4, u.data(), a.data());
  activation_backward<float>(kGelu, 4, u.data(), da.data(), du.data());
  EXPECT_NEAR(a[0], 0, 1e-30);
  EXPECT_NEAR(a[1], 0, 1e-30);
  EXPECT_EQ(a[2], 100.f);
  EXPECT_EQ(a[3], 1e4f);
  EXPECT_NEAR(du[0], 0, 1e-20);
  EXPECT_NEAR(du[1], 0, 1e-20);
  EXPECT_FLOAT_EQ(du[2], 1.f);
  EXPECT_FLOAT_EQ(du[3], 1.f);
}

// Every power of two that the type has, both signs, with some numbers between; and densely where the function bends.
template <class Real>
std::vector<Real> whole_line() {
  using Limits = std::numeric_limits<Real>;
  std::vector<Real> u = {0, -0.0, Limits::max(), Limits::lowest(), Limits::denorm_min(), -Limits::denorm_min()};
  for (int exponent = Limits::min_exponent - 1; exponent < Limits::max_exponent; ++exponent)
    for (const double mantissa : {1.0, 1.3, 1.9})
      for (const double sign : {-1.0, 1.0}) u.push_back(static_cast<Real>(sign * std::ldexp(mantissa, exponent)));
  for (double at = -40; at <= 40; at += 0.01) u.push_back(static_cast<Real>(at));
  return u;
}

TYPED_TEST(Elementwise, gelu_and_its_derivative_are_right_on_the_whole_real_line) {
  using Real = TypeParam;
  const std::vector<Real> u = whole_line<Real>(), ones(u.size(), Real(1));
  const auto n = static_cast<std::int64_t>(u.size());
  auto a = unwritten<Real>(n), du = a;
  activation<Real>(kGelu, u.size(), u.data(), a.data());
  activation_backward<Real>(kGelu, u.size(), u.data(), ones.data(), du.data());
  const double tolerance = sizeof(Real) == 4 ? 1e-6 : 1e-13;
  for (std::size_t i = 0; i < u.size(); ++i) {
    // 1 - tanh^2 = 1 / cosh^2; long double reaches 1e4932, so that nothing overflows on the way.
    const long double x = u[i], z = std::sqrt(2 / M_PIl) * (x + 0.044715L * x * x * x);
    const long double slope = std::sqrt(2 / M_PIl) * (1 + 3 * 0.044715L * x * x), cosh = std::cosh(z);
    const auto value = static_cast<double>(x / 2 * (1 + std::tanh(z)));
    const auto derivative = static_cast<double>((1 + std::tanh(z)) / 2 + x / 2 / cosh / cosh * slope);
    ASSERT_NEAR(a[i], value, tolerance * std::max(1.0, std::abs(value))) << "gelu at " << u[i];
    ASSERT_NEAR(du[i], derivative, tolerance) << "derivative at " << u[i];
  }
}

TYPED_TEST(Elementwise, gelu_of_infinities_is_its_limit_and_of_nan_is_nan) {
  using Real = TypeParam;
  const Real inf = std::numeric_limits<Real>::infinity(), nan = std::numeric_limits<Real>::quiet_NaN();
  const std::vector<Real> u = {-inf, inf, nan}, ones(3, Real(1));
  std::vector<Real> du(3);
  activation_backward<Real>(kGelu, 3, u.data(), ones.data(), du.data());
  EXPECT_NEAR(du[0], 0, 1e-34);
  EXPECT_EQ(du[1], Real(1));
  EXPECT_TRUE(std::isnan(du[2]));
  std::vector<Real> a(3);
  activation<Real>(kGelu, 3, u.data(), a.data());
  EXPECT_NEAR(a[0], 0, 1e-36);
  EXPECT_EQ(a[1], inf);
  EXPECT_TRUE(std::isnan(a[2]));
}

TEST(Gelu, backward_is_its_derivative) {
  const Values u = random_values(200, 2, -5, 5), da = random_values(200, 3);
  Values du = unwritten<double>(200);
  activation_backward<double>(kGelu, 200, u.data(), da.data(), du.data());
  expect_gradient(
      [&](const Values& x) {
        Values a(x.size());
        activation<double>(kGelu, x.size(), x.data(), a.data());
        return inner(a, da);
      },
      u, du, 1e-8);
}

TEST(Gelu, backward_in_float_follows_double_and_works_in_place) {
  const Values u = stored<float>(random_values(1000, 2, -8, 8)), da = stored<float>(random_values(1000, 3));
  Values du(1000);
  activation_backward<double>(kGelu, 1000, u.data(), da.data(), du.data());
  std::vector<float> in_place = as<float>(da);
  activation_backward<float>(kGelu, 1000, as<float>(u).data(), in_place.data(), in_place.data());
  expect_close(in_place, du, 1e-6);
}

// 1/(1 + e^-x) has e^x's relative error where x is negative: this is the test of the float exponential.
TEST(Sigmoid, in_float_has_a_relative_error_of_3e_7_on_all_of_its_range) {
  std::vector<float> x, s;
  for (float v = -86.f; v < 86.f; v += 0.00137f) x.push_back(v);
  s.resize(x.size());
  sigmoid<float>(x.size(), x.data(), s.data());
  double worst = 0;
  for (std::size_t i = 0; i < x.size(); ++i) {
    const double expected = 1 / (1 + std::exp(-static_cast<double>(x[i])));
    worst = std::max(worst, std::abs(s[i] - expected) / expected);
  }
  EXPECT_LT(worst, 3e-7);
}

TEST(Sigmoid, of_nan_is_nan_and_of_infinities_is_0_and_1) {
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {std::nanf(""), inf, -inf};
  std::vector<float> s(3);
  sigmoid<float>(3, x.data(), s.data());
  EXPECT_TRUE(std::isnan(s[0]));
  EXPECT_EQ(s[1], 1.f);
  EXPECT_NEAR(s[2], 0.f, 1e-37f);
}

TEST(Sigmoid, backward_is_its_derivative) {
  const Values x = random_values(50, 4, -4, 4), ds = random_values(50, 5);
  Values s(50), dx(50);
  sigmoid<double>(50, x.data(), s.data());
  sigmoid_backward<double>(50, s.data(), ds.data(), dx.data());
  expect_gradient(
      [&](const Values& at) {
        Values out(at.size());
        sigmoid<double>(at.size(), at.data(), out.data());
        return inner(out, ds);
      },
      x, dx, 1e-8);
}

TYPED_TEST(Elementwise, column_sum_repeats_the_sums_and_add_bias_reaches_every_row) {
  using Real = TypeParam;
  const std::int64_t rows = 13, n = 300, ld = 310;
  const Values x = stored<Real>(random_values(rows * ld, 6));
  Values expected(2 * n, 0.0);
  for (std::int64_t r = 0; r < rows; ++r)
    for (std::int64_t c = 0; c < 2 * n; ++c) expected[c] += x[r * ld + c % n];
  auto sums = unwritten<Real>(2 * n);
  column_sum<Real>(rows, n, as<Real>(x).data(), ld, false, 2, sums.data());
  expect_close(sums, expected);
  column_sum<Real>(rows, n, as<Real>(x).data(), ld, true, 2, sums.data());
  for (double& v : expected) v *= 2;
  expect_close(sums, expected);
  column_sum<Real>(0, n, nullptr, ld, false, 1, sums.data());
  EXPECT_EQ(sums[0], Real(0));

  std::vector<Real> y = as<Real>(x);
  const std::vector<Real> bias = as<Real>(random_values(n, 7));
  add_bias<Real>(rows, n, bias.data(), y.data(), ld);
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t c = 0; c < ld; ++c) {
      const Real before = static_cast<Real>(x[r * ld + c]);
      EXPECT_EQ(y[r * ld + c], c < n ? before + bias[c] : before);
    }
  }
}

TEST(Cast, rounds_to_nearest_and_back_exactly) {
  const std::vector<double> x = {0.1, -2, 1e300};
  std::vector<float> f(3);
  std::vector<double> back(3);
  cast<float, double>(3, x.data(), f.data());
  cast<double, float>(3, f.data(), back.data());
  EXPECT_EQ(f[0], 0.1f);
  EXPECT_EQ(back[0], static_cast<double>(0.1f));
  EXPECT_EQ(back[1], -2);
  EXPECT_TRUE(std::isinf(f[2]));
}

// In long double, straight from the definitions in op.h.
long double activation_of(ActivationKind kind, long double u) {
  switch (kind) {
    case ActivationKind::kGeluTanh:
      return u / 2 * (1 + std::tanh(std::sqrt(2 / M_PIl) * (u + 0.044715L * u * u * u)));
    case ActivationKind::kGeluErf:
      return u / 2 * std::erfc(-u / std::sqrt(2.0L));
    case ActivationKind::kSilu:
      return u / (1 + std::exp(-u));
    case ActivationKind::kRelu:
      return u > 0 ? u : 0;
  }
  return 0;
}
constexpr ActivationKind kKinds[] = {ActivationKind::kGeluTanh, ActivationKind::kGeluErf, ActivationKind::kSilu,
                                     ActivationKind::kRelu};

TYPED_TEST(Elementwise, activations_and_their_derivatives_equal_their_formulas_on_the_whole_real_line) {
  using Real = TypeParam;
  const std::vector<Real> u = whole_line<Real>(), ones(u.size(), Real(1));
  for (const ActivationKind kind : kKinds) {
    auto a = unwritten<Real>(u.size()), du = unwritten<Real>(u.size());
    activation<Real>(kind, u.size(), u.data(), a.data());
    activation_backward<Real>(kind, u.size(), u.data(), ones.data(), du.data());
    const double tolerance = sizeof(Real) == 4 ? 1e-6 : 1e-14;
    for (std::size_t i = 0; i < u.size(); ++i) {
      const auto expected = static_cast<double>(activation_of(kind, u[i]));
      ASSERT_NEAR(a[i], expected, tolerance * std::max(1.0, std::abs(expected))) << name(kind) << " at " << u[i];
      if (std::abs(u[i]) > 1000 || (kind == ActivationKind::kRelu && std::abs(u[i]) < 1e-3)) continue;
      const long double step = 1e-5L;
      const auto slope =
          static_cast<double>((activation_of(kind, u[i] + step) - activation_of(kind, u[i] - step)) / (2 * step));
      ASSERT_NEAR(du[i], slope, sizeof(Real) == 4 ? 2e-6 : 1e-9) << name(kind) << " slope at " << u[i];
    }
  }
}

TYPED_TEST(Elementwise, activations_of_infinities_are_their_limits_and_of_nan_nan) {
  using Real = TypeParam;
  const Real inf = std::numeric_limits<Real>::infinity();
  const std::vector<Real> u = {-inf, inf, std::numeric_limits<Real>::quiet_NaN()}, ones(3, Real(1));
  for (const ActivationKind kind : kKinds) {
    std::vector<Real> a(3), du(3);
    activation<Real>(kind, 3, u.data(), a.data());
    activation_backward<Real>(kind, 3, u.data(), ones.data(), du.data());
    EXPECT_NEAR(a[0], 0, 1e-32) << name(kind);
    EXPECT_EQ(a[1], inf) << name(kind);
    EXPECT_NEAR(du[0], 0, 1e-32) << name(kind);
    EXPECT_EQ(du[1], Real(1)) << name(kind);
    EXPECT_TRUE(std::isnan(a[2]) && std::isnan(du[2])) << name(kind);
  }
}

TYPED_TEST(Elementwise, a_gated_activation_is_the_product_of_its_halves_and_has_its_derivative) {
  using Real = TypeParam;
  const std::int64_t rows = 5, F = 19;
  const Values u = stored<Real>(random_values(rows * 2 * F, 1, -4, 4)), da = stored<Real>(random_values(rows * F, 2));
  const std::vector<Real> u_r = as<Real>(u), da_r = as<Real>(da);
  for (const ActivationKind kind : kKinds) {
    const auto naive = [&](const Values& at) {
      Values a;
      for (std::int64_t r = 0; r < rows; ++r)
        for (std::int64_t c = 0; c < F; ++c)
          a.push_back(static_cast<double>(activation_of(kind, at[r * 2 * F + c])) * at[r * 2 * F + F + c]);
      return a;
    };
    auto a = unwritten<Real>(rows * F), du = unwritten<Real>(rows * 2 * F);
    gated_activation<Real>(kind, rows, F, u_r.data(), a.data());
    expect_close(a, naive(u));
    gated_activation_backward<Real>(kind, rows, F, u_r.data(), da_r.data(), du.data());
    expect_gradient([&](const Values& at) { return inner(naive(at), da); }, u, Values(du.begin(), du.end()),
                    sizeof(Real) == 4 ? 1e-5 : 1e-8);
    std::vector<Real> in_place = u_r;
    gated_activation_backward<Real>(kind, rows, F, in_place.data(), da_r.data(), in_place.data());
    EXPECT_EQ(in_place, du);
  }
}

TYPED_TEST(Elementwise, softmax_of_rows_equals_its_formula_and_has_its_derivative) {
  using Real = TypeParam;
  for (const std::int64_t n : {1, 5, 70}) {
    const std::int64_t rows = 3;
    const Values x = stored<Real>(random_values(rows * n, 1, -3, 3)), d = stored<Real>(random_values(rows * n, 2));
    const auto naive = [&](const Values& at) {
      Values y(at.size());
      for (std::int64_t r = 0; r < rows; ++r) {
        double total = 0;
        for (std::int64_t c = 0; c < n; ++c) total += std::exp(at[r * n + c]);
        for (std::int64_t c = 0; c < n; ++c) y[r * n + c] = std::exp(at[r * n + c]) / total;
      }
      return y;
    };
    std::vector<Real> y = as<Real>(x), dx = as<Real>(d);
    softmax<Real>(rows, n, y.data());
    expect_close(y, naive(x), sizeof(Real) == 4 ? 3e-7 : 1e-15);
    softmax_backward<Real>(rows, n, y.data(), dx.data());
    expect_gradient([&](const Values& at) { return inner(naive(at), d); }, x, Values(dx.begin(), dx.end()),
                    sizeof(Real) == 4 ? 1e-6 : 1e-8);
  }
  std::vector<Real> huge = {Real(1e30), Real(-1e30), Real(1e30)};
  softmax<Real>(1, 3, huge.data());
  EXPECT_EQ(huge, (std::vector<Real>{0.5, 0, 0.5}));
}

}  // namespace
}  // namespace meshwright::kernels
