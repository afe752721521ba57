#include "model/plan.h"

#include <gtest/gtest.h>

#include "model/input/content_key.h"

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

}  // namespace
}  // namespace meshwright
