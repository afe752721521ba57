// Results do not depend on the mesh: every plan gives the single rank's loss and gradients, to the rounding of its
// reductions; the same plan twice gives the same bits. With dropout on.
#include <gtest/gtest.h>

#include <cstring>

#include "tests/executor_mpi/family_grid.h"
#include "tests/executor_mpi/training_case.h"

namespace meshwright {
namespace {

constexpr std::size_t kGridPlans = 267;  // families' plans: the covering array of family_grid.h

TrainingCase small_case(DType dtype) { return grid_case(grid_families().front(), dtype); }

// Every mesh of 1, 2, 4 and 8 ranks with all combinations of schedule, microbatches (one, as many as sequences) and what is
// computed again (none, all, by the rule, by kinds that take turns), FSDP taking its turns: every pair of values of these
// choices stands together, and every mesh with dp > 1 meets every stage.
std::vector<Plan> plans() {
  std::vector<Plan> all;
  for (const MeshShape& mesh : grid_meshes()) {
    Plan plan{.mesh = mesh};
    int turn = 0;
    for (const Schedule schedule : {Schedule::kGPipe, Schedule::k1F1B})
      for (const int microbatches : {1, std::max(2, 16 / plan.mesh.dp)})
        for (const Recompute recompute : {Recompute::kNone, Recompute::kFull, Recompute::kSelective,
                                          Recompute{static_cast<std::uint8_t>(1 + all.size() % 15)}}) {
          plan.schedule = schedule;
          plan.microbatches = microbatches;
          plan.recompute = recompute;
          plan.fsdp = plan.mesh.dp > 1 ? turn++ % 4 : 0;
          all.push_back(plan);
          if (plan.mesh.dp > 1) {  // and another stage, so that stages meet all of the rest
            plan.fsdp = (turn + turn / 4) % 4;
            if (plan.fsdp != all.back().fsdp) all.push_back(plan);
          }
        }
  }
  return all;
}

struct Outcome {
  std::vector<double> losses;
  std::vector<std::vector<double>> gradients, parameters;  // of the first step; after the last
  std::vector<std::vector<double>> kept;                   // of those parameters, what this rank has: Executor::kept()
};

// The first steps under a plan, on the first ranks; empty on the others.
Outcome run(const TrainingCase& c, const Plan& plan, int steps, std::vector<RoutingRecord>* record = nullptr,
            const std::vector<RoutingRecord>* replay = nullptr) {
  Outcome out;
  const FirstRanks ranks(plan.mesh.ranks());
  if (!ranks) return out;
  const ProgramSet set = lower(c.model, c.shape, plan);
  Executor executor(set, ranks.get(), {.seed = 7, .poison = true});
  const std::vector<ParameterSpec> specs = parameters(c.model);
  executor.load_parameters(initial_weights(specs, 7));
  for (int s = 0; s < steps; ++s) {
    StepInput input{.step = s, .learning_rate = 3e-3, .fill = token_filler(c, executor.mesh(), set.step, s)};
    if (record) input.record = &record->at(static_cast<std::size_t>(s));
    if (replay) input.replay = &replay->at(static_cast<std::size_t>(s));
    out.losses.push_back(executor.run_step(input).loss);
    if (s == 0) out.gradients = executor.gather(Executor::State::kGradients);
  }
  out.kept = executor.kept(Executor::State::kParameters);
  out.parameters = executor.gather(Executor::State::kParameters);
  return out;
}

// Makes rank 0's records everybody's.
void broadcast(std::vector<RoutingRecord>& records) {
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  for (RoutingRecord& record : records) {
    std::vector<std::int32_t> flat;  // layer, sequence, choices, choice..., kept...
    for (const auto& [key, r] : record) {
      flat.insert(flat.end(),
                  {key.first, static_cast<std::int32_t>(key.second), static_cast<std::int32_t>(r.choice.size())});
      flat.insert(flat.end(), r.choice.begin(), r.choice.end());
      flat.insert(flat.end(), r.kept.begin(), r.kept.end());
    }
    int size = static_cast<int>(flat.size());
    MPI_Bcast(&size, 1, MPI_INT, 0, MPI_COMM_WORLD);
    flat.resize(static_cast<std::size_t>(size));
    MPI_Bcast(flat.data(), size, MPI_INT, 0, MPI_COMM_WORLD);
    record.clear();
    for (auto at = flat.begin(); at != flat.end();) {
      SequenceRouting& r = record[{at[0], at[1]}];
      const std::int32_t n = at[2];
      at += 3;
      r.choice.assign(at, at + n);
      r.kept.assign(at + n, at + 2 * n);
      at += 2 * n;
    }
  }
}

void expect_single_rank_gradients(DType dtype, double tolerance) {
  const TrainingCase c = small_case(dtype);
  const Outcome single = run(c, Plan{}, 1);
  const std::vector<Plan> all = plans();
  EXPECT_GE(all.size(), 200u);
  const std::vector<ParameterSpec> specs = parameters(c.model);
  for (const Plan& plan : all) {
    SCOPED_TRACE(to_text(plan));
    if (failed_anywhere()) return;
    const Outcome out = run(c, plan, 1);
    if (out.losses.empty() || single.losses.empty()) continue;  // compared where the single rank ran
    EXPECT_NEAR(out.losses[0], single.losses[0], tolerance * single.losses[0]);
    for (std::size_t p = 0; p < specs.size(); ++p)
      EXPECT_LE(relative_distance(out.gradients[p], single.gradients[p]), tolerance) << specs[p].name;
  }
}

TEST(MeshInvariance, InF64EveryPlanGivesTheSingleRanksLossAndGradientsTo1em12) {
  expect_single_rank_gradients(DType::kF64, 1e-12);
}
TEST(MeshInvariance, InF32EveryPlanGivesTheSingleRanksLossAndGradientsTo1em5) {
  expect_single_rank_gradients(DType::kF32, 1e-5);
}

// Plans that differ in everything, for longer runs.
std::vector<Plan> long_plans() {
  std::vector<Plan> all;
  for (const char* text :
       {"2x1x1,fsdp=3,microbatches=2", "1x2x1,schedule=gpipe,microbatches=4", "1x1x2,recompute=full,microbatches=1",
        "2x2x2,fsdp=2,microbatches=4", "4x2x1,fsdp=1,microbatches=2,recompute=full", "1x8x1,microbatches=8",
        "1x1x8,microbatches=1"})
    all.push_back(parse_plan(text));
  return all;
}

void expect_single_rank_training(DType dtype, double tolerance) {
  constexpr int kSteps = 20;
  const TrainingCase c = small_case(dtype);
  std::vector<RoutingRecord> routing(kSteps);
  const Outcome single = run(c, Plan{}, kSteps, &routing);
  broadcast(routing);
  if (!single.losses.empty()) {
    EXPECT_LT(single.losses.back(), single.losses.front()) << "it should learn";
  }
  for (const Plan& plan : long_plans()) {
    SCOPED_TRACE(to_text(plan));
    if (failed_anywhere()) return;
    const Outcome out = run(c, plan, kSteps, nullptr, dtype == DType::kF32 ? &routing : nullptr);
    if (out.losses.empty() || single.losses.empty()) continue;
    for (int s = 0; s < kSteps; ++s) EXPECT_NEAR(out.losses[s], single.losses[s], tolerance) << "step " << s;
  }
}

TEST(MeshInvariance, InF64TwentyStepsLoseWhatTheSingleRankLosesTo1em9) {
  expect_single_rank_training(DType::kF64, 1e-9);
}
TEST(MeshInvariance, InF32TwentyStepsLoseWhatTheSingleRankLosesTo1em4WithItsRouting) {
  expect_single_rank_training(DType::kF32, 1e-4);
}

TEST(MeshInvariance, TheSamePlanTwiceGivesTheSameBits) {
  const TrainingCase c = small_case(DType::kF32);
  for (const Plan& plan : long_plans()) {
    SCOPED_TRACE(to_text(plan));
    const Outcome a = run(c, plan, 3), b = run(c, plan, 3);
    EXPECT_EQ(a.losses, b.losses);
    ASSERT_EQ(a.parameters.size(), b.parameters.size());
    for (std::size_t p = 0; p < a.parameters.size(); ++p)
      EXPECT_EQ(std::memcmp(a.parameters[p].data(), b.parameters[p].data(), a.parameters[p].size() * sizeof(double)), 0)
          << "parameter " << p;
  }
}

// ---- families --------------------------------------------------------------------------------------------------------------

TEST(FamilyGrid, HoldsEveryPairOfValuesThatALegalPlanHas) {
  const FamilyGrid& grid = FamilyGrid::get();
  EXPECT_EQ(FamilyGrid::pairs(grid.rows()), grid.legal_pairs());
  EXPECT_EQ(grid.rows().size(), kGridPlans);
  std::set<FamilyGrid::Row> distinct;
  for (const FamilyGrid::Row& row : grid.rows()) {
    EXPECT_TRUE(distinct.insert(row).second);
    const TrainingCase c = grid_case(grid_families()[static_cast<std::size_t>(row[0])], DType::kF32);
    EXPECT_TRUE(illegalities(c.model, c.shape, grid.plan(row)).empty())
        << c.model.name << " " << to_text(grid.plan(row));
  }
  // What it takes for legal is: a sample, with a prime for a stride.
  int at = 0;
  grid.for_each_row([&](const FamilyGrid::Row& row) {
    if (at++ % 61 != 0) return;
    const TrainingCase c = grid_case(grid_families()[static_cast<std::size_t>(row[0])], DType::kF32);
    EXPECT_EQ(grid.is_legal(row), illegalities(c.model, c.shape, grid.plan(row)).empty())
        << c.model.name << " " << to_text(grid.plan(row));
  });
}

// The key's bias moves all scores of a row alike, unless keys are rotated: its gradient is 0 in exact arithmetic.
bool has_no_gradient(const ModelSpec& model, const ParameterSpec& p) {
  if (!p.name.ends_with("attention.k.bias")) return false;
  const auto* attention = std::get_if<MultiHeadAttention>(&model.layers.front().attention);
  return attention && attention->rope_width == 0;
}

double norm(const std::vector<double>& x) {
  double squares = 0;
  for (const double v : x) squares += v * v;
  return std::sqrt(squares);
}

// Makes rank 0's values everybody's.
void broadcast(std::vector<std::vector<double>>& tensors, const std::vector<ParameterSpec>& specs) {
  tensors.resize(specs.size());
  for (std::size_t p = 0; p < specs.size(); ++p) {
    tensors[p].resize(static_cast<std::size_t>(elements(specs[p].shape)));
    MPI_Bcast(tensors[p].data(), static_cast<int>(tensors[p].size()), MPI_DOUBLE, 0, MPI_COMM_WORLD);
  }
}

class MeshInvarianceOfFamilies : public testing::TestWithParam<int> {
 protected:
  const GridFamily& family() const { return grid_families()[static_cast<std::size_t>(GetParam())]; }
  std::vector<Plan> plans() const { return FamilyGrid::get().plans(GetParam()); }

