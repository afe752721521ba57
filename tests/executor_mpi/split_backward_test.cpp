// The two parts of a backward pass, one after the other, leave the same bits as the whole.
#include "model/lowering/split_backward.h"

#include <gtest/gtest.h>
#include <mpi.h>

#include <cstring>

#include "model/families/jaxformer.h"
#include "tests/executor_mpi/training_case.h"

namespace meshwright {
namespace {

TrainingCase small_case() {
  TrainingCase c;
  c.model = jaxformer("split",
                      {.model_dimension = 16,
                       .vocab_size = 24,
                       .n_head = 4,
                       .blocks = 1,
                       .layers_per_block = 2,
                       .latent_dim = 8,
                       .dhR = 4,
                       .dropout_rate = 0.2,
                       .k = 2,
                       .n_experts = 4,
                       .n_shared = 2,
                       .capacity_factor = 1.25},
                      0.01);
  c.shape = {.sequences = 4, .tokens = 8, .compute = DType::kF64};
  c.input = [](std::int64_t s, std::int64_t q, std::int64_t t) {
    return static_cast<std::int32_t>((s * 5 + q * 7 + t * 11 + q * t) % 24);
  };
  c.target = [input = c.input](std::int64_t s, std::int64_t q, std::int64_t t) { return input(s, q, t + 1); };
  return c;
}

std::vector<std::vector<double>> gradients(const TrainingCase& c, const ProgramSet& set, MPI_Comm comm) {
  Executor executor(set, comm, {.seed = 7});
  const std::vector<ParameterSpec> specs = parameters(c.model);
  executor.load_parameters(initial_weights(specs, 7));
  executor.run_step({.step = 0, .learning_rate = 0, .fill = token_filler(c, executor.mesh(), set.step, 0)});
  return executor.gather(Executor::State::kGradients);
}

// Every layer's backward as two calls, what lies between them in memory of its own behind the arena.
ProgramSet with_split_backwards(ProgramSet set) {
  std::vector<int> part_of(set.pieces.size(), -1);  // the weights' part, by the input's
  std::int64_t largest = 0;
  const std::size_t pieces = set.pieces.size();
  for (std::size_t p = 0; p < pieces; ++p) {
    if (set.pieces[p].name != "dense.backward" && set.pieces[p].name != "moe.backward") continue;
    // Of the stash nothing is read beside what lies between the two: it gets a frame of its own in the calls below.
    SplitBackward split = meshwright::split(set.pieces[p], std::int64_t{1} << 40);
    largest = std::max({largest, split.stash_bytes, split.input.workspace_bytes, split.weights.workspace_bytes});
    EXPECT_FALSE(split.weights.ops.empty());
    EXPECT_LT(split.weights.ops.size() + split.input.ops.size(), 2 * set.pieces[p].ops.size());
    part_of[p] = static_cast<int>(set.pieces.size());
    // Tensors between the parts lie at 2^40 in the stash: move them to the receive buffers' frame, behind the arena.
    for (Piece* piece : {&split.input, &split.weights})
      for (Tensor& t : piece->tensors)
        if (t.frame == Frame::kStash && t.offset >= std::int64_t{1} << 40) {
          t.frame = Frame::kMoment1;
          t.offset -= std::int64_t{1} << 40;
        }
    set.pieces[p] = std::move(split.input);
    set.pieces.push_back(std::move(split.weights));
  }
  EXPECT_GT(set.pieces.size(), pieces);
  for (Program& program : set.stages) {
    const std::int64_t between = program.arena_bytes;
    program.regions.push_back({"between the parts", MemoryClass::kWorkspace, between, largest});
    program.arena_bytes += largest;
    // The workspaces of the parts are no larger than both parts' together: they get room of their own, too.
    const std::int64_t workspace = program.arena_bytes;
    program.regions.push_back({"parts' workspace", MemoryClass::kWorkspace, workspace, largest});
    program.arena_bytes += largest;
    for (Chunk& chunk : program.chunks) {
      std::vector<Call> calls;
      for (Call call : chunk.calls) {
        const int weights =
            call.piece < static_cast<int>(part_of.size()) ? part_of[static_cast<std::size_t>(call.piece)] : -1;
        if (weights >= 0) {
          const auto set_frame = [&](Frame frame, std::int64_t base) {
            call.base[static_cast<std::size_t>(frame)] = base;
            call.anchor[static_cast<std::size_t>(frame)] = Anchor::kFixed;
          };
          set_frame(Frame::kMoment1, between);
          set_frame(Frame::kWorkspace, workspace);
        }
        calls.push_back(call);
        if (weights < 0) continue;
        call.piece = weights;
        calls.push_back(call);
      }
      chunk.calls = std::move(calls);
    }
  }
  return set;
}

TEST(SplitBackward, OneAfterTheOtherTheTwoPartsLeaveTheBitsOfTheWhole) {
  const TrainingCase c = small_case();
  for (const char* text : {"1x1x1", "1x1x2,microbatches=2", "2x2x1,microbatches=2,recompute=full",
                           "1x2x2,microbatches=2,recompute=selective", "2x1x2,fsdp=3,microbatches=2"}) {
    SCOPED_TRACE(text);
    const Plan plan = parse_plan(text);
    const FirstRanks ranks(plan.mesh.ranks());
    if (!ranks) continue;
    const ProgramSet whole = lower(c.model, c.shape, plan), parts = with_split_backwards(whole);
    const auto expected = gradients(c, whole, ranks.get()), actual = gradients(c, parts, ranks.get());
    ASSERT_EQ(actual.size(), expected.size());
    for (std::size_t p = 0; p < expected.size(); ++p)
      EXPECT_EQ(std::memcmp(actual[p].data(), expected[p].data(), expected[p].size() * sizeof(double)), 0)
          << whole.parameters()[p].name;
  }
}

}  // namespace
}  // namespace meshwright
