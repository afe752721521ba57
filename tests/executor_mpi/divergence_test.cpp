// A gradient that is not finite is seen before it reaches the weights: all ranks stop at the same step, name the same
// tensor, and keep weights and moments, bit for bit.
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>

#include "executor/train.h"
#include "model/families/jaxformer.h"
#include "model/lowering/lower.h"
#include "tests/executor_mpi/training_case.h"

namespace meshwright {
namespace {

constexpr int kVocabulary = 40;
using State = Executor::State;

TrainingCase small_case() {
  TrainingCase c;
  c.model = jaxformer("small",
                      {.model_dimension = 32,
                       .vocab_size = kVocabulary,
                       .n_head = 4,
                       .blocks = 2,
                       .layers_per_block = 2,
                       .latent_dim = 8,
                       .dhR = 4,
                       .dropout_rate = 0,
                       .k = 2,
                       .n_experts = 4,
                       .n_shared = 1,
                       .capacity_factor = 1.25},
                      0.01);
  c.shape = {.sequences = 8, .tokens = 16};
  c.input = [](std::int64_t s, std::int64_t q, std::int64_t t) {
    return static_cast<std::int32_t>((s * 7 + q * 11 + t * t * 5 + t) % kVocabulary);
  };
  c.target = [next = c.input](std::int64_t s, std::int64_t q, std::int64_t t) { return next(s, q, t + 1); };
  return c;
}

const char* const kPlans[] = {"1x1x1",
                              "2x1x1,fsdp=0",
                              "2x1x1,fsdp=1",
                              "2x1x2,fsdp=2",
                              "2x2x2,fsdp=3,microbatches=2,schedule=1f1b",
                              "1x4x1,microbatches=4,schedule=gpipe",
                              "1x2x4,microbatches=2,recompute=full"};

bool same_bits(const std::vector<std::vector<double>>& a, const std::vector<std::vector<double>>& b) {
  if (a.size() != b.size()) return false;
  for (std::size_t i = 0; i < a.size(); ++i)
    if (a[i].size() != b[i].size() || std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(double)) != 0)
      return false;
  return true;
}

// The last stage's logits become NaN on one of its ranks, as if an activation had overflowed there.
void poison_logits(Executor& executor) {
  const MeshCoordinates at = executor.mesh().coordinates();
  if (at.dp != executor.mesh().shape().dp - 1 || at.tp != 0) return;
  executor.on_logits = [](std::int64_t, std::int64_t, std::int64_t, const void* logits) {
    static_cast<float*>(const_cast<void*>(logits))[0] = std::numeric_limits<float>::quiet_NaN();
  };
}

TEST(Divergence, NanOnOneRankStopsAllRanksBeforeTheUpdateAndTheNextStepIsAsIfItHadNotBeen) {
  const TrainingCase c = small_case();
  const std::vector<ParameterSpec> specs = parameters(c.model);
  for (const char* text : kPlans) {
    SCOPED_TRACE(text);
    if (failed_anywhere()) return;
    const Plan plan = parse_plan(text);
    const FirstRanks ranks(plan.mesh.ranks());
    if (!ranks) continue;
    const ProgramSet set = lower(c.model, c.shape, plan);
    Executor hit(set, ranks.get(), {}), spared(set, ranks.get(), {});
    const auto step = [&](Executor& executor, std::int64_t number) {
      return executor.run_step(
          {.step = number, .learning_rate = 1e-2, .fill = token_filler(c, executor.mesh(), set.step, number)});
    };
    for (Executor* executor : {&hit, &spared}) {
      executor->load_parameters(initial_weights(specs, 1));
      step(*executor, 0);
    }
    const auto weights = hit.gather(State::kParameters), moment1 = hit.gather(State::kMoment1),
               moment2 = hit.gather(State::kMoment2);
    EXPECT_GT(*std::max_element(moment2[0].begin(), moment2[0].end()), 0);  // there is something to lose

    poison_logits(hit);
    bool stopped = false;
    try {
      step(hit, 1);
    } catch (const Diverged& e) {
      stopped = true;
      EXPECT_EQ(e.facts().step, 1);
      EXPECT_TRUE(std::isnan(e.facts().loss));
      EXPECT_TRUE(std::isnan(e.facts().gradient_norm));
      EXPECT_EQ(e.facts().tensor, specs.front().name);  // a NaN of the loss reaches every tensor
      EXPECT_EQ(e.facts().of_tensors, static_cast<int>(specs.size()));
      EXPECT_NE(std::string(e.what()).find("training diverged in step 2"), std::string::npos) << e.what();
    }
    EXPECT_TRUE(stopped);
    EXPECT_TRUE(same_bits(hit.gather(State::kParameters), weights));
    EXPECT_TRUE(same_bits(hit.gather(State::kMoment1), moment1));
    EXPECT_TRUE(same_bits(hit.gather(State::kMoment2), moment2));

    // Gathered copies of the weights, which no State shows, are whole, too: the next step gives the same bits.
    hit.on_logits = nullptr;
    EXPECT_EQ(step(hit, 1).loss, step(spared, 1).loss);
    EXPECT_TRUE(same_bits(hit.gather(State::kParameters), spared.gather(State::kParameters)));
  }
}

// One gradient overflows while everything else stays finite: the input of a product is huge, its weights are 0, so that
// nothing comes of it forward, and the gradient of what it gives is large, as the product behind it has large weights.
TEST(Divergence, TheFirstTensorIsNamedWithItsRankAndStage) {
  const TrainingCase c = small_case();
  const std::vector<ParameterSpec> specs = parameters(c.model);
  const std::string layer = "layers.2.";  // of 4: on the second stage of two
  std::string up, down, gamma;
  for (const ParameterSpec& p : specs) {
    if (!p.name.starts_with(layer)) continue;
    if (p.name.ends_with("ffn.0.kernel")) up = p.name;
    if (p.name.ends_with("ffn.1.kernel")) down = p.name;
  }
  gamma = layer + "norm1.gamma";
  std::string names;
  for (const ParameterSpec& p : specs) names += p.name + " ";
  ASSERT_TRUE(!up.empty() && !down.empty()) << names;
  const auto source = initial_weights(specs, 1);
  for (const char* text : {"1x1x1", "2x2x2,fsdp=2,microbatches=2", "1x2x1,microbatches=2"}) {
    SCOPED_TRACE(text);
    if (failed_anywhere()) return;
    const Plan plan = parse_plan(text);
    const FirstRanks ranks(plan.mesh.ranks());
    if (!ranks) continue;
    const ProgramSet set = lower(c.model, c.shape, plan);
    Executor executor(set, ranks.get(), {});
    executor.load_parameters([&](int parameter, std::int64_t first, std::int64_t n, float* out) {
      const std::string& name = specs[static_cast<std::size_t>(parameter)].name;
      source(parameter, first, n, out);
      if (name == gamma) std::fill_n(out, n, 1e37f);
      if (name == up) std::fill_n(out, n, 0.0f);
      if (name == down) std::fill_n(out, n, 1e7f);
    });
    try {
      executor.run_step({.learning_rate = 1e-3, .fill = token_filler(c, executor.mesh(), set.step, 0)});
      ADD_FAILURE() << "no gradient overflowed";
    } catch (const Diverged& e) {
      EXPECT_EQ(e.facts().tensor, up) << e.what();
      EXPECT_EQ(e.facts().tensors, 1);
      EXPECT_EQ(e.facts().stage, plan.mesh.pp - 1);
      EXPECT_EQ(e.facts().rank, (plan.mesh.pp - 1) * plan.mesh.tp) << "the lowest of its stage that keeps some of it";
      EXPECT_TRUE(std::isfinite(e.facts().loss));
      EXPECT_FALSE(std::isfinite(e.facts().gradient_norm));
    }
  }
}

// ---- train() ----

TrainingConfig training_config(double learning_rate) {
  TrainingConfig config;
  config.name = "small";
  config.lr = {.max_lr = learning_rate, .min_lr = learning_rate, .end_lr = learning_rate, .end_steps = 100};
  config.grad_clip_norm = 1;
  config.seed = 3;
  return config;
}

struct Trained {
  std::vector<double> losses;  // on rank 0
  std::vector<std::string> warnings;
  std::string diverged;
};

Trained train_at(double learning_rate, std::int64_t steps, const Plan& plan, MPI_Comm comm) {
  const TrainingCase c = small_case();
  const ProgramSet set = lower(c.model, c.shape, plan);
  std::vector<std::int32_t> tokens(2000);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * i % kVocabulary);
  Batches data(TokenSource(tokens), {.microbatches = set.step.microbatches,
                                     .dp = plan.mesh.dp,
                                     .batch = set.step.microbatch,
                                     .tokens = set.step.tokens});
  Trained out;
  try {
    train(set, c.model, training_config(learning_rate), comm, data,
          {.steps = steps, .warn = [&](const std::string& line) { out.warnings.push_back(line); }},
          [&](const TrainedStep& s) { out.losses.push_back(s.result.loss); });
  } catch (const Diverged& e) {
    out.diverged = e.what();
  }
  return out;
}

