#include "reports/run_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "reports/figures.h"
#include "reports/text.h"

namespace meshwright {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

StepLine line(std::int64_t steps) {
  return {.step = steps / 2,
          .steps = steps,
          .loss = 10.84561,
          .cross_entropy = 10.84,
          .balance_loss = 2.0485,
          .gradient_norm = 1.2345e-5,
          .learning_rate = 3e-4,
          .tokens_per_s = 1'299'463,
          .mfu = 0.433,
          .predicted_step_time = {0.2017},
          .step_time = {0.2121},
          .time_left = {3.2},
          .peak_memory = {std::int64_t{9} << 30}};
}

TEST(StepLines, FitAnyWidthFromEightyColumnsOnAndStandBelowTheirHeaders) {
  for (const int columns : {80, 100, 120, 200})
    for (const std::int64_t steps : {3, 300, 26'100, 100'000}) {
      const std::string heading = step_heading(steps, columns), text = step_text(line(steps), columns);
      EXPECT_LE(display_width(heading), columns);
      EXPECT_EQ(heading.size(), text.size()) << heading << '\n' << text;
      for (const char* always : {"step", "loss", "tokens/s", "MFU %", "predicted", "measured", "left"})
        EXPECT_THAT(heading, HasSubstr(always));
    }
}

TEST(StepLines, AValidationStandsInALineBelowAndInJsonBesideTheStep) {
  StepLine evaluated = line(300);
  EXPECT_FALSE(to_json(evaluated).contains("validation_loss"));
  evaluated.validation = {4.25, 4.125, 12.5, {0.75}};
  const std::string text = step_text(evaluated, 80);
  EXPECT_EQ(text, step_text(line(300), 80) + "\n  validation loss 4.2500 (cross-entropy 4.1250, balance 12.5000), " +
                      seconds_text(0.75));
  const OrderedJson json = to_json(evaluated);
  EXPECT_EQ(json.at("validation_loss"), 4.25);
  EXPECT_EQ(json.at("validation_cross_entropy"), 4.125);
  EXPECT_EQ(json.at("validation_balance_loss"), 12.5);
  EXPECT_EQ(json.at("validation_time_s"), 0.75);
}

TEST(StepLines, WiderOnesSayMore) {
  EXPECT_THAT(step_heading(300, 80), HasSubstr("grad norm"));
  EXPECT_THAT(step_heading(300, 80), Not(HasSubstr("balance")));
  for (const char* more : {"grad norm", "lr", "cross-e.", "balance", "memory"})
    EXPECT_THAT(step_heading(300, 160), HasSubstr(more));
}

TEST(StepLines, SayMfuAndTimeLeft) {
  EXPECT_THAT(step_text(line(300), 80), HasSubstr("43.3"));
  EXPECT_THAT(step_text(line(300), 80), HasSubstr("3.2"));
  const OrderedJson json = to_json(line(300));
  EXPECT_EQ(json.at("mfu"), 0.433);
  EXPECT_EQ(json.at("time_left_s"), 3.2);
  StepLine unknown = line(300);
  unknown.mfu = std::nullopt;
  EXPECT_THAT(step_text(unknown, 80), HasSubstr("    -  "));
  EXPECT_TRUE(to_json(unknown).at("mfu").is_null());
}

TEST(Duration, IsSaidWhereAStepTakesAMinuteOrTheRunAnHour) {
  EXPECT_EQ(duration_warning({0.2}, 300, false), "");
  EXPECT_EQ(duration_warning({60}, 60, false), "");
  EXPECT_THAT(duration_warning({5076.9}, 300, false), HasSubstr("a step is predicted to take 8"));  // 85 min
  EXPECT_THAT(duration_warning({0.5}, 7'201, false), HasSubstr("all 7,201 of them"));
  EXPECT_THAT(duration_warning({61}, 1, true), HasSubstr("at least"));
}

TEST(Apart, IsMoreThanAFactorOf1Point3EitherWay) {
  EXPECT_FALSE(far_apart({1}, {1.29}));
  EXPECT_FALSE(far_apart({1.29}, {1}));
  EXPECT_TRUE(far_apart({1}, {1.31}));
  EXPECT_TRUE(far_apart({1.31}, {1}));
}

RunConditions as_calibrated() {
  return {.predicted_for = "a core of A",
          .ran_on = "a core of A",
          .ranks = 2,
          .cores = 2,
          .processor_share = 0.99,
          .calibrated_rate = 110e9,
          .rate_now = 108e9};
}

TEST(Reasons, AreThoseThatWereMeasured) {
  RunConditions c = as_calibrated();
  c.rate_now = 66e9;
  EXPECT_THAT(reasons_apart({1}, {1.6}, c), ElementsAre(HasSubstr("calibrated at 110 GFLOP/s")));
  EXPECT_THAT(reasons_apart({1}, {1.6}, c), ElementsAre(HasSubstr("66 now")));
  c = as_calibrated();
  c.processor_share = 0.6;
  EXPECT_THAT(reasons_apart({1}, {1.6}, c), ElementsAre(HasSubstr("for 60 % of the time")));
  c = as_calibrated();
  c.ranks = 4;
  EXPECT_THAT(reasons_apart({1}, {1.6}, c), ElementsAre("4 ranks share 2 cores"));
  c = as_calibrated();
  c.ran_on = "a core of B";
  EXPECT_THAT(reasons_apart({1}, {1.6}, c), ElementsAre("calibrated on a core of A, run on a core of B"));
}

TEST(Reasons, PointTheWayThatTheStepsWent) {
  RunConditions slow_now = as_calibrated();
  slow_now.rate_now = 66e9;
  slow_now.processor_share = 0.5;
  // Steps were faster than predicted: a machine that is slower now does not explain it.
  EXPECT_THAT(reasons_apart({1.6}, {1}, slow_now), ElementsAre(HasSubstr("the prediction itself is off")));
  RunConditions fast_now = as_calibrated();
  fast_now.rate_now = 170e9;
  EXPECT_THAT(reasons_apart({1.6}, {1}, fast_now), ElementsAre(HasSubstr("170 now")));
  EXPECT_THAT(reasons_apart({1}, {1.6}, fast_now), ElementsAre(HasSubstr("the prediction itself is off")));
}

TEST(Reasons, ASimulatedMachineIsAnotherOne) {
  EXPECT_THAT(reasons_apart({1}, {100}, {.predicted_for = "TPU v4 chip", .ran_on = "a core of A", .ranks = 32}),
              ElementsAre("predicted for TPU v4 chip, measured on a core of A"));
}

}  // namespace
}  // namespace meshwright
