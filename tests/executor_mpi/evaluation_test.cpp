// Evaluation is a program of its own over the state that is trained: forwards alone, nothing dropped. It gives the loss of a
// training's forward, on every mesh, and leaves no trace.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <map>
#include <tuple>

#include "executor/kernels/philox.h"
#include "model/families/jaxformer.h"
#include "model/program/live_memory.h"
#include "model/program/op_work.h"
#include "model/program/verifier.h"
#include "sim/simulate.h"
#include "tests/executor_mpi/training_case.h"

namespace meshwright {
namespace {

constexpr std::int64_t kVocab = 40;

// With dropout, and experts that are full soon: an evaluation knows neither. Several blocks of attention, the last one
// shorter, and several chunks of logits.
TrainingCase small_case(DType compute) {
  TrainingCase c;
  c.model = jaxformer("small",
                      {.model_dimension = 32,
                       .vocab_size = kVocab,
                       .n_head = 8,
                       .blocks = 4,
                       .layers_per_block = 2,
                       .latent_dim = 8,
                       .dhR = 4,
                       .dropout_rate = 0.2,
                       .k = 2,
                       .n_experts = 4,
                       .n_shared = 2,
                       .capacity_factor = 0.75},
                      0.01);
  c.shape = {.sequences = 16, .tokens = 16, .compute = compute, .attention_block = 6, .logit_elements = 48 * kVocab};
  const auto id = [](std::int64_t step, std::int64_t q, std::int64_t t) {
    return static_cast<std::int32_t>(kernels::mix64(static_cast<std::uint64_t>((step * 32 + q) * 32 + t)) % kVocab);
  };
  c.input = id;
  c.target = [id](std::int64_t s, std::int64_t q, std::int64_t t) { return id(s, q, t + 1); };
  return c;
}

// Every mesh of 1, 2, 4 and 8 ranks; where dp can shard, with two stages of FSDP that take turns, as schedules, recomputation
// and microbatches do.
std::vector<Plan> plans() {
  std::vector<Plan> all;
  std::size_t turn = 0;
  for (const int ranks : {1, 2, 4, 8})
    for (int dp = 1; dp <= ranks; dp *= 2)
      for (int pp = 1; dp * pp <= ranks; pp *= 2)
        for (int i = 0; i < (dp > 1 ? 2 : 1); ++i, ++turn) {
          Plan plan{.mesh = {dp, pp, ranks / dp / pp}, .fsdp = dp > 1 ? static_cast<int>(turn % 4) : 0};
          plan.microbatches = turn / 4 % 2 ? 2 : 1;
          plan.schedule = turn / 2 % 2 ? Schedule::kGPipe : Schedule::k1F1B;
          plan.recompute = std::array{Recompute::kNone, Recompute::kFull, Recompute::kSelective}[turn % 3];
          all.push_back(plan);
        }
  return all;
}

constexpr std::int64_t kBatch = 24;  // sequences of an evaluation: not those of a step

// A training and the evaluation of its state, on the first ranks.
struct Sets {
  Sets(const TrainingCase& c, const Plan& plan) : training(lower(c.model, c.shape, plan)) {
    TrainingShape shape = c.shape;
    shape.sequences = kBatch;
    Plan of_batch = plan;
    of_batch.microbatches = evaluation_microbatches(kBatch / plan.mesh.dp, training.step.microbatch);
    evaluation = lower_evaluation(c.model, shape, of_batch, training);
  }
  ProgramSet training, evaluation;
};

void load(Executor& executor, const TrainingCase& c) {
  const std::vector<ParameterSpec> specs = parameters(c.model);
  executor.load_parameters(initial_weights(specs, 7));
}

StepResult evaluate(Executor& executor, const TrainingCase& c, const ProgramSet& set, std::int64_t batch) {
  return executor.evaluate({.fill = token_filler(c, executor.mesh(), set.step, batch)});
}
StepResult train(Executor& executor, const TrainingCase& c, const ProgramSet& set, std::int64_t step) {
  return executor.run_step(
      {.step = step, .learning_rate = 3e-3, .fill = token_filler(c, executor.mesh(), set.step, step)});
}

// The loss of a batch in a training step of one rank, with nothing dropped, and with what it has to do with it.
StepResult reference(const TrainingCase& c, MPI_Comm comm) {
  TrainingShape shape = c.shape;
  shape.sequences = kBatch;
  shape.train = false;
  const ProgramSet set = lower(c.model, shape, {});
  Executor executor(set, comm, {});
  load(executor, c);
  return train(executor, c, set, 3);
}

TEST(Evaluation, HasTheLossOfATrainingStepThatDropsNothingOnEveryMeshTo1em12AndTheSameBitsEachTime) {
  const TrainingCase c = small_case(DType::kF64);
  const StepResult expected = reference(c, MPI_COMM_SELF);
  for (const Plan& plan : plans()) {
    SCOPED_TRACE(to_text(plan));
    if (failed_anywhere()) return;
    const FirstRanks ranks(plan.mesh.ranks());
    if (!ranks) continue;
    const Sets sets(c, plan);
    Executor executor({&sets.training, &sets.evaluation}, ranks.get(), {.poison = true});
    load(executor, c);
    const StepResult r = evaluate(executor, c, sets.evaluation, 3), again = evaluate(executor, c, sets.evaluation, 3);
    EXPECT_NEAR(r.loss, expected.loss, 1e-12 * expected.loss);
    EXPECT_NEAR(r.cross_entropy, expected.cross_entropy, 1e-12 * expected.cross_entropy);
    EXPECT_NEAR(r.balance, expected.balance, 1e-12 * expected.balance);
    EXPECT_EQ(r.dropped, 0);
    EXPECT_EQ(r.gradient_norm, 0);
    ASSERT_EQ(r.load.size(), expected.load.size());
    for (std::size_t e = 0; e < r.load.size(); ++e) EXPECT_NEAR(r.load[e], expected.load[e], 1e-12);
    EXPECT_EQ(r.loss, again.loss);
    EXPECT_EQ(r.balance, again.balance);
    // Training drops tokens and channels, so its own loss of these very weights is another one.
    EXPECT_GT(train(executor, c, sets.training, 3).dropped, 0);
  }
}

// Every byte of state that this rank keeps, in the order of the visit.
std::vector<std::byte> state_of(const Executor& executor, const ProgramSet& set) {
  std::vector<std::byte> bytes;
  executor.for_each_state([&](const StateRun& run) {
    const auto* data = static_cast<const std::byte*>(run.data);
    bytes.insert(bytes.end(), data, data + run.count * size_of(set.state));
  });
  return bytes;
}

TEST(Evaluation, LeavesEveryBitOfTheStateAndNoTraceInTheTrainingThatFollows) {
  std::size_t turn = 0;
  for (const Plan& plan : plans()) {
    const DType compute = turn++ / 2 % 2 ? DType::kBF16 : DType::kF32;
    SCOPED_TRACE(to_text(plan) + " in " + std::string(name(compute)));
    if (failed_anywhere()) return;
    const FirstRanks ranks(plan.mesh.ranks());
    if (!ranks) continue;
    const TrainingCase c = small_case(compute);
    const Sets sets(c, plan);
    Executor alone(sets.training, ranks.get(), {.seed = 7}),
        both({&sets.training, &sets.evaluation}, ranks.get(), {.seed = 7, .poison = true});
    load(alone, c);
    load(both, c);
    for (std::int64_t step = 0; step < 2; ++step) {
      const auto before = state_of(both, sets.training);
      EXPECT_TRUE(std::isfinite(evaluate(both, c, sets.evaluation, 5).loss));
      EXPECT_EQ(before, state_of(both, sets.training));
      EXPECT_EQ(train(alone, c, sets.training, step).loss, train(both, c, sets.training, step).loss);
      EXPECT_NE(before, state_of(both, sets.training));
    }
    EXPECT_EQ(state_of(alone, sets.training), state_of(both, sets.training));
  }
}

// Durations that differ by operation and piece, so that an order that differs shows.
class SomeCost final : public CostModel {
 public:
  Time compute(const Op& op, const Piece& piece, const ProgramSet&) const override {
    return 100 + 7 * kind_of(op) + static_cast<Time>(piece.tensors.size());
  }
  Time collective(const Collective& op, const Piece& piece, const ProgramSet& set) const override {
    return 500 + bytes_sent(op, piece, set.mesh).value;
  }
  Time point_to_point(const View& message, const Piece&, const ProgramSet&) const override {
    return 900 + message.rows * message.cols;
  }
};

TEST(Evaluation, IsPredictedAsAnyProgramIsAndCountsWhatWasPredicted) {
  std::size_t turn = 0;
  for (const Plan& plan : plans()) {
    const DType compute = std::array{DType::kF64, DType::kF32, DType::kBF16}[turn++ % 3];
    SCOPED_TRACE(to_text(plan) + " in " + std::string(name(compute)));
    if (failed_anywhere()) return;
    const FirstRanks ranks(plan.mesh.ranks());
    if (!ranks) continue;
    const TrainingCase c = small_case(compute);
    const Sets sets(c, plan);
    const ProgramSet& set = sets.evaluation;
    ASSERT_EQ(verify(set), std::vector<std::string>{});
    const StepReport predicted = simulate(set, SomeCost()), full = simulate_full(set, SomeCost());
    EXPECT_EQ(to_time(predicted.step_time), to_time(full.step_time));
    EXPECT_LT(to_time(full.step_time), to_time(simulate(sets.training, SomeCost()).step_time) * kBatch / 16);

    Executor executor({&sets.training, &sets.evaluation}, ranks.get(), {.poison = true});
    load(executor, c);
    train(executor, c, sets.training, 0);
    const StepResult r = evaluate(executor, c, set, 1);
    const auto stage = static_cast<std::size_t>(executor.mesh().coordinates().pp);
    const RankReport& expected = predicted.ranks[stage];
    EXPECT_EQ(r.report.executed_flops, program_flops(set, set.stages[stage], r.routed_rows));
    EXPECT_EQ(expected.executed_flops, program_flops(set, set.stages[stage]));
    EXPECT_EQ(r.report.traffic, expected.traffic);
    EXPECT_EQ(r.report.live, expected.live);
    EXPECT_EQ(r.report.live, peak_by_operation(set, set.stages[stage]));
    EXPECT_EQ(r.report.arena_bytes, expected.arena_bytes);
  }
}

TEST(Evaluation, RunsWithoutATrainingBesideIt) {
  const FirstRanks ranks(1);
  if (!ranks) return;
  const TrainingCase c = small_case(DType::kF64);
  const Sets sets(c, {});
  Executor alone(sets.evaluation, ranks.get(), {.poison = true});
  load(alone, c);
  const double expected = reference(c, ranks.get()).loss;
  EXPECT_NEAR(evaluate(alone, c, sets.evaluation, 3).loss, expected, 1e-12 * expected);
  EXPECT_THROW(train(alone, c, sets.training, 0), std::logic_error);
  Executor training(sets.training, ranks.get(), {});
  EXPECT_THROW(evaluate(training, c, sets.evaluation, 3), std::logic_error);
}

// What load_parameters() was given is what the visit shows, at the place that it says; moments are 0, and move with a step.
TEST(StateVisit, ShowsEveryElementOfEveryTensorAndKindWhereItWasLoadedAndOnceAsOwned) {
  const TrainingCase c = small_case(DType::kF64);
  const auto value = [](int parameter, std::int64_t i) {
    return 0.001 * static_cast<double>(i % 997) + static_cast<double>(parameter);
  };
  for (const Plan& plan : plans()) {
    SCOPED_TRACE(to_text(plan));
    if (failed_anywhere()) return;
    const FirstRanks ranks(plan.mesh.ranks());
    if (!ranks) continue;
    const ProgramSet set = lower(c.model, c.shape, plan);
    Executor executor(set, ranks.get(), {});
    executor.load_parameters([&](int parameter, std::int64_t first, std::int64_t n, double* out) {
      for (std::int64_t i = 0; i < n; ++i) out[i] = value(parameter, first + i);
    });
    std::map<StateKind, std::vector<std::vector<double>>> owned;  // sums over ranks, then: how often, and of what
    for (const StateKind kind : kStateKinds)
      for (const Parameter& p : set.parameters())
        owned[kind].emplace_back(static_cast<std::size_t>(elements(p.shape)), 0.0);
    executor.for_each_state([&](const StateRun& run) {
      EXPECT_EQ(run.tensor, set.parameters()[static_cast<std::size_t>(run.parameter)].name);
      const auto* data = static_cast<const double*>(run.data);
      for (std::int64_t i = 0; i < run.count; ++i) {
        ASSERT_EQ(data[i], run.kind == StateKind::kMaster ? value(run.parameter, run.first + i) : 0.0) << run.tensor;
        if (run.owned)
          owned[run.kind][static_cast<std::size_t>(run.parameter)][static_cast<std::size_t>(run.first + i)] += 1;
      }
    });
    for (auto& [kind, tensors] : owned)
      for (auto& tensor : tensors) {
        MPI_Allreduce(MPI_IN_PLACE, tensor.data(), static_cast<int>(tensor.size()), MPI_DOUBLE, MPI_SUM, ranks.get());
        ASSERT_EQ(tensor, std::vector<double>(tensor.size(), 1.0));
      }
  }
}

}  // namespace
}  // namespace meshwright
