// Programs made by hand for tests and benchmarks of the simulator, and costs to go with them.
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "model/lowering/schedule.h"
#include "model/program/program.h"
#include "sim/cost_model.h"

namespace meshwright::handmade {

// Durations by the name of the piece; communication is free unless named, too.
struct NamedCost : CostModel {
  std::vector<std::pair<std::string, Time>> times;
  explicit NamedCost(std::vector<std::pair<std::string, Time>> t) : times(std::move(t)) {}
  Time of(const Piece& piece) const {
    for (const auto& [name, time] : times)
      if (name == piece.name) return time;
    return 0;
  }
  Time compute(const Op&, const Piece& piece, const ProgramSet&) const override { return of(piece); }
  Time collective(const Collective&, const Piece& piece, const ProgramSet&) const override { return of(piece); }
  Time point_to_point(const View&, const Piece& piece, const ProgramSet&) const override { return of(piece); }
};

// Any duration below `limit`, by what the operation is: the same for the same operation, also 0.
struct RandomCost : CostModel {
  std::uint64_t seed;
  Time limit;
  bool overlaps;
  RandomCost(std::uint64_t s, Time l, bool o = true) : seed(s), limit(l), overlaps(o) {}
  Time pick(const Piece& piece, std::int64_t which) const {
    std::uint64_t h =
        seed ^ std::hash<std::string>()(piece.name) ^ static_cast<std::uint64_t>(which) * 0x9E3779B97F4A7C15u;
    h = (h ^ h >> 31) * 0xBF58476D1CE4E5B9u;
    h ^= h >> 29;
    return static_cast<Time>(h % static_cast<std::uint64_t>(limit));
  }
  Time compute(const Op& op, const Piece& piece, const ProgramSet&) const override {
    return pick(piece, &op - piece.ops.data());
  }
  Time collective(const Collective& op, const Piece& piece, const ProgramSet&) const override {
    return pick(piece, 1000 + op.src.tensor * 64 + op.dst.tensor);
  }
  Time point_to_point(const View&, const Piece& piece, const ProgramSet&) const override { return pick(piece, 5000); }
  bool overlaps_compute() const override { return overlaps; }
};

inline View row(const Piece& piece, TensorId t) {
  const std::int64_t n = elements(piece.tensors[t].shape);
  return {t, 1, n, n, 0};
}
inline TensorId tensor(Piece& piece, Frame frame, std::int64_t offset = 0, std::int64_t count = 16) {
  piece.tensors.push_back({"t" + std::to_string(piece.tensors.size()), {1, count}, DType::kF32, frame, offset});
  return static_cast<TensorId>(piece.tensors.size()) - 1;
}

constexpr std::int64_t kRegion = 1 << 16;  // bytes apart of the memory behind different anchors
constexpr std::int64_t kBuffer = 1 << 10;  // bytes apart of the values of one anchor

inline std::int64_t buffer(Anchor anchor, int index) { return kRegion * static_cast<int>(anchor) + kBuffer * index; }

// Adds a chunk with one call of a piece that moves x over a boundary of stages.
inline int message_chunk(ProgramSet& set, Program& program, const std::string& name, Frame frame, Anchor anchor,
                         bool send, Direction way) {
  Piece piece{name, {}, {}, 0};
  tensor(piece, frame);
  if (send)
    piece.ops.emplace_back(Send{row(piece, 0), way});
  else
    piece.ops.emplace_back(Recv{row(piece, 0), way});
  set.pieces.push_back(std::move(piece));
  Call call{.piece = static_cast<int>(set.pieces.size()) - 1};
  call.anchor[static_cast<int>(frame)] = anchor;
  program.chunks.push_back({name, {call}});
  return static_cast<int>(program.chunks.size()) - 1;
}

// A pipeline around given chunks: `forward` reads the inbox and writes the outbox, `backward` updates the
// gradient flow; they are chunks 0 and 1 of every stage. `buffers`: of each anchor.
inline void schedule_pipeline(ProgramSet& set, Schedule schedule, int microbatches, int buffers) {
  const int stages = set.mesh.pp;
  set.step.microbatches = microbatches;
  for (Program& p : set.stages) {
    const bool first = p.stage == 0, last = p.stage == stages - 1;
    int send_f = -1, recv_f = -1, send_b = -1, recv_b = -1;
    if (!last) send_f = message_chunk(set, p, "send.forward", Frame::kXOut, Anchor::kOutbox, true, Direction::kNext);
    if (!first) recv_f = message_chunk(set, p, "recv.forward", Frame::kX, Anchor::kInbox, false, Direction::kPrevious);
    if (!first)
      send_b = message_chunk(set, p, "send.backward", Frame::kD, Anchor::kGradientFlow, true, Direction::kPrevious);
    if (!last)
      recv_b = message_chunk(set, p, "recv.backward", Frame::kD, Anchor::kGradientFlow, false, Direction::kNext);
    int turn = 0;
    for (const StageAction& a : stage_actions(schedule, p.stage, stages, microbatches)) {
      const auto emit = [&](Action action, int chunk) {
        Slot slot{
            .action = action, .microbatch = a.microbatch, .chunk = chunk, .ring = static_cast<std::uint8_t>(turn & 1)};
        for (const Anchor anchor : {Anchor::kStash, Anchor::kInbox, Anchor::kOutbox, Anchor::kGradientFlow})
          slot.anchor[static_cast<int>(anchor)] = buffer(anchor, a.microbatch % buffers);
        p.slots.push_back(slot);
      };
      if (a.forward) {
        if (!first) emit(Action::kRecvForward, recv_f);
        emit(Action::kForward, 0);
        if (!last) emit(Action::kSendForward, send_f);
      } else {
        if (!last) emit(Action::kRecvBackward, recv_b);
        emit(Action::kBackward, 1);
        if (!first) emit(Action::kSendBackward, send_b);
      }
      ++turn;
    }
  }
}

// The textbook's pipeline: one operation forward, one backward, a buffer for every microbatch.
inline ProgramSet textbook_pipeline(Schedule schedule, int stages, int microbatches) {
  ProgramSet set;
  set.mesh.pp = stages;
  Piece forward{"forward", {}, {}, 0}, backward{"backward", {}, {}, 0};
  tensor(forward, Frame::kX);
  tensor(forward, Frame::kXOut);
  forward.ops.emplace_back(Cast{row(forward, 0), row(forward, 1)});
  tensor(backward, Frame::kX);
  tensor(backward, Frame::kD);
  backward.ops.emplace_back(
      Gemm{.a = row(backward, 0), .b = row(backward, 0), .c = row(backward, 1), .accumulate = true});
  set.pieces = {forward, backward};
  for (int s = 0; s < stages; ++s) {
    Program program;
    program.stage = s;
    for (const int piece : {0, 1}) {
      Call call{.piece = piece};
      call.anchor[static_cast<int>(Frame::kX)] = Anchor::kInbox;
      call.anchor[static_cast<int>(Frame::kXOut)] = Anchor::kOutbox;
      call.anchor[static_cast<int>(Frame::kD)] = Anchor::kGradientFlow;
      program.chunks.push_back({set.pieces[piece].name, {call}});
    }
    set.stages.push_back(std::move(program));
  }
  schedule_pipeline(set, schedule, microbatches, microbatches);
  return set;
}

// Anything: operations on any streams with operands that overlap at random, in chunks of a pipeline, between
// chunks that begin and end a step, with a collective over the stages. Verifies as nothing but deadlock-free.
inline ProgramSet random_program(std::mt19937_64& random, Schedule schedule, int stages, int microbatches,
                                 int calls = 4) {
  const auto below = [&](int n) { return static_cast<int>(random() % static_cast<std::uint64_t>(n)); };
  ProgramSet set;
  set.mesh = {2, stages, 2};
  constexpr std::array kFramesHere{Frame::kX,         Frame::kXOut,    Frame::kD,           Frame::kStash,
                                   Frame::kWorkspace, Frame::kWeights, Frame::kWeightShard, Frame::kGrads,
                                   Frame::kGradShard, Frame::kMetrics};
  constexpr int kPieces = 8;
  for (int p = 0; p < kPieces; ++p) {
    Piece piece{"piece" + std::to_string(p), {}, {}, 0};
    const int tensors = 3 + below(6), ops = 1 + below(7);
    for (int t = 0; t < tensors; ++t)
      tensor(piece, kFramesHere[below(kFramesHere.size())], 16 * below(8), 4 * (1 + below(6)));
    const bool local = below(3) == 0;
    for (int o = 0; o < ops; ++o) {
      const View a = row(piece, below(tensors)), b = row(piece, below(tensors)), c = row(piece, below(tensors));
      switch (local ? 0 : below(4)) {
        case 0:
        case 1:
          if (below(2))
            piece.ops.emplace_back(Cast{a, b});
          else
            piece.ops.emplace_back(Gemm{.a = a, .b = b, .c = c, .accumulate = below(2) == 0});
          break;
        case 2:
          piece.ops.emplace_back(
              Collective{.kind = CollectiveKind::kAllGather, .group = Group::kTp, .src = a, .dst = b});
          break;
        case 3:
          piece.ops.emplace_back(
              Collective{.kind = below(2) ? CollectiveKind::kAllGather : CollectiveKind::kReduceScatter,
                         .group = Group::kDp,
                         .src = a,
                         .dst = b,
                         .accumulate = below(2) == 0});
          break;
      }
    }
    set.pieces.push_back(std::move(piece));
  }
  Piece over_stages{"over.stages", {}, {}, 0};
  tensor(over_stages, Frame::kMetrics);
  over_stages.ops.emplace_back(Collective{.kind = CollectiveKind::kAllReduce,
                                          .group = Group::kPp,
                                          .src = row(over_stages, 0),
                                          .dst = row(over_stages, 0),
                                          .in_place = true});
  set.pieces.push_back(std::move(over_stages));

  for (int s = 0; s < stages; ++s) {
    Program program;
    program.stage = s;
    program.arena_bytes = 100 + s;
    for (int c = 0; c < 4; ++c) {  // forward, backward, begin, end
      Chunk chunk{"chunk" + std::to_string(c), {}};
      const int n = 1 + below(calls);
      for (int i = 0; i < n; ++i) {
        Call call{.piece = below(kPieces), .block = below(4) - 1};
        for (const Frame f : kFramesHere) call.base[static_cast<int>(f)] = 32 * below(24);
        const auto behind = [&](Frame f, Anchor a) {
          call.anchor[static_cast<int>(f)] = a;
          call.base[static_cast<int>(f)] %= 128;
        };
        behind(Frame::kX, Anchor::kInbox);
        behind(Frame::kXOut, Anchor::kOutbox);
        behind(Frame::kD, Anchor::kGradientFlow);
        behind(Frame::kStash, Anchor::kStash);
        call.weights_ring = below(2);
        call.grads_ring = below(2);
        call.ring = static_cast<std::uint8_t>(below(2));
        if (call.weights_ring) call.weights_turn = 256;
        if (call.grads_ring) call.grads_turn = 192;
        chunk.calls.push_back(call);
      }
      program.chunks.push_back(std::move(chunk));
    }
    Call all{.piece = kPieces};
    all.base[static_cast<int>(Frame::kMetrics)] = 64;
    program.chunks.push_back({"over stages", {all}});
    set.stages.push_back(std::move(program));
  }
  for (Program& p : set.stages) p.slots.push_back({.action = Action::kBegin, .chunk = 2});
  schedule_pipeline(set, schedule, microbatches, 1 + below(microbatches + 1));
  for (Program& p : set.stages) {
    for (const Anchor anchor : {Anchor::kStash, Anchor::kInbox, Anchor::kOutbox, Anchor::kGradientFlow})
      p.slots.front().anchor[static_cast<int>(anchor)] = buffer(anchor, 0);
    p.slots.push_back({.action = Action::kNorm, .chunk = 4});
    p.slots.push_back({.action = Action::kUpdate, .chunk = 3, .anchor = p.slots.front().anchor});
    p.slots.push_back({.action = Action::kNorm, .chunk = 4});
  }
  return set;
}

}  // namespace meshwright::handmade
