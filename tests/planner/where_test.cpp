#include "planner/where.h"

#include <gtest/gtest.h>

#include "model/input/diagnostics.h"

namespace meshwright {
namespace {

PlanResult plan(const std::string& text, double step_time_s = 0.5) {
  return {.plan = parse_plan(text), .step_time_s = step_time_s, .peak_memory_bytes = 3 * kGiB};
}

TEST(Where, AllConditionsMustHold) {
  const Where where("tp=2,pp<=4");
  EXPECT_TRUE(where.matches(plan("4x4x2")));
  EXPECT_FALSE(where.matches(plan("4x4x1")));
  EXPECT_FALSE(where.matches(plan("2x8x2")));
  EXPECT_TRUE(Where().matches(plan("2x8x2")));
  EXPECT_TRUE(Where().empty());
}

TEST(Where, EveryOperatorComparesAsItIsWritten) {
  const PlanResult four = plan("1x4x1,microbatches=4");
  for (const auto& [text, expected] : std::vector<std::pair<std::string, bool>>{{"pp=4", true},
                                                                                {"pp=3", false},
                                                                                {"pp!=4", false},
                                                                                {"pp!=3", true},
                                                                                {"pp<4", false},
                                                                                {"pp<5", true},
                                                                                {"pp<=4", true},
                                                                                {"pp<=3", false},
                                                                                {"pp>4", false},
                                                                                {"pp>3", true},
                                                                                {"pp>=4", true},
                                                                                {"pp>=5", false},
                                                                                {" pp >= 4 , dp = 1 ", true}})
    EXPECT_EQ(Where(text).matches(four), expected) << text;
}

TEST(Where, FieldsOfThePlanItsChoicesAndItsFiguresCanBeAskedFor) {
  const PlanResult p = plan("2x2x1,schedule=gpipe,microbatches=4,fsdp=1,recompute=full", 0.25);
  for (const char* text : {"schedule=gpipe", "schedule!=1f1b", "recompute=full", "fsdp=1", "microbatches>=4",
                           "step_time_s<0.3", "peak_memory_bytes=3221225472", "peak_memory_bytes<4e9", "runnable=true"})
    EXPECT_TRUE(Where(text).matches(p)) << text;
  for (const char* text : {"schedule=1f1b", "recompute!=full", "step_time_s>0.3", "runnable=false"})
    EXPECT_FALSE(Where(text).matches(p)) << text;
}

std::string faults(const std::string& text) {
  try {
    const Where where(text);
  } catch (const InputError& error) {
    return error.what();
  }
  return "";
}

TEST(Where, EveryFaultIsSaidWithWhatIsAllowedAndTheNearestWord) {
  const std::string all = faults("tq=2,pp=many,schedule=gpip,recompute<full,dp==2,fsdp=1.5,mapping=x");
  for (const char* part :
       {"tq=2", "did you mean tp?", "--where: pp = many: allowed: a whole number", "one of gpipe, 1f1b",
        "did you mean gpipe?", "recompute = <: allowed: = or !=", "write =", "fsdp = 1.5", "mapping=x"})
    EXPECT_NE(all.find(part), std::string::npos) << "no '" << part << "' in\n" << all;
  EXPECT_EQ(std::ranges::count(all, '\n'), 6) << all;  // seven faults
}

TEST(Where, AFractionIsComparedWithFractionsOnlyAndAPercentageIsExplained) {
  for (const char* field : {"mfu", "hfu", "bubble_fraction"}) {
    const std::string wrong = faults(std::string(field) + ">40");
    EXPECT_NE(wrong.find(std::string(field) + " = 40: allowed: a number of at least 0 and at most 1"),
              std::string::npos)
        << wrong;
    EXPECT_NE(wrong.find("a fraction: 0.4 for 40 %"), std::string::npos) << wrong;
    for (const char* good : {"<=1", ">0.4", ">=0"}) EXPECT_EQ(faults(field + std::string(good)), "");
    for (const char* bad : {"<1.01", ">-0.1", ">4000"})
      EXPECT_NE(faults(field + std::string(bad)).find("a fraction"), std::string::npos) << field << bad;
  }
}

TEST(Where, AHeadingOfTheTableIsToldTheNameOfItsField) {
  for (const auto& [heading, field] : std::vector<std::pair<std::string, std::string>>{{"mb", "microbatches"},
                                                                                       {"ZeRO", "fsdp"},
                                                                                       {"step", "step_time_s"},
                                                                                       {"MFU", "mfu"},
                                                                                       {"mem", "peak_memory_bytes"}})
    EXPECT_NE(faults(heading + "=1").find("did you mean " + field + "?"), std::string::npos) << faults(heading + "=1");
}

TEST(Where, NothingIsSaidOnceAndClearly) {
  EXPECT_EQ(faults(""),
            "--where = \"\": allowed: conditions such as tp=2,pp<=4; hint: leave --where out for all plans");
  EXPECT_EQ(
      faults("tp=2,,"),
      "--where = \"tp=2,,\": allowed: conditions such as tp=2,pp<=4; hint: nothing stands on one side of a comma: "
      "remove it");
}

TEST(Where, PartsThatAreNoConditionsAreRefused) {
  for (const char* text : {"", "tp", "=2", "tp=", "tp=2,", ",tp=2", "tp=nan", "tp=1e999", "tp=2;pp=4", "tp<>2", ","})
    EXPECT_NE(faults(text), "") << text;
}

TEST(Where, MatchingKeepsTheRestOfTheSearch) {
  SearchResult s;
  s.plans = {plan("4x1x1"), plan("2x2x1"), plan("1x2x2")};
  s.too_large = {{parse_plan("1x1x4"), {5}, {1}}};
  s.evaluated = 4;
  s.legal = 9;
  const SearchResult some = matching(s, Where("pp=2"));
  ASSERT_EQ(some.plans.size(), 2u);
  EXPECT_EQ(some.plans[0], s.plans[1]);
  EXPECT_EQ(some.plans[1], s.plans[2]);
  EXPECT_EQ(some.too_large, s.too_large);
  EXPECT_EQ(some.evaluated, 4);
  EXPECT_EQ(some.legal, 9);
}

}  // namespace
}  // namespace meshwright
