#include "model/program/live_memory.h"

#include <gtest/gtest.h>

#include <numeric>
#include <utility>

#include "model/families/jaxformer.h"
#include "model/lowering/lower.h"

namespace meshwright {
namespace {

constexpr auto at(MemoryClass c) { return static_cast<std::size_t>(c); }

View whole(const Piece& piece, TensorId t) {
  const std::int64_t n = elements(piece.tensors[static_cast<std::size_t>(t)].shape);
  return {t, 1, n, n, 0};
}

// Two microbatches of one stage, each a forward that saves 40 bytes by way of 100 in the workspace, and a backward.
ProgramSet two_microbatches() {
  ProgramSet set;
  set.step.microbatches = 2;
  Piece forward{"forward", {{"ws", {1, 25}}, {"saved", {1, 10}, DType::kF32, Frame::kStash}}, {}, 100};
  forward.ops = {Fill{whole(forward, 0)}, Cast{whole(forward, 0), whole(forward, 1)}, Free{0}};
  Piece backward{"backward", {{"saved", {1, 10}, DType::kF32, Frame::kStash}, {"ws", {1, 5}}}, {}, 20};
  backward.ops = {Cast{whole(backward, 0), whole(backward, 1)}, Free{1}};
  set.pieces = {forward, backward};
  Program program;
  program.regions = {{"weights", MemoryClass::kParameters, 0, 1000}};
  for (int piece = 0; piece < 2; ++piece) {
    Call call{.piece = piece};
    call.anchor[static_cast<int>(Frame::kStash)] = Anchor::kStash;
    call.base[static_cast<int>(Frame::kWorkspace)] = 2000;
    program.chunks.push_back({set.pieces[static_cast<std::size_t>(piece)].name, {call}});
  }
  const auto slot = [&](Action action, int microbatch, int chunk) {
    Slot s{.action = action, .microbatch = microbatch, .chunk = chunk};
    s.anchor[static_cast<int>(Anchor::kStash)] = 1000 + 64 * microbatch;
    program.slots.push_back(s);
  };
  slot(Action::kForward, 0, 0);
  slot(Action::kForward, 1, 0);
  slot(Action::kBackward, 1, 1);
  slot(Action::kBackward, 0, 1);
  program.ends = {{2, 1, Anchor::kStash, 1064, 64}, {3, 0, Anchor::kStash, 1000, 64}};
  set.stages = {program};
  return set;
}

TEST(LiveMemory, IsWhatHasBeenWrittenAndHasNotEnded) {
  // 1000 of weights; the second forward holds both stashes of 40 and its workspace of 100: the most of all classes
  // together and of each.
  const ProgramSet set = two_microbatches();
  const MemoryPeak peak = MemoryWalk(set).peak(set.stages[0]);
  EXPECT_EQ(peak.bytes, 1000 + 2 * 40 + 100);
  EXPECT_EQ(peak.at_peak[at(MemoryClass::kParameters)], 1000);
  EXPECT_EQ(peak.at_peak[at(MemoryClass::kActivations)], 80);
  EXPECT_EQ(peak.at_peak[at(MemoryClass::kWorkspace)], 100);
  EXPECT_EQ(peak.of_class, peak.at_peak);
}

TEST(LiveMemory, WhatEndsBeforeTheNextBeginsIsNotCountedWithIt) {
  ProgramSet set = two_microbatches();
  Program& p = set.stages[0];
  std::swap(p.slots[1], p.slots[3]);  // F0 B1 ...: make it F0 B0 F1 B1
  p.slots[1].microbatch = 0;
  p.slots[1].anchor = p.slots[0].anchor;
  p.slots[2] = p.slots[0];
  p.slots[2].microbatch = 1;
  p.slots[3] = p.slots[1];
  p.slots[3].microbatch = 1;
  p.ends = {{1, 0, Anchor::kStash, 1000, 64}, {3, 1, Anchor::kStash, 1000, 64}};
  const MemoryPeak peak = MemoryWalk(set).peak(p);
  EXPECT_EQ(peak.bytes, 1000 + 40 + 100);
  EXPECT_EQ(peak, peak_by_operation(set, p));
}

TEST(LiveMemory, TheWalkByChunksIsTheWalkByOperationsOnEveryPlan) {
  const ModelSpec model = jaxformer("small",
                                    {.model_dimension = 24,
                                     .vocab_size = 37,
                                     .n_head = 4,
                                     .blocks = 3,
                                     .layers_per_block = 3,
                                     .latent_dim = 6,
                                     .dhR = 4,
                                     .k = 2,
                                     .n_experts = 4,
                                     .n_shared = 1,
                                     .capacity_factor = 1.25},
                                    0.01);
  const TrainingShape shape{.sequences = 16, .tokens = 8};
  int plans = 0;
  for (const Schedule schedule : {Schedule::kGPipe, Schedule::k1F1B})
    for (const MeshShape mesh : {MeshShape{1, 1, 1}, {2, 1, 2}, {2, 2, 1}, {1, 4, 2}, {2, 9, 1}})
      for (int fsdp = 0; fsdp <= (mesh.dp > 1 ? 3 : 0); ++fsdp)
        for (const int microbatches : {1, 2, 8})
          for (const Recompute recompute : {Recompute::kNone, Recompute::kFull}) {
            const Plan plan{
                .mesh = mesh, .fsdp = fsdp, .microbatches = microbatches, .schedule = schedule, .recompute = recompute};
            SCOPED_TRACE(to_text(plan));
            const ProgramSet set = lower(model, shape, plan);
            MemoryWalk walk(set);
            for (const Program& stage : set.stages) {
              const MemoryPeak peak = walk.peak(stage);
              EXPECT_EQ(peak, peak_by_operation(set, stage));
              EXPECT_LE(peak.bytes, stage.arena_bytes);
              EXPECT_EQ(std::accumulate(peak.at_peak.begin(), peak.at_peak.end(), std::int64_t{0}), peak.bytes);
            }
            ++plans;
          }
  EXPECT_EQ(plans, 2 * (1 + 4 + 4 + 1 + 4) * 3 * 2);
}

}  // namespace
}  // namespace meshwright
