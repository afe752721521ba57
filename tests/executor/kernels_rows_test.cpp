// Kernels that work row by row: RMS norm, rotary embedding, token embedding.
#include "executor/kernels/embedding.h"
#include "executor/kernels/rms_norm.h"
#include "executor/kernels/rope.h"
#include "tests/executor/kernel_test_support.h"

namespace meshwright::kernels {
namespace {

template <class Real>
class Rows : public InBothPrecisions<Real> {};
TYPED_TEST_SUITE(Rows, Precisions);

TYPED_TEST(Rows, rms_norm_equals_its_formula_and_can_be_reapplied) {
  using Real = TypeParam;
  for (const std::int64_t C : {1, 7, 100}) {
    const std::int64_t rows = 5;
    const Values x = stored<Real>(random_values(rows * C, 1)), gamma = stored<Real>(random_values(C, 2)),
                 beta = stored<Real>(random_values(C, 3));
    Values expected(rows * C), expected_rstd(rows);
    for (std::int64_t r = 0; r < rows; ++r) {
      double squares = 0;
      for (std::int64_t c = 0; c < C; ++c) squares += x[r * C + c] * x[r * C + c];
      expected_rstd[r] = 1 / std::sqrt(squares / C + 1e-6);
      for (std::int64_t c = 0; c < C; ++c) expected[r * C + c] = x[r * C + c] * expected_rstd[r] * gamma[c] + beta[c];
    }
    auto y = unwritten<Real>(rows * C), again = unwritten<Real>(rows * C), rstd = unwritten<Real>(rows);
    rms_norm<Real>(rows, C, as<Real>(x).data(), as<Real>(gamma).data(), as<Real>(beta).data(), y.data(), rstd.data());
    expect_close(y, expected);
    expect_close(rstd, expected_rstd);
    rms_norm_apply<Real>(rows, C, as<Real>(x).data(), rstd.data(), as<Real>(gamma).data(), as<Real>(beta).data(),
                         again.data());
    EXPECT_EQ(again, y);
  }
}

TYPED_TEST(Rows, rms_norm_backward_is_the_derivative) {
  using Real = TypeParam;
  const std::int64_t rows = 3, C = 37;
  const Values x = stored<Real>(random_values(rows * C, 1)), gamma = stored<Real>(random_values(C, 2)),
               beta = stored<Real>(random_values(C, 3)), dy = stored<Real>(random_values(rows * C, 4)),
               before = stored<Real>(random_values(rows * C, 5));
  const auto loss = [&](const Values& at_x, const Values& at_gamma, const Values& at_beta) {
    Values y(rows * C), rstd(rows);
    rms_norm<double>(rows, C, at_x.data(), at_gamma.data(), at_beta.data(), y.data(), rstd.data());
    return inner(y, dy);
  };
  Values y(rows * C), exact_rstd(rows);
  rms_norm<double>(rows, C, x.data(), gamma.data(), beta.data(), y.data(), exact_rstd.data());

  std::vector<Real> dx = as<Real>(before);
  auto dgamma = unwritten<Real>(C), dbeta = unwritten<Real>(C);
  RmsNormGradients<Real> gradients{dx.data(), true, dgamma.data(), dbeta.data(), false};
  const auto run = [&] {
    rms_norm_backward<Real>(rows, C, as<Real>(x).data(), as<Real>(exact_rstd).data(), as<Real>(gamma).data(),
                            as<Real>(dy).data(), gradients);
  };
  run();
  Values added(rows * C);
  for (std::int64_t i = 0; i < rows * C; ++i) added[i] = dx[i] - before[i];
  const double tolerance = sizeof(Real) == 4 ? 1e-5 : 1e-7;
  expect_gradient([&](const Values& at) { return loss(at, gamma, beta); }, x, added, tolerance);
  expect_gradient([&](const Values& at) { return loss(x, at, beta); }, gamma, Values(dgamma.begin(), dgamma.end()),
                  tolerance);
  expect_gradient([&](const Values& at) { return loss(x, gamma, at); }, beta, Values(dbeta.begin(), dbeta.end()),
                  tolerance);

  gradients.accumulate_dx = false;  // now the other way round: dx overwritten, dgamma and dbeta doubled
  gradients.accumulate_parameters = true;
  const std::vector<Real> once = dgamma;
  run();
  expect_close(dx, added);
  for (std::int64_t c = 0; c < C; ++c) EXPECT_NEAR(dgamma[c], 2 * once[c], 1e-5);
}

TYPED_TEST(Rows, rope_rotates_by_the_position_counted_from_one) {
  using Real = TypeParam;
  const std::int64_t T = 3, B = 2, heads = 2, W = 6, ld = 15, offset = 4;
  const RopeTable<Real> table(W, offset + T);
  const Values x = stored<Real>(random_values(T * B * ld, 1));
  Values expected = x;
  for (std::int64_t t = 0; t < T; ++t) {
    for (std::int64_t b = 0; b < B; ++b) {
      for (std::int64_t h = 0; h < heads; ++h) {
        for (std::int64_t c = 0; c < W; ++c) {
          const std::int64_t at = (t * B + b) * ld + h * W, tau0 = offset + t;  // tau0 counts from 0
          const double angle = (tau0 + 1) * std::pow(10000.0, -2.0 * std::floor(c / 2) / W);
          expected[at + c] = c % 2 == 0 ? x[at + c] * std::cos(angle) - x[at + c + 1] * std::sin(angle)
                                        : x[at + c] * std::cos(angle) + x[at + c - 1] * std::sin(angle);
        }
      }
    }
  }
  std::vector<Real> y = as<Real>(x);
  const RopeRows rows{T, B, heads, ld, offset};
  rope(table, rows, false, y.data());
  expect_close(y, expected);
  rope(table, rows, true, y.data());
  expect_close(y, x);
}

TEST(Rope, inverse_is_the_adjoint) {
  const RopeTable<double> table(8, 5);
  const RopeRows rows{5, 1, 3, 24, 0};
  const Values x = random_values(120, 1), y = random_values(120, 2);
  Values rx = x, ry = y;
  rope(table, rows, false, rx.data());
  rope(table, rows, true, ry.data());
  EXPECT_NEAR(inner(rx, y), inner(x, ry), 1e-12);
}

TYPED_TEST(Rows, embedding_copies_rows_and_its_backward_adds_repeated_ids) {
  using Real = TypeParam;
  const std::vector<std::int32_t> ids = {2, 0, 2};
  const std::vector<Real> table = {1, 2, 3, 4, 5, 6};
  std::vector<Real> out(6), dtable(6, 1);
  embedding<Real>(3, 2, ids.data(), table.data(), out.data());
  EXPECT_EQ(out, (std::vector<Real>{5, 6, 1, 2, 5, 6}));
  embedding_backward<Real>(3, 2, ids.data(), out.data(), dtable.data());
  EXPECT_EQ(dtable, (std::vector<Real>{2, 3, 1, 1, 11, 13}));
}

}  // namespace
}  // namespace meshwright::kernels