  // Loss and gradients of the first step to `tolerance`, tensor by tensor; what every rank has of every parameter after the last
  // to 1e-10, if there are several.
  void expect_single_rank(DType dtype, int steps, double tolerance) const {
    constexpr double kLater = 1e-10;
    const TrainingCase c = grid_case(family(), dtype);
    const std::vector<ParameterSpec> specs = parameters(c.model);
    Outcome single = run(c, Plan{}, steps);
    broadcast(single.parameters, specs);
    double whole = 0;
    for (const auto& g : single.gradients) whole = std::hypot(whole, norm(g));
    for (const Plan& plan : plans()) {
      SCOPED_TRACE(to_text(plan));
      if (failed_anywhere()) return;
      const Outcome out = run(c, plan, steps);
      if (out.losses.empty()) continue;
      for (std::size_t p = 0; steps > 1 && p < specs.size(); ++p) {
        double squares = 0;
        for (std::size_t i = 0; i < out.kept[p].size(); ++i) {
          const double difference = out.kept[p][i] - single.parameters[p][i];
          if (!std::isnan(out.kept[p][i])) squares += difference * difference;
        }
        const double scale = has_no_gradient(c.model, specs[p]) ? 1 : norm(single.parameters[p]);
        EXPECT_LE(std::sqrt(squares), kLater * scale) << specs[p].name << " after " << steps << " steps";
      }
      if (single.losses.empty()) continue;  // compared where the single rank ran
      for (int s = 0; s < steps; ++s)
        EXPECT_NEAR(out.losses[s], single.losses[s], (s == 0 ? tolerance : kLater) * single.losses[s]) << "step " << s;
      for (std::size_t p = 0; p < specs.size(); ++p) {
        if (!specs[p].trained) continue;
        if (has_no_gradient(c.model, specs[p]))
          EXPECT_LE(norm(out.gradients[p]), tolerance * whole) << specs[p].name;
        else
          EXPECT_LE(relative_distance(out.gradients[p], single.gradients[p]), tolerance) << specs[p].name;
      }
    }
  }
};

TEST_P(MeshInvarianceOfFamilies,
       InF64EveryPlanGivesTheSingleRanksGradientsTo1em12AndEveryRankItsParametersAfter5Steps) {
  expect_single_rank(DType::kF64, 5, 1e-12);
}
TEST_P(MeshInvarianceOfFamilies, InF32EveryPlanGivesTheSingleRanksLossAndGradientsTo1em5) {
  expect_single_rank(DType::kF32, 1, 1e-5);
}
TEST_P(MeshInvarianceOfFamilies, TheSamePlanTwiceGivesTheSameBits) {
  const TrainingCase c = grid_case(family(), DType::kF32);
  const std::vector<Plan> all = plans();
  for (std::size_t i = 0; i < all.size(); i += 3) {
    SCOPED_TRACE(to_text(all[i]));
    if (failed_anywhere()) return;
    const Outcome a = run(c, all[i], 3), b = run(c, all[i], 3);
    EXPECT_EQ(a.losses, b.losses);
    for (std::size_t p = 0; p < a.parameters.size(); ++p)
      EXPECT_EQ(std::memcmp(a.parameters[p].data(), b.parameters[p].data(), a.parameters[p].size() * sizeof(double)), 0)
          << "parameter " << p;
  }
}

INSTANTIATE_TEST_SUITE_P(Grid, MeshInvarianceOfFamilies, testing::Range(0, static_cast<int>(grid_families().size())),
                         [](const auto& test) { return grid_families()[static_cast<std::size_t>(test.param)].name; });

}  // namespace
}  // namespace meshwright
