#include "reports/step_totals.h"

#include <gtest/gtest.h>

namespace meshwright {
namespace {

RankReport stage(int pp, std::int64_t flops, std::int64_t peak, std::int64_t sent) {
  RankReport r{.rank = {0, pp, 0}};
  r.executed_flops = {flops};
  r.peak_bytes = {peak};
  r.traffic[{"all-gather", "dp"}] = {sent};
  return r;
}

TEST(StepTotals, OneRankPerStageStandsForAllOfItsStage) {
  const MeshShape mesh{4, 2, 1};
  const StepTotals sum = totals({{0.5}, {stage(0, 100, 7, 10), stage(1, 200, 9, 20)}}, mesh);
  EXPECT_EQ(sum.flops, 4 * (100 + 200));
  EXPECT_EQ(sum.peak_bytes.value, 9);
  EXPECT_EQ(sum.traffic.at({"all-gather", "dp"}).value, 4 * 30);
}

TEST(StepTotals, AReportOfSomeOtherNumberOfRanksIsOurMistake) {
  EXPECT_THROW(totals({{0.5}, {stage(0, 1, 1, 1)}}, {1, 2, 1}), std::logic_error);
}

TEST(StepTotals, ComparisonNamesWhatDiffersAndByHowMuch) {
  StepTotals a = totals({{0.2}, {stage(0, 1000, 64, 10)}}, {1, 1, 1}), b = a;
  b.step_time = {0.3};
  EXPECT_TRUE(counts_equal(a, b));
  b.traffic[{"all-gather", "dp"}] = {12};
  EXPECT_FALSE(counts_equal(a, b));
  EXPECT_EQ(comparison_report(a, b, 80),
            "of a step                       predicted  counted\n"
            "────────────────────────────────────────────────────────────────────\n"
            "FLOPs, all ranks                    1,000    1,000  equal\n"
            "arena bytes of a rank                  64       64  equal\n"
            "bytes sent, all-gather over dp         10       12  +2 counted\n"
            "step time, ms                       200.0    300.0  1.50 x predicted\n");
}

TEST(StepTotals, StepTimesOfManyMinutesAreSaidInMinutes) {
  StepTotals a = totals({{5076.9}, {stage(0, 1, 1, 0)}}, {1, 1, 1}), b = a;
  b.step_time = {5400};
  EXPECT_NE(comparison_report(a, b, 80).find("step time, min              84.6     90.0  1.06 x predicted"),
            std::string::npos)
      << comparison_report(a, b, 80);
}

TEST(StepTotals, AGroupThatSendsNothingIsTheSameAsNone) {
  StepTotals a = totals({{0.2}, {stage(0, 1, 1, 0)}}, {1, 1, 1}), b = a;
  b.traffic.clear();
  EXPECT_TRUE(counts_equal(a, b));
}

}  // namespace
}  // namespace meshwright
