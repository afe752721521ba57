#include "model/program/rope.h"

#include <gtest/gtest.h>

#include <cmath>

namespace meshwright {
namespace {

TEST(RopeFrequencies, AreThePowersOfTheta) {
  const auto omega = rope_frequencies({.theta = 10000}, 8);
  ASSERT_EQ(omega.size(), 4u);
  for (int j = 0; j < 4; ++j) EXPECT_DOUBLE_EQ(omega[static_cast<std::size_t>(j)], std::pow(10.0, -j));
}

TEST(RopeFrequencies, OfLlama3LeaveFastPairsAndSlowDownSlowOnes) {
  // Llama 3.1: 8 times longer than 8192, between 1 and 4 turns.
  const RopeSpec plain{.theta = 500000};
  RopeSpec scaled = plain;
  scaled.scaling = RopeScaling::kLlama3;
  scaled.factor = 8, scaled.original_positions = 8192;
  const auto omega = rope_frequencies(plain, 128), slower = rope_frequencies(scaled, 128);
  int fast = 0, slow = 0, between = 0;
  for (std::size_t j = 0; j < omega.size(); ++j) {
    const double turns = 8192 * omega[j] / (2 * M_PI), ratio = slower[j] / omega[j];
    if (turns >= 4) {
      EXPECT_DOUBLE_EQ(ratio, 1) << j;
      ++fast;
    } else if (turns <= 1) {
      EXPECT_DOUBLE_EQ(ratio, 1.0 / 8) << j;
      ++slow;
    } else {
      const double smooth = (turns - 1) / 3;
      EXPECT_NEAR(ratio, smooth + (1 - smooth) / 8, 1e-15) << j;
      ++between;
    }
  }
  EXPECT_GT(fast, 20);
  EXPECT_GT(slow, 20);
  EXPECT_GT(between, 3);
}

TEST(RopeFrequencies, OfYarnAreARampOverThePairsBetweenBetaFastAndBetaSlow) {
  // DeepSeek-V2: width 64, 40 times longer than 4096. D(32) = 64 ln(4096 / 64 pi) / (2 ln 10000) = 10.47.., D(1) = 22.51..:
  // the ramp is from 10 to 23.
  RopeSpec spec{.theta = 10000, .scaling = RopeScaling::kYarn, .factor = 40, .original_positions = 4096};
  const auto ratio = [&](int j) {
    return rope_frequencies(spec, 64)[static_cast<std::size_t>(j)] / std::pow(10000.0, -2.0 * j / 64);
  };
  for (const int j : {0, 5, 10}) EXPECT_DOUBLE_EQ(ratio(j), 1) << j;
  for (const int j : {23, 30}) EXPECT_DOUBLE_EQ(ratio(j), 1.0 / 40) << j;
  for (int j = 10; j <= 23; ++j) {
    const double ramp = (j - 10) / 13.0;
    EXPECT_NEAR(ratio(j), (1 - ramp) + ramp / 40, 1e-14) << j;
  }
  spec.truncate = false;
  const auto pair_of = [](double turns) { return 64 * std::log(4096 / (turns * 2 * M_PI)) / (2 * std::log(10000.0)); };
  const double ramp = (15 - pair_of(32)) / (pair_of(1) - pair_of(32));
  EXPECT_NEAR(ratio(15), (1 - ramp) + ramp / 40, 1e-14);
}

TEST(RopeFrequencies, OfYarnWhoseRampHasNoLengthAreOneOrTheOther) {
  // Three positions: both ends of the ramp are at 0.
  const RopeSpec spec{.scaling = RopeScaling::kYarn, .factor = 4, .original_positions = 3};
  const auto omega = rope_frequencies(spec, 4);
  EXPECT_DOUBLE_EQ(omega[0], 1);
  EXPECT_DOUBLE_EQ(omega[1], 0.01 / 4);
}

}  // namespace
}  // namespace meshwright
