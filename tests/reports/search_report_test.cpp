#include "reports/search_report.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <sstream>

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
  s.evaluated = s.legal = 5;
  s.elapsed_s = 0.5;
  return s;
}

SearchHeading heading(const std::string& published) {
  return {"toy", "box:4", 4, {4 * kGiB}, parse_plan(published), 8, 128};
}

std::string report(const SearchResult& s, const std::string& published, const SearchView& view = {}, int columns = 80) {
  return search_report(s, heading(published), view, columns);
}

// Lines of the table, without headers: from the first rule to the empty line.
std::vector<std::string> rows(const std::string& text) {
  std::vector<std::string> found;
  std::istringstream lines(text);
  bool inside = false;
  for (std::string line; std::getline(lines, line);) {
    if (line.find("───") != std::string::npos)
      inside = true;
    else if (line.empty() && inside)
      break;
    else if (inside)
      found.push_back(line);
  }
  return found;
}

// Of each row, the first plan of the search whose id is in it.
std::vector<std::string> plans_in_table(const std::string& text, const SearchResult& s) {
  std::vector<std::string> plans;
  for (const std::string& row : rows(text))
    for (const PlanResult& p : s.plans)
      if (row.find(plan_id(p.plan)) != std::string::npos) plans.push_back(to_text(p.plan));
  return plans;
}
std::vector<std::string> texts(const std::vector<std::string>& plans) {
  std::vector<std::string> out;
  for (const std::string& plan : plans) out.push_back(to_text(parse_plan(plan)));
  return out;
}

TEST(SearchReport, ReadsLikeThis) {
  EXPECT_EQ(report(three_plans(), "1x4x1,schedule=gpipe", {.top = 2}),
            R"(toy on box:4, 4 devices: batch 8 x 128 = 1,024 tokens
3 of 5 legal plans fit in 4.00 GiB, found in 500 ms
The best plan of each mesh, 2 of 3 (--top); --all for every plan:

                                             step   MFU   mem  comm  bubl
  id        mesh   ZeRO  mb  sched  recomp     ms     %   GiB     %     %
─────────────────────────────────────────────────────────────────────────
  6bb8d476  4x1x1     0   1  1f1b   none    100.0  40.0  3.00   1.0  10.0
  09950c36  2x2x1     0   4  1f1b   none    150.0  40.0  3.00   0.7  10.0
─────────────────────────────────────────────────────────────────────────
▶ 6355f3e3  1x4x1     0   1  gpipe  none    200.0  40.0  3.00   0.5  10.0

▶ as published, in our layout: 200 ms a step, 2.00 x the fastest plan's. It is
  the best of its mesh.

rejected because              count  of
─────────────────────────────────────────────────────────────────────────
does not fit in memory            2  plans   the nearest by 0.50 GiB
tp does not divide the heads      1  meshes  such as 1x1x4: 3 heads, tp 4
)");
}

TEST(SearchReport, ShowsMoreWhereThereIsRoom) {
  const std::string narrow = report(three_plans(), "1x4x1"), wide = report(three_plans(), "1x4x1", {}, 200);
  for (const char* only_wide : {"tokens/s", "dp x pp x tp"})
    EXPECT_EQ(narrow.find(only_wide), std::string::npos) << narrow;
  for (const char* only_wide : {"tokens/s", "dp x pp x tp"}) EXPECT_NE(wide.find(only_wide), std::string::npos) << wide;
}

TEST(SearchReport, ShowsTheBestPlanOfEachMeshAndAllOfThemOnlyWhenAsked) {
  SearchResult s = three_plans();
  s.plans = {result("4x1x1", 0.1), result("4x1x1,fsdp=1", 0.11), result("2x2x1,microbatches=4", 0.15),
             result("2x2x1,microbatches=2", 0.16), result("1x4x1,schedule=gpipe", 0.2)};
  const auto shown = [&](const SearchView& view) { return plans_in_table(report(s, "1x1x4", view), s); };
  EXPECT_EQ(shown({}), texts({"4x1x1", "2x2x1,microbatches=4", "1x4x1,schedule=gpipe"}));
  EXPECT_EQ(shown({.top = 2}), texts({"4x1x1", "2x2x1,microbatches=4"}));
  EXPECT_EQ(shown({.all = true}),
            texts({"4x1x1", "4x1x1,fsdp=1", "2x2x1,microbatches=4", "2x2x1,microbatches=2", "1x4x1,schedule=gpipe"}));
  EXPECT_EQ(shown({.all = true, .top = 2}), texts({"4x1x1", "4x1x1,fsdp=1"}));
  EXPECT_EQ(shown({.where = Where("pp=2")}), texts({"2x2x1,microbatches=4"}));
  EXPECT_EQ(shown({.all = true, .where = Where("pp=2,microbatches<4")}), texts({"2x2x1,microbatches=2"}));
  EXPECT_NE(report(s, "1x1x4", {.where = Where("pp=3")}).find("No plan that fits matches pp=3."), std::string::npos);
}

