// What a layer's backward keeps and what it computes again, of every family.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <filesystem>
#include <map>

#include "model/config.h"
#include "model/lowering/differentiate.h"
#include "model/lowering/step_pieces.h"

namespace meshwright {
namespace {

using testing::HasSubstr;

// Calls f(name, model) for every model that comes with the program.
template <class F>
void for_each_model(F&& f) {
  int models = 0;
  for (const char* folder : {"/configs", "/configs/models"})
    for (const auto& file : std::filesystem::directory_iterator(std::string(REPOSITORY) + folder)) {
      if (file.path().extension() != ".json") continue;
      SCOPED_TRACE(file.path().filename());
      f(file.path().stem().string(), read_config(file.path()).model);
      ++models;
    }
  EXPECT_GE(models, 20);
}

StepPieces pieces(const ModelSpec& model, int tp, Recompute recompute, int fsdp = 0) {
  return make_step_pieces(model, {.sequences = 2, .tokens = 64},
                          {.mesh = {fsdp ? 2 : 1, 1, tp}, .fsdp = fsdp, .recompute = recompute});
}

TEST(Recomputation, SelectivelyKeepsLessThanAllAndMoreThanNothingOfEveryLayer) {
  for_each_model([](const std::string&, const ModelSpec& model) {
    for (const int tp : {1, 2}) {
      const StepPieces all = pieces(model, tp, Recompute::kNone), half = pieces(model, tp, Recompute::kSelective),
                       nothing = pieces(model, tp, Recompute::kFull);
      ASSERT_EQ(half.kinds.size(), all.kinds.size());
      for (std::size_t kind = 0; kind < all.kinds.size(); ++kind) {
        SCOPED_TRACE(all.set.pieces[static_cast<std::size_t>(all.kinds[kind].forward)].name);
        EXPECT_LT(half.kinds[kind].stash, all.kinds[kind].stash);
        EXPECT_GT(half.kinds[kind].stash, nothing.kinds[kind].stash);
      }
    }
  });
}

TEST(Recomputation, SelectivelyTheHiddenChannelsOfLlamaGoAsTheyAreMoreThanHalf) {
  // A token of 8B: q and what is attended to 4,096 each, k and v 1,024 each, x1 4,096; gate and up 2 * 14,336. These
  // cost as much a byte as q, k and v, and don't fit into the half. So 14,336 of 43,008 stay, in bf16; and in f32 the
  // log-sum-exp of 32 heads and 1/rms of two norms, of which the half holds what the others leave.
  const ModelSpec model = read_config(std::string(REPOSITORY) + "/configs/models/llama-3-8b.json").model;
  const StepPieces step = pieces(model, 1, Recompute::kSelective);
  ASSERT_EQ(step.kinds.size(), 1u);
  std::map<std::string, std::int64_t> kept;  // channels of a token
  for (const Tensor& t : step.set.pieces[static_cast<std::size_t>(step.kinds[0].forward)].tensors)
    if (t.frame == Frame::kStash) kept[t.name] = elements(t.shape) / 128;
  EXPECT_FALSE(kept.contains("hidden"));
  std::int64_t sum = 0;
  for (const auto& [name, channels] : kept) sum += channels;
  EXPECT_EQ(sum, 4096 * 3 + 1024 * 2 + 32 + 1 + 1);
}

// Gathers over tp of a piece, by what they gather: of values of the forward pass. Of gradients several have one name, as both
// branches have.
std::map<std::string, int> gathers(const Piece& piece) {
  std::map<std::string, int> count;
  for (const Op& op : piece.ops)
    if (const auto* c = std::get_if<Collective>(&op); c && c->kind == CollectiveKind::kAllGather)
      if (const Tensor& t = piece.tensors[static_cast<std::size_t>(c->src.tensor)];
          t.frame != Frame::kD && !t.name.starts_with("d."))
        ++count[t.name];
  return count;
}

TEST(Recomputation, NoBackwardGathersTheSameTwice) {
  for_each_model([](const std::string&, const ModelSpec& model) {
    for (const Recompute recompute :
         {Recompute::kNone, Recompute::kSelective, Recompute::kFull,
          Recompute::of(RecomputeKind::kAttentionProjections), Recompute::of(RecomputeKind::kFeedForward)}) {
      SCOPED_TRACE(name(recompute));
      const StepPieces step = pieces(model, 2, recompute);
      for (const BlockPieces& kind : step.kinds) {
        const Piece& forward = step.set.pieces[static_cast<std::size_t>(kind.forward)];
        const Piece& backward = step.set.pieces[static_cast<std::size_t>(kind.backward)];
        const auto transfers = [](const Piece& piece, bool only_gathers) {
          return std::ranges::count_if(piece.ops, [&](const Op& op) {
            const auto* c = std::get_if<Collective>(&op);
            return c && (c->kind == CollectiveKind::kAllGather ||
                         (!only_gathers && c->kind == CollectiveKind::kReduceScatter));
          });
        };
        // What was gathered is gathered once, and so is the gradient of what was scattered.
        for (const auto& [what, times] : gathers(backward)) EXPECT_EQ(times, 1) << backward.name << " gathers " << what;
        EXPECT_GT(transfers(forward, false), 0);
        EXPECT_LE(transfers(backward, true), transfers(forward, false)) << backward.name;
      }
    }
  });
}

// y = h w' beside h w', h = x w, where w' is half of w's columns: a part of the weight is used behind the whole.
Piece half_of_a_weight_behind_all_of_it() {
  Piece piece{.name = "halves",
              .tensors = {{"x", {8, 4}, DType::kF32, Frame::kX, 0},
                          {"w", {4, 4}, DType::kF32, Frame::kWeights, 0},
                          {"h", {8, 4}, DType::kF32, Frame::kWorkspace, 0},
                          {"y", {8, 4}, DType::kF32, Frame::kXOut, 0}}};
  const View x{0, 8, 4, 4, 0}, w{1, 4, 4, 4, 0}, h{2, 8, 4, 4, 0}, y{3, 8, 4, 4, 0};
  piece.ops = {Gemm{.a = x, .b = w, .c = h}, Gemm{.a = h, .b = w.columns(0, 2), .c = y.columns(0, 2)},
               Gemm{.a = h, .b = w.columns(0, 2), .c = y.columns(2, 2)}};
  return piece;
}

TEST(Gradients, OfAWeightOfWhichAPartIsUsedAreClearedWhereTheyAreWrittenAnew) {
  const Differentiated pieces =
      differentiate(half_of_a_weight_behind_all_of_it(), {}, {.accumulate = false}, {}, "halves");
  int fills = 0;
  for (const Op& op : pieces.backward.ops)
    if (const auto* fill = std::get_if<Fill>(&op)) {
      ++fills;
      EXPECT_EQ(pieces.backward.tensors[static_cast<std::size_t>(fill->x.tensor)].name, "d.w");
    }
  EXPECT_EQ(fills, 1);
}

TEST(Gradients, ThatEarlierMicrobatchesHaveLeftAreNeverCleared) {
  try {
    differentiate(half_of_a_weight_behind_all_of_it(), {}, {.accumulate = true}, {}, "halves");
    ADD_FAILURE() << "nothing is refused";
  } catch (const std::logic_error& error) {
    EXPECT_THAT(error.what(), HasSubstr("halves: a part of w is used"));
  }
  // What the models write never comes to that.
  for_each_model([](const std::string&, const ModelSpec& model) {
    for (const BlockPieces& kind : pieces(model, 1, Recompute::kNone, 1).kinds) EXPECT_GE(kind.backward, 0);
  });
}

TEST(Kinds, OfLayersAreNamedByTheFirstOfThemWhereThereAreSeveral) {
  ModelSpec model = read_config(std::string(REPOSITORY) + "/configs/models/llama-tiny.json").model;
  const auto names = [&] {
    const StepPieces step = pieces(model, 1, Recompute::kNone);
    std::vector<std::string> all;
    for (const BlockPieces& kind : step.kinds)
      all.push_back(step.set.pieces[static_cast<std::size_t>(kind.forward)].name);
    return all;
  };
  EXPECT_EQ(names(), std::vector<std::string>{"dense.forward"});
  model.layers.resize(4, model.layers.front());
  std::get<MultiHeadAttention>(model.layers[2].attention).window = 8;
  EXPECT_EQ(names(), (std::vector<std::string>{"dense.layer0.forward", "dense.layer2.forward"}));
  model.layers[3].ffn = std::get<Experts>(
      read_config(std::string(REPOSITORY) + "/configs/models/mixtral-tiny.json").model.layers.front().ffn);
  EXPECT_EQ(names(), (std::vector<std::string>{"dense.layer0.forward", "dense.layer2.forward", "moe.forward"}));
}

}  // namespace
}  // namespace meshwright
