// The two ends of a step: cross-entropy with the output head, and the optimizer.
#include <numeric>

#include "executor/kernels/adamw.h"
#include "executor/kernels/flop_count.h"
#include "executor/kernels/lm_head.h"
#include "tests/executor/kernel_test_support.h"

namespace meshwright::kernels {
namespace {

constexpr std::int64_t kRows = 7, C = 5, V = 70;
const std::vector<std::int32_t> kTargets = {0, 69, 3, 3, 15, 16, 64};

double naive_cross_entropy(const Values& logits) {
  double loss = 0;
  for (std::int64_t r = 0; r < kRows; ++r) {
    double total = 0;
    for (std::int64_t v = 0; v < V; ++v) total += std::exp(logits[r * V + v]);
    loss += std::log(total) - logits[r * V + kTargets[r]];
  }
  return loss;
}

Values naive_logits(const Values& x, const Values& table) {
  Values logits(kRows * V, 0.0);
  for (std::int64_t r = 0; r < kRows; ++r)
    for (std::int64_t v = 0; v < V; ++v)
      for (std::int64_t c = 0; c < C; ++c) logits[r * V + v] += x[r * C + c] * table[v * C + c];
  return logits;
}

template <class Real>
class Loss : public InBothPrecisions<Real> {};
TYPED_TEST_SUITE(Loss, Precisions);

TYPED_TEST(Loss, of_cross_entropy_equals_the_formula_with_and_without_gradient) {
  using Real = TypeParam;
  const Values logits = stored<Real>(random_values(kRows * V, 1, -9, 9));
  std::vector<Real> in_place = as<Real>(logits);
  const double tolerance = sizeof(Real) == 4 ? 1e-5 : 1e-12, expected = naive_cross_entropy(logits);
  EXPECT_NEAR(cross_entropy(kRows, V, kTargets.data(), in_place.data()), expected, tolerance);
  EXPECT_EQ(in_place, as<Real>(logits));
  EXPECT_NEAR(cross_entropy_backward<Real>(kRows, V, kTargets.data(), 0.5, in_place.data()), expected, tolerance);
  expect_gradient([](const Values& at) { return 0.5 * naive_cross_entropy(at); }, logits,
                  Values(in_place.begin(), in_place.end()), sizeof(Real) == 4 ? 1e-6 : 1e-8);
}

TEST(CrossEntropy, of_huge_logits_does_not_overflow) {
  // A row of 70 equal logits: log 70, however large they are.
  for (const float level : {-1e6f, 0.f, 1e6f}) {
    std::vector<float> logits(V, level);
    EXPECT_NEAR(cross_entropy(1, V, kTargets.data(), logits.data()), std::log(70.0), 1e-5);
    cross_entropy_backward<float>(1, V, kTargets.data(), 1, logits.data());
    EXPECT_NEAR(logits[0], 1 / 70.0 - 1, 1e-6);
    EXPECT_NEAR(logits[1], 1 / 70.0, 1e-6);
  }
}

TYPED_TEST(Loss, of_the_head_and_its_gradients_do_not_depend_on_the_chunk) {
  using Real = TypeParam;
  const Values x = stored<Real>(random_values(kRows * C, 2)), table = stored<Real>(random_values(V * C, 3, -2, 2));
  const std::vector<Real> x_r = as<Real>(x), table_r = as<Real>(table);
  const Values logits = naive_logits(x, table);
  for (const std::int64_t chunk : {1, 3, 7, 100}) {
    auto scratch = unwritten<Real>(lm_head_scratch(kRows, V, chunk)), dx = unwritten<Real>(kRows * C),
         dtable = unwritten<Real>(V * C);
    Values seen(kRows * V);
    const std::function<void(std::int64_t, std::int64_t, const Real*)> hook = [&](std::int64_t first, std::int64_t rows,
                                                                                  const Real* chunk_logits) {
      std::copy(chunk_logits, chunk_logits + rows * V, seen.begin() + first * V);
    };
    LmHead<Real> head{.rows = kRows,
                      .width = C,
                      .vocabulary = V,
                      .chunk = chunk,
                      .x = x_r.data(),
                      .table = table_r.data(),
                      .targets = kTargets.data(),
                      .scratch = scratch.data()};
    head.loss_scale = 0.25;
    head.dx = dx.data();
    head.dtable = dtable.data();
    head.accumulate_dtable = false;
    head.sum_logits = true;
    head.on_logits = &hook;
    const double tolerance = sizeof(Real) == 4 ? 2e-5 : 1e-11;
    std::int64_t before = flop_count();
    LmHeadResult result = lm_head(head);
    EXPECT_EQ(flop_count() - before, 3 * 2 * kRows * C * V);
    EXPECT_NEAR(result.loss, naive_cross_entropy(logits), tolerance);
    EXPECT_NEAR(result.logit_sum, std::accumulate(logits.begin(), logits.end(), 0.0), tolerance);
    EXPECT_NEAR(result.logit_square_sum, inner(logits, logits), 10 * tolerance);
    expect_close(seen, logits, kRounding<Real>);
    const double close = sizeof(Real) == 4 ? 2e-6 : 1e-7;
    expect_gradient([&](const Values& at) { return 0.25 * naive_cross_entropy(naive_logits(at, table)); }, x,
                    Values(dx.begin(), dx.end()), close);
    expect_gradient([&](const Values& at) { return 0.25 * naive_cross_entropy(naive_logits(x, at)); }, table,
                    Values(dtable.begin(), dtable.end()), close);

    const std::vector<Real> once = dtable;
    head.accumulate_dtable = true;
    lm_head(head);
    for (std::int64_t i = 0; i < V * C; ++i) EXPECT_NEAR(dtable[i], 2 * once[i], 1e-5);

    head.dx = nullptr;  // forward only
    before = flop_count();
    EXPECT_NEAR(lm_head(head).loss, result.loss, tolerance);
    EXPECT_EQ(flop_count() - before, 2 * kRows * C * V);
  }
}

TYPED_TEST(Loss, squares_are_summed_in_double) {
  using Real = TypeParam;
  // 10^6 + 3 times 0.1 (as stored): a float sum would be off in the fourth digit.
  const std::vector<Real> x(1000003, Real(0.1));
  const double value = Real(0.1);
  EXPECT_NEAR(sum_squares<Real>(x.size(), x.data()), 1000003 * value * value, 1e-7);
  EXPECT_EQ(sum_squares<Real>(0, nullptr), 0);
}

TYPED_TEST(Loss, steps_of_adamw_follow_the_formulas) {
  using Real = TypeParam;
  const std::int64_t n = 37;
  Values theta = stored<Real>(random_values(n, 1)), m(n, 0.0), v(n, 0.0);
  std::vector<Real> theta_r = as<Real>(theta), m_r(n, Real(0)), v_r(n, Real(0));
  for (std::int64_t t = 0; t < 5; ++t) {
    const Values g = stored<Real>(random_values(n, 10 + t));
    const double lr = 0.01 * (t + 1), clip = 0.7;
    for (std::int64_t i = 0; i < n; ++i) {
      m[i] = .9 * m[i] + .1 * clip * g[i];
      v[i] = .999 * v[i] + .001 * clip * g[i] * clip * g[i];
      const double mh = m[i] / (1 - std::pow(.9, t + 1)), vh = v[i] / (1 - std::pow(.999, t + 1));
      theta[i] -= lr * (mh / (std::sqrt(vh) + 1e-8) + 1e-4 * theta[i]);
    }
    adamw<Real>({.step = t, .learning_rate = lr, .gradient_factor = clip}, n, as<Real>(g).data(), theta_r.data(),
                m_r.data(), v_r.data());
    expect_close(theta_r, theta, sizeof(Real) == 4 ? 1e-6 : 1e-14);
    expect_close(m_r, m, sizeof(Real) == 4 ? 1e-6 : 1e-14);
    expect_close(v_r, v, sizeof(Real) == 4 ? 1e-6 : 1e-14);
  }
}

TYPED_TEST(Loss, of_a_head_with_a_bias_and_its_gradient_do_not_depend_on_the_chunk) {
  using Real = TypeParam;
  const Values x = stored<Real>(random_values(kRows * C, 2)), table = stored<Real>(random_values(V * C, 3, -2, 2)),
               bias = stored<Real>(random_values(V, 4, -2, 2));
  const std::vector<Real> x_r = as<Real>(x), table_r = as<Real>(table), bias_r = as<Real>(bias);
  const auto loss = [&](const Values& at) {
    Values logits = naive_logits(x, table);
    for (std::int64_t i = 0; i < kRows * V; ++i) logits[i] += at[i % V];
    return naive_cross_entropy(logits);
  };
  for (const std::int64_t chunk : {1, 3, 7}) {
    auto scratch = unwritten<Real>(lm_head_scratch(kRows, V, chunk)), dx = unwritten<Real>(kRows * C);
    std::vector<Real> dtable(V * C), dbias(V, Real(1));
    LmHead<Real> head{.rows = kRows,
                      .width = C,
                      .vocabulary = V,
                      .chunk = chunk,
                      .x = x_r.data(),
                      .table = table_r.data(),
                      .bias = bias_r.data(),
                      .targets = kTargets.data(),
                      .scratch = scratch.data()};
    head.loss_scale = 0.25;
    head.dx = dx.data();
    head.dtable = dtable.data();
    head.dbias = dbias.data();
    EXPECT_NEAR(lm_head(head).loss, loss(bias), sizeof(Real) == 4 ? 2e-5 : 1e-11);
    Values added;
    for (const Real d : dbias) added.push_back(d - 1.0);
    expect_gradient([&](const Values& at) { return 0.25 * loss(at); }, bias, added, sizeof(Real) == 4 ? 2e-6 : 1e-7);
  }
}

}  // namespace
}  // namespace meshwright::kernels
