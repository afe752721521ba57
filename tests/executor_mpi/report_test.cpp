// Where a measured step's time goes, by the simulator's definitions: compute, exposed communication, bubble. One rank is held
// up on purpose, so that another has something to wait for; how long it takes otherwise does not matter.
#include <gtest/gtest.h>

#include <chrono>
#include <thread>

#include "model/families/jaxformer.h"
#include "tests/executor_mpi/training_case.h"

namespace meshwright {
namespace {

constexpr double kHeldUp = 0.2;  // seconds, at the logits of a step

TrainingCase small_case() {
  TrainingCase c;
  c.model = jaxformer("small",
                      {.model_dimension = 16,
                       .vocab_size = 20,
                       .n_head = 2,
                       .blocks = 1,
                       .layers_per_block = 2,
                       .latent_dim = 4,
                       .dhR = 4,
                       .dropout_rate = 0,
                       .k = 1,
                       .n_experts = 2,
                       .n_shared = 1,
                       .capacity_factor = 1.5},
                      0.01);
  c.shape = {.sequences = 4, .tokens = 8};
  c.input = [](std::int64_t, std::int64_t q, std::int64_t t) { return static_cast<std::int32_t>((q * 3 + t) % 20); };
  c.target = c.input;
  return c;
}

// The second step of `plan`, in which rank `held_up` sleeps when it has made its logits.
RankReport run(const char* plan, int held_up, MPI_Comm comm) {
  const TrainingCase c = small_case();
  const ProgramSet set = lower(c.model, c.shape, parse_plan(plan));
  Executor executor(set, comm, {.seed = 1});
  const std::vector<ParameterSpec> specs = parameters(c.model);
  executor.load_parameters(initial_weights(specs, 1));
  RankReport report;
  for (int step = 0; step < 2; ++step) {
    if (step == 1 && executor.mesh().rank() == held_up)
      executor.on_logits = [](std::int64_t, std::int64_t, std::int64_t, const void*) {
        std::this_thread::sleep_for(std::chrono::duration<double>(kHeldUp));
      };
    MPI_Barrier(comm);
    report = executor.run_step({.step = step, .fill = token_filler(c, executor.mesh(), set.step, step)}).report;
  }
  EXPECT_NEAR(report.compute.value + report.exposed_comm.value + report.bubble.value, report.end.value,
              1e-6 * report.end.value);
  EXPECT_GT(report.compute.value, 0);
  return report;
}

TEST(MeasuredReport, OneRankOnlyComputes) {
  const FirstRanks ranks(1);
  if (!ranks) return;
  const RankReport report = run("1x1x1", 0, ranks.get());
  EXPECT_EQ(report.bubble.value, 0);
  EXPECT_EQ(report.exposed_comm.value, 0);
  EXPECT_GE(report.compute.value, kHeldUp);
}

TEST(MeasuredReport, AStageThatWaitsForAnotherHasABubble) {
  const FirstRanks ranks(2);
  if (!ranks) return;
  const RankReport report = run("1x2x1,microbatches=1", 1, ranks.get());
  if (report.rank.pp == 0) {
    EXPECT_GE(report.bubble.value, 0.5 * kHeldUp);  // it waits for the gradient
  } else {
    EXPECT_GE(report.compute.value, kHeldUp);
  }
}

TEST(MeasuredReport, ARankThatWaitsInItsOwnStageHasExposedCommunicationAndNoBubble) {
  const FirstRanks ranks(2);
  if (!ranks) return;
  for (const char* plan : {"1x1x2", "2x1x1,fsdp=2"}) {
    SCOPED_TRACE(plan);
    const RankReport report = run(plan, 1, ranks.get());
    EXPECT_EQ(report.bubble.value, 0);
    EXPECT_GT(report.exposed_comm.value, 0);
    const bool waits = report.rank.tp == 0 && report.rank.dp == 0;
    if (waits) {
      EXPECT_GE(report.exposed_comm.value, 0.5 * kHeldUp);
    }
  }
}

}  // namespace
}  // namespace meshwright
