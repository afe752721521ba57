// What every rank of a plan does in one training step, or in the evaluation of one batch. Ranks that differ only along dp and tp do the same, so a
// ProgramSet holds one Program per pipeline stage. A Program is built from few distinct pieces that the schedule
// instantiates, and stays small whatever the number of ranks, and grows with slots, not with slots x layers:
//
//   Piece    straight-line operations on tensors named by (frame, offset): a layer kind's forward, its backward, ...
//   Call     a piece applied to one block (layer): where the block's frames begin
//   Chunk    the calls of one slot: a stage's forward, its backward, ... the same for every microbatch
//   Slot     a chunk at its place in the schedule, for one microbatch: which buffers in flight it uses
//
// The address of a tensor in a rank's arena is
//   slot.anchor[call.anchor[frame]] + call.base[frame] + tensor.offset  (+ the call's turn if call and slot say so).
//
// A byte that is no state lives from the first operation that writes it (what is received: from when it may arrive) until the Program says that it ends: the Free of a
// workspace tensor, an end of the chunk (behind one of its calls: stashes, gathered weights, ...), or an end of the
// program (behind one of its slots: what was sent). model/program/live_memory.h walks that, the executor counts it.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/program/mesh.h"
#include "model/program/op.h"
#include "model/program/state_layout.h"
#include "model/program/tensor.h"

namespace meshwright {

struct Piece {
  std::string name;  // "moe.backward"
  std::vector<Tensor> tensors;
  std::vector<Op> ops;
  std::int64_t workspace_bytes = 0;  // high-water mark of its workspace tensors, set by place_workspace()
};

// Frames that move with the microbatch begin at one of these, set by the slot.
enum class Anchor : std::uint8_t { kFixed, kStash, kInbox, kOutbox, kGradientFlow, kTokens };
constexpr int kAnchors = 6;

struct Call {
  int piece = 0;   // index in ProgramSet::pieces
  int block = -1;  // index in StateLayout::blocks: parameters it works on; -1: none
  int layer = -1;  // global layer index, -1 outside layers
  std::array<std::int64_t, kFrames> base{};
  std::array<Anchor, kFrames> anchor{};
  // Rings of two: frames kWeights and kGrads of this call alternate between two buffers, so that the next call's can be
  // gathered, and the previous one's reduced, meanwhile. The buffer is ring ^ slot.ring. The first begins at the frame's
  // base, the second a turn behind it: enough for the layers that stand next to this one in the schedule.
  bool weights_ring = false, grads_ring = false;
  std::uint8_t ring = 0;
  std::int64_t weights_turn = 0, grads_turn = 0;
};

// Bytes [begin, begin + bytes) of a frame of call `of` that nobody uses behind call `after`, of the same chunk, nor
// while messages and collectives that use them may still be under way: they do not live on.
struct End {
  int after = 0, of = 0;  // of Chunk::calls
  Frame frame = Frame::kX;
  std::int64_t begin = 0, bytes = 0;
};

struct Chunk {
  std::string name;  // "forward", "backward", "backward, last microbatch", ...
  std::vector<Call> calls;
  std::vector<End> ends = {};  // in the order of `after`
};

enum class Action : std::uint8_t {
  kBegin,
  kForward,
  kBackward,
  kSendForward,
  kRecvForward,
  kSendBackward,
  kRecvBackward,
  kReduce,
  kNorm,
  kUpdate
};

// One slot of the schedule. Send, receive and reductions across stages have slots of their own.
struct Slot {
  Action action = Action::kBegin;
  int microbatch = -1;
  int chunk = 0;  // index in Program::chunks
  std::uint8_t ring = 0;
  std::array<std::int64_t, kAnchors> anchor{};  // bytes in the arena; [kFixed] is 0
};

// What a program keeps for a block beside its state, in bytes of the arena. -1: nothing, or a ring that layers share.
struct BlockBuffers {
  std::int64_t weights = -1;     // gathered once (FSDP 3, outside the layers)
  std::int64_t grads = -1;       // whole over dp
  std::int64_t grad_shard = -1;  // reduced: they lie as master weights do
};

// The entry of a microbatch behind an anchor: [offset, offset + bytes) of the arena, from or to a slot.
struct EntryEdge {
  int slot = 0;  // of Program::slots
  int microbatch = 0;
  Anchor anchor = Anchor::kFixed;
  std::int64_t offset = 0, bytes = 0;
};

struct Program {
  int stage = 0;
  int first_layer = 0, layers = 0;  // of the whole model's
  std::vector<Chunk> chunks;
  std::vector<Slot> slots;
  // Both in the order of their slots. What is received is live before its slot comes, as the message may be early: from
  // the begin of the slot that `begins` says. No entry lives on behind the slot that `ends` says.
  std::vector<EntryEdge> begins, ends;
  std::vector<Region> regions;        // of the arena: the state's, then the program's own
  std::vector<BlockBuffers> buffers;  // by block of the stage's state
  std::int64_t arena_bytes = 0;

