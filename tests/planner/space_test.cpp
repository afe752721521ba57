#include "planner/space.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "tests/planner/problems.h"

namespace meshwright {
namespace {

std::map<std::string, int> by_reason(const PlanSpace& space) {
  std::map<std::string, int> counts;
  for (const IllegalPart& part : space.illegal()) ++counts[part.why.reason];
  return counts;
}

TEST(PlanSpace, PublishedConfigurationOn32DevicesHas2010LegalPlans) {
  // 2^5 devices, 12 heads: tp 1, 2, 4. On a mesh of dp = 2^a: 256 / 2^a = 2^(8-a) sequences a shard, 9-a
  // divisors; 4 FSDP stages, 1 where a = 0; 2 schedules x 3 recomputations.
  //   tp 1, a = 0..5:  9 + 4 (8+7+6+5+4) = 129
  //   tp 2, a = 0..4:  9 + 4 (8+7+6+5)   = 113
  //   tp 4, a = 0..3:  9 + 4 (8+7+6)     =  93
  // (129 + 113 + 93) * 6 = 2010
  EXPECT_EQ(PlanSpace(published_problem(32)).size(), 2010);
  EXPECT_EQ(all_plans(published_problem(32)).size(), 2010u);
}

// Of all its plans and of what is illegal in it.
std::set<std::string> meshes(PlanSpace space) {
  std::set<std::string> all;
  while (const auto plan = space.next()) all.insert(to_string(plan->mesh));
  for (const IllegalPart& part : space.illegal()) all.insert(to_string(part.mesh));
  return all;
}

TEST(PlanSpace, MeshesAreAllFactorizationsAndIllegalOnesCountOnce) {
  const PlanSpace space(published_problem(32));
  EXPECT_EQ(meshes(space).size(), 21u);  // 5 twos over 3 axes: 7 over 2
  // tp 8: dp*pp = 4, 3 ways; tp 16: 2; tp 32: 1. FSDP 1, 2, 3 on each of the meshes 1x32x1, 1x16x2, 1x8x4.
  EXPECT_EQ(by_reason(space),
            (std::map<std::string, int>{{"tp does not divide the heads", 6}, {"FSDP without data parallelism", 9}}));
}

TEST(PlanSpace, EveryPlanIsLegalOnceAndOnAllDevices) {
  for (const int devices : {1, 2, 6, 8, 12}) {
    const Problem problem = small_problem(devices);
    std::set<std::string> texts;
    for (const Plan& plan : all_plans(problem)) {
      EXPECT_TRUE(texts.insert(to_text(plan)).second) << to_text(plan);
      EXPECT_EQ(plan.mesh.ranks(), devices);
      EXPECT_TRUE(illegalities(problem.model, problem.shape, plan).empty()) << to_text(plan);
    }
  }
}

TEST(PlanSpace, NoLegalPlanIsLeftOut) {
  // Brute force over everything that could be written down for up to 12 devices and 16 sequences.
  for (const int devices : {1, 4, 6, 8, 12}) {
    const Problem problem = small_problem(devices);
    std::set<std::string> legal;
    for (int dp = 1; dp <= devices; ++dp)
      for (int pp = 1; pp <= devices; ++pp)
        for (int tp = 1; tp <= devices; ++tp)
          for (int fsdp = 0; fsdp <= 3; ++fsdp)
            for (int m = 1; m <= 16; ++m)
              for (const Schedule schedule : {Schedule::kGPipe, Schedule::k1F1B})
                for (const Recompute recompute : {Recompute::kNone, Recompute::kSelective, Recompute::kFull}) {
                  const Plan plan{{dp, pp, tp}, fsdp, m, schedule, recompute};
                  if (plan.mesh.ranks() == devices && illegalities(problem.model, problem.shape, plan).empty())
                    legal.insert(to_text(plan));
                }
    std::set<std::string> listed;
    for (const Plan& plan : all_plans(problem)) listed.insert(to_text(plan));
    EXPECT_EQ(listed, legal);
  }
}

TEST(PlanSpace, OfABalanceLossOverTheStepsTokensHoldsWhatSuitsItAndCountsTheRestOnceAMesh) {
  Problem problem = small_problem(4);
  ASSERT_TRUE(
      std::ranges::any_of(problem.model.layers, [](const Layer& l) { return std::holds_alternative<Experts>(l.ffn); }));
  const auto legal = [&](Balance balance) {
    problem.model.balance = balance;
    std::set<std::string> texts;
    for (const Plan& plan : all_plans(problem)) {
      EXPECT_TRUE(illegalities(problem.model, problem.shape, plan).empty()) << to_text(plan);
      texts.insert(to_text(plan));
    }
    EXPECT_EQ(static_cast<std::int64_t>(texts.size()), PlanSpace(problem).size());
    return texts;
  };
  const auto some = [&](auto&& keep) {
    problem.model.balance = Balance::kSequence;
    std::set<std::string> texts;
    for (const Plan& plan : all_plans(problem))
      if (keep(plan)) texts.insert(to_text(plan));
    return texts;
  };
  EXPECT_EQ(legal(Balance::kLayer),
            some([](const Plan& p) { return p.schedule == Schedule::kGPipe || p.microbatches == 1; }));
  EXPECT_EQ(legal(Balance::kPooled), some([](const Plan& p) { return p.microbatches == 1; }));
  problem.model.balance = Balance::kLayer;  // 6 meshes
  EXPECT_EQ(by_reason(PlanSpace(problem)).at("a balance loss over a layer's tokens needs GPipe or one microbatch"), 6);
  problem.model.balance = Balance::kPooled;
  EXPECT_EQ(by_reason(PlanSpace(problem)).at("a balance loss over all layers' tokens needs one microbatch"), 6);
  const auto why = illegalities(problem.model, problem.shape, parse_plan("2x2x1,schedule=gpipe,microbatches=4"));
  ASSERT_EQ(why.size(), 1u);
  EXPECT_EQ(why[0].detail, "training.balance pooled, 4 microbatches");
  EXPECT_EQ(why[0].hint, "microbatches=1, or training.balance=sequence");
}

TEST(PlanSpace, TheOrderIsMeshThenFsdpThenMicrobatchesThenScheduleThenRecomputation) {
  const std::vector<Plan> plans = all_plans(small_problem(2));
  EXPECT_EQ(to_text(plans[0]), "2x1x1,schedule=gpipe,microbatches=1,fsdp=0,recompute=none");
  EXPECT_EQ(to_text(plans[1]), "2x1x1,schedule=gpipe,microbatches=1,fsdp=0,recompute=selective");
  EXPECT_EQ(to_text(plans[2]), "2x1x1,schedule=gpipe,microbatches=1,fsdp=0,recompute=full");
  EXPECT_EQ(to_text(plans[3]), "2x1x1,schedule=1f1b,microbatches=1,fsdp=0,recompute=none");
  EXPECT_EQ(to_text(plans[6]), "2x1x1,schedule=gpipe,microbatches=2,fsdp=0,recompute=none");
  EXPECT_EQ(to_text(plans[24]),
            "2x1x1,schedule=gpipe,microbatches=1,fsdp=1,recompute=none");  // 4 divisors of 8 before it
  EXPECT_EQ(to_text(plans[96]), "1x2x1,schedule=gpipe,microbatches=1,fsdp=0,recompute=none");
  EXPECT_EQ(to_text(plans.back()), "1x1x2,schedule=1f1b,microbatches=16,fsdp=0,recompute=full");
}

TEST(PlanSpace, ReasonsCarryTheirNumbers) {
  // 4 layers, 4 heads, 16 sequences, 24 devices: dp 3, 6, 12, 24 don't divide; pp 6, 8, 12, 24 are too many
  // stages; ...
  const PlanSpace space(small_problem(24));
  const auto find = [&](const MeshShape& mesh, const std::string& reason) {
    const auto found = std::ranges::find_if(
        space.illegal(), [&](const IllegalPart& part) { return part.mesh == mesh && part.why.reason == reason; });
    return found == space.illegal().end() ? std::string("none") : found->why.detail;
  };
  EXPECT_EQ(find({24, 1, 1}, "dp does not divide the global batch"), "16 sequences, dp 24");
  EXPECT_EQ(find({1, 24, 1}, "more stages than layers"), "4 layers, pp 24");
  EXPECT_EQ(find({1, 3, 8}, "tp does not divide the heads"), "4 heads, tp 8");
  EXPECT_EQ(find({3, 8, 1}, "dp does not divide the global batch"), "16 sequences, dp 3");  // both reasons are given
  EXPECT_EQ(find({3, 8, 1}, "more stages than layers"), "4 layers, pp 8");
  EXPECT_EQ(find({8, 3, 1}, "more stages than layers"), "none");
}

TEST(PlanSpace, MicrobatchesAreThoseThatAScheduleIsWrittenForAndMoreAreCountedOnceAMesh) {
  // pp x microbatches up to 2^18, of 2^20 sequences: 1x1x4, 1x2x2, 1x4x1, 2x1x2 and 2x2x1 (2^19 a shard) and 4x1x1 with
  // 2^18 a shard, which alone has none too many.
  Problem problem = small_problem(4);
  problem.shape.sequences = 1 << 20;
  const PlanSpace space(problem);
  EXPECT_EQ(by_reason(space).at("more microbatches than a schedule is written for"), 5);
  std::map<std::string, int> most;
  for (const Plan& plan : all_plans(problem)) {
    EXPECT_TRUE(illegalities(problem.model, problem.shape, plan).empty()) << to_text(plan);
    EXPECT_EQ(parse_plan(to_text(plan)), plan);  // and so --plan and the database take it
    most[to_string(plan.mesh)] = std::max(most[to_string(plan.mesh)], plan.microbatches);
  }
  EXPECT_EQ(most, (std::map<std::string, int>{{"4x1x1", 1 << 18},
                                              {"2x2x1", 1 << 17},
                                              {"2x1x2", 1 << 18},
                                              {"1x4x1", 1 << 16},
                                              {"1x2x2", 1 << 17},
                                              {"1x1x4", 1 << 18}}));
  const auto on_four_stages =
      std::ranges::find(space.illegal(), MeshShape{1, 4, 1}, [](const IllegalPart& part) { return part.mesh; });
  ASSERT_NE(on_four_stages, space.illegal().end());
  EXPECT_EQ(on_four_stages->why.detail, "1048576 microbatches on 4 stages");
  EXPECT_EQ(on_four_stages->why.hint, "at most 65536");

  problem.shape.sequences = std::int64_t{1} << 40;  // more than an int
  for (const Plan& plan : all_plans(problem)) EXPECT_GE(plan.microbatches, 1);
}

TEST(PlanSpace, AModelThatNoMeshFitsHasAnEmptySpace) {
  // 7 devices: neither 16 sequences nor 4 heads nor 4 layers can be cut by 7.
  PlanSpace space(small_problem(7));
  EXPECT_EQ(space.size(), 0);
  EXPECT_FALSE(space.next());
  EXPECT_EQ(meshes(space).size(), 3u);
}

}  // namespace
}  // namespace meshwright
