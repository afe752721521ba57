#include "planner/system_evaluator.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <tuple>

#include "model/input/diagnostics.h"
#include "planner/search.h"
#include "sim/simulate.h"
#include "sim/system_cost_model.h"
#include "tests/planner/problems.h"
#include "tests/systems.h"

namespace meshwright {
namespace {

PlanResult on(const System& system, const Problem& problem, const std::string& plan) {
  const ProgramSet programs = lower(problem.model, problem.shape, parse_plan(plan));
  return evaluate_plan(problem, parse_plan(plan), programs, machine(system, problem.shape.compute));
}

TEST(Machine, ThePublishedPlanOn32ChipsHasFiguresThatAgreeWithEachOther) {
  const System system = load_system("v4:2x4x4");
  const PlanResult r = on(system, published_problem(32), to_text(published_plan(published_config())));
  EXPECT_GT(r.step_time_s, 0);
  EXPECT_DOUBLE_EQ(r.tokens_per_s, 262'144 / r.step_time_s);
  EXPECT_DOUBLE_EQ(r.mfu * r.step_time_s * 32 * 2.75e14, r.model_flops);
  EXPECT_DOUBLE_EQ(r.hfu * r.step_time_s * 32 * 2.75e14, r.executed_flops);
  EXPECT_GT(r.mfu, 0);
  EXPECT_LT(r.mfu, r.hfu);  // everything is computed twice, and experts run at capacity
  EXPECT_LT(r.hfu, 0.9);    // the share of the peak that products reach
  EXPECT_GT(r.bubble_fraction, 0);
  EXPECT_GT(r.exposed_comm_s, 0);
  EXPECT_EQ(r.stage_layers[0] + r.stage_layers[1], 48);
  std::int64_t sum = 0;
  for (const std::int64_t bytes : r.memory_bytes) sum += bytes;
  EXPECT_LE(sum, r.peak_memory_bytes);
  EXPECT_LT(static_cast<double>(r.peak_memory_bytes), 1.06 * static_cast<double>(sum));  // placement loses little
  EXPECT_FALSE(r.mapping.empty());
}

TEST(Machine, MemoryThatTheSimulatorReportsIsWhatLoweringNeeds) {
  const System system = load_system("v4:2x2x2");
  const Machine v4 = machine(system, DType::kBF16);
  Problem problem = small_problem(8);
  problem.shape.compute = DType::kBF16;
  for (const Plan& plan : all_plans(problem)) {
    const ProgramSet programs = lower(problem.model, problem.shape, plan);
    EXPECT_EQ(evaluate_plan(problem, plan, programs, v4).peak_memory_bytes, memory_needed(programs).value)
        << to_text(plan);
  }
}

TEST(Machine, ASystemWithoutAPeakForTheTypeIsRefused) {
  EXPECT_THROW(machine(load_system("v4:2x2x2"), DType::kF64), InputError);
}

TEST(Machine, TrafficOfAnAxisIsCountedPerRankAndStep) {
  // dp 2, FSDP 0: each block's gradients are all-reduced once, 2 x 4 bytes x padded elements; beside that
  // only the metrics.
  const Problem problem = small_problem(2);
  const ProgramSet programs = lower(problem.model, problem.shape, parse_plan("2x1x1,microbatches=4"));
  std::int64_t gradients = 0;
  for (const Block& block : programs.blocks()) gradients += block.padded;
  const AxisTraffic traffic = axis_traffic(programs);
  EXPECT_EQ(traffic.tp.value, 0);
  EXPECT_EQ(traffic.pp.value, 0);
  EXPECT_EQ(traffic.dp.value, 2 * (4 * gradients + 8 * (kLoadFirst + programs.experts)));

  // pp 2, 4 microbatches of 4 sequences: each stage sends 4 arrays of 32 x 4 x 32 floats; the ends all-reduce the gradients
  // of their two copies of the token table, and all stages the metrics: 2 x the buffer each.
  const ProgramSet stages = lower(problem.model, problem.shape, parse_plan("1x2x1,microbatches=4"));
  const AxisTraffic pipeline = axis_traffic(stages);
  const std::int64_t table = stages.blocks().back().units.front().padded;
  EXPECT_EQ(pipeline.pp.value, 4 * 4 * 32 * 4 * 32 + 2 * (4 * table + 8 * (kLoadFirst + stages.experts)));
  EXPECT_EQ(pipeline.dp.value, 0);
}

TEST(Machine, DescriptionsTellSystemsApart) {
  const System system = load_system("v4:2x4x4");
  EXPECT_EQ(describe(system), describe(load_system("v4:2x4x4")));
  EXPECT_NE(describe(system), describe(load_system("v4:2x2x2")));
  System faster = system;
  std::get<LinkNetwork>(faster.network).link.value += 1;
  EXPECT_NE(describe(system), describe(faster));
  System roomier = system;
  roomier.usable_memory.value += 1;
  EXPECT_NE(describe(system), describe(roomier));
}

TEST(Machine, TheWholePublishedSpaceIsSearchedAndThePublishedPlanHasItsPlace) {
  const Problem problem = published_problem(32);
  const System system = load_system("v4:2x4x4");
  const SearchResult result = search(problem, machine(system, problem.shape.compute));
  EXPECT_EQ(result.evaluated, 2010);
  ASSERT_NE(result.best(), nullptr);
  for (const PlanResult& r : result.plans) {
    // No plan beats the peak of its products, and time is compute, waiting for others and bubble.
    EXPECT_GE(r.step_time_s, r.executed_flops / (32 * 0.9 * 2.75e14)) << to_text(r.plan);
    EXPECT_LE(r.peak_memory_bytes, system.usable_memory.value);
    EXPECT_GE(r.bubble_fraction, 0);
    EXPECT_LT(r.bubble_fraction, 1);
  }
  const auto published = standing(result, published_plan(published_config()));
  ASSERT_TRUE(published && published->rank);
  EXPECT_GE(published->ratio_to_best, 1);
  RecordProperty("best", to_text(result.best()->plan));
}

TEST(Machine, StagesAreCutEvenerByWhatPiecesTakeThanByFlops) {
  // 8x4x1, 8 microbatches: the compute of a step on the busiest stage over the mean of all four. Without recomputation by
  // FLOPs 225, 210, 218 and 177 ms, by time 201, 210, 210 and 209 ms.
  const System system = load_system("v4:2x4x4");
  const Problem problem = published_problem(32);
  const Machine v4 = machine(system, problem.shape.compute);
  const auto unevenness = [&](const Plan& plan) {
    const ProgramSet programs = lower(problem.model, problem.shape, plan);
    double most = 0, sum = 0;
    for (const RankReport& rank : simulate(programs, SystemCostModel(system, programs)).ranks) {
      most = std::max(most, rank.compute.value);
      sum += rank.compute.value;
    }
    return most / (sum / 4);
  };
  for (const auto& [text, layers, by_flops, by_time] :
       {std::tuple{"8x4x1,microbatches=8", "13-14-14-7", 1.085, 1.011},
        {"8x4x1,microbatches=8,fsdp=3,recompute=full", "13-13-14-8", 1.040, 1.036}}) {
    Plan plan = parse_plan(text);
    EXPECT_NEAR(unevenness(plan), by_flops, 0.001) << text;
    Lowering lowering(problem.model, problem.shape, plan);
    plan.layers = balanced_stages(lowering, v4);
    EXPECT_EQ(fmt::format("{}", fmt::join(plan.layers, "-")), layers);
    EXPECT_NEAR(unevenness(plan), by_time, 0.001) << text;
  }
}

TEST(Machine, ASystemWithLessMemoryRejectsPlansAndSaysByHowMuch) {
  const Problem problem = published_problem(8);
  System system = load_system("v4:2x2x2");
  system.usable_memory = {8 * kGiB};
  const SearchResult result = search(problem, machine(system, problem.shape.compute));
  ASSERT_FALSE(result.too_large.empty());
  ASSERT_FALSE(result.plans.empty());
  EXPECT_GT(result.rejected().at(std::string(kDoesNotFit)).smallest_excess->value, 0);
}

}  // namespace
}  // namespace meshwright