TEST(SearchReport, SaysTheGlobalBatchAndItsTokensFirst) {
  EXPECT_TRUE(report(three_plans(), "1x2x2").starts_with("toy on box:4, 4 devices: batch 8 x 128 = 1,024 tokens\n"));
}

TEST(SearchReport, PlansThatDifferOnlyInTheScheduleOfASingleMicrobatchShareARow) {
  SearchResult s = three_plans();
  // Another plan takes exactly as long and stands between the two.
  s.plans = {result("4x1x1", 0.1), result("4x1x1,fsdp=1", 0.1), result("4x1x1,schedule=gpipe", 0.1),
             result("2x2x1,microbatches=4", 0.15)};
  s.plans[1].peak_memory_bytes = kGiB;
  const std::string text = report(s, "4x1x1,schedule=gpipe", {.all = true}, 100);
  const auto table = rows(text);
  ASSERT_EQ(table.size(), 3u) << text;
  EXPECT_TRUE(table[0].starts_with("▶ " + plan_id(parse_plan("4x1x1")))) << text;
  EXPECT_NE(table[0].find("either"), std::string::npos);
  EXPECT_EQ(table[1].find("either"), std::string::npos);
  EXPECT_NE(text.find("1.00 x the fastest plan's. It is the best of its mesh."), std::string::npos) << text;
}

TEST(SearchReport, ThePublishedPlanIsComparedWithTheFastestAndWithTheBestOfItsMesh) {
  SearchResult s = three_plans();
  s.plans = {result("4x1x1", 0.1), result("2x2x1,microbatches=4", 0.15), result("2x2x1,schedule=gpipe", 0.3)};
  const std::string text = report(s, "2x2x1,schedule=gpipe", {.top = 1}, 200);
  EXPECT_NE(text.find("▶ as published, in our layout: 300 ms a step, 3.00 x the fastest plan's. Its mesh 2x2x1 can do "
                      "150 ms (0.50 x): " +
                      plan_id(parse_plan("2x2x1,microbatches=4")) + ", 2x2x1,"),
            std::string::npos)
      << text;
  EXPECT_EQ(plans_in_table(text, s), texts({"4x1x1", "2x2x1,schedule=gpipe"}));
}

TEST(SearchReport, APlanThatAllButFillsTheMemoryIsMarkedAndGivesWayToARoomierOneThatIsHardlySlower) {
  SearchResult s = three_plans();
  s.plans = {result("4x1x1", 0.1), result("2x2x1,microbatches=4", 0.1004), result("1x4x1", 0.2)};
  s.plans[0].peak_memory_bytes = 4 * kGiB * 99 / 100;
  const std::string text = report(s, "1x1x4");
  EXPECT_EQ(plans_in_table(text, s), texts({"2x2x1,microbatches=4", "4x1x1", "1x4x1"}));
  const auto table = rows(text);
  EXPECT_EQ(table[0].find('!'), std::string::npos) << text;
  EXPECT_NE(table[1].find("3.96!"), std::string::npos) << text;
  EXPECT_NE(text.find("! takes more than 92 % of the usable memory"), std::string::npos);
  EXPECT_NE(text.find(fmt::format("{} is listed first: {} takes 0.4 % less time, but 99.0 %", plan_id(s.plans[1].plan),
                                  plan_id(s.plans[0].plan))),
            std::string::npos)
      << text;
  const std::string full = report(s, "1x1x4", {.headroom = 1});
  EXPECT_EQ(plans_in_table(full, s), texts({"4x1x1", "2x2x1,microbatches=4", "1x4x1"}));
  EXPECT_EQ(full.find('!'), std::string::npos) << full;
}

