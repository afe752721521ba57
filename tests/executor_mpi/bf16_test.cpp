// Training in bf16 with state, master weights and sums of gradients in f32 follows training in f32.
#include <gtest/gtest.h>

#include "executor/kernels/philox.h"
#include "model/families/jaxformer.h"
#include "model/program/op_work.h"
#include "model/program/verifier.h"
#include "tests/executor_mpi/training_case.h"

namespace meshwright {
namespace {

constexpr std::int64_t kVocabulary = 48;

TrainingCase small_case(DType dtype) {
  TrainingCase c;
  c.model = jaxformer("small",
                      {.model_dimension = 32,
                       .vocab_size = kVocabulary,
                       .n_head = 4,
                       .blocks = 2,
                       .layers_per_block = 2,
                       .latent_dim = 8,
                       .dhR = 4,
                       .dropout_rate = 0.1,
                       .k = 2,
                       .n_experts = 4,
                       .n_shared = 1,
                       .capacity_factor = 1.25},
                      0.01);
  // Several blocks of attention and chunks of logits.
  c.shape = {.sequences = 8, .tokens = 16, .compute = dtype, .attention_block = 5, .logit_elements = 16 * kVocabulary};
  // Something to learn: a token says which comes next, in three cases of four.
  const auto id = [](std::int64_t step, std::int64_t q, std::int64_t t) {
    std::int64_t token =
        static_cast<std::int64_t>(kernels::mix64(static_cast<std::uint64_t>(step * 8 + q)) % kVocabulary);
    for (std::int64_t i = 0; i < t; ++i) {
      const std::uint64_t draw = kernels::mix64(static_cast<std::uint64_t>((step * 8 + q) * 64 + i) + 12345);
      token = draw % 4 ? (token * 5 + 7) % kVocabulary : static_cast<std::int64_t>(draw / 4 % kVocabulary);
    }
    return static_cast<std::int32_t>(token);
  };
  c.input = id;
  c.target = [id](std::int64_t s, std::int64_t q, std::int64_t t) { return id(s, q, t + 1); };
  return c;
}

struct Training {
  std::vector<double> losses;
  std::vector<std::vector<double>> first_gradients;
  RoutingRecord first_routing;  // of one rank alone
};

// `routing`: what the first step takes, where it is not null.
Training train(DType dtype, const Plan& plan, int steps, const RoutingRecord* routing = nullptr) {
  Training out;
  const FirstRanks ranks(plan.mesh.ranks());
  if (!ranks) return out;
  const TrainingCase c = small_case(dtype);
  const ProgramSet set = lower(c.model, c.shape, plan);
  EXPECT_EQ(verify(set), std::vector<std::string>{});
  Executor executor(set, ranks.get(), {.seed = 3});
  const std::vector<ParameterSpec> specs = parameters(c.model);
  executor.load_parameters(initial_weights(specs, 3));
  for (int s = 0; s < steps; ++s) {
    StepInput input{.step = s, .learning_rate = 5e-3, .fill = token_filler(c, executor.mesh(), set.step, s)};
    if (s == 0) input.record = &out.first_routing, input.replay = routing;
    const StepResult r = executor.run_step(input);
    out.losses.push_back(r.loss);
    EXPECT_EQ(
        r.report.executed_flops,
        program_flops(set, set.stages[static_cast<std::size_t>(executor.mesh().coordinates().pp)], r.routed_rows));
    if (s == 0) out.first_gradients = executor.gather(Executor::State::kGradients);
  }
  return out;
}

// A value is off by up to 2^-9 of itself; a loss is a mean over 128 tokens.
TEST(Bf16, LossesFollowThoseOfF32OverThirtyStepsOnEveryKindOfMesh) {
  constexpr int kSteps = 30;
  const Training wide = train(DType::kF32, Plan{}, kSteps);
  for (const char* text :
       {"1x1x1", "1x1x1,recompute=full,microbatches=2", "2x1x1,fsdp=0", "2x1x1,fsdp=1", "2x1x1,fsdp=2,microbatches=2",
        "2x1x1,fsdp=3", "1x1x2", "1x2x1,microbatches=4", "2x2x2,fsdp=3,microbatches=2,recompute=full"}) {
    SCOPED_TRACE(text);
    if (failed_anywhere()) return;
    const Training narrow = train(DType::kBF16, parse_plan(text), kSteps);
    if (narrow.losses.empty() || wide.losses.empty()) continue;
    EXPECT_LT(narrow.losses.back(), 0.8 * narrow.losses.front()) << "it should learn";
    EXPECT_NE(narrow.losses.front(), wide.losses.front()) << "it was computed in f32";
    for (int s = 0; s < kSteps; ++s)
      EXPECT_NEAR(narrow.losses[s], wide.losses[s], 0.02 * wide.losses[s]) << "step " << s;
  }
}

// With the same routing, as a choice that turns near a tie moves a gradient by more than rounding does.
TEST(Bf16, GradientsAreThoseOfF32ToSomePerCentInNorm) {
  const Training wide = train(DType::kF32, Plan{}, 1), narrow = train(DType::kBF16, Plan{}, 1, &wide.first_routing);
  for (std::size_t p = 0; p < wide.first_gradients.size(); ++p)
    EXPECT_LT(relative_distance(narrow.first_gradients[p], wide.first_gradients[p]), 0.05) << "parameter " << p;
}

TEST(Bf16, TheSamePlanTwiceGivesTheSameBits) {
  for (const char* text : {"1x1x1", "2x1x1,fsdp=2,microbatches=2", "1x1x2"}) {
    const Training a = train(DType::kBF16, parse_plan(text), 3), b = train(DType::kBF16, parse_plan(text), 3);
    EXPECT_EQ(a.losses, b.losses) << text;
    EXPECT_EQ(a.first_gradients, b.first_gradients) << text;
  }
}

}  // namespace
}  // namespace meshwright
