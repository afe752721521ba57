#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <tuple>

#include "model/accounting.h"
#include "model/families/jaxformer.h"
#include "model/lowering/differentiate.h"
#include "model/lowering/lifetimes.h"
#include "model/lowering/lower.h"
#include "model/lowering/schedule.h"
#include "model/modules/forward.h"
#include "model/program/layout.h"
#include "model/program/op_work.h"
#include "model/program/piece_check.h"
#include "model/program/slot_name.h"

namespace meshwright {
namespace {

const ModelSpec kSmall = jaxformer("small",
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
const TrainingShape kShape{.sequences = 16, .tokens = 8};

TEST(Layouts, GoingFromOneToAnotherIsTheCollective) {
  const Layout whole = Layout::replicate(), cut = Layout::shard(0), summand = Layout::partial();
  EXPECT_EQ(reshard(cut, whole), CollectiveKind::kAllGather);
  EXPECT_EQ(reshard(summand, cut), CollectiveKind::kReduceScatter);
  EXPECT_EQ(reshard(summand, whole), CollectiveKind::kAllReduce);
  EXPECT_EQ(reshard(cut, cut), std::nullopt);
  EXPECT_EQ(reshard(whole, cut), std::nullopt);
  EXPECT_THROW(reshard(whole, summand), std::logic_error);
  EXPECT_THROW(reshard(cut, Layout::shard(1)), std::logic_error);
}

TEST(Parameters, AreFoundByTheWholeOfTheirNames) {
  ProgramSet set;
  const auto state = std::make_shared<StateLayout>();
  state->parameters = {{"layers.3.moe.down.kernel", {2, 4}}, {"down.kernel", {4, 4}}};
  set.state_layout = state;
  const Block layer{.name = "layers.3",
                    .layer = 3,
                    .units = {{.name = "layers.3", .parameters = {{0, {}, {2, 4}, 0}}, .elements = 8, .padded = 16}},
                    .padded = 16};
  const Block outside{
      .name = "embedding",
      .units = {{.name = "embedding", .parameters = {{1, {}, {4, 4}, 0}}, .elements = 16, .padded = 16}},
      .padded = 16};
  const StepContext context{.set = set};
  Forward in_layer("p", context, &layer), elsewhere("p", context, &outside);
  EXPECT_TRUE(in_layer.has("moe.down.kernel"));
  for (const char* name : {"down.kernel", "kernel", "layers.3.moe.down.kernel", "own.kernel", "moe.down", ""})
    EXPECT_FALSE(in_layer.has(name)) << name;
  EXPECT_THROW(in_layer.param("down.kernel"), std::logic_error);
  EXPECT_EQ(elsewhere.param("down.kernel").rows, 4);
  EXPECT_FALSE(elsewhere.has("kernel"));
}

TEST(Layouts, SummandsThatBecomeTheWholeEverywhereAreSummedInPlace) {
  ProgramSet set;
  set.mesh.tp = 2;
  const StepContext context{.set = set};
  Forward b("p", context, nullptr);
  const View x = b.at(Frame::kX, "x", 6, 4, DType::kF32), sums = b.value("sums", 6, 1, DType::kF32);
  b.add(RowMeanSquare{x, sums, 8});
  const View whole = b.reshard(sums, Layout::partial(), Layout::replicate(), "whole");
  EXPECT_EQ(whole.tensor, sums.tensor);
  Piece piece = b.take();
  ASSERT_EQ(piece.ops.size(), 2u);
  const auto& op = std::get<Collective>(piece.ops.back());
  EXPECT_EQ(op.kind, CollectiveKind::kAllReduce);
  EXPECT_EQ(op.group, Group::kTp);
  EXPECT_EQ(op.scratch.rows * op.scratch.cols, 3);  // half of the buffer
  EXPECT_EQ(bytes_sent(op, piece, set.mesh).value, 6 * 4);
  free_after_last_use(piece);
  place_workspace(piece);
  EXPECT_TRUE(check_piece(piece, set.mesh).faults.empty());

  set.mesh.tp = 1;  // nobody to add to
  Forward alone("p", context, nullptr);
  alone.reshard(alone.value("sums", 6, 1), Layout::partial(), Layout::replicate(), "whole");
  EXPECT_TRUE(alone.take().ops.empty());
}

template <class O>
std::vector<O> all(const Piece& piece) {
  std::vector<O> found;
  for (const Op& op : piece.ops)
    if (const auto* o = std::get_if<O>(&op)) found.push_back(*o);
  return found;
}

TEST(Differentiation, TakesContiguousWindowsForTheElementsThatTheyHoldHoweverTheyAreSeen) {
  // Each head of q is normed, as rows of their own; then q is one matrix again.
  constexpr std::int64_t kRows = 6, kHeads = 2, kWidth = 4, kColumns = kHeads * kWidth;
  ProgramSet set;
  const StepContext context{.set = set};
  Forward b("p", context, nullptr);
  const auto weight = [&](const char* name, std::int64_t rows, std::int64_t cols, std::int64_t offset) {
    return b.at(Frame::kWeights, name, rows, cols, DType::kF32, offset);
  };
  const View x = b.at(Frame::kX, "x", kRows, kColumns, DType::kF32),
             y = b.at(Frame::kXOut, "y", kRows, kColumns, DType::kF32), q = b.value("q", kRows, kColumns),
             normed = b.value("normed", kRows, kColumns), out = b.value("out", kRows, kColumns);
  const auto by_head = [&](const View& v) { return View{v.tensor, kRows * kHeads, kWidth, kWidth, 0}; };
  b.add(Gemm{.a = x, .b = weight("wq", kColumns, kColumns, 0), .c = q},
        RmsNorm{.x = by_head(q),
                .gamma = weight("gamma", 1, kWidth, 256),
                .out = by_head(normed),
                .rstd = b.value("rstd", kRows * kHeads, 1)},
        Gemm{.a = normed, .b = weight("wo", kColumns, kColumns, 320), .c = out}, Residual{.x = x, .in = out, .out = y});
  const Differentiated pieces = differentiate(b.take(), set.mesh, {}, {}, "p");
  EXPECT_TRUE(all<Fill>(pieces.backward).empty());
  const auto norms = all<RmsNormBackward>(pieces.backward);
  ASSERT_EQ(norms.size(), 1u);
  EXPECT_FALSE(norms[0].accumulate_dx);
  EXPECT_EQ(norms[0].dy.rows, kRows * kHeads);
  EXPECT_TRUE(check_piece(pieces.forward, set.mesh).faults.empty());
  EXPECT_TRUE(check_piece(pieces.backward, set.mesh).faults.empty());
}

TEST(Differentiation, OfAStreamThatIsNormedBehindTheSkipBringsItsGradientBackWhereItBelongs) {
  // y = norm(x + x w): the gradient behind the norm comes together elsewhere.
  ProgramSet set;
  const StepContext context{.set = set};
  Forward b("p", context, nullptr);
  const View x = b.at(Frame::kX, "x", 6, 4, DType::kF32), y = b.at(Frame::kXOut, "y", 6, 4, DType::kF32),
             in = b.value("in", 6, 4), sum = b.value("sum", 6, 4);
  b.add(Gemm{.a = x, .b = b.at(Frame::kWeights, "w", 4, 4, DType::kF32), .c = in},
        Residual{.x = x, .in = in, .out = sum},
        LayerNorm{.x = sum,
                  .gamma = b.at(Frame::kWeights, "gamma", 1, 4, DType::kF32, 64),
                  .beta = b.at(Frame::kWeights, "beta", 1, 4, DType::kF32, 128),
                  .out = y,
                  .mean = b.value("mean", 6, 1),
                  .rstd = b.value("rstd", 6, 1)});
  const Differentiated pieces = differentiate(b.take(), set.mesh, {}, {}, "p");
  const auto copies = all<Cast>(pieces.backward);
  ASSERT_EQ(copies.size(), 1u);
  const TensorId d = copies[0].out.tensor;
  EXPECT_EQ(pieces.backward.tensors[static_cast<std::size_t>(d)].frame, Frame::kD);
  const Gemm last = all<Gemm>(pieces.backward).back();  // d += din w^T
  EXPECT_EQ(last.c.tensor, d);
  EXPECT_TRUE(last.accumulate);
  EXPECT_TRUE(check_piece(pieces.forward, set.mesh).faults.empty());
  EXPECT_TRUE(check_piece(pieces.backward, set.mesh).faults.empty());
}

TEST(Layouts, KeysAndValuesAreCutEachByItself) {
  // (2, 8): keys in columns 0..3, values in 4..7. The second of two ranks holds columns 2, 3 and 6, 7 of both rows.
  const std::vector<ParameterSpec> all = parameters(kSmall);
  const auto kvup = std::ranges::find(all, "layers.1.mla.kvup.kernel", &ParameterSpec::name);
  ASSERT_NE(kvup, all.end());
  const Layout layout = kvup->tp;
  EXPECT_EQ(layout, Layout::shard(1, 2));
  std::vector<std::int64_t> whole(4 * 2);
  for_each_run({2, 8}, layout, 2, 1, [&](std::int64_t local, std::int64_t global, std::int64_t n) {
    for (std::int64_t i = 0; i < n; ++i) whole[static_cast<std::size_t>(local + i)] = global + i;
  });
  EXPECT_EQ(whole, (std::vector<std::int64_t>{2, 3, 6, 7, 10, 11, 14, 15}));
}

TEST(Layouts, EveryElementOfEveryParameterIsOnExactlyOneTpRankOrOnAll) {
  for (const ParameterSpec& p : parameters(kSmall))
    for (const int tp : {1, 2, 4}) {
      const Layout layout = p.tp;
      std::vector<int> held(static_cast<std::size_t>(elements(p.shape)));
      for (int rank = 0; rank < tp; ++rank) {
        std::int64_t local_elements = 0;
        for_each_run(p.shape, layout, tp, rank, [&](std::int64_t local, std::int64_t global, std::int64_t n) {
          EXPECT_EQ(local, local_elements);
          local_elements += n;
          for (std::int64_t i = 0; i < n; ++i) ++held[static_cast<std::size_t>(global + i)];
        });
        EXPECT_EQ(local_elements, elements(local_shape(p.shape, layout, tp))) << p.name;
      }
      const int copies = layout.kind == Layout::Kind::kShard ? 1 : tp;
      EXPECT_EQ(held, std::vector<int>(held.size(), copies)) << p.name << " tp " << tp;
    }
}

std::string actions(Schedule schedule, int stage, int stages, int microbatches) {
  std::string text;
  for (const StageAction& a : stage_actions(schedule, stage, stages, microbatches))
    text += (text.empty() ? "" : " ") + std::string(a.forward ? "F" : "B") + std::to_string(a.microbatch);
  return text;
}

TEST(Schedules, GpipeRunsAllForwardsFirst) { EXPECT_EQ(actions(Schedule::kGPipe, 1, 4, 3), "F0 F1 F2 B0 B1 B2"); }

TEST(Schedules, OneForwardOneBackwardWarmsUpByTheStagesBehindIt) {
  EXPECT_EQ(actions(Schedule::k1F1B, 0, 4, 6), "F0 F1 F2 F3 B0 F4 B1 F5 B2 B3 B4 B5");
  EXPECT_EQ(actions(Schedule::k1F1B, 2, 4, 6), "F0 F1 B0 F2 B1 F3 B2 F4 B3 F5 B4 B5");
  EXPECT_EQ(actions(Schedule::k1F1B, 3, 4, 6), "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5");
  EXPECT_EQ(actions(Schedule::k1F1B, 0, 8, 3), "F0 F1 F2 B0 B1 B2");  // fewer microbatches than stages
}

TEST(Lowering, ThereAreAsManyEntriesAsTheScheduleHasInFlightAndOneMoreForWhatArrivesEarly) {
  for (const Schedule schedule : {Schedule::kGPipe, Schedule::k1F1B})
    for (int stages = 1; stages <= 6; ++stages)
      for (const int m : {1, 2, 4, 8, 16}) {
        const ProgramSet set = lower(kSmall, kShape, {.mesh = {1, stages, 1}, .microbatches = m, .schedule = schedule});
        for (int s = 0; s < stages; ++s) {
          SCOPED_TRACE(std::string(name(schedule)) + ", " + std::to_string(m) + " microbatches, stage " +
                       std::to_string(s) + " of " + std::to_string(stages));
          // GPipe runs all forwards first; 1F1B has run as many more forwards than backwards as there are stages from here.
          const int in_flight = schedule == Schedule::kGPipe ? m : std::min(m, stages - s);
          const auto entries = [&](Action action, Anchor anchor) {
            std::set<std::int64_t> found;
            for (const Slot& slot : set.stages[s].slots)
              if (slot.action == action) found.insert(slot.anchor[static_cast<int>(anchor)]);
            return static_cast<int>(found.size());
          };
          EXPECT_EQ(entries(Action::kForward, Anchor::kStash), in_flight);
          EXPECT_EQ(entries(Action::kForward, Anchor::kInbox), s == 0 ? in_flight : std::min(m, in_flight + 1));
          if (s + 1 < stages) {
            EXPECT_EQ(entries(Action::kForward, Anchor::kOutbox), std::min(m, 2));
          }
          EXPECT_EQ(entries(Action::kBackward, Anchor::kGradientFlow), stages == 1 ? 1 : std::min(m, 2));
        }
      }
}

TEST(Lifetimes, AreAsManyEntriesAsLiveAtOnceWhateverTheOrderOfTheirEnds) {
  // Slots   0 1 2 3 4 5 6 7
  //         a a a a a a          the first ends last: nothing here is first in, first out
  //           b b
  //             c
  //                 d d d        b and c have been free equally long
  //                   e e e
  std::vector<Lifetime> lives{{0, 5}, {1, 2}, {2, 2}, {4, 6}, {5, 7}};
  EXPECT_EQ(place_entries(lives), 3);
  std::vector<int> entries;
  for (const Lifetime& life : lives) entries.push_back(life.entry);
  EXPECT_EQ(entries, (std::vector<int>{0, 1, 2, 1, 2}));
  std::mt19937 random(3);
  for (int round = 0; round < 200; ++round) {
    std::vector<Lifetime> all(1 + random() % 40);
    for (Lifetime& life : all) {
      life.first = static_cast<int>(random() % 50);
      life.last = life.first + static_cast<int>(random() % 20);
    }
    std::ranges::sort(all, {}, &Lifetime::first);
    const int placed = place_entries(all);
    int most = 0;
    for (int slot = 0; slot < 70; ++slot) {
      std::set<int> used;
      int living = 0;
      for (const Lifetime& life : all)
        if (life.first <= slot && slot <= life.last) {
          ++living;
          used.insert(life.entry);
        }
      EXPECT_EQ(static_cast<int>(used.size()), living);
      most = std::max(most, living);
    }
    EXPECT_EQ(placed, most);
  }
}

// All ways to write `layers` as a sum of `stages` positive numbers.
void for_each_cut(int layers, int stages, std::vector<int>& begun,
                  const std::function<void(const std::vector<int>&)>& f) {
  if (stages == 1) {
    begun.push_back(layers);
    f(begun);
    begun.pop_back();
    return;
  }
  for (int n = 1; n <= layers - (stages - 1); ++n) {
    begun.push_back(n);
    for_each_cut(layers - n, stages - 1, begun, f);
    begun.pop_back();
  }
}

TEST(Stages, AreTheBestOfAllCutsWhateverThePiecesCost) {
  std::mt19937 random(11);
  for (int round = 0; round < 60; ++round) {
    for (int stages = 1; stages <= 8; ++stages) {
      // Small whole numbers, so that many cuts tie; every third time nothing runs beside.
      Lowering lowering(kSmall, kShape, {.mesh = {2, stages, 1}, .fsdp = 3});
      std::vector<PieceCost> cost(200);
      for (const int piece : lowering.microbatch_pieces())
        cost.at(piece) = {static_cast<double>(random() % 7), round % 3 ? static_cast<double>(random() % 7) : 0.0};

      // What a stage costs, from its program: a Call for each piece that it runs for a microbatch.
      const auto costs = [&](const std::vector<int>& cut) {
        std::vector<double> all;
        for (const Program& stage : lowering.cut(cut).stages) {
          PieceCost sum;
          for (const Chunk& chunk : stage.chunks)
            if (chunk.name == "forward" || chunk.name == "backward")
              for (const Call& call : chunk.calls) {
                sum.busy += cost[call.piece].busy;
                sum.beside += cost[call.piece].beside;
              }
          all.push_back(std::max(sum.busy, sum.beside));
        }
        return all;
      };
      using Score = std::tuple<double, double, std::vector<int>>;  // costliest, squares, and the last stages first
      std::optional<Score> best;
      std::vector<int> begun;
      for_each_cut(8, stages, begun, [&](const std::vector<int>& cut) {
        const std::vector<double> of_stage = costs(cut);
        const Score score{std::ranges::max(of_stage),
                          std::inner_product(of_stage.begin(), of_stage.end(), of_stage.begin(), 0.0),
                          {cut.rbegin(), cut.rend()}};
        if (!best || score < *best) best = score;
      });
      const std::vector<int> chosen = lowering.balanced(cost);
      ASSERT_EQ(std::vector<int>(chosen.rbegin(), chosen.rend()), std::get<2>(*best)) << stages << " stages";
    }
  }
}

TEST(Stages, AreCutByTheFlopsThatAreExecuted) {
  // Forward, backward and recomputation of the layers, and the logits: the costliest stage of the cut has no more FLOPs
  // than that of any other, as the programs themselves count.
  const auto costliest = [](const Plan& plan) {
    const ProgramSet set = lower(kSmall, kShape, plan);
    std::int64_t most = 0;
    for (const Program& stage : set.stages) most = std::max(most, program_flops(set, stage).value);
    return most;
  };
  for (const Recompute recompute : {Recompute::kNone, Recompute::kFull})
    for (const int stages : {2, 3, 4}) {
      const Plan plan{.mesh = {1, stages, 1}, .recompute = recompute};
      const std::int64_t chosen = costliest(plan);
      std::vector<int> begun;
      for_each_cut(8, stages, begun, [&](const std::vector<int>& cut) {
        Plan other = plan;
        other.layers = cut;
        EXPECT_LE(chosen, costliest(other)) << to_text(other);
      });
    }
}

TEST(Stages, HaveTheLayersThatThePlanSays) {
  const Plan plan{.mesh = {1, 3, 1}, .layers = {1, 5, 2}};
  std::vector<int> layers, first;
  for (const Program& stage : lower(kSmall, kShape, plan).stages) {
    layers.push_back(stage.layers);
    first.push_back(stage.first_layer);
  }
  EXPECT_EQ(layers, plan.layers);
  EXPECT_EQ(first, (std::vector<int>{0, 1, 6}));
  EXPECT_EQ(stage_layers(kSmall, kShape, plan), plan.layers);
}

TEST(Illegalities, LayersNameEveryStageAndAddUpToTheModels) {
  const auto reasons = [](std::vector<int> layers) {
    std::vector<std::string> found;
    for (const Illegality& why : illegalities(kSmall, kShape, {.mesh = {1, 2, 1}, .layers = std::move(layers)}))
      found.push_back(why.reason);
    return found;
  };
  using Reasons = std::vector<std::string>;
  EXPECT_EQ(reasons({}), Reasons{});
  EXPECT_EQ(reasons({3, 5}), Reasons{});
  EXPECT_EQ(reasons({8}), Reasons{"layers that are not those of the stages"});
  EXPECT_EQ(reasons({3, 3, 2}), Reasons{"layers that are not those of the stages"});
  EXPECT_EQ(reasons({9, -1}), Reasons{"layers that are not those of the stages"});
  EXPECT_EQ(reasons({3, 4}), Reasons{"layers that do not add up to the model's"});
  EXPECT_EQ(reasons({2'000'000'000, 2'000'000'000}), Reasons{"layers that do not add up to the model's"});
}

TEST(Illegalities, NumbersThatNoPlanHasAreRefusedBeforeTheyAreDividedBy) {
  for (const Plan& plan :
       {Plan{.mesh = {0, 1, 1}}, Plan{.mesh = {1, 0, 1}}, Plan{.mesh = {1, 1, 0}}, Plan{.mesh = {-1, -1, 1}},
        Plan{.microbatches = 0}, Plan{.microbatches = -4}, Plan{.mesh = {2, 1, 1}, .fsdp = 4}, Plan{.fsdp = -1}}) {
    const auto found = illegalities(kSmall, kShape, plan);
    ASSERT_EQ(found.size(), 1u) << to_text(plan);
    EXPECT_EQ(found[0].reason, "numbers that no plan has");
  }
}

TEST(Lowering, A1F1bStageSendsAndReceivesInTheOrderOfTheTextbook) {
  const ProgramSet set = lower(kSmall, kShape, {.mesh = {1, 2, 1}, .microbatches = 2});
  EXPECT_EQ(brief(set.stages[0]), "F0 send F1 send recv B0 recv B1");
  EXPECT_EQ(brief(set.stages[1]), "recv F0 B0 send recv F1 B1 send");
}

TEST(Lowering, PiecesDoNotGrowWithLayersMicrobatchesOrRanks) {
  JaxformerDimensions d{.model_dimension = 24,
                        .vocab_size = 37,
                        .n_head = 4,
                        .blocks = 4,
                        .layers_per_block = 2,
                        .latent_dim = 6,
                        .dhR = 4,
                        .k = 2,
                        .n_experts = 4};
  const std::size_t few =
      lower(jaxformer("few", d, 0), kShape, {.mesh = {2, 2, 2}, .fsdp = 3, .microbatches = 2}).pieces.size();
  d.blocks = 32;
  const std::size_t many = lower(jaxformer("many", d, 0), {.sequences = 1024, .tokens = 8},
                                 {.mesh = {64, 2, 2}, .fsdp = 3, .microbatches = 16})
                               .pieces.size();
  EXPECT_EQ(few, many);
}

TEST(Lowering, SlotsGrowWithMicrobatchesAndNotWithLayers) {
  // One stage: begin, F and B of each of 8 microbatches, norm, update.
  EXPECT_EQ(lower(kSmall, kShape, {.microbatches = 8}).stages[0].slots.size(), 1u + 16 + 1 + 1);
}

TEST(Lowering, ExecutedFlopsWithoutRecomputationAreThreeForwardsPlusWhatAttentionAndExpertsAdd) {
  // tp 1, one block of attention rows (T = 8 <= 128): scores cover T x T instead of half of it, forward
  //   2 T^2 H (dqk + dv), backward 2 T^2 H (3 dqk + 2 dv); experts run at capacity, not at k choices.
  const ProgramSet set = lower(kSmall, kShape, {});
  double expected = 3.0 * 16 * static_cast<double>(logits_forward_flops(kSmall, 8).value);
  for (const Layer& layer : kSmall.layers) {
    const LayerFlops f = layer_forward_flops(kSmall, layer, 8);
    const auto& mla = std::get<JointLatentAttention>(layer.attention);
    const double dqk = static_cast<double>(mla.head_dim + mla.rope_width), dv = static_cast<double>(mla.head_dim);
    expected += 16 * (3.0 * static_cast<double>((f.total() - f.scores - f.experts).value) +
                      2.0 * 64 * static_cast<double>(mla.heads) * (dqk + dv + 3 * dqk + 2 * dv));
    if (const auto* moe = std::get_if<Experts>(&layer.ffn))
      expected += 16 * 3.0 * 2 * static_cast<double>(moe->experts * moe->capacity(8) * 2 * kSmall.width * moe->hidden);
  }
  EXPECT_EQ(static_cast<double>(program_flops(set, set.stages[0]).value), expected);
}

TEST(Lowering, RecomputationAddsTheForwardsOfTheLayersExceptTheirLastProducts) {
  const ProgramSet none = lower(kSmall, kShape, {}), full = lower(kSmall, kShape, {.recompute = Recompute::kFull});
  EXPECT_GT(program_flops(full, full.stages[0]), program_flops(none, none.stages[0]));
  EXPECT_LT(full.stages[0].bytes_by_class()[static_cast<int>(MemoryClass::kActivations)],
            none.stages[0].bytes_by_class()[static_cast<int>(MemoryClass::kActivations)]);
}

TEST(Lowering, ZeroStagesHoldWhatTheirNamesSay) {
  // dp 4. State in elements per parameter: 0: w, g, m, v whole. 1: m, v (and the master copy) a quarter. 2: gradients, too.
  // 3: weights, too.
  std::array<std::array<std::int64_t, kMemoryClasses>, 4> bytes{};
  for (int stage = 0; stage < 4; ++stage)
    bytes[static_cast<std::size_t>(stage)] =
        lower(kSmall, kShape, {.mesh = {4, 1, 1}, .fsdp = stage}).stages[0].bytes_by_class();
  const auto of = [&](int stage, MemoryClass c) {
    return bytes[static_cast<std::size_t>(stage)][static_cast<std::size_t>(c)];
  };
  EXPECT_EQ(of(0, MemoryClass::kOptimizer), 4 * of(1, MemoryClass::kOptimizer));
  EXPECT_LT(of(2, MemoryClass::kGradients), of(1, MemoryClass::kGradients));
  EXPECT_LT(of(3, MemoryClass::kParameters), of(2, MemoryClass::kParameters));
}

TEST(Lowering, LowPrecisionKeepsMasterWeightsBesideTheOnesThatProductsRead) {
  TrainingShape bf16 = kShape;
  bf16.compute = DType::kBF16;
  const auto f32 = lower(kSmall, kShape, {}).stages[0].bytes_by_class(),
             low = lower(kSmall, bf16, {}).stages[0].bytes_by_class();
  const auto at = static_cast<std::size_t>(MemoryClass::kParameters);
  EXPECT_EQ(low[at], f32[at] / 2 * 3);  // 4 + 2 bytes instead of 4
  EXPECT_EQ(low[static_cast<std::size_t>(MemoryClass::kOptimizer)],
            f32[static_cast<std::size_t>(MemoryClass::kOptimizer)]);
}

TEST(Lowering, AnIllegalPlanSaysWhyAndWhatToChoose) {
  const auto reasons = [](const Plan& plan) {
    std::vector<std::string> all;
    for (const Illegality& i : illegalities(kSmall, kShape, plan)) {
      all.push_back(i.reason);
      EXPECT_FALSE(i.detail.empty());
      EXPECT_FALSE(i.hint.empty());
    }
    return all;
  };
  EXPECT_EQ(reasons({}), std::vector<std::string>{});
  EXPECT_EQ(reasons({.mesh = {1, 1, 3}}),
            (std::vector<std::string>{"tp does not divide the heads", "tp does not divide the sequence length"}));
  EXPECT_EQ(reasons({.mesh = {3, 1, 1}}), std::vector<std::string>{"dp does not divide the global batch"});
  EXPECT_EQ(reasons({.mesh = {1, 9, 1}}), std::vector<std::string>{"more stages than layers"});
  EXPECT_EQ(reasons({.fsdp = 1}), std::vector<std::string>{"FSDP without data parallelism"});
  EXPECT_EQ(reasons({.mesh = {2, 1, 1}, .microbatches = 3}),
            std::vector<std::string>{"microbatches do not divide a dp shard's sequences"});
}

TEST(Products, AreExactlyTheKindsThatCountFlopsAndMultiplyInTheComputeTypeOrF32) {
  std::vector<bool> seen(kOpKinds);
  for (const DType compute : {DType::kF32, DType::kBF16, DType::kF16}) {
    TrainingShape shape = kShape;
    shape.compute = compute;
    const ProgramSet set = lower(kSmall, shape, {.mesh = {2, 2, 2}, .fsdp = 3, .recompute = Recompute::kFull});
    for (const Piece& piece : set.pieces)
      for (const Op& op : piece.ops) {
        const Work work = work_of(op, piece);
        EXPECT_EQ(work.flops.value > 0, is_product(kind_of(op))) << op_name(op);
        if (work.flops.value == 0) continue;
        seen[kind_of(op)] = true;
        EXPECT_TRUE(work.dtype == compute || work.dtype == DType::kF32) << op_name(op);
      }
  }
  for (int kind = 0; kind < kOpKinds; ++kind)
    EXPECT_EQ(seen[kind], is_product(static_cast<OpKind>(kind))) << kind_name(static_cast<OpKind>(kind));
}

// ---- a balance loss over the step's tokens ---------------------------------------------------------------------------------

// Groups of the collectives on shares of choices, where they stand among the slots of a stage: "F0 F1 dp dp B0 B1".
std::string sums_of_shares(Balance balance, const Plan& plan, int stage) {
  ModelSpec model = kSmall;  // every second layer has experts
  model.balance = balance;
  const ProgramSet set = lower(model, kShape, plan);
  std::string text;
  for (const Slot& slot : set.stages[static_cast<std::size_t>(stage)].slots) {
    std::string words;
    if (slot.action == Action::kForward || slot.action == Action::kBackward) words = " " + slot_name(slot);
    for (const Call& call :
         set.stages[static_cast<std::size_t>(stage)].chunks[static_cast<std::size_t>(slot.chunk)].calls)
      for (const Op& op : set.pieces[static_cast<std::size_t>(call.piece)].ops)
        if (const auto* sum = std::get_if<Collective>(&op);
            sum &&
            set.pieces[static_cast<std::size_t>(call.piece)].tensors[static_cast<std::size_t>(sum->src.tensor)].frame ==
                Frame::kBalance)
          words += " " + std::string(name(sum->group));
    text += words;
  }
  return text.substr(1);
}

TEST(BalanceOverTheStep, IsSummedOverDpForEveryLayerWithExpertsBetweenTheForwardsAndTheBackwards) {
  const Plan gpipe = parse_plan("2x2x2,schedule=gpipe,microbatches=2,layers=5-3");
  EXPECT_EQ(sums_of_shares(Balance::kSequence, gpipe, 0), "F0 F1 B0 B1");
  EXPECT_EQ(sums_of_shares(Balance::kLayer, gpipe, 0), "F0 F1 dp dp B0 B1");
  EXPECT_EQ(sums_of_shares(Balance::kLayer, gpipe, 1), "F0 F1 dp dp B0 B1");
  EXPECT_EQ(sums_of_shares(Balance::kLayer, parse_plan("2x1x1,schedule=1f1b"), 0), "F0 dp dp dp dp B0");
  EXPECT_EQ(sums_of_shares(Balance::kLayer, parse_plan("1x2x2,schedule=gpipe,microbatches=2"), 0), "F0 F1 B0 B1");
}

TEST(BalanceOverTheStep, OfAllLayersTogetherIsOneSumOverDpAndStages) {
  EXPECT_EQ(sums_of_shares(Balance::kPooled, parse_plan("2x2x2"), 0), "F0 dp pp B0");
  EXPECT_EQ(sums_of_shares(Balance::kPooled, parse_plan("1x2x1"), 1), "F0 pp B0");
  EXPECT_EQ(sums_of_shares(Balance::kPooled, parse_plan("2x1x1"), 0), "F0 dp B0");
  EXPECT_EQ(sums_of_shares(Balance::kPooled, parse_plan("1x1x2"), 0), "F0 B0");
}

TEST(BalanceOverTheStep, IsNoMatterWhereNoLayerHasExperts) {
  ModelSpec dense = kSmall;
  std::erase_if(dense.layers, [](const Layer& l) { return std::holds_alternative<Experts>(l.ffn); });
  dense.balance = Balance::kPooled;
  EXPECT_TRUE(illegalities(dense, kShape, parse_plan("2x2x1,microbatches=4")).empty());
  ModelSpec plain = dense;
  plain.balance = Balance::kSequence;
  const Plan plan = parse_plan("2x2x1,microbatches=4");
  EXPECT_EQ(to_text(lower(dense, kShape, plan), lower(dense, kShape, plan).stages[0]),
            to_text(lower(plain, kShape, plan), lower(plain, kShape, plan).stages[0]));
}

TEST(BalanceOverTheStep, IsNotCountedAgainWhereTheRoutingIsComputedAgain) {
  ModelSpec model = kSmall;
  model.balance = Balance::kLayer;
  const ProgramSet set = lower(model, kShape, {.recompute = Recompute::kFull});
  int routings = 0;
  for (const Piece& piece : set.pieces)
    for (const Route& route : all<Route>(piece)) {
      EXPECT_EQ(static_cast<bool>(route.fraction), piece.name == "moe.forward") << piece.name;
      ++routings;
    }
  EXPECT_EQ(routings, 2);
}

}  // namespace
}  // namespace meshwright