TEST(SearchReport, StepTimesOfManyMinutesAreSaidInMinutes) {
  SearchResult s = three_plans();
  for (PlanResult& p : s.plans) p.step_time_s *= 20'000;  // 2,000 s, 3,000 s and 4,000 s
  const std::string text = report(s, "1x4x1,schedule=gpipe");
  EXPECT_EQ(text.find(" ms"), text.find(" ms\n")) << text;  // only in how long the search took
  EXPECT_NE(text.find("33.3"), std::string::npos) << text;
  EXPECT_NE(text.find("▶ as published, in our layout: 67 min a step, 2.00 x"), std::string::npos) << text;
}

TEST(SearchReport, APublishedPlanThatDoesNotFitIsNamedWithHowMuchIsMissing) {
  const std::string text = report(three_plans(), "1x2x2", {}, 200);
  EXPECT_NE(text.find("does not fit: 6.00 GiB needed, 1.50 GiB too many"), std::string::npos) << text;
}

TEST(SearchReport, APublishedPlanForOtherDevicesIsNamed) {
  const std::string text = report(three_plans(), "8x1x1", {}, 200);
  EXPECT_NE(text.find("is for 8 devices; box:4 has 4"), std::string::npos) << text;
}

TEST(SearchReport, PlansThatCannotRunYetSayWhy) {
  SearchResult s = three_plans();
  s.plans[0].runnable = false;
  s.plans[0].not_runnable = "can't run yet: something";
  const std::string text = report(s, "4x1x1");
  EXPECT_TRUE(rows(text)[0].starts_with("▶×" + plan_id(s.plans[0].plan))) << text;
  EXPECT_NE(text.find("× not runnable yet: can't run yet: something"), std::string::npos);
}

TEST(SearchReport, WithoutAnyPlanThatFitsItSaysSo) {
  SearchResult s = three_plans();
  s.plans.clear();
  EXPECT_NE(report(s, "1x2x2").find("No plan fits."), std::string::npos);
}

SearchResult interrupted() {
  SearchResult s = three_plans();
  s.legal = 1'340;
  s.complete = false;
  return s;
}

TEST(SearchReport, AnInterruptedSearchSaysWhatWasLookedAtAndClaimsNothingOfTheRest) {
  const std::string text = report(interrupted(), "2x2x1,microbatches=2", {}, 200);
  EXPECT_NE(text.find("\n5 looked at of 1,340 legal plans (interrupted): 3 fit in 4.00 GiB, found in 500 ms\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("The plan as published, in our layout (2x2x1,schedule=1f1b,microbatches=2,fsdp=0,recompute=none) "
                      "was not looked at. Its mesh 2x2x1 can do 150 ms: "),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("The best plan looked at of each mesh;"), std::string::npos) << text;
  EXPECT_EQ(text.find("not legal"), std::string::npos) << text;
  EXPECT_NE(report(interrupted(), "2x2x1,microbatches=2", {.all = true}).find("Plans looked at:"), std::string::npos);

  const std::string ranked = report(interrupted(), "2x2x1,microbatches=4", {}, 200);
  EXPECT_NE(ranked.find("1.50 x the fastest looked at. It is the best looked at of its mesh."), std::string::npos)
      << ranked;
  SearchResult none = interrupted();
  none.plans.clear();
  EXPECT_NE(report(none, "2x2x1").find("No plan looked at fits."), std::string::npos);
  EXPECT_NE(report(interrupted(), "2x2x1", {.where = Where("pp=3")}).find("No plan looked at that fits matches pp=3."),
            std::string::npos);
}

TEST(SearchReport, AnInterruptedSearchStillSaysWhatIsKnownToBeIllegalOrForOtherDevices) {
  const std::string illegal = report(interrupted(), "1x1x4,microbatches=2", {}, 200);
  EXPECT_NE(illegal.find("is not legal in our layout."), std::string::npos) << illegal;
  SearchResult stage = interrupted();
  stage.illegal = {{{1, 4, 1}, 3, {"FSDP without data parallelism", "fsdp 3, dp 1", ""}}};
  EXPECT_NE(report(stage, "1x4x1,fsdp=3", {}, 200).find("is not legal"), std::string::npos);
  EXPECT_NE(report(stage, "1x4x1,fsdp=2", {}, 200).find("was not looked at"), std::string::npos);
  EXPECT_NE(report(interrupted(), "8x1x1", {}, 200).find("is for 8 devices"), std::string::npos);
  const std::string whole = report(three_plans(), "2x2x1,microbatches=2", {}, 200);
  EXPECT_NE(whole.find("is not legal in our layout."), std::string::npos) << whole;
}

