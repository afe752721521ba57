#include "reports/step_totals.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace meshwright {
namespace {

RankReport stage(int pp, std::int64_t flops, std::int64_t peak, std::int64_t sent) {
  RankReport r{.rank = {0, pp, 0}};
  r.executed_flops = {flops};
  r.live.bytes = peak;
  r.arena_bytes = {peak + 1};
  r.traffic[{"all-gather", "dp"}] = {sent};
  r.compute = {0.15};
  r.exposed_comm = {0.01 * (pp + 1)};
  r.bubble = {pp * 0.03};
  return r;
}

TEST(StepTotals, OneRankPerStageStandsForAllOfItsStage) {
  const MeshShape mesh{4, 2, 1};
  const StepTotals sum = totals({{0.5}, {stage(0, 100, 7, 10), stage(1, 200, 9, 20)}}, mesh);
  EXPECT_EQ(sum.flops, 4 * (100 + 200));
  EXPECT_EQ(sum.peak_bytes.value, 9);
  EXPECT_EQ(sum.arena_bytes.value, 10);
  EXPECT_EQ(sum.traffic.at({"all-gather", "dp"}).value, 4 * 30);
  EXPECT_DOUBLE_EQ(sum.compute.value, 0.15);  // means
  EXPECT_DOUBLE_EQ(sum.exposed_comm.value, (0.01 + 0.02) / 2);
  EXPECT_DOUBLE_EQ(sum.bubble.value, (0 + 0.03) / 2);
}

TEST(StepTotals, AReportOfSomeOtherNumberOfRanksIsOurMistake) {
  EXPECT_THROW(totals({{0.5}, {stage(0, 1, 1, 1)}}, {1, 2, 1}), std::logic_error);
}

TEST(StepTotals, ComparisonNamesWhatDiffersAndByHowMuch) {
  StepTotals a = totals({{0.2}, {stage(0, 1000, 64, 10)}}, {1, 1, 1}), b = a;
  b.step_time = {0.3};
  b.compute = {0.24};
  b.bubble = {0.02};
  EXPECT_TRUE(counts_equal(a, b));
  b.traffic[{"all-gather", "dp"}] = {12};
  b.peak_bytes = {60};
  b.outside_bytes = {5000};
  EXPECT_FALSE(counts_equal(a, b));
  EXPECT_EQ(comparison_report(a, b, 80),
            "of a step                       predicted  counted\n"
            "────────────────────────────────────────────────────────────────────\n"
            "FLOPs, all ranks                    1,000    1,000  equal\n"
            "live bytes of a rank                   64       60  -4 counted\n"
            "arena bytes of a rank                  65       65  equal\n"
            "bytes beside the arena                       5,000\n"
            "bytes sent, all-gather over dp         10       12  +2 counted\n"
            "step time, ms                       200.0    300.0  1.50 x predicted\n"
            "of it compute, ms                   150.0    240.0  1.60 x predicted\n"
            "exposed communication, ms            10.0     10.0  1.00 x predicted\n"
            "bubble, ms                            0.0     20.0\n");
}

TEST(StepTotals, StepTimesOfManyMinutesAreSaidInMinutes) {
  StepTotals a = totals({{5076.9}, {stage(0, 1, 1, 0)}}, {1, 1, 1}), b = a;
  b.step_time = {5400};
  EXPECT_THAT(comparison_report(a, b, 80),
              testing::ContainsRegex("step time, min +84\\.6 +90\\.0  1\\.06 x predicted"));
}

TEST(StepTotals, AGroupThatSendsNothingIsTheSameAsNone) {
  StepTotals a = totals({{0.2}, {stage(0, 1, 1, 0)}}, {1, 1, 1}), b = a;
  b.traffic.clear();
  EXPECT_TRUE(counts_equal(a, b));
}

}  // namespace
}  // namespace meshwright
