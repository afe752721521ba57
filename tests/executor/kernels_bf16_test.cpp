// Kernels on bf16 give what they give on the same numbers in float, rounded: inputs are rounded first, so that only what a
// kernel rounds is seen. A rounding is off by 2^-9 of the number.
#include <bit>
#include <functional>

#include "executor/kernels/activation.h"
#include "executor/kernels/attention.h"
#include "executor/kernels/bf16.h"
#include "executor/kernels/dropout.h"
#include "executor/kernels/elementwise.h"
#include "executor/kernels/embedding.h"
#include "executor/kernels/experts.h"
#include "executor/kernels/flop_count.h"
#include "executor/kernels/gemm.h"
#include "executor/kernels/layer_norm.h"
#include "executor/kernels/lm_head.h"
#include "executor/kernels/rms_norm.h"
#include "executor/kernels/rope.h"
#include "tests/executor/kernel_test_support.h"

namespace meshwright::kernels {
namespace {

constexpr double kRoundings = 4.0 / 512;  // of the largest element: some roundings, one after another

// The same numbers, which both types hold.
struct Both {
  std::vector<float> wide;
  std::vector<Bf16> narrow;

  explicit Both(const Values& values) {
    for (const double v : values) {
      narrow.emplace_back(static_cast<float>(v));
      wide.push_back(narrow.back());
    }
  }
  Both(std::int64_t n, unsigned seed) : Both(random_values(n, seed)) {}
};

template <class T>
Values values(const std::vector<T>& x) {
  Values out;
  for (const T v : x) out.push_back(static_cast<float>(v));
  return out;
}
template <class A>
void expect_rounded(const std::vector<A>& actual, const std::vector<float>& expected, double tolerance = kRoundings) {
  const Values a = values(actual), e = values(expected);
  double scale = 1e-6;
  for (const double v : e) scale = std::max(scale, std::abs(v));
  ASSERT_EQ(a.size(), e.size());
  for (std::size_t i = 0; i < a.size(); ++i) ASSERT_NEAR(a[i], e[i], tolerance * scale) << "element " << i;
}

TEST(Bf16, rounds_to_nearest_ties_to_even) {
  EXPECT_EQ(static_cast<float>(Bf16(1.0f)), 1.0f);
  EXPECT_EQ(static_cast<float>(Bf16(1.0f + 0x1p-8f)), 1.0f);                // half way, down to the even one
  EXPECT_EQ(static_cast<float>(Bf16(1.0f + 3 * 0x1p-8f)), 1.0f + 0x1p-6f);  // half way, up to the even one
  EXPECT_EQ(static_cast<float>(Bf16(1.0f + 0x1p-8f + 0x1p-20f)), 1.0f + 0x1p-7f);
  EXPECT_EQ(static_cast<float>(Bf16(-0.0f)), 0.0f);
  EXPECT_TRUE(std::signbit(static_cast<float>(Bf16(-0.0f))));
  EXPECT_EQ(static_cast<float>(Bf16(3.4e38f)), std::numeric_limits<float>::infinity());
  EXPECT_EQ(static_cast<float>(Bf16(-std::numeric_limits<float>::infinity())), -std::numeric_limits<float>::infinity());
  EXPECT_TRUE(std::isnan(static_cast<float>(Bf16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isnan(static_cast<float>(Bf16(std::bit_cast<float>(0x7F800001u)))));  // not to infinity
  for (std::uint32_t bits = 0; bits < 0x10000; ++bits) {                                 // what it holds is itself
    const Bf16 x = std::bit_cast<Bf16>(static_cast<std::uint16_t>(bits));
    const float wide = x;
    if (!std::isnan(wide)) {
      ASSERT_EQ(Bf16(wide).bits, bits);
    }
  }
}

using Multiply = std::function<void(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, float, const Both&,
                                    std::int64_t, const Both&, std::int64_t, float, Both&, std::int64_t)>;

// Of every transposition and leading dimension, twice: the second time the primitive is held.
void expect_product(const Multiply& multiply, bool transposes_a, bool transposes_b, bool narrow_c) {
  const std::int64_t m = 70, n = 29, k = 53, pad = 3;
  for (const Transpose ta : {Transpose::kNo, Transpose::kYes})
    for (const Transpose tb : {Transpose::kNo, Transpose::kYes})
      for (const float beta : {0.0f, 1.0f, 1.0f}) {
        if ((ta == Transpose::kYes && !transposes_a) || (tb == Transpose::kYes && !transposes_b)) continue;
        const std::int64_t lda = (ta == Transpose::kYes ? m : k) + pad, ldb = (tb == Transpose::kYes ? k : n) + pad;
        const Both a((ta == Transpose::kYes ? k : m) * lda, 1), b((tb == Transpose::kYes ? n : k) * ldb, 2);
        const Both before(m * (n + pad), 3);
        Both c = before;
        const std::int64_t flops = flop_count();
        multiply(ta, tb, m, n, k, 0.75f, a, lda, b, ldb, beta, c, n + pad);
        EXPECT_LE(flop_count() - flops, 2 * m * n * k);
        std::vector<float> expected = before.wide;
        gemm<float>(ta, tb, m, n, k, 0.75f, a.wide.data(), lda, b.wide.data(), ldb, beta, expected.data(), n + pad);
        if (narrow_c)
          expect_rounded(c.narrow, expected, 1.01 / 256);
        else
          expect_rounded(c.wide, expected, 1e-5);
      }
}

TEST(Bf16Gemm, sums_in_float_and_rounds_once) {
  expect_product(
      [](auto ta, auto tb, auto m, auto n, auto k, float alpha, const Both& a, auto lda, const Both& b, auto ldb,
         float beta, Both& c, auto ldc) {
        gemm<Bf16>(ta, tb, m, n, k, alpha, a.narrow.data(), lda, b.narrow.data(), ldb, beta, c.narrow.data(), ldc);
      },
      true, true, true);
}
TEST(Bf16Gemm, into_float_does_not_round) {
  expect_product(
      [](auto ta, auto tb, auto m, auto n, auto k, float alpha, const Both& a, auto lda, const Both& b, auto ldb,
         float beta, Both& c, auto ldc) {
        mixed_gemm<Bf16, Bf16, float>(ta, tb, m, n, k, alpha, a.narrow.data(), lda, b.narrow.data(), ldb, beta,
                                      c.wide.data(), ldc);
      },
      true, true, false);
}
TEST(Bf16Gemm, in_float_where_the_machine_has_no_such_products_is_the_same) {
  expect_product(
      [](auto ta, auto tb, auto m, auto n, auto k, float alpha, const Both& a, auto lda, const Both& b, auto ldb,
         float beta, Both& c, auto ldc) {
        gemm_in_float(ta, tb, m, n, k, alpha, a.narrow.data(), lda, b.narrow.data(), ldb, beta, c.wide.data(), ldc);
        gemm_in_float(ta, tb, m, n, k, alpha, a.narrow.data(), lda, b.narrow.data(), ldb, beta, c.narrow.data(), ldc);
      },
      true, true, false);
}
TEST(Bf16Gemm, of_one_operand_in_float_narrows_it) {
  const auto left = [](auto ta, auto tb, auto m, auto n, auto k, float alpha, const Both& a, auto lda, const Both& b,
                       auto ldb, float beta, Both& c, auto ldc) {
    mixed_gemm<float, Bf16, Bf16>(ta, tb, m, n, k, alpha, a.wide.data(), lda, b.narrow.data(), ldb, beta,
                                  c.narrow.data(), ldc);
  };
  const auto right = [](auto ta, auto tb, auto m, auto n, auto k, float alpha, const Both& a, auto lda, const Both& b,
                        auto ldb, float beta, Both& c, auto ldc) {
    mixed_gemm<Bf16, float, float>(ta, tb, m, n, k, alpha, a.narrow.data(), lda, b.wide.data(), ldb, beta,
                                   c.wide.data(), ldc);
  };
  expect_product(left, false, true, true);
  expect_product(right, true, false, false);
}

TEST(Bf16Gemm, of_experts_takes_any_number_of_rows) {
  const std::int64_t E = 4, capacity = 150, k = 24, n = 16;
  const std::vector<std::int32_t> rows = {150, 0, 64, 5};
  const ExpertRows experts{E, capacity, rows.data()};
  const Both a(E * capacity * k, 1), w(E * k * n, 2), d(E * capacity * n, 3), dw(E * k * n, 4);
  std::vector<float> c(E * capacity * n, 0.0f), sums = dw.wide;
  std::vector<Bf16> c_narrow(c.size(), Bf16(0.0f));
  std::vector<float> sums_narrow = dw.wide;
  const std::int64_t before = flop_count();
  expert_gemm<Bf16>(experts, Transpose::kNo, n, k, a.narrow.data(), k, w.narrow.data(), c_narrow.data(), n);
  expert_weight_gradient<Bf16>(experts, k, n, a.narrow.data(), k, d.narrow.data(), n, true, sums_narrow.data());
  EXPECT_EQ(flop_count() - before, 2 * 2 * (150 + 64 + 5) * k * n);
  expert_gemm<float>(experts, Transpose::kNo, n, k, a.wide.data(), k, w.wide.data(), c.data(), n);
  expert_weight_gradient<float>(experts, k, n, a.wide.data(), k, d.wide.data(), n, true, sums.data());
  expect_rounded(c_narrow, c);
  expect_rounded(sums_narrow, sums, 1e-5);
  expert_weight_gradient<Bf16>(experts, k, n, a.narrow.data(), k, d.narrow.data(), n, false, sums_narrow.data());
  for (std::int64_t i = 0; i < k * n; ++i) EXPECT_EQ(sums_narrow[k * n + i], 0) << "of the expert without rows";
}

TEST(Bf16Kernels, norms_and_their_gradients) {
  const std::int64_t rows = 70, width = 37;
  const Both x(rows * width, 1), gamma(width, 2), beta(width, 3), dy(rows * width, 4), dx(rows * width, 5);
  for (const double offset : {0.0, 1.0})
    for (const bool centred : {false, true}) {
      const NormWeights<float> wide{gamma.wide.data(), beta.wide.data(), offset};
      const NormWeights<Bf16> narrow{gamma.narrow.data(), beta.narrow.data(), offset};
      std::vector<float> y(rows * width), rstd(rows), rstd_narrow(rows), mean(rows), mean_narrow(rows), dgamma(width),
          dbeta(width), dgamma_narrow(width), dbeta_narrow(width), dx_wide = dx.wide;
      std::vector<Bf16> y_narrow(rows * width), dx_narrow = dx.narrow;
      const NormGradients<float> to_wide{dx_wide.data(), true, dgamma.data(), dbeta.data(), false};
      const NormGradients<Bf16> to_narrow{dx_narrow.data(), true, dgamma_narrow.data(), dbeta_narrow.data(), false};
      if (centred) {
        layer_norm<float>(rows, width, x.wide.data(), wide, 1e-5, y.data(), mean.data(), rstd.data());
        layer_norm<Bf16>(rows, width, x.narrow.data(), narrow, 1e-5, y_narrow.data(), mean_narrow.data(),
                         rstd_narrow.data());
        layer_norm_backward<float>(rows, width, x.wide.data(), mean.data(), rstd.data(), wide, dy.wide.data(), to_wide);
        layer_norm_backward<Bf16>(rows, width, x.narrow.data(), mean.data(), rstd.data(), narrow, dy.narrow.data(),
                                  to_narrow);
      } else {
        rms_norm<float>(rows, width, x.wide.data(), wide, 1e-6, y.data(), rstd.data());
        rms_norm<Bf16>(rows, width, x.narrow.data(), narrow, 1e-6, y_narrow.data(), rstd_narrow.data());
        rms_norm_backward<float>(rows, width, x.wide.data(), rstd.data(), wide, dy.wide.data(), to_wide);
        rms_norm_backward<Bf16>(rows, width, x.narrow.data(), rstd.data(), narrow, dy.narrow.data(), to_narrow);
      }
      expect_rounded(y_narrow, y);
      expect_rounded(rstd_narrow, rstd, 1e-6);
      expect_rounded(dx_narrow, dx_wide);
      expect_rounded(dgamma_narrow, dgamma, 1e-5);
      expect_rounded(dbeta_narrow, dbeta, 1e-5);
    }
}

TEST(Bf16Kernels, a_norm_over_columns_of_several_ranks) {
  const std::int64_t rows = 20, width = 37, whole = 74;
  const Both x(rows * width, 1), gamma(width, 2), dy(rows * width, 3), d(rows, 4);
  std::vector<float> square(rows), square_narrow(rows), y(rows * width), dx(rows * width), dgamma(width), dsquare(rows),
      dgamma_narrow(width), dsquare_narrow(rows);
  std::vector<Bf16> y_narrow(y.size()), dx_narrow(dx.size());
  row_mean_square<float>(rows, width, x.wide.data(), whole, square.data());
  row_mean_square<Bf16>(rows, width, x.narrow.data(), whole, square_narrow.data());
  expect_rounded(square_narrow, square, 1e-5);
  rms_scale<float>(rows, width, x.wide.data(), square.data(), gamma.wide.data(), 1e-6, y.data());
  rms_scale<Bf16>(rows, width, x.narrow.data(), square.data(), gamma.narrow.data(), 1e-6, y_narrow.data());
  expect_rounded(y_narrow, y);
  rms_scale_backward<float>(rows, width, x.wide.data(), square.data(), gamma.wide.data(), 1e-6, dy.wide.data(),
                            {dx.data(), false, dgamma.data(), nullptr, false}, dsquare.data());
  rms_scale_backward<Bf16>(rows, width, x.narrow.data(), square.data(), gamma.narrow.data(), 1e-6, dy.narrow.data(),
                           {dx_narrow.data(), false, dgamma_narrow.data(), nullptr, false}, dsquare_narrow.data());
  expect_rounded(dx_narrow, dx);
  expect_rounded(dgamma_narrow, dgamma, 1e-5);
  expect_rounded(dsquare_narrow, dsquare, 1e-5);
  row_mean_square_backward<float>(rows, width, d.wide.data(), x.wide.data(), whole, true, dx.data());
  row_mean_square_backward<Bf16>(rows, width, d.wide.data(), x.narrow.data(), whole, true, dx_narrow.data());
  expect_rounded(dx_narrow, dx);
}

TEST(Bf16Kernels, attention_and_its_gradients_in_blocks) {
  for (const std::int64_t window : {0, 7}) {
    const AttentionShape shape{.tokens = 23,
                               .batch = 2,
                               .heads = 4,
                               .kv_heads = 2,
                               .head_dim = 8,
                               .value_dim = 6,
                               .rope_width = 4,
                               .block = 9,
                               .window = window,
                               .scale = 0.4};
    const std::int64_t rows = shape.tokens * shape.batch, q = rows * 4 * 8, k = rows * 2 * 8, v = rows * 2 * 6,
                       qr = rows * 4 * 4, kr = rows * 4, o = rows * 4 * 6;
    const std::vector<std::int64_t> sequences = {3, 8};
    const AttentionDropout dropout{{1, 2, 3, 0.1}, sequences.data(), 0, 4};
    const Both in[] = {Both(q, 1), Both(k, 2), Both(v, 3), Both(qr, 4), Both(kr, 5)}, dout(o, 6);
    const AttentionInputs<float> wide{{in[0].wide.data(), 32},
                                      {in[1].wide.data(), 16},
                                      {in[2].wide.data(), 12},
                                      {in[3].wide.data(), 16},
                                      {in[4].wide.data(), 4}};
    const AttentionInputs<Bf16> narrow{{in[0].narrow.data(), 32},
                                       {in[1].narrow.data(), 16},
                                       {in[2].narrow.data(), 12},
                                       {in[3].narrow.data(), 16},
                                       {in[4].narrow.data(), 4}};
    std::vector<float> out(o), lse(rows * 4), lse_narrow(lse.size()), dq(q), dk(k), dv(v), dqr(qr), dkr(kr);
    std::vector<Bf16> out_narrow(o), dq_narrow(q), dk_narrow(k), dv_narrow(v), dqr_narrow(qr), dkr_narrow(kr);
    std::vector<float> scratch(attention_backward_scratch(shape, true));
    attention_forward<float>(shape, wide, dropout, {out.data(), 24}, lse.data(), scratch.data());
    attention_forward<Bf16>(shape, narrow, dropout, {out_narrow.data(), 24}, lse_narrow.data(), scratch.data());
    expect_rounded(out_narrow, out);
    expect_rounded(lse_narrow, lse, 1e-5);
    attention_backward<float>(shape, wide, dropout, lse.data(), {dout.wide.data(), 24},
                              {{dq.data(), 32}, {dk.data(), 16}, {dv.data(), 12}, {dqr.data(), 16}, {dkr.data(), 4}},
                              scratch.data());
    attention_backward<Bf16>(shape, narrow, dropout, lse.data(), {dout.narrow.data(), 24},
                             {{dq_narrow.data(), 32},
                              {dk_narrow.data(), 16},
                              {dv_narrow.data(), 12},
                              {dqr_narrow.data(), 16},
                              {dkr_narrow.data(), 4}},
                             scratch.data());
    expect_rounded(dq_narrow, dq);
    expect_rounded(dk_narrow, dk);
    expect_rounded(dv_narrow, dv);
    expect_rounded(dqr_narrow, dqr);
    expect_rounded(dkr_narrow, dkr);
  }
}

TEST(Bf16Kernels, the_head_with_loss_and_gradients) {
  const std::int64_t rows = 21, width = 16, vocabulary = 100;
  const Both x(rows * width, 1), table(vocabulary * width, 2);
  std::vector<std::int32_t> targets(rows);
  for (std::int64_t i = 0; i < rows; ++i) targets[i] = static_cast<std::int32_t>(i * 37 % vocabulary);
  std::vector<float> scratch(rows * vocabulary), dx(rows * width), dtable(vocabulary * width, 0.5f),
      dtable_narrow = dtable;
  std::vector<Bf16> scratch_narrow(rows * vocabulary), dx_narrow(rows * width);
  LmHead<float> wide{.rows = rows, .width = width, .vocabulary = vocabulary, .chunk = 8};
  wide.x = x.wide.data(), wide.table = table.wide.data(), wide.targets = targets.data();
  wide.scratch = scratch.data(), wide.dx = dx.data(), wide.dtable = dtable.data();
  LmHead<Bf16> narrow{.rows = rows, .width = width, .vocabulary = vocabulary, .chunk = 8};
  narrow.x = x.narrow.data(), narrow.table = table.narrow.data(), narrow.targets = targets.data();
  narrow.scratch = scratch_narrow.data(), narrow.dx = dx_narrow.data(), narrow.dtable = dtable_narrow.data();
  const double loss = lm_head(wide).loss;
  EXPECT_NEAR(lm_head(narrow).loss, loss, 1e-3 * loss);
  expect_rounded(dx_narrow, dx);
  expect_rounded(dtable_narrow, dtable);
}

TEST(Bf16Kernels, residual_activations_rope_and_embedding) {
  const std::int64_t T = 5, B = 2, C = 300;
  const std::vector<std::int64_t> sequences = {3, 9};
  const Both x(T * B * C, 1), in(T * B * C, 2), bias(2 * C, 3), table(7 * C, 4);
  const TokenRows rows{T, B, T, 0, sequences.data()};
  const Dropout dropout{1, 2, 3, 0.3};
  std::vector<float> out(x.wide.size()), din(x.wide.size()), dbias(2 * C), dbias_narrow(2 * C);
  std::vector<Bf16> out_narrow(x.wide.size()), din_narrow(x.wide.size());
  const Residual<float> wide{rows, C, dropout, bias.wide.data(), 2};
  const Residual<Bf16> narrow{rows, C, dropout, bias.narrow.data(), 2};
  residual(wide, x.wide.data(), in.wide.data(), out.data());
  residual(narrow, x.narrow.data(), in.narrow.data(), out_narrow.data());
  expect_rounded(out_narrow, out);
  residual_backward(wide, x.wide.data(), din.data(), dbias.data(), false);
  residual_backward(narrow, x.narrow.data(), din_narrow.data(), dbias_narrow.data(), false);
  expect_rounded(din_narrow, din);
  expect_rounded(dbias_narrow, dbias);

  const auto n = static_cast<std::int64_t>(x.wide.size());
  for (const ActivationKind kind :
       {ActivationKind::kGeluTanh, ActivationKind::kGeluErf, ActivationKind::kSilu, ActivationKind::kRelu}) {
    activation(kind, n, x.wide.data(), out.data());
    activation(kind, n, x.narrow.data(), out_narrow.data());
    expect_rounded(out_narrow, out);
    activation_backward(kind, n, x.wide.data(), in.wide.data(), out.data());
    activation_backward(kind, n, x.narrow.data(), in.narrow.data(), out_narrow.data());
    expect_rounded(out_narrow, out);
    std::vector<float> half(n / 2), both(n);
    std::vector<Bf16> half_narrow(n / 2), both_narrow(n);
    gated_activation(kind, T * B, C / 2, x.wide.data(), half.data());
    gated_activation(kind, T * B, C / 2, x.narrow.data(), half_narrow.data());
    expect_rounded(half_narrow, half);
    gated_activation_backward(kind, T * B, C / 2, x.wide.data(), in.wide.data(), both.data());
    gated_activation_backward(kind, T * B, C / 2, x.narrow.data(), in.narrow.data(), both_narrow.data());
    expect_rounded(both_narrow, both);
  }

  const RopeTable<float> angles({}, C / 3, T);
  out = x.wide, out_narrow = x.narrow;
  rope<float>(angles, {T, B, 3, C / 3, C, 0}, false, out.data());
  rope<Bf16>(angles, {T, B, 3, C / 3, C, 0}, false, out_narrow.data());
  expect_rounded(out_narrow, out);

  const std::vector<std::int32_t> ids = {1, 6, 1, 0, 1, 2, 3, 1, 4, 5};
  const EmbeddingRows looked_up{T * B, C, B, 0, ids.data()};
  std::vector<float> dtable(7 * C, 0.0f), dtable_narrow(7 * C, 0.0f), dpositions(T * C), dpositions_narrow(T * C);
  embedding<Bf16>(looked_up, table.narrow.data(), nullptr, 1, out_narrow.data());
  embedding<float>(looked_up, table.wide.data(), nullptr, 1, out.data());
  expect_rounded(out_narrow, out, 0);
  embedding<Bf16>(looked_up, table.narrow.data(), in.narrow.data(), 3, out_narrow.data());
  embedding<float>(looked_up, table.wide.data(), in.wide.data(), 3, out.data());
  expect_rounded(out_narrow, out);
  embedding_backward<Bf16>(looked_up, x.narrow.data(), 3, 1, dtable_narrow.data(), dpositions_narrow.data());
  embedding_backward<float>(looked_up, x.wide.data(), 3, 1, dtable.data(), dpositions.data());
  expect_rounded(dtable_narrow, dtable, 1e-6);  // summed in float
  expect_rounded(dpositions_narrow, dpositions, 1e-6);
}

TEST(Bf16Kernels, what_stands_around_the_experts) {
  const std::int64_t T = 6, B = 1, C = 40, E = 3, k = 2, capacity = 5, hidden = 24;
  const std::vector<std::int64_t> sequences = {2};
  const std::vector<std::int32_t> choice = {0, 1, 1, 2, 0, 2, 2, 1, 1, 0, 0, 1},
                                  slot = {0, 5, 6, 10, 1, 11, 12, 7, 8, 2, 3, -1}, counts = {4, 4, 3};
  const ExpertRows experts{E, capacity, counts.data()};
  const Both y(E * capacity * C, 1), bias(E * C, 2), before(T * B * C, 3), gate(T * B * k, 4),
      a(E * capacity * hidden, 5), da(E * capacity * hidden, 6), row_gate(E * capacity, 7);
  const Dropout dropout{1, 2, 3, 0.2};
  Combine<float> wide{{T, B, T, 0, sequences.data()}, E, k, C, dropout, choice.data(), slot.data(), gate.wide.data()};
  Combine<Bf16> narrow{{T, B, T, 0, sequences.data()}, E, k, C, dropout, choice.data(), slot.data(), gate.wide.data()};
  std::vector<float> out = before.wide, masked(y.wide.size(), 0.0f), gates(E * capacity), gates_narrow(E * capacity),
                     dgate(T * k), dgate_narrow(T * k), sums(E * C, 0.0f), sums_narrow(E * C, 0.0f);
  std::vector<Bf16> out_narrow = before.narrow, masked_narrow(y.wide.size(), Bf16(0.0f));
  combine<float>(wide, y.wide.data(), bias.wide.data(), 0.5f, true, out.data());
  combine<Bf16>(narrow, y.narrow.data(), bias.narrow.data(), 0.5f, true, out_narrow.data());
  expect_rounded(out_narrow, out);
  combine_backward<float>(wide, before.wide.data(), masked.data(), gates.data());
  combine_backward<Bf16>(narrow, before.narrow.data(), masked_narrow.data(), gates_narrow.data());
  expect_rounded(masked_narrow, masked);
  EXPECT_EQ(gates_narrow, gates);
  gate_gradient<float>(wide, hidden, a.wide.data(), da.wide.data(), y.wide.data(), bias.wide.data(), 0.5f,
                       dgate.data());
  gate_gradient<Bf16>(narrow, hidden, a.narrow.data(), da.narrow.data(), y.narrow.data(), bias.narrow.data(), 0.5f,
                      dgate_narrow.data());
  expect_rounded(dgate_narrow, dgate, 1e-5);
  expert_column_sum<float>(experts, C, y.wide.data(), row_gate.wide.data(), 0.5f, false, sums.data());
  expert_column_sum<Bf16>(experts, C, y.narrow.data(), row_gate.wide.data(), 0.5f, false, sums_narrow.data());
  expect_rounded(sums_narrow, sums, 1e-5);
  out = before.wide, out_narrow = before.narrow;
  dispatch_backward<float>(T * B, k, C, slot.data(), y.wide.data(), out.data());
  dispatch_backward<Bf16>(T * B, k, C, slot.data(), y.narrow.data(), out_narrow.data());
  expect_rounded(out_narrow, out);
}

}  // namespace
}  // namespace meshwright::kernels
