#include "executor/kernels/flop_count.h"
#include "executor/kernels/gemm.h"
#include "tests/executor/kernel_test_support.h"

namespace meshwright::kernels {
namespace {

template <class Real>
class Gemm : public InBothPrecisions<Real> {};
TYPED_TEST_SUITE(Gemm, Precisions);

TYPED_TEST(Gemm, equals_the_triple_loop_for_every_transposition_and_leading_dimension) {
  using Real = TypeParam;
  const std::int64_t m = 37, n = 29, k = 53, pad = 5;
  for (const Transpose ta : {Transpose::kNo, Transpose::kYes}) {
    for (const Transpose tb : {Transpose::kNo, Transpose::kYes}) {
      for (const double beta : {0.0, 1.0, -0.5}) {
        const std::int64_t lda = (ta == Transpose::kYes ? m : k) + pad, ldb = (tb == Transpose::kYes ? k : n) + pad;
        const std::int64_t ldc = n + pad;
        const Values a = stored<Real>(random_values((ta == Transpose::kYes ? k : m) * lda, 1));
        const Values b = stored<Real>(random_values((tb == Transpose::kYes ? n : k) * ldb, 2));
        Values c = stored<Real>(random_values(m * ldc, 3));
        std::vector<Real> actual = as<Real>(c);
        for (std::int64_t i = 0; i < m; ++i) {
          for (std::int64_t j = 0; j < n; ++j) {
            double total = 0;
            for (std::int64_t l = 0; l < k; ++l)
              total += a[ta == Transpose::kYes ? l * lda + i : i * lda + l] *
                       b[tb == Transpose::kYes ? j * ldb + l : l * ldb + j];
            c[i * ldc + j] = 0.75 * total + beta * c[i * ldc + j];
            if (beta == 0) actual[i * ldc + j] = std::numeric_limits<Real>::quiet_NaN();
          }
        }
        const std::int64_t before = flop_count();
        gemm<Real>(ta, tb, m, n, k, 0.75, as<Real>(a).data(), lda, as<Real>(b).data(), ldb, static_cast<Real>(beta),
                   actual.data(), ldc);
        expect_close(actual, c);
        EXPECT_EQ(flop_count() - before, 2 * m * n * k);
      }
    }
  }
}

TYPED_TEST(Gemm, without_an_inner_dimension_scales_c_and_counts_nothing) {
  using Real = TypeParam;
  std::vector<Real> c = {1, 2, 3, 4};
  const std::int64_t before = flop_count();
  gemm<Real>(Transpose::kNo, Transpose::kNo, 2, 2, 0, 1, nullptr, 0, nullptr, 2, 2, c.data(), 2);
  EXPECT_EQ(c, (std::vector<Real>{2, 4, 6, 8}));
  gemm<Real>(Transpose::kNo, Transpose::kNo, 2, 2, 0, 1, nullptr, 0, nullptr, 2, 0, c.data(), 2);
  EXPECT_EQ(c, (std::vector<Real>{0, 0, 0, 0}));
  gemm<Real>(Transpose::kNo, Transpose::kNo, 0, 2, 3, 1, nullptr, 3, nullptr, 2, 0, nullptr, 2);
  gemm<Real>(Transpose::kNo, Transpose::kNo, 2, 0, 3, 1, nullptr, 3, nullptr, 0, 0, nullptr, 0);
  EXPECT_EQ(flop_count(), before);
}

TYPED_TEST(Gemm, of_experts_touches_only_their_rows) {
  using Real = TypeParam;
  // Three experts of capacity 4 with 3, 0 and 4 rows, k = 5 -> n = 6.
  const std::int64_t E = 3, cap = 4, k = 5, n = 6;
  const std::vector<std::int32_t> rows = {3, 0, 4};
  const ExpertRows experts{E, cap, rows.data()};
  const Values a = stored<Real>(random_values(E * cap * k, 1)), w = stored<Real>(random_values(E * k * n, 2));
  const Values d = stored<Real>(random_values(E * cap * n, 3));
  auto y = unwritten<Real>(E * cap * n), da = unwritten<Real>(E * cap * k), dw = unwritten<Real>(E * k * n);
  const std::int64_t before = flop_count();
  expert_gemm<Real>(experts, Transpose::kNo, n, k, as<Real>(a).data(), k, as<Real>(w).data(), y.data(), n);
  expert_gemm<Real>(experts, Transpose::kYes, k, n, as<Real>(d).data(), n, as<Real>(w).data(), da.data(), k);
  expert_weight_gradient<Real>(experts, k, n, as<Real>(a).data(), k, as<Real>(d).data(), n, false, dw.data());
  EXPECT_EQ(flop_count() - before, 3 * 2 * 7 * n * k);  // three products, 7 rows in all

  Values expected_dw(E * k * n, 0.0);
  for (std::int64_t e = 0; e < E; ++e) {
    for (std::int64_t r = e * cap; r < (e + 1) * cap; ++r) {
      const bool filled = r < e * cap + rows[e];
      for (std::int64_t j = 0; j < n; ++j) {
        double total = 0;
        for (std::int64_t i = 0; i < k; ++i) {
          total += a[r * k + i] * w[(e * k + i) * n + j];
          if (filled) expected_dw[(e * k + i) * n + j] += a[r * k + i] * d[r * n + j];
        }
        if (filled) {
          EXPECT_NEAR(y[r * n + j], total, 1e-5);
        } else {
          EXPECT_TRUE(std::isnan(y[r * n + j]));
        }
      }
      for (std::int64_t i = 0; i < k; ++i) {
        double total = 0;
        for (std::int64_t j = 0; j < n; ++j) total += d[r * n + j] * w[(e * k + i) * n + j];
        if (filled) {
          EXPECT_NEAR(da[r * k + i], total, 1e-5);
        } else {
          EXPECT_TRUE(std::isnan(da[r * k + i]));
        }
      }
    }
  }
  expect_close(dw, expected_dw);

  expert_weight_gradient<Real>(experts, k, n, as<Real>(a).data(), k, as<Real>(d).data(), n, true, dw.data());
  for (double& v : expected_dw) v *= 2;
  expect_close(dw, expected_dw);
}

}  // namespace
}  // namespace meshwright::kernels
