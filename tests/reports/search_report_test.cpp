#include "reports/search_report.h"

#include <gtest/gtest.h>

#include "reports/json_report.h"

namespace meshwright {
namespace {

PlanResult result(const std::string& plan, double step_time_s) {
  PlanResult r{.plan = parse_plan(plan),
               .step_time_s = step_time_s,
               .tokens_per_s = 1000 / step_time_s,
               .mfu = 0.4,
               .hfu = 0.5,
               .peak_memory_bytes = 3 * kGiB,
               .exposed_comm_s = 0.001,
               .bubble_fraction = 0.1,
               .model_flops = 1e15,
               .executed_flops = 2e15};
  r.stage_layers = {2};
  return r;
}

SearchResult three_plans() {
  SearchResult s;
  s.plans = {result("4x1x1", 0.1), result("2x2x1,microbatches=4", 0.15), result("1x4x1,schedule=gpipe", 0.2)};
  s.too_large = {{parse_plan("1x1x4"), {5 * kGiB}, {kGiB / 2}}, {parse_plan("1x2x2"), {6 * kGiB}, {3 * kGiB / 2}}};
  s.illegal = {{{1, 1, 4}, std::nullopt, {"tp does not divide the heads", "3 heads, tp 4", ""}}};
  s.evaluated = 5;
  s.elapsed_s = 0.5;
  return s;
}

SearchHeading heading(const std::string& published) { return {"toy", "box:4", 4, {4 * kGiB}, parse_plan(published)}; }

TEST(SearchReport, ReadsLikeThis) {
  EXPECT_EQ(search_report(three_plans(), heading("1x4x1,schedule=gpipe"), 2),
            R"(toy on box:4: 3 of 5 legal plans fit in 4.00 GiB, found in 500 ms

         mesh                           micro-  recom-   step             MFU  peak GiB  exposed  bubble    time
   rank  dp x pp x tp  FSDP  schedule  batches  pute       ms  tokens/s     %  per chip  comm ms       %  / best
─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
      1  4x1x1            0  1f1b            1  none    100.0    10,000  40.0      3.00    1.000    10.0    1.00
      2  2x2x1            0  1f1b            4  none    150.0     6,667  40.0      3.00    1.000    10.0    1.50
─────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────────
▶     3  1x4x1            0  gpipe           1  none    200.0     5,000  40.0      3.00    1.000    10.0    2.00  as published, in our layout

▶ as published, in our layout: rank 3, 2.00 x the best plan's step time.

rejected because              count  of
─────────────────────────────────────────────────────────────────────────
does not fit in memory            2  plans   the nearest by 0.50 GiB
tp does not divide the heads      1  meshes  such as 1x1x4: 3 heads, tp 4
)");
}

TEST(SearchReport, PlansThatDifferOnlyInTheScheduleOfASingleMicrobatchShareARow) {
  SearchResult s = three_plans();
  s.plans = {result("4x1x1", 0.1), result("4x1x1,schedule=gpipe", 0.1), result("2x2x1,microbatches=4", 0.15)};
  const std::string text = search_report(s, heading("4x1x1,schedule=gpipe"), 2);
  EXPECT_NE(text.find("▶     1  4x1x1            0  either"), std::string::npos) << text;
  EXPECT_NE(text.find("      3  2x2x1            0  1f1b"), std::string::npos) << text;
}

TEST(SearchReport, APublishedPlanThatDoesNotFitIsNamedWithHowMuchIsMissing) {
  const std::string text = search_report(three_plans(), heading("1x2x2"));
  EXPECT_NE(text.find("does not fit: 6.00 GiB needed, 1.50 GiB too many"), std::string::npos) << text;
}

TEST(SearchReport, APublishedPlanForOtherDevicesIsNamed) {
  const std::string text = search_report(three_plans(), heading("8x1x1"));
  EXPECT_NE(text.find("is for 8 devices; box:4 has 4"), std::string::npos) << text;
}

TEST(SearchReport, PlansThatCannotRunYetSayWhy) {
  SearchResult s = three_plans();
  s.plans[0].runnable = false;
  s.plans[0].not_runnable = "can't run yet: something";
  const std::string text = search_report(s, heading("4x1x1"));
  EXPECT_NE(text.find("as published, in our layout; not runnable yet"), std::string::npos) << text;
  EXPECT_NE(text.find("Not runnable yet: can't run yet: something"), std::string::npos);
}

TEST(SearchReport, WithoutAnyPlanThatFitsItSaysSo) {
  SearchResult s = three_plans();
  s.plans.clear();
  EXPECT_NE(search_report(s, heading("1x2x2")).find("No plan fits."), std::string::npos);
}

TEST(SearchJson, HasTheDocumentedNames) {
  const OrderedJson out = to_json(three_plans(), heading("2x2x1,microbatches=4"));
  EXPECT_EQ(out.at("evaluated"), 5);
  EXPECT_EQ(out.at("elapsed_s"), 0.5);
  EXPECT_EQ(out.at("rejected").at("does not fit in memory"), 2);
  EXPECT_EQ(out.at("rejected").at("tp does not divide the heads"), 1);
  EXPECT_EQ(out.at("smallest_excess_bytes"), kGiB / 2);
  EXPECT_EQ(out.at("published").at("rank"), 2);
  EXPECT_EQ(out.at("plans").size(), 3u);
}

TEST(PlanJson, HasTheDocumentedNamesAndWordsForChoices) {
  const OrderedJson out = to_json(result("2x2x1,microbatches=4,schedule=gpipe,fsdp=1,recompute=full", 0.15));
  EXPECT_EQ(out.at("dp"), 2);
  EXPECT_EQ(out.at("schedule"), "gpipe");
  EXPECT_EQ(out.at("recompute"), "full");
  EXPECT_EQ(out.at("runnable"), true);
  EXPECT_EQ(out.at("plan"), "2x2x1,schedule=gpipe,microbatches=4,fsdp=1,recompute=full");
  for (const char* name : {"pp", "tp", "fsdp", "microbatches", "step_time_s", "tokens_per_s", "mfu", "hfu",
                           "peak_memory_bytes", "exposed_comm_s", "bubble_fraction", "model_flops", "executed_flops"})
    EXPECT_TRUE(out.at(name).is_number()) << name;
}

}  // namespace
}  // namespace meshwright
