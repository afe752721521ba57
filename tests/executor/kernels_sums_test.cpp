// Gradients of biases and norms are sums over all rows of a microbatch: their error does not grow with the rows, and their
// bits depend on nothing but the input.
#include "executor/kernels/elementwise.h"
#include "executor/kernels/experts.h"
#include "executor/kernels/rms_norm.h"
#include "executor/kernels/row_sums.h"
#include "tests/executor/kernel_test_support.h"

namespace meshwright::kernels {
namespace {

constexpr std::int64_t kRows = std::int64_t{1} << 18, kColumns = 3;
constexpr double kUnit = 1.0 / (1 << 24);  // half a unit in the last place of 1.0f

// Values that no binary fraction meets, so that a running sum in float always errs to one side.
const std::vector<float> kValues = {0.1f, -0.3f, 0.7f};

std::vector<float> rows_of_values() {
  std::vector<float> x;
  for (std::int64_t r = 0; r < kRows; ++r) x.insert(x.end(), kValues.begin(), kValues.end());
  return x;
}

// |sum - exact| <= roundings * 2^-24 * sum of |x|; what one running sum would give is far outside.
void expect_accurate(const std::vector<float>& sums, double times, double roundings) {
  for (std::size_t c = 0; c < kColumns; ++c) {
    const double exact = times * kRows * static_cast<double>(kValues[c]), bound = roundings * kUnit * std::abs(exact);
    EXPECT_NEAR(sums[c], exact, bound) << "column " << c;
    float running = 0;
    for (std::int64_t r = 0; r < kRows; ++r) running += static_cast<float>(times) * kValues[c];
    EXPECT_GT(std::abs(running - exact), 10 * bound) << "this case would not tell";
  }
}

TEST(Sums, of_a_bias_gradient_over_a_quarter_of_a_million_rows_err_as_over_one_block) {
  const std::vector<float> x = rows_of_values();
  auto sums = unwritten<float>(kColumns);
  column_sum<float>(kRows, kColumns, x.data(), kColumns, false, 1, sums.data());
  expect_accurate(sums, 1, kSumRows + 1);
  for (int microbatch = 1; microbatch < 8; ++microbatch)  // each rounds once more
    column_sum<float>(kRows, kColumns, x.data(), kColumns, true, 1, sums.data());
  expect_accurate(sums, 8, kSumRows + 8);
}

TEST(Sums, of_gamma_and_beta_gradients_err_as_over_one_block) {
  const std::vector<float> dy = rows_of_values(), gamma(kColumns, 1.0f);
  std::vector<float> x(dy.size(), 1.0f), dx(dy.size()), rstd(kRows, 1.0f);
  auto dgamma = unwritten<float>(kColumns), dbeta = unwritten<float>(kColumns);
  NormGradients<float> gradients{dx.data(), false, dgamma.data(), dbeta.data(), false};
  rms_norm_backward<float>(kRows, kColumns, x.data(), rstd.data(), {gamma.data()}, dy.data(), gradients);
  expect_accurate(dgamma, 1, kSumRows + 3);  // each summand is a product of three numbers
  expect_accurate(dbeta, 1, kSumRows + 1);
  gradients.accumulate_parameters = true;
  rms_norm_backward<float>(kRows, kColumns, x.data(), rstd.data(), {gamma.data()}, dy.data(), gradients);
  expect_accurate(dgamma, 2, kSumRows + 4);
  expect_accurate(dbeta, 2, kSumRows + 2);
}

TEST(Sums, of_an_experts_bias_gradient_err_as_over_one_block) {
  const std::vector<float> x = rows_of_values(), gate(kRows, 0.5f);
  const std::int32_t rows = kRows;
  auto sums = unwritten<float>(kColumns);
  expert_column_sum<float>({1, kRows, &rows}, kColumns, x.data(), gate.data(), 2.0f, false, sums.data());
  expect_accurate(sums, 1, kSumRows + 3);
  expert_column_sum<float>({1, kRows, &rows}, kColumns, x.data(), nullptr, 1.0f, true, sums.data());
  expect_accurate(sums, 2, kSumRows + 4);
}

template <class Real>
class LongSums : public InBothPrecisions<Real> {};
TYPED_TEST_SUITE(LongSums, Precisions);

// A column's bits depend on its numbers alone: not on the columns beside it, nor on where they lie.
TYPED_TEST(LongSums, of_a_column_have_the_same_bits_alone_and_among_others) {
  using Real = TypeParam;
  const std::int64_t rows = 1000, n = 600;
  const std::vector<Real> x = as<Real>(random_values(rows * n, 3));
  auto all = unwritten<Real>(n), dgamma = unwritten<Real>(n), dbeta = unwritten<Real>(n);
  column_sum<Real>(rows, n, x.data(), n, false, 1, all.data());
  for (const std::int64_t c : {0, 255, 256, 599}) {
    Real alone = 0;
    column_sum<Real>(rows, 1, x.data() + c, n, false, 1, &alone);
    EXPECT_EQ(alone, all[c]) << c;
  }
  std::vector<Real> dx = x, rstd(rows, Real(1)), gamma(n, Real(1));  // in place: dx is dy
  const NormGradients<Real> gradients{dx.data(), false, dgamma.data(), dbeta.data(), false};
  rms_norm_backward<Real>(rows, n, x.data(), rstd.data(), {gamma.data()}, dx.data(), gradients);
  EXPECT_EQ(dbeta, all);
}

}  // namespace
}  // namespace meshwright::kernels
