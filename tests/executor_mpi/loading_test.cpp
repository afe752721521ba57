// What a rank loads: of weights what it keeps, of data what it trains on, and that before a step's time begins.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <thread>

#include "executor/train.h"
#include "model/families/jaxformer.h"
#include "tests/executor_mpi/training_case.h"

namespace meshwright {
namespace {

constexpr int kVocabulary = 20;

TrainingCase small_case() {
  TrainingCase c;
  c.model = jaxformer("small",
                      {.model_dimension = 16,
                       .vocab_size = kVocabulary,
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
  c.shape = {.sequences = 8, .tokens = 8};
  return c;
}

TEST(Loading, ARankAsksForTheWeightsThatItKeepsAndNoOthers) {
  const TrainingCase c = small_case();
  const std::vector<ParameterSpec> specs = parameters(c.model);
  std::int64_t all = 0;
  for (const ParameterSpec& p : specs) all += elements(p.shape);
  for (const auto& [text, times] :
       {std::pair{"1x1x1", 1}, {"2x1x1,fsdp=0", 2}, {"2x1x1,fsdp=1", 1}, {"2x1x1,fsdp=2", 1}, {"4x1x1,fsdp=3", 1}}) {
    SCOPED_TRACE(text);
    const Plan plan = parse_plan(text);
    const FirstRanks ranks(plan.mesh.ranks());
    if (!ranks) continue;
    for (const DType compute : {DType::kF32, DType::kBF16}) {
      TrainingShape shape = c.shape;
      shape.compute = compute;
      const ProgramSet set = lower(c.model, shape, plan);
      Executor executor(set, ranks.get(), {});
      std::int64_t asked = 0;
      executor.load_parameters([&](int parameter, std::int64_t first, std::int64_t n, float* out) {
        asked += n;
        for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<float>(1000 * parameter + first + i);
      });
      MPI_Allreduce(MPI_IN_PLACE, &asked, 1, MPI_INT64_T, MPI_SUM, ranks.get());
      EXPECT_EQ(asked, times * all);
      const auto loaded = executor.gather(Executor::State::kParameters);
      for (std::size_t p = 0; p < loaded.size(); ++p)
        for (std::size_t i = 0; i < loaded[p].size(); ++i)
          ASSERT_EQ(loaded[p][i], 1000.0 * static_cast<double>(p) + static_cast<double>(i)) << specs[p].name;
    }
  }
}

TEST(Loading, ARankReadsItsOwnPartOfAStepsDataAndNotInTheStepsTime) {
  const Plan plan = parse_plan("2x1x2,microbatches=2");
  const FirstRanks ranks(plan.mesh.ranks());
  if (!ranks) return;
  const TrainingCase c = small_case();
  const ProgramSet set = lower(c.model, c.shape, plan);
  constexpr double kSlow = 0.2;  // seconds, of each of the 4 sequences that a rank reads in a step
  std::int64_t read = 0;
  const std::int64_t size = 1000;
  TokenSource source({{"slow",
                       size,
                       [&](std::int64_t first, std::span<std::int32_t> tokens) {
                         std::this_thread::sleep_for(std::chrono::duration<double>(kSlow));
                         for (std::size_t i = 0; i < tokens.size(); ++i)
                           tokens[i] = static_cast<std::int32_t>((first + static_cast<std::int64_t>(i)) % kVocabulary);
                         read += static_cast<std::int64_t>(tokens.size());
                         return size;
                       },
                       {}}});
  Batches data(std::move(source),
               {.microbatches = 2, .dp = 2, .batch = set.step.microbatch, .tokens = set.step.tokens});
  TrainingConfig config;
  config.name = "small";
  config.lr = {.max_lr = 1e-3, .min_lr = 1e-3, .end_lr = 1e-3, .end_steps = 10};
  std::vector<double> seconds;
  train(set, c.model, config, ranks.get(), data, {.steps = 2},
        [&](const TrainedStep& s) { seconds.push_back(s.seconds); });
  EXPECT_EQ(read, 2 * 4 * (8 / 2 + 1));  // steps, sequences, half of each and a target
  if (seconds.empty()) return;           // on rank 0
  EXPECT_LT(*std::ranges::min_element(seconds), 4 * kSlow);
}

}  // namespace
}  // namespace meshwright
