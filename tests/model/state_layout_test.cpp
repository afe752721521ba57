// State apart from programs: where it lies is said once, for those that train and those that evaluate.
#include "model/program/state_layout.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <algorithm>
#include <map>
#include <vector>

#include "model/families/jaxformer.h"
#include "model/lowering/lower.h"
#include "model/modules/parameter.h"
#include "model/program/verifier.h"
#include "tests/models.h"

namespace meshwright {
namespace {

ModelSpec moe() {
  return jaxformer("small",
                   {.model_dimension = 24,
                    .vocab_size = 37,
                    .n_head = 4,
                    .blocks = 3,
                    .layers_per_block = 2,
                    .latent_dim = 6,
                    .dhR = 4,
                    .dropout_rate = 0.1,
                    .k = 2,
                    .n_experts = 4,
                    .n_shared = 1,
                    .capacity_factor = 1.25},
                   0.01);
}

// Tied and untied tables, positions, biases.
ModelSpec dense(bool tied) {
  ModelSpec model = gpt2_small();
  model.width = 24;
  model.embedding.vocab = 37;
  model.embedding.positions = 16;
  model.layers.resize(5);
  for (Layer& layer : model.layers) {
    layer.attention = MultiHeadAttention{.heads = 4, .kv_heads = 4, .head_dim = 6, .bias = true, .out_bias = true};
    layer.ffn = FeedForward{.hidden = 40};
  }
  model.head.tied = tied;
  return model;
}

TrainingShape some_shape(DType compute = DType::kF32) { return {.sequences = 16, .tokens = 8, .compute = compute}; }

Plan any_legal_plan(const ModelSpec& model) {
  const auto plan = rc::gen::suchThat(
      rc::gen::map(rc::gen::tuple(rc::gen::element(1, 2, 4, 8), rc::gen::element(1, 2, 3, 4), rc::gen::element(1, 2, 4),
                                  rc::gen::inRange(0, 4), rc::gen::element(1, 2)),
                   [](const auto& numbers) {
                     const auto [dp, pp, tp, fsdp, microbatches] = numbers;
                     Plan p{.mesh = {dp, pp, tp}, .fsdp = dp > 1 ? fsdp : 0};
                     p.microbatches = microbatches;
                     return p;
                   }),
      [&](const Plan& p) { return illegalities(model, some_shape(), p).empty(); });
  return *plan;
}

template <class F>
void for_each_rank(const MeshShape& mesh, F&& f) {
  for (int dp = 0; dp < mesh.dp; ++dp)
    for (int pp = 0; pp < mesh.pp; ++pp)
      for (int tp = 0; tp < mesh.tp; ++tp) f(MeshCoordinates{dp, pp, tp});
}

TEST(StateLayout, OverAllRanksOfAnyPlanEveryElementIsOwnedOnceAndOnNoRankDoTwoLieOverEachOther) {
  EXPECT_TRUE(rc::check([] {
    const std::vector<ModelSpec> models{moe(), dense(true), dense(false)};
    const ModelSpec& model = models[*rc::gen::inRange<std::size_t>(0, models.size())];
    const Plan plan = any_legal_plan(model);
    const ProgramSet set = lower(model, some_shape(*rc::gen::element(DType::kF32, DType::kBF16)), plan);
    std::vector<std::vector<int>> owned;
    for (const ParameterSpec& p : parameters(model)) owned.emplace_back(static_cast<std::size_t>(elements(p.shape)), 0);
    for_each_rank(plan.mesh, [&](const MeshCoordinates& at) {
      const StageState& state = set.state_layout->stages[static_cast<std::size_t>(at.pp)];
      std::vector<std::pair<std::int64_t, std::int64_t>> bytes;  // begin and end, of everything kept here
      for_each_kept_run(*set.state_layout, plan.mesh, at, [&](const KeptRun& run) {
        RC_ASSERT(run.count > 0);
        const BlockState& block = state.blocks[static_cast<std::size_t>(run.block)];
        for (const std::int64_t base : {block.master, block.moment1, block.moment2}) {
          const std::int64_t begin = base + run.at * size_of(set.state);
          bytes.emplace_back(begin, begin + run.count * size_of(set.state));
        }
        std::vector<int>& tensor = owned[static_cast<std::size_t>(run.parameter)];
        RC_ASSERT(run.first >= 0 && run.first + run.count <= static_cast<std::int64_t>(tensor.size()));
        for (std::int64_t i = 0; run.owned && i < run.count; ++i) ++tensor[static_cast<std::size_t>(run.first + i)];
      });
      std::ranges::sort(bytes);
      if (!bytes.empty()) {  // a dp rank's shards of small units may be all padding
        RC_ASSERT(bytes.front().first >= 0);
        RC_ASSERT(bytes.back().second <= state.bytes);
      }
      for (std::size_t i = 1; i < bytes.size(); ++i) RC_ASSERT(bytes[i - 1].second <= bytes[i].first);
    });
    for (const auto& tensor : owned) RC_ASSERT(std::ranges::all_of(tensor, [](int times) { return times == 1; }));
  }));
}

ProgramSet evaluation_of(const ModelSpec& model, const Plan& plan, const ProgramSet& training) {
  TrainingShape shape = some_shape(training.compute);
  shape.sequences = 24;
  Plan of_batch = plan;
  of_batch.microbatches = evaluation_microbatches(24 / plan.mesh.dp, training.step.microbatch);
  return lower_evaluation(model, shape, of_batch, training);
}

TEST(EvaluationProgram, OfAnyPlanIsSoundAndWorksOnTheStateOfTheTrainingWithoutGradientsOrDrops) {
  EXPECT_TRUE(rc::check([] {
    const std::vector<ModelSpec> models{moe(), dense(true), dense(false)};
    const ModelSpec& model = models[*rc::gen::inRange<std::size_t>(0, models.size())];
    const Plan plan = any_legal_plan(model);
    const ProgramSet training =
        lower(model, some_shape(*rc::gen::element(DType::kF32, DType::kF64, DType::kBF16)), plan);
    const ProgramSet set = evaluation_of(model, plan, training);
    RC_ASSERT(verify(set).empty());
    RC_ASSERT(set.state_layout == training.state_layout);
    for (std::size_t s = 0; s < set.stages.size(); ++s) {
      const Program &program = set.stages[s], &trained = training.stages[s];
      RC_ASSERT(program.first_layer == trained.first_layer && program.layers == trained.layers);
      const std::vector<Region>& state = set.state_layout->stages[s].regions;
      for (const Program* p : {&program, &trained})
        for (std::size_t i = 0; i < state.size(); ++i) {
          RC_ASSERT(p->regions[i].offset == state[i].offset && p->regions[i].bytes == state[i].bytes);
        }
      RC_ASSERT(program.bytes_by_class()[static_cast<std::size_t>(MemoryClass::kGradients)] == 0);
      for_each_op(set, program, [&](const Slot&, const Call&, const Piece& piece, const Op& op) {
        for_each_operand(op, [&](std::string_view, const View& view, Access) {
          const Frame frame = piece.tensors[static_cast<std::size_t>(view.tensor)].frame;
          RC_ASSERT(frame != Frame::kGrads && frame != Frame::kGradShard && frame != Frame::kMoment1 &&
                    frame != Frame::kMoment2 && frame != Frame::kD);
        });
        if (const auto* route = std::get_if<Route>(&op)) RC_ASSERT(route->shape.capacity == 0);
        if (const auto* residual = std::get_if<Residual>(&op)) RC_ASSERT(residual->dropout == 0);
        if (const auto* attention = std::get_if<Attention>(&op)) RC_ASSERT(attention->dropout == 0);
      });
    }
  }));
}

TEST(EvaluationProgram, RunsTheForwardsOfItsMicrobatchesOneAfterTheOther) {
  const Plan plan{.mesh = {1, 2, 1}, .microbatches = 4, .schedule = Schedule::k1F1B};
  const ModelSpec model = dense(true);
  const ProgramSet training = lower(model, some_shape(), plan), set = evaluation_of(model, plan, training);
  EXPECT_EQ(brief(set.stages[0]), "F0 send F1 send F2 send F3 send F4 send F5 send");  // 24 sequences, 4 at once
  EXPECT_EQ(brief(set.stages[1]), "recv F0 recv F1 recv F2 recv F3 recv F4 recv F5");
  // A microbatch keeps two layers' inputs at most, whatever the number of layers; the training's keeps more.
  EXPECT_LT(set.stages[0].arena_bytes, training.stages[0].arena_bytes);
  EXPECT_LT(set.stages[1].arena_bytes, training.stages[1].arena_bytes);
}

TEST(EvaluationProgram, HasAsFewMicrobatchesAsAreNoLargerThanAStepsAndDivideTheBatch) {
  EXPECT_EQ(evaluation_microbatches(16, 4), 4);
  EXPECT_EQ(evaluation_microbatches(3, 2), 3);
  EXPECT_EQ(evaluation_microbatches(2, 8), 1);
  EXPECT_EQ(evaluation_microbatches(10, 4), 5);  // 3 do not divide 10, nor do 4
  EXPECT_EQ(evaluation_microbatches(7, 6), 7);
}

TEST(EvaluationProgram, ThatWritesToTheStateOrRunsABackwardIsFoundFaulty) {
  const Plan plan{.mesh = {2, 2, 1}, .microbatches = 2};
  const ModelSpec model = moe();
  const ProgramSet training = lower(model, some_shape(), plan), sound = evaluation_of(model, plan, training);
  ASSERT_TRUE(verify(sound).empty());
  const auto faults_of = [](const ProgramSet& set) {
    std::string all;
    for (const std::string& fault : verify(set)) all += fault + "\n";
    return all;
  };
  for (const std::int64_t BlockState::*kept :
       {&BlockState::master, &BlockState::moment1, &BlockState::moment2, &BlockState::weights}) {
    ProgramSet set = sound;  // its metrics lie over a part of the state
    for (Call& call : set.stages[1].chunks[0].calls)
      call.base[static_cast<std::size_t>(Frame::kMetrics)] = set.state_layout->stages[1].blocks[0].*kept;
    EXPECT_NE(faults_of(set).find("an evaluation writes to the state"), std::string::npos) << faults_of(set);
  }
  ProgramSet backward = sound;
  backward.stages[1].slots[2].action = Action::kBackward;
  EXPECT_NE(faults_of(backward).find("there is no stage for it"), std::string::npos) << faults_of(backward);
  ProgramSet as_training = sound;
  as_training.purpose = Purpose::kTraining;
  EXPECT_NE(faults_of(as_training).find("B0: is there 0 times"), std::string::npos) << faults_of(as_training);
}

TEST(EvaluationProgram, IsRefusedForAnotherPlansState) {
  const ModelSpec model = moe();
  const ProgramSet training = lower(model, some_shape(), {.mesh = {2, 1, 1}, .fsdp = 1});
  EXPECT_THROW(lower_evaluation(model, some_shape(), {.mesh = {1, 2, 1}}, training), std::logic_error);
  EXPECT_THROW(lower_evaluation(model, some_shape(), {.mesh = {2, 1, 1}, .fsdp = 3}, training), std::logic_error);
}

// A search cuts one lowering again and again: what an earlier cut's set refers to stays as it is.
TEST(StateLayout, OfACutStaysWhenTheSameLoweringIsCutAgain) {
  const ModelSpec model = moe();
  Lowering lowering(model, some_shape(), {.mesh = {1, 2, 1}});
  const ProgramSet first = lowering.cut({2, 4});
  const std::int64_t bytes = first.state_layout->stages[0].bytes;
  const ProgramSet& second = lowering.cut({4, 2});
  EXPECT_EQ(first.state_layout->stages[0].bytes, bytes);
  EXPECT_EQ(first.state_layout->stages[0].blocks.size(), 3u);
  EXPECT_EQ(second.state_layout->stages[0].blocks.size(), 5u);
  EXPECT_TRUE(verify(first).empty());
  EXPECT_TRUE(verify(second).empty());
}

}  // namespace
}  // namespace meshwright
