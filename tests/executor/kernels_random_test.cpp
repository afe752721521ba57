// Counter-based random numbers: Philox, dropout with its residual, initial weights.
#include <numeric>

#include "executor/kernels/dropout.h"
#include "executor/kernels/initial_weights.h"
#include "executor/kernels/philox.h"
#include "tests/executor/kernel_test_support.h"

namespace meshwright::kernels {
namespace {

TEST(Philox, gives_the_known_answers_of_random123) {
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (PhiloxCounter{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff}, {0xffffffff, 0xffffffff}),
            (PhiloxCounter{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (PhiloxCounter{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(Philox, words_in_bulk_are_those_of_single_blocks_wherever_they_start) {
  const PhiloxKey key = {123, 456};
  for (const std::uint64_t first :
       {0ull, 3ull, 130ull, (1ull << 34) - 5}) {  // the last one carries into the high counter
    for (const std::int64_t n : {0, 1, 5, 128, 300}) {
      std::vector<std::uint32_t> words(n);
      philox_words(key, 7, 8, first, n, words.data());
      for (std::int64_t i = 0; i < n; ++i) {
        const std::uint64_t at = first + i, block = at / 4;
        const PhiloxCounter counter = {static_cast<std::uint32_t>(block), static_cast<std::uint32_t>(block >> 32), 7,
                                       8};
        ASSERT_EQ(words[i], philox(counter, key)[at % 4]) << first << " + " << i;
      }
    }
  }
}

template <class Real>
std::vector<Real> multipliers(const Dropout& dropout, std::int64_t first, std::int64_t n) {
  auto out = unwritten<Real>(n);
  dropout_multipliers(dropout, first, n, out.data());
  return out;
}

TEST(DropoutMask, is_the_same_in_float_and_double_and_in_any_slice) {
  const Dropout dropout{.seed = 1, .step = 2, .site = 3, .p = 0.25};
  const auto whole = multipliers<double>(dropout, 1000, 777);
  const auto single = multipliers<float>(dropout, 1000, 777);
  for (std::int64_t i = 0; i < 777; ++i) {
    EXPECT_EQ(single[i], static_cast<float>(whole[i]));
    EXPECT_TRUE(whole[i] == 0 || whole[i] == 1 / 0.75);
  }
  for (const std::int64_t first : {1000, 1001, 1255, 1256, 1700}) {
    const auto slice = multipliers<double>(dropout, first, 50);
    for (std::int64_t i = 0; i < 50; ++i) EXPECT_EQ(slice[i], whole[first - 1000 + i]);
  }
}

TEST(DropoutMask, keeps_the_share_asked_for_and_is_independent_across_steps_sites_seeds_and_neighbours) {
  const std::int64_t n = 200000;
  const double p = 0.2;
  const auto dropped = [&](const Dropout& d) {
    auto mask = multipliers<double>(d, 0, n);
    for (double& v : mask) v = v == 0;
    return mask;
  };
  const Values base = dropped({1, 2, 3, p});
  const double sigma = std::sqrt(p * (1 - p) / n);
  EXPECT_NEAR(std::accumulate(base.begin(), base.end(), 0.0) / n, p, 4 * sigma);
  Values shifted(base.begin() + 1, base.end());
  shifted.push_back(base[0]);
  // Both dropped: probability p^2, deviation sqrt(p^2 (1 - p^2) / n).
  const double both = 4 * std::sqrt(p * p * (1 - p * p) / n);
  EXPECT_NEAR(inner(base, shifted) / n, p * p, both);
  EXPECT_NEAR(inner(base, dropped({2, 2, 3, p})) / n, p * p, both);
  EXPECT_NEAR(inner(base, dropped({1, 3, 3, p})) / n, p * p, both);
  EXPECT_NEAR(inner(base, dropped({1, 2, 4, p})) / n, p * p, both);
  EXPECT_NEAR(inner(base, dropped({1, 3, 2, p})) / n, p * p, both);  // step and site are not interchangeable
}

TEST(DropoutMask, with_p_0_keeps_everything) {
  EXPECT_EQ(multipliers<float>({.seed = 1, .p = 0}, 5, 3), (std::vector<float>{1, 1, 1}));
}

template <class Real>
class ResidualKernel : public InBothPrecisions<Real> {};
TYPED_TEST_SUITE(ResidualKernel, Precisions);

TYPED_TEST(ResidualKernel, adds_the_dropped_out_branch_by_global_element) {
  using Real = TypeParam;
  const std::int64_t Tl = 3, B = 2, C = 300, T = 12, offset = 6, chunks = 2;
  const std::vector<std::int64_t> sequences = {5, 1};
  const Values x = stored<Real>(random_values(Tl * B * C, 1)), in = stored<Real>(random_values(Tl * B * C, 2)),
               bias = stored<Real>(random_values(chunks * C, 3)), dout = stored<Real>(random_values(Tl * B * C, 4));
  for (const double p : {0.0, 0.3}) {
    const std::vector<Real> bias_r = as<Real>(bias);
    const Residual<Real> place{.rows = {Tl, B, T, offset, sequences.data()},
                               .width = C,
                               .dropout = {9, 8, 7, p},
                               .bias = bias_r.data(),
                               .bias_chunks = chunks};
    Values expected(Tl * B * C), expected_din(Tl * B * C), expected_dbias(chunks * C, 0.0);
    for (std::int64_t t = 0; t < Tl; ++t) {
      for (std::int64_t b = 0; b < B; ++b) {
        for (std::int64_t c = 0; c < C; ++c) {
          const std::int64_t at = (t * B + b) * C + c, element = (sequences[b] * T + offset + t) * C + c;
          const double multiplier = multipliers<double>(place.dropout, element, 1)[0];
          expected[at] = x[at] + multiplier * (in[at] + bias[c] + bias[C + c]);
          expected_din[at] = multiplier * dout[at];
          expected_dbias[c] += expected_din[at];
          expected_dbias[C + c] += expected_din[at];
        }
      }
    }
    std::vector<Real> out = as<Real>(x), din = as<Real>(dout);  // both in place
    residual(place, out.data(), as<Real>(in).data(), out.data());
    expect_close(out, expected);
    auto dbias = unwritten<Real>(chunks * C);
    residual_backward(place, as<Real>(dout).data(), din.data(), dbias.data(), false);
    expect_close(din, expected_din);
    expect_close(dbias, expected_dbias);
    residual_backward(place, as<Real>(dout).data(), din.data(), dbias.data(), true);
    for (double& v : expected_dbias) v *= 2;
    expect_close(dbias, expected_dbias);
  }
}

TYPED_TEST(ResidualKernel, without_x_or_bias_is_the_dropped_out_branch_alone) {
  using Real = TypeParam;
  const std::int64_t T = 3, B = 2, C = 300;
  const std::vector<std::int64_t> sequences = {5, 1};
  const Values x = stored<Real>(random_values(T * B * C, 1)), in = stored<Real>(random_values(T * B * C, 2));
  const std::vector<Real> bias(C, Real(0)), x_r = as<Real>(x), zeros(T * B * C, Real(0)), in_r = as<Real>(in);
  for (const double p : {0.0, 0.3}) {
    Residual<Real> place{.rows = {T, B, T, 0, sequences.data()}, .width = C, .dropout = {9, 8, 7, p}};
    auto alone = unwritten<Real>(T * B * C), with_zeros = alone;
    residual<Real>(place, nullptr, in_r.data(), alone.data());
    place.bias = bias.data();
    residual<Real>(place, zeros.data(), in_r.data(), with_zeros.data());
    EXPECT_EQ(alone, with_zeros);
    if (p == 0) {
      EXPECT_EQ(alone, in_r);
    }
  }
}

TYPED_TEST(ResidualKernel, of_a_part_of_the_sequence_is_the_part_of_the_whole) {
  using Real = TypeParam;
  const std::int64_t T = 6, B = 2, C = 10;
  const std::vector<std::int64_t> sequences = {3, 4};
  const std::vector<Real> x = as<Real>(random_values(T * B * C, 1)), in = as<Real>(random_values(T * B * C, 2));
  const Dropout dropout{1, 1, 1, 0.5};
  auto whole = unwritten<Real>(T * B * C), parts = unwritten<Real>(T * B * C);
  residual<Real>({.rows = {T, B, T, 0, sequences.data()}, .width = C, .dropout = dropout}, x.data(), in.data(),
                 whole.data());
  for (std::int64_t t = 0; t < T; t += 2) {
    const std::int64_t at = t * B * C;
    residual<Real>({.rows = {2, B, T, t, sequences.data()}, .width = C, .dropout = dropout}, x.data() + at,
                   in.data() + at, parts.data() + at);
  }
  EXPECT_EQ(parts, whole);
}

TEST(InitialWeights, of_a_slice_are_the_slice_of_the_whole_and_floats_are_the_rounded_doubles) {
  const TensorStream stream{7, tensor_id("layer3.ffn0.kernel")};
  Values whole(1000);
  std::vector<float> slice(101);
  const auto check = [&](auto draw_whole, auto draw_slice) {
    draw_whole();
    for (const std::int64_t first : {0, 1, 500, 899}) {
      draw_slice(first);
      for (std::int64_t i = 0; i < 101; ++i) ASSERT_EQ(slice[i], static_cast<float>(whole[first + i]));
    }
  };
  check([&] { uniform<double>(stream, 0, 1000, -1, 1, whole.data()); },
        [&](std::int64_t first) { uniform<float>(stream, first, 101, -1, 1, slice.data()); });
  check([&] { normal<double>(stream, 0, 1000, 2, whole.data()); },
        [&](std::int64_t first) { normal<float>(stream, first, 101, 2, slice.data()); });
  check([&] { truncated_normal<double>(stream, 0, 1000, 2, whole.data()); },
        [&](std::int64_t first) { truncated_normal<float>(stream, first, 101, 2, slice.data()); });
}

TEST(InitialWeights, of_a_million_elements_in_float_are_the_rounded_doubles_to_the_last_bit) {
  constexpr std::int64_t kElements = 1'000'003;
  std::vector<float> drawn(kElements);
  Values reference(kElements);
  for (const std::uint64_t seed : {0, 1}) {
    const TensorStream stream{seed, tensor_id("layers.3.moe.expert.0.kernel")};
    const auto expect_equal = [&] {
      std::int64_t different = 0;
      for (std::int64_t i = 0; i < kElements; ++i) different += drawn[i] != static_cast<float>(reference[i]);
      EXPECT_EQ(different, 0);
    };
    normal(stream, 5, kElements, 0.0123, drawn.data());
    normal(stream, 5, kElements, 0.0123, reference.data());
    expect_equal();
    truncated_normal(stream, 5, kElements, 0.0321, drawn.data());
    truncated_normal(stream, 5, kElements, 0.0321, reference.data());
    expect_equal();
  }
}

struct Moments {
  double mean = 0, variance = 0, lowest = 0, highest = 0;
};
Moments moments(const Values& v) {
  Moments m;
  for (const double x : v) m.mean += x / v.size();
  for (const double x : v) m.variance += (x - m.mean) * (x - m.mean) / v.size();
  m.lowest = *std::min_element(v.begin(), v.end());
  m.highest = *std::max_element(v.begin(), v.end());
  return m;
}

TEST(InitialWeights, have_the_moments_of_their_distributions) {
  const std::int64_t n = 200000;
  const TensorStream stream{7, tensor_id("embedding")};
  Values v(n);
  uniform<double>(stream, 0, n, 2, 4, v.data());
  Moments m = moments(v);
  EXPECT_NEAR(m.mean, 3, 4 * std::sqrt(4.0 / 12 / n));
  EXPECT_NEAR(m.variance, 4.0 / 12, 0.005);
  EXPECT_GE(m.lowest, 2);
  EXPECT_LT(m.highest, 4);

  normal<double>(stream, 0, n, 0.5, v.data());
  m = moments(v);
  EXPECT_NEAR(m.mean, 0, 4 * 0.5 / std::sqrt(n));
  EXPECT_NEAR(m.variance, 0.25, 0.005);
  EXPECT_GT(m.highest, 1.9);  // 3.8 sigma: expected 14 times

  truncated_normal<double>(stream, 0, n, 1, v.data());
  m = moments(v);
  EXPECT_NEAR(m.mean, 0, 4 / std::sqrt(n));
  EXPECT_NEAR(std::sqrt(m.variance), kTruncatedNormalDeviation, 0.005);
  EXPECT_GT(m.lowest, -2);
  EXPECT_LT(m.highest, 2);
  EXPECT_GT(m.highest, 1.99);
}

TEST(InitialWeights, of_tensors_and_seeds_are_unrelated) {
  Values a(1000), b(1000), c(1000);
  normal<double>({7, tensor_id("a")}, 0, 1000, 1, a.data());
  normal<double>({7, tensor_id("b")}, 0, 1000, 1, b.data());
  normal<double>({8, tensor_id("a")}, 0, 1000, 1, c.data());
  EXPECT_LT(std::abs(inner(a, b)), 4 * std::sqrt(1000.0));
  EXPECT_LT(std::abs(inner(a, c)), 4 * std::sqrt(1000.0));
}

}  // namespace
}  // namespace meshwright::kernels
