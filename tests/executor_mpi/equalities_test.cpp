// DESIGN's equalities, exactly, per rank: FLOPs, and bytes per operation and group, that the simulator predicts are those
// that the executor counts (at its kernels, at MPI's profiling layer), and live bytes, by class, those that it counts as it
// runs, while what ends is filled with NaN.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

#include "model/families/jaxformer.h"
#include "model/program/op_work.h"
#include "model/program/verifier.h"
#include "sim/simulate.h"
#include "tests/executor_mpi/family_grid.h"
#include "tests/executor_mpi/training_case.h"

namespace meshwright {
namespace {

constexpr std::array kTypes{DType::kF32, DType::kF64, DType::kBF16};

// The equalities do not depend on what anything costs.
class UnitCost final : public CostModel {
 public:
  Time compute(const Op&, const Piece&, const ProgramSet&) const override { return 1; }
  Time collective(const Collective&, const Piece&, const ProgramSet&) const override { return 1; }
  Time point_to_point(const View&, const Piece&, const ProgramSet&) const override { return 1; }
};

TrainingCase small_case(DType compute = DType::kF32) {
  TrainingCase c;
  c.model = jaxformer("small",
                      {.model_dimension = 24,
                       .vocab_size = 37,
                       .n_head = 4,
                       .blocks = 4,
                       .layers_per_block = 2,
                       .latent_dim = 6,
                       .dhR = 4,
                       .dropout_rate = 0.1,
                       .k = 2,
                       .n_experts = 4,
                       .n_shared = 1,
                       .capacity_factor = 1.25},
                      0.01);
  c.shape = {.sequences = 16, .tokens = 8, .compute = compute, .attention_block = 3, .logit_elements = 16 * 37};
  c.input = [](std::int64_t s, std::int64_t q, std::int64_t t) {
    return static_cast<std::int32_t>((s * 7 + q * 11 + t * 5) % 37);
  };
  c.target = c.input;
  return c;
}

// Every legal mesh of 1 to `most_ranks` ranks with both schedules; FSDP, microbatches and recomputation take turns of
// coprime lengths, so that every pair of choices stands together, and 1F1B reaches its steady state.
std::vector<Plan> plans(int most_ranks) {
  std::vector<Plan> all;
  const TrainingCase c = small_case();
  int turn = 0;
  for (int ranks = 1; ranks <= most_ranks; ++ranks)
    for (int dp = 1; dp <= ranks; ++dp)
      for (int pp = 1; dp * pp <= ranks; ++pp)
        for (const Schedule schedule : {Schedule::k1F1B, Schedule::kGPipe}) {
          if (ranks % (dp * pp)) continue;
          Plan plan{.mesh = {dp, pp, ranks / dp / pp}, .fsdp = dp > 1 ? (turn / 2 + turn) % 4 : 0};
          plan.schedule = schedule;
          plan.microbatches = std::array{1, 2, 4, 8, 16}[static_cast<std::size_t>(turn % 5)];
          while (16 / dp % plan.microbatches) plan.microbatches /= 2;
          plan.recompute = std::array{Recompute::kNone, Recompute::kFull, Recompute::kSelective,
                                      Recompute::of(RecomputeKind::kAttentionProjections)}[turn % 4];
          if (!illegalities(c.model, c.shape, plan).empty()) continue;
          ++turn;
          all.push_back(plan);
        }
  return all;
}

TEST(Equalities, TheGridHasEveryPairOfFsdpStageAndScheduleAndMoreMicrobatchesThanStages) {
  std::set<std::pair<int, Schedule>> pairs;
  bool steady = false;
  for (const Plan& plan : plans(16)) {
    if (plan.mesh.dp > 1) pairs.insert({plan.fsdp, plan.schedule});
    steady |= plan.schedule == Schedule::k1F1B && plan.mesh.pp > 1 && plan.microbatches > plan.mesh.pp;
  }
  EXPECT_EQ(pairs.size(), 8u);
  EXPECT_TRUE(steady);
}

// Of this rank, in one step of one plan: what was counted, and what was predicted.
struct Count {
  std::string plan;
  RankReport counted, predicted;
  Flops of_routed_rows, at_capacity;  // by the Program's formula
  double loss = 0;
};

// Two steps of a plan on the first ranks.
void count(const TrainingCase& c, const Plan& plan, const std::string& label, std::vector<Count>& counts) {
  const FirstRanks ranks(plan.mesh.ranks());
  if (!ranks) return;
  const ProgramSet set = lower(c.model, c.shape, plan);
  EXPECT_EQ(verify(set), std::vector<std::string>{});
  const StepReport predicted = simulate(set, UnitCost());
  Executor executor(set, ranks.get(), {.poison = true});
  const std::vector<ParameterSpec> specs = parameters(c.model);
  executor.load_parameters(initial_weights(specs, 1));
  for (int step = 0; step < 2; ++step) {
    const StepResult r = executor.run_step({.step = step, .fill = token_filler(c, executor.mesh(), set.step, step)});
    const auto stage = static_cast<std::size_t>(executor.mesh().coordinates().pp);
    counts.push_back({label, r.report, predicted.ranks[stage], program_flops(set, set.stages[stage], r.routed_rows),
                      program_flops(set, set.stages[stage]), r.loss});
  }
}

// Two steps of every plan, run once for all tests.
const std::vector<Count>& counts() {
  static const std::vector<Count> all_counts = [] {
    std::vector<Count> counts;
    int world = 0;
    MPI_Comm_size(MPI_COMM_WORLD, &world);
    const std::vector<Plan> all = plans(world);
    EXPECT_GE(all.size(), 40u) << "run it on 16 ranks";
    for (std::size_t i = 0; i < 3 * all.size(); ++i) {
      const Plan& plan = all[i / 3];
      const DType compute = kTypes[i % 3];
      const std::string label = to_text(plan) + " in " + std::string(name(compute));
      SCOPED_TRACE(label);
      if (failed_anywhere()) break;
      count(small_case(compute), plan, label, counts);
    }
    return counts;
  }();
  return all_counts;
}

void expect_flops_and_traffic(const Count& c) {
  EXPECT_EQ(c.counted.executed_flops, c.of_routed_rows) << c.plan;
  EXPECT_EQ(c.counted.traffic, c.predicted.traffic) << c.plan;
  EXPECT_EQ(c.predicted.executed_flops, c.at_capacity) << c.plan;  // experts at capacity
}

void expect_live_bytes(const Count& c) {
  EXPECT_EQ(c.counted.live.bytes, c.predicted.live.bytes) << c.plan;
  EXPECT_EQ(c.counted.live.at_peak, c.predicted.live.at_peak) << c.plan;
  EXPECT_EQ(c.counted.live.of_class, c.predicted.live.of_class) << c.plan;
  EXPECT_GT(c.counted.outside_bytes.value, 0) << c.plan;
  EXPECT_TRUE(std::isfinite(c.loss)) << c.plan;
}

TEST(Equalities, FlopsAndBytesSentOfEveryRankAreWhatTheSimulatorPredicts) {
  for (const Count& c : counts()) expect_flops_and_traffic(c);
}

// The peak of all classes together, what each holds then, and the peak of each: predicted by a walk of the Program's
// lifetimes, counted from the addresses that operations touched. A byte read after its end would be NaN in every loss.
TEST(Equalities, LiveBytesOfEveryRankByClassAreThoseThatTheExecutorCounts) {
  for (const Count& c : counts()) expect_live_bytes(c);
}

// Both numbers come from the same placement: this shows that every rank reaches the end of its arena and nothing beyond.
// It does not show that the arena is as small as it could be: that is placement_loss(), against the peak above.
TEST(Equalities, TheArenaSizePredictedEqualsTheHighestAddressTouchedWhichDoesNotShowThatAllOfItIsNeeded) {
  for (const Count& c : counts()) EXPECT_EQ(c.counted.arena_bytes, c.predicted.arena_bytes) << c.plan;
}

TEST(Equalities, AnOperationThatReadsWhatHasEndedIsNamed) {
  const FirstRanks ranks(1);
  if (!ranks) return;
  const TrainingCase c = small_case();
  ProgramSet set = lower(c.model, c.shape, {.microbatches = 2});
  // The stash of the first microbatch ends with its forward, and not with its backward.
  Program& program = set.stages[0];
  const auto stash = std::ranges::find_if(
      program.ends, [](const EntryEdge& e) { return e.anchor == Anchor::kStash && e.microbatch == 0; });
  ASSERT_NE(stash, program.ends.end());
  stash->slot = 1;
  std::ranges::stable_sort(program.ends, {}, &EntryEdge::slot);
  EXPECT_NE(verify(set), std::vector<std::string>{});
  Executor executor(set, ranks.get(), {.poison = true});
  const std::vector<ParameterSpec> specs = parameters(c.model);
  executor.load_parameters(initial_weights(specs, 1));
  try {
    executor.run_step({.fill = token_filler(c, executor.mesh(), set.step, 0)});
    FAIL() << "it ran";
  } catch (const std::logic_error& error) {
    EXPECT_NE(std::string(error.what()).find("in B0 reads"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("not live"), std::string::npos) << error.what();
  }
}

// ---- families: the covering array of family_grid.h ---------------------------------------------------------------------------

class EqualitiesOfFamilies : public testing::TestWithParam<int> {};

TEST_P(EqualitiesOfFamilies, FlopsBytesSentAndLiveBytesOfEveryRankAreWhatTheSimulatorPredictsOnAllOfTheGrid) {
  const GridFamily& family = grid_families()[static_cast<std::size_t>(GetParam())];
  for (const Plan& plan : FamilyGrid::get().plans(GetParam()))
    for (const DType compute : kTypes) {
      const std::string label = to_text(plan) + " in " + std::string(name(compute));
      SCOPED_TRACE(label);
      if (failed_anywhere()) return;
      std::vector<Count> counts;
      count(grid_case(family, compute), plan, label, counts);
      for (const Count& c : counts) {
        expect_flops_and_traffic(c);
        expect_live_bytes(c);
        EXPECT_EQ(c.counted.arena_bytes, c.predicted.arena_bytes);
      }
    }
}

INSTANTIATE_TEST_SUITE_P(Grid, EqualitiesOfFamilies, testing::Range(0, static_cast<int>(grid_families().size())),
                         [](const auto& test) { return grid_families()[static_cast<std::size_t>(test.param)].name; });

}  // namespace
}  // namespace meshwright