TEST(Train, ALossThatGrowsAboveTwiceTheFirstIsWarnedOfOnceAndOneThatDoesNotIsNot) {
  const Plan plan = parse_plan("2x1x1");
  const FirstRanks ranks(2);
  if (!ranks) return;
  int rank = 0;
  MPI_Comm_rank(ranks.get(), &rank);
  const Trained calm = train_at(1e-3, 5, plan, ranks.get()), wild = train_at(100, 6, plan, ranks.get());
  EXPECT_TRUE(calm.warnings.empty());
  if (rank != 0) {
    EXPECT_TRUE(wild.warnings.empty());
    return;
  }
  EXPECT_GT(wild.losses.back(), 2 * wild.losses.front());
  ASSERT_EQ(wild.warnings.size(), 1u);
  for (const char* text : {"step 2: the loss is", "guessing costs ln(40) = 3.689", "lower lr.max_lr (now 100)"})
    EXPECT_NE(wild.warnings[0].find(text), std::string::npos) << wild.warnings[0];
}

TEST(Train, DivergenceSaysOnAllRanksWhichStepWhatTheLossWasAndWhatToTry) {
  const Plan plan = parse_plan("1x2x1,microbatches=2");
  const FirstRanks ranks(2);
  if (!ranks) return;
  // The first update, at a rate near the largest float, makes weights whose products overflow in the second step.
  const Trained t = train_at(1e38, 6, plan, ranks.get());
  for (const char* text : {"training diverged in step 2", "weights and moments are those of before the step",
                           "the loss of step 1 was", "lower lr.max_lr (now 1e+38)"})
    EXPECT_NE(t.diverged.find(text), std::string::npos) << t.diverged;
}

TEST(Train, ALossHasGrownAboveTwiceTheFirstOrTwiceWhatGuessingCosts) {
  const double guess = std::log(40.0);
  EXPECT_FALSE(loss_has_grown(2 * guess, 1, 40));  // from below what guessing costs
  EXPECT_TRUE(loss_has_grown(2.01 * guess, 1, 40));
  EXPECT_FALSE(loss_has_grown(2 * guess, 8, 40));  // the first was worse than guessing
  EXPECT_TRUE(loss_has_grown(16.1, 8, 40));
  EXPECT_TRUE(loss_has_grown(std::numeric_limits<double>::infinity(), 8, 40));
}

}  // namespace
}  // namespace meshwright
