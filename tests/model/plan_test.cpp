#include "model/plan.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "model/input/content_key.h"
#include "model/input/diagnostics.h"

namespace meshwright {
namespace {

TEST(ContentKey, is_the_fnv_1a_hash) {
  EXPECT_EQ(content_key(""), "cbf29ce484222325");  // published test vectors of FNV-1a, 64 bits
  EXPECT_EQ(content_key("a"), "af63dc4c8601ec8c");
  EXPECT_EQ(content_key("foobar"), "85944171f73967e8");
  EXPECT_EQ(content_key("bar", "foo"), content_key("foobar"));
}

TEST(PlanId, is_eight_digits_of_the_hash_of_the_plans_text) {
  const Plan plan = parse_plan("8x2x2,schedule=1f1b,microbatches=8,fsdp=3,recompute=full");
  EXPECT_EQ(plan_id(plan), content_key(to_text(plan)).substr(0, 8));
  EXPECT_EQ(plan_id(plan), plan_id(parse_plan("8x2x2,recompute=full,fsdp=3,microbatches=8")));
  EXPECT_NE(plan_id(plan), plan_id(parse_plan("8x2x2")));
}

TEST(PlanText, names_the_layers_of_stages_only_where_they_are_given) {
  Plan plan = parse_plan("8x4x1,schedule=1f1b,microbatches=8,fsdp=3,recompute=full,layers=13-12-12-11");
  EXPECT_EQ(plan.layers, (std::vector<int>{13, 12, 12, 11}));
  EXPECT_EQ(to_text(plan), "8x4x1,schedule=1f1b,microbatches=8,fsdp=3,recompute=full,layers=13-12-12-11");
  EXPECT_EQ(parse_plan(to_text(plan)), plan);
  const std::string id = plan_id(plan);
  plan.layers = {12, 12, 12, 12};
  EXPECT_NE(plan_id(plan), id);
  plan.layers.clear();
  EXPECT_EQ(to_text(plan), "8x4x1,schedule=1f1b,microbatches=8,fsdp=3,recompute=full");
  EXPECT_EQ(parse_plan(to_text(plan)), plan);
}

std::vector<Diagnostic> what_is_wrong(const std::string& text) {
  try {
    parse_plan(text);
  } catch (const InputError& error) {
    return error.diagnostics();
  }
  return {};
}

TEST(PlanText, refuses_layers_that_are_not_a_number_for_every_stage) {
  for (const char* layers : {"", "-", "13-", "-13", "13--11", "13-0", "13-+1", "13-1x", "13-1.5", "99999999999-1",
                             "0x10-1", "13 -11", "1000001-1", "\xff-1"}) {
    const auto wrong = what_is_wrong(std::string("1x2x1,layers=") + layers);
    ASSERT_FALSE(wrong.empty()) << layers;
    EXPECT_EQ(wrong[0].path, "layers") << layers;
    EXPECT_FALSE(wrong[0].hint.empty()) << layers;
  }
  for (const char* layers : {"48", "16-16-16"}) {
    const auto wrong = what_is_wrong(std::string("1x2x1,layers=") + layers);
    ASSERT_EQ(wrong.size(), 1u) << layers;
    EXPECT_EQ(wrong[0].allowed, "2 numbers, as pp is 2");
  }
}

TEST(PlanText, says_which_word_was_meant) {
  const std::vector<std::pair<std::string, std::string>> slips{
      {"schedul=gpipe", "schedule"},  {"microbatch=8", "microbatches"}, {"fsd=3", "fsdp"},
      {"recomput=full", "recompute"}, {"layer=1-1", "layers"},          {"schedule=gpip", "gpipe"},
      {"schedule=1f1", "1f1b"},       {"recompute=ful", "full"}};
  for (const auto& [slip, meant] : slips) {
    const auto wrong = what_is_wrong("1x2x1," + slip);
    ASSERT_EQ(wrong.size(), 1u) << slip;
    EXPECT_EQ(wrong[0].hint, "did you mean " + meant + "?");
  }
  EXPECT_EQ(what_is_wrong("1x2x1,colour=blue")[0].hint.substr(0, 14), "write it as 8x");
}

TEST(PlanText, says_once_that_a_word_is_repeated_however_often) {
  // One fault each, not one for every pair: 20,000 words were 200 million faults.
  std::string text = "1x1x1";
  for (int i = 0; i < 20'000; ++i) text += ",fsdp=0,what=1";
  const auto wrong = what_is_wrong(text);
  ASSERT_EQ(wrong.size(), 3u);
  EXPECT_EQ(wrong[0].allowed, "schedule, microbatches, fsdp, recompute or layers");
  EXPECT_EQ(wrong[1].path, "fsdp");
  EXPECT_EQ(wrong[1].allowed, "each choice once");
  EXPECT_EQ(wrong[2].path, "what");
}

}  // namespace
}  // namespace meshwright