  std::array<std::int64_t, kMemoryClasses> bytes_by_class() const;  // of the regions
};

// The tokens over which the balance loss forms, for every expert, the share of choices f and the mean probability P: each
// sequence of a layer by itself, all of a layer, or those of all layers together. What is added to the loss is balance_weight
// times the sum over layers of the mean over sequences of (E/k) sum f P; the sum over layers of (E/k) sum f P; E sum f P.
enum class Balance : std::uint8_t { kSequence, kLayer, kPooled };
constexpr std::array<std::string_view, 3> kBalanceNames{"sequence", "layer", "pooled"};
constexpr std::string_view name(Balance b) { return kBalanceNames[static_cast<int>(b)]; }

struct StepShape {
  std::int64_t sequences = 0;   // of the step, all dp shards
  std::int64_t tokens = 0;      // of a sequence (T)
  std::int64_t microbatch = 0;  // sequences of a microbatch on one dp rank (B)
  int microbatches = 0;         // M
  bool operator==(const StepShape&) const = default;
};

// What a program is for.
enum class Purpose : std::uint8_t {
  kTraining,    // a step: forwards, backwards, the update of the state
  kEvaluation,  // the loss of a batch: forwards alone, which leave the state as it is
};

struct ProgramSet {
  Purpose purpose = Purpose::kTraining;
  MeshShape mesh;
  int fsdp = 0;
  StepShape step;
  DType compute = DType::kF32, state = DType::kF32;
  // The state that it works on, which other sets may work on, too.
  std::shared_ptr<const StateLayout> state_layout = std::make_shared<const StateLayout>();
  std::vector<Piece> pieces;
  std::vector<Program> stages;  // one per pipeline stage

  const std::vector<Parameter>& parameters() const { return state_layout->parameters; }
  const std::vector<Block>& blocks() const { return state_layout->blocks; }
  // Of the mixture-of-experts layers: experts, choices of a token, layers, and the weight of the balance loss.
  std::int64_t experts = 0, choices = 0, moe_layers = 0;
  double balance_weight = 0;
  Balance balance = Balance::kSequence;

  // The tokens of kLayer and kPooled: those of the step, once for every layer that they are of together. 0 of kSequence.
  std::int64_t balance_tokens() const {
    return balance == Balance::kSequence
               ? 0
               : step.sequences * step.tokens * (balance == Balance::kPooled ? moe_layers : 1);
  }
  // Of the mean over the step's sequences, summed over layers, of sum f P.
  double balance_factor() const {
    return static_cast<double>(experts) / static_cast<double>(balance == Balance::kPooled ? moe_layers : choices);
  }
};

// Where a frame of the call begins in the arena, in bytes.
inline std::int64_t address(const Slot& slot, const Call& call, Frame f) {
  const int frame = static_cast<int>(f);
  std::int64_t at = slot.anchor[static_cast<int>(call.anchor[frame])] + call.base[frame];
  if ((call.ring ^ slot.ring) & 1)
    at += f == Frame::kWeights ? call.weights_turn : f == Frame::kGrads ? call.grads_turn : 0;
  return at;
}
// Where tensor `t` of the call's piece begins.
inline std::int64_t address(const Slot& slot, const Call& call, const Tensor& t) {
  return address(slot, call, t.frame) + t.offset;
}

// What the memory of a frame is for.
MemoryClass memory_class(const Call& call, Frame frame);
MemoryClass memory_class(Anchor anchor);  // but of kFixed
// Parameters, gradients, moments and data (tokens, sums) live throughout the step.
constexpr bool lives_throughout(MemoryClass c) {
  return c == MemoryClass::kParameters || c == MemoryClass::kGradients || c == MemoryClass::kOptimizer ||
         c == MemoryClass::kData;
}

// Appends a Free of every workspace tensor behind the last operation that mentions it. Precondition: the piece has none.
void free_after_last_use(Piece& piece);

// Leaves out tensors that no operation mentions; the others get new ids, by first mention. Precondition: no Free.
void drop_unused_tensors(Piece& piece);

// Where an operation stands in its stage's program: indices, so that a timeline is cheap to write.
struct OpPlace {
  int slot = 0;                                      // of Program::slots
  int call = 0;                                      // of the slot's chunk
  int op = 0;                                        // of the call's piece
  auto operator<=>(const OpPlace&) const = default;  // program order
};
// What stands there. Precondition: there is such an operation.
struct PlacedOp {
  const Slot& slot;
  const Call& call;
  const Piece& piece;
  const Op& op;
};
PlacedOp op_at(const ProgramSet& set, const Program& program, const OpPlace& place);
// The place of `op`, which the piece of `call` of `slot` holds, all within `program`.
OpPlace place_of(const Program& program, const Slot& slot, const Call& call, const Piece& piece, const Op& op);

// Gives every workspace tensor of the piece its offset, so that tensors alive at the same time are apart; a tensor lives
// from its first write to its Free (scratch: during one operation). First fit in program order, or
// largest first into the smallest gap where that needs less and nothing communicates; 64-byte aligned. Sets workspace_bytes. Asserts that every workspace tensor is written and freed once.
void place_workspace(Piece& piece);

// Calls f(slot, call, piece, op) for every operation of the stage, in program order.
template <class F>
void for_each_op(const ProgramSet& set, const Program& program, F&& f) {
  for (const Slot& slot : program.slots)
    for (const Call& call : program.chunks[slot.chunk].calls)
      for (const Op& op : set.pieces[call.piece].ops) f(slot, call, set.pieces[call.piece], op);
}

// "F0 send F1 send recv B0 recv B1": the schedule of a stage without its step-end slots.
std::string brief(const Program& program);
// One operation per line, with its operands and addresses.
std::string to_text(const ProgramSet& set, const Program& program);

}  // namespace meshwright