TEST(SearchJson, OfAnInterruptedSearchTellsAPlanThatWasNotLookedAtFromOneThatIsNotInTheSpace) {
  const OrderedJson out = to_json(interrupted(), heading("2x2x1,microbatches=2"), {});
  EXPECT_EQ(out.at("complete"), false);
  EXPECT_EQ(out.at("evaluated"), 5);
  EXPECT_EQ(out.at("legal"), 1340);
  EXPECT_EQ(out.at("published").at("looked_at"), false);
  EXPECT_EQ(out.at("published").at("plan"), to_text(parse_plan("2x2x1,microbatches=2")));
  EXPECT_TRUE(out.at("published").at("rank").is_null());
  EXPECT_TRUE(out.at("published").at("ratio_to_best").is_null());
  EXPECT_EQ(out.at("published").at("best_of_mesh").at("id"), plan_id(parse_plan("2x2x1,microbatches=4")));
  EXPECT_TRUE(to_json(interrupted(), heading("1x1x4,microbatches=2"), {}).at("published").is_null());
  EXPECT_TRUE(to_json(interrupted(), heading("8x1x1"), {}).at("published").is_null());
  EXPECT_TRUE(to_json(three_plans(), heading("2x2x1,microbatches=2"), {}).at("published").is_null());
}

TEST(SearchJson, HasTheDocumentedNames) {
  const OrderedJson out = to_json(three_plans(), heading("2x2x1,microbatches=4"), {});
  EXPECT_EQ(out.at("evaluated"), 5);
  EXPECT_EQ(out.at("legal"), 5);
  EXPECT_EQ(out.at("published").at("looked_at"), true);
  EXPECT_EQ(out.at("elapsed_s"), 0.5);
  EXPECT_EQ(out.at("rejected").at("does not fit in memory"), 2);
  EXPECT_EQ(out.at("rejected").at("tp does not divide the heads"), 1);
  EXPECT_EQ(out.at("smallest_excess_bytes"), kGiB / 2);
  EXPECT_EQ(out.at("published").at("rank"), 2);
  EXPECT_EQ(out.at("published").at("id"), plan_id(parse_plan("2x2x1,microbatches=4")));
  EXPECT_EQ(out.at("published").at("best_of_mesh").at("id"), out.at("published").at("id"));
  EXPECT_EQ(out.at("plans").size(), 3u);
  EXPECT_EQ(out.at("sequences_per_step"), 8);
  EXPECT_EQ(out.at("tokens_per_step"), 8 * 128);
  EXPECT_EQ(out.at("headroom"), 0.92);
  EXPECT_TRUE(out.at("where").is_null());
}

TEST(SearchJson, PlansAreAllThatFitByStepTimeUnlessConditionsAreGiven) {
  SearchResult s = three_plans();
  s.plans = {result("4x1x1", 0.1), result("4x1x1,fsdp=1", 0.1001), result("2x2x1,microbatches=4", 0.15)};
  s.plans[0].peak_memory_bytes = 4 * kGiB;
  const auto ids = [](const OrderedJson& out) {
    std::vector<std::string> plans;
    for (const auto& plan : out.at("plans")) plans.push_back(plan.at("plan"));
    return plans;
  };
  const OrderedJson all = to_json(s, heading("1x1x4"), {.top = 1}),
                    some = to_json(s, heading("1x1x4"), {.where = Where("pp=2")});
  EXPECT_EQ(ids(all), texts({"4x1x1", "4x1x1,fsdp=1", "2x2x1,microbatches=4"}));
  EXPECT_EQ(all.at("preferred").at("plan"), to_text(parse_plan("4x1x1,fsdp=1")));  // the roomier one
  EXPECT_EQ(ids(some), texts({"2x2x1,microbatches=4"}));
  EXPECT_EQ(some.at("where"), "pp=2");
  EXPECT_EQ(some.at("preferred").at("id"), plan_id(parse_plan("2x2x1,microbatches=4")));
  EXPECT_TRUE(to_json(s, heading("1x1x4"), {.where = Where("pp=3")}).at("preferred").is_null());
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
