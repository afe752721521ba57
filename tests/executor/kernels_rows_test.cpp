// Kernels that work row by row: norms, rotary embedding, token embedding.
#include "executor/kernels/embedding.h"
#include "executor/kernels/layer_norm.h"
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
    const std::vector<Real> gamma_r = as<Real>(gamma), beta_r = as<Real>(beta);
    const NormWeights<Real> weights{gamma_r.data(), beta_r.data()};
    rms_norm<Real>(rows, C, as<Real>(x).data(), weights, 1e-6, y.data(), rstd.data());
    expect_close(y, expected);
    expect_close(rstd, expected_rstd);
    rms_norm_apply<Real>(rows, C, as<Real>(x).data(), rstd.data(), weights, again.data());
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
    rms_norm<double>(rows, C, at_x.data(), {at_gamma.data(), at_beta.data()}, 1e-6, y.data(), rstd.data());
    return inner(y, dy);
  };
  Values y(rows * C), exact_rstd(rows);
  rms_norm<double>(rows, C, x.data(), {gamma.data(), beta.data()}, 1e-6, y.data(), exact_rstd.data());

  std::vector<Real> dx = as<Real>(before);
  auto dgamma = unwritten<Real>(C), dbeta = unwritten<Real>(C);
  NormGradients<Real> gradients{dx.data(), true, dgamma.data(), dbeta.data(), false};
  const std::vector<Real> gamma_r = as<Real>(gamma);
  const auto run = [&] {
    rms_norm_backward<Real>(rows, C, as<Real>(x).data(), as<Real>(exact_rstd).data(), {gamma_r.data()},
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
  const RopeTable<Real> table({}, W, offset + T);
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
  const RopeRows rows{T, B, heads, W, ld, offset};
  rope(table, rows, false, y.data());
  expect_close(y, expected);
  rope(table, rows, true, y.data());
  expect_close(y, x);
}

TEST(Rope, inverse_is_the_adjoint) {
  const RopeTable<double> table({}, 8, 5);
  const RopeRows rows{5, 1, 3, 8, 24, 0};
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
  const EmbeddingRows rows{.rows = 3, .width = 2, .ids = ids.data()};
  embedding<Real>(rows, table.data(), nullptr, 1, out.data());
  EXPECT_EQ(out, (std::vector<Real>{5, 6, 1, 2, 5, 6}));
  embedding_backward<Real>(rows, out.data(), 1, -1, dtable.data(), nullptr);
  EXPECT_EQ(dtable, (std::vector<Real>{2, 3, 1, 1, 11, 13}));
}

// ---- norms of every kind -----------------------------------------------------------------------------------------------

constexpr std::int64_t kRows = 5;

struct NormCase {
  std::int64_t width;
  bool beta;
  double offset, epsilon;
};
const NormCase kNorms[] = {{1, true, 0, 1e-5}, {7, false, 1, 1e-2}, {100, true, 1, 1e-6}, {37, false, 0, 0.3}};

// (x - centre) / sqrt(mean((x - centre)^2) + epsilon) * (offset + gamma) + beta; centre: the mean, or 0.
Values naive_norm(const NormCase& n, bool centred, const Values& x, const Values& gamma, const Values& beta) {
  Values y(x.size());
  for (std::int64_t r = 0; r < kRows; ++r) {
    double mean = 0, squares = 0;
    for (std::int64_t c = 0; centred && c < n.width; ++c) mean += x[r * n.width + c] / n.width;
    for (std::int64_t c = 0; c < n.width; ++c) squares += std::pow(x[r * n.width + c] - mean, 2);
    for (std::int64_t c = 0; c < n.width; ++c)
      y[r * n.width + c] =
          (x[r * n.width + c] - mean) / std::sqrt(squares / n.width + n.epsilon) * (n.offset + gamma[c]) +
          (n.beta ? beta[c] : 0);
  }
  return y;
}

// Forward, once more from what is known, and backward, of either norm.
template <class Real>
void expect_norm(const NormCase& n, bool centred) {
  const std::int64_t C = n.width, elements = kRows * C;
  const Values x = stored<Real>(random_values(elements, 1)), gamma = stored<Real>(random_values(C, 2)),
               beta = stored<Real>(random_values(C, 3)), dy = stored<Real>(random_values(elements, 4));
  const std::vector<Real> x_r = as<Real>(x), gamma_r = as<Real>(gamma), beta_r = as<Real>(beta), dy_r = as<Real>(dy);
  const NormWeights<Real> weights{gamma_r.data(), n.beta ? beta_r.data() : nullptr, n.offset};
  auto y = unwritten<Real>(elements), again = y, mean = unwritten<Real>(kRows), rstd = mean;
  std::vector<Real> dx(elements, Real(1));
  auto dgamma = unwritten<Real>(C), dbeta = unwritten<Real>(C);
  NormGradients<Real> gradients{dx.data(), true, dgamma.data(), n.beta ? dbeta.data() : nullptr, false};
  const auto backward = [&] {
    if (centred)
      layer_norm_backward<Real>(kRows, C, x_r.data(), mean.data(), rstd.data(), weights, dy_r.data(), gradients);
    else
      rms_norm_backward<Real>(kRows, C, x_r.data(), rstd.data(), weights, dy_r.data(), gradients);
  };
  if (centred) {
    layer_norm<Real>(kRows, C, x_r.data(), weights, n.epsilon, y.data(), mean.data(), rstd.data());
    layer_norm_apply<Real>(kRows, C, x_r.data(), mean.data(), rstd.data(), weights, again.data());
  } else {
    rms_norm<Real>(kRows, C, x_r.data(), weights, n.epsilon, y.data(), rstd.data());
    rms_norm_apply<Real>(kRows, C, x_r.data(), rstd.data(), weights, again.data());
  }
  expect_close(y, naive_norm(n, centred, x, gamma, beta));
  EXPECT_EQ(again, y);

  backward();
  const auto loss = [&](const Values& at_x, const Values& at_gamma, const Values& at_beta) {
    return inner(naive_norm(n, centred, at_x, at_gamma, at_beta), dy);
  };
  const double tolerance = sizeof(Real) == 4 ? 2e-5 : 1e-7;
  Values added;
  for (const Real d : dx) added.push_back(d - 1.0);
  expect_gradient([&](const Values& at) { return loss(at, gamma, beta); }, x, added, tolerance);
  expect_gradient([&](const Values& at) { return loss(x, at, beta); }, gamma, Values(dgamma.begin(), dgamma.end()),
                  tolerance);
  if (n.beta)
    expect_gradient([&](const Values& at) { return loss(x, gamma, at); }, beta, Values(dbeta.begin(), dbeta.end()),
                    tolerance);
  gradients.accumulate_dx = false;  // now the other way round: dx overwritten, dgamma doubled
  gradients.accumulate_parameters = true;
  const std::vector<Real> once = dgamma;
  backward();
  expect_close(dx, added, sizeof(Real) == 4 ? 1e-5 : 1e-12);
  for (std::int64_t c = 0; c < C; ++c) EXPECT_NEAR(dgamma[c], 2 * once[c], 1e-5);
}

TYPED_TEST(Rows, norms_of_every_kind_and_their_derivatives_equal_their_formulas) {
  for (const NormCase& n : kNorms)
    for (const bool centred : {false, true}) {
      SCOPED_TRACE(std::to_string(n.width) + (centred ? " centred" : ""));
      expect_norm<TypeParam>(n, centred);
    }
}

TEST(LayerNorm, of_rows_far_from_zero_keeps_their_differences) {
  // 1000 + {-1, 1}: variance 1, which the difference of mean squares would lose in float.
  std::vector<float> x;
  for (int i = 0; i < 64; ++i) x.push_back(i % 2 ? 1001.f : 999.f);
  const std::vector<float> gamma(64, 1.f);
  std::vector<float> y(64), mean(1), rstd(1);
  layer_norm<float>(1, 64, x.data(), {gamma.data()}, 0, y.data(), mean.data(), rstd.data());
  for (int i = 0; i < 64; ++i) EXPECT_NEAR(y[i], i % 2 ? 1 : -1, 1e-6);
}

TYPED_TEST(Rows, an_rms_norm_in_parts_is_that_of_the_whole_and_so_are_its_gradients) {
  using Real = TypeParam;
  // Two ranks have 3 and 3 of 6 columns; the all-reduce is a sum.
  const std::int64_t whole = 6, part = 3;
  const double epsilon = 1e-2;
  const Values x = stored<Real>(random_values(kRows * whole, 1)), gamma = stored<Real>(random_values(whole, 2)),
               dy = stored<Real>(random_values(kRows * whole, 3));
  const std::vector<Real> all_gamma = as<Real>(gamma);
  const auto half = [&](const Values& v, int rank) {
    std::vector<Real> out;
    for (std::int64_t r = 0; r < kRows; ++r)
      for (std::int64_t c = 0; c < part; ++c) out.push_back(static_cast<Real>(v[r * whole + rank * part + c]));
    return out;
  };
  std::vector<Real> sum(kRows, Real(0)), dsum(kRows, Real(0)), own(kRows);
  for (const int rank : {0, 1}) {
    row_mean_square<Real>(kRows, part, half(x, rank).data(), whole, own.data());
    for (std::int64_t r = 0; r < kRows; ++r) sum[r] += own[r];
  }
  std::array<std::vector<Real>, 2> y, dx, dgamma;
  for (const int rank : {0, 1}) {
    y[rank] = dx[rank] = unwritten<Real>(kRows * part);
    dgamma[rank] = unwritten<Real>(part);
    rms_scale<Real>(kRows, part, half(x, rank).data(), sum.data(), all_gamma.data() + rank * part, epsilon,
                    y[rank].data());
    rms_scale_backward<Real>(kRows, part, half(x, rank).data(), sum.data(), all_gamma.data() + rank * part, epsilon,
                             half(dy, rank).data(), {dx[rank].data(), false, dgamma[rank].data(), nullptr, false},
                             own.data());
    for (std::int64_t r = 0; r < kRows; ++r) dsum[r] += own[r];
  }
  for (const int rank : {0, 1})
    row_mean_square_backward<Real>(kRows, part, dsum.data(), half(x, rank).data(), whole, true, dx[rank].data());

  const std::vector<Real> x_r = as<Real>(x), dy_r = as<Real>(dy);
  auto whole_y = unwritten<Real>(kRows * whole), rstd = unwritten<Real>(kRows), whole_dx = whole_y;
  auto whole_dgamma = unwritten<Real>(whole);
  rms_norm<Real>(kRows, whole, x_r.data(), {all_gamma.data()}, epsilon, whole_y.data(), rstd.data());
  rms_norm_backward<Real>(kRows, whole, x_r.data(), rstd.data(), {all_gamma.data()}, dy_r.data(),
                          {whole_dx.data(), false, whole_dgamma.data(), nullptr, false});
  for (const int rank : {0, 1}) {
    const auto y_part = half(Values(whole_y.begin(), whole_y.end()), rank);
    expect_close(y[rank], Values(y_part.begin(), y_part.end()));
    const auto d = half(Values(whole_dx.begin(), whole_dx.end()), rank);
    expect_close(dx[rank], Values(d.begin(), d.end()));
    expect_close(dgamma[rank], Values(whole_dgamma.begin() + rank * part, whole_dgamma.begin() + (rank + 1) * part));
  }
}

// ---- positions ---------------------------------------------------------------------------------------------------------

TYPED_TEST(Rows, rope_turns_halves_of_some_channels_of_each_head) {
  using Real = TypeParam;
  const std::int64_t T = 3, B = 2, heads = 2, W = 4, head_width = 7, ld = 16, offset = 4;
  RopeSpec spec{.pairing = RopePairing::kHalf, .theta = 500, .attention_factor = 1.25};
  const RopeTable<Real> table(spec, W, offset + T);
  const Values x = stored<Real>(random_values(T * B * ld, 1));
  Values expected = x;
  for (std::int64_t t = 0; t < T; ++t)
    for (std::int64_t b = 0; b < B; ++b)
      for (std::int64_t h = 0; h < heads; ++h)
        for (std::int64_t j = 0; j < W / 2; ++j) {
          const std::int64_t at = (t * B + b) * ld + h * head_width + j;
          const double angle = (offset + t + 1) * std::pow(500.0, -2.0 * j / W), low = x[at], high = x[at + W / 2];
          expected[at] = 1.25 * (low * std::cos(angle) - high * std::sin(angle));
          expected[at + W / 2] = 1.25 * (high * std::cos(angle) + low * std::sin(angle));
        }
  std::vector<Real> y = as<Real>(x);
  const RopeRows rows{T, B, heads, head_width, ld, offset};
  rope(table, rows, false, y.data());
  expect_close(y, expected);

  const Values z = random_values(T * B * ld, 2);  // its inverse is the adjoint
  std::vector<Real> back = as<Real>(z);
  rope(table, rows, true, back.data());
  // What does not turn stays, in both.
  EXPECT_NEAR(inner(expected, z), inner(x, Values(back.begin(), back.end())), sizeof(Real) == 4 ? 1e-4 : 1e-12);
}

TYPED_TEST(Rows, embedding_scales_words_and_adds_positions_of_the_whole_sequence) {
  using Real = TypeParam;
  // Tokens 2 and 3 of two sequences, rows (t, b). Word 1 is padding.
  const std::vector<std::int32_t> ids = {2, 0, 1, 2};
  const std::vector<Real> table = {1, 2, 3}, positions = {0, 0, 10, 20};
  const EmbeddingRows rows{.rows = 4, .width = 1, .sequences = 2, .position_offset = 2, .ids = ids.data()};
  std::vector<Real> out(4), dtable(3, Real(0)), dpositions(4, Real(1));
  embedding<Real>(rows, table.data(), positions.data(), 0.5, out.data());
  EXPECT_EQ(out, (std::vector<Real>{11.5, 10.5, 21, 21.5}));
  const std::vector<Real> d = {1, 2, 4, 8};
  embedding_backward<Real>(rows, d.data(), 0.5, 1, dtable.data(), dpositions.data());
  EXPECT_EQ(dtable, (std::vector<Real>{1, 0, 4.5}));
  EXPECT_EQ(dpositions, (std::vector<Real>{1, 1, 4, 13}));
}

}  // namespace
}  // namespace meshwright::kernels
