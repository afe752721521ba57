// Stretches: the operations of consecutive calls on one block, and what they do to the moments that a stage
// remembers. Worked out once for all stretches that are alike, over layers, microbatches and stages. For
// sim/simulate_fast.cpp, which explains the words.
#pragma once

#include <array>
#include <cstdint>
#include <limits>
#include <span>
#include <unordered_map>
#include <vector>

#include "model/program/program.h"
#include "sim/cost_model.h"
#include "sim/max_plus.h"

namespace meshwright {

using StreamMask = std::uint8_t;
constexpr StreamMask mask_of(Stream s) { return static_cast<StreamMask>(1u << static_cast<int>(s)); }

// ---- pieces
// --------------------------------------------------------------------------------------------------------

struct Operand {
  std::uint8_t place;  // frame; in a Structure: index of a placed frame
  bool writes;
  std::int64_t begin, end;  // bytes from the frame's begin
};

struct TimedOp {
  const Op* op;
  Stream stream;
  bool meets;  // operations of other stages
  Time duration;
  std::int32_t first_operand, end_operand;
};

struct FrameUse {
  std::uint8_t frame;
  StreamMask streams = 0;
  std::int64_t begin, end;  // hull of what is touched
};

// Bytes sent, by kind (collectives, then send) and group.
using TrafficTable = std::array<std::array<std::int64_t, kGroups>, 4>;

struct TimedPiece {
  bool ready = false;
  std::vector<TimedOp> ops;
  std::vector<Operand> operands;
  std::vector<FrameUse> frames;
  Time all = 0, compute = 0;  // durations
  std::int64_t flops = 0;
  TrafficTable sent{};
  bool sends_any = false;
};

// ---- stretches
// -----------------------------------------------------------------------------------------------------

// Anchors are address spaces: what lies behind different anchors never overlaps (checked per stage).
constexpr int kAnchorShift = 52;
constexpr std::int64_t in_space(Anchor anchor, std::int64_t at) {
  return (std::int64_t{static_cast<int>(anchor)} << kAnchorShift) + at;
}

// Where a frame of a stretch begins.
struct PlacedFrame {
  std::uint8_t frame;
  StreamMask streams;
  std::int64_t base, begin, end;  // hull: base + begin to base + end
};

// Operations of consecutive calls on one block, and what they wait for among themselves: the same for all
// stretches of the same pieces whose frames overlap alike.
struct Structure {
  struct Operation {
    TimedOp timed;
    std::int32_t first_dependency,
        end_dependency;  // operations of other streams; the stream predecessor goes without saying
    bool joined, anchored;
    bool loose() const { return timed.stream != Stream::kCompute && !(joined && anchored); }
  };
  std::vector<Operation> ops;
  std::vector<Operand> operands;
  std::vector<std::int32_t> dependencies;
  std::vector<std::int32_t> loose;
  StreamMask streams = 0;
  bool meets = false;
};

// Streams that matter to a variant of a chunk: uses up to its last slot, and from its first on.
struct CellMasks {
  StreamMask used_before = 0, unjoined_before = 0, used_after = 0, unanchored_after = 0;
  std::int64_t packed() const { return used_before | unjoined_before << 8 | used_after << 16 | unanchored_after << 24; }
};

// A Structure together with the variables that it uses, numbered from 0; 0 is always the compute stream.
struct Effect {
  struct Use {
    std::int32_t first, end;
  };
  std::int32_t structure = 0;
  std::array<std::int32_t, kStreams> stream_variable{};  // -1: not tracked
  std::vector<std::int32_t> kept;  // of the variables that the stretch offered, those that it uses
  std::vector<std::int32_t> pool;
  std::vector<Use> consults, updates;  // per operation
  MaxPlusMap map;                      // unless the structure meets other stages
};

struct HashKey {
  std::size_t operator()(const std::vector<std::int64_t>& key) const {
    std::uint64_t h = 0xcbf29ce484222325u;
    for (const std::int64_t k : key) h = (h ^ static_cast<std::uint64_t>(k)) * 0x9E3779B97F4A7C15u, h ^= h >> 29;
    return h;
  }
};
using Index = std::unordered_map<std::vector<std::int64_t>, std::int32_t, HashKey>;

// ---- what all stages share
// -----------------------------------------------------------------------------------------

class Library {
 public:
  Library(const ProgramSet& set, const CostModel& cost) : set_(set), cost_(cost), pieces_(set.pieces.size()) {}

  const ProgramSet& set() const { return set_; }
  const TimedPiece& piece(int index) {
    TimedPiece& piece = pieces_[index];
    if (!piece.ready) time_piece(set_.pieces[index], piece);
    return piece;
  }
  const Structure& structure(int index) const { return structures_[index]; }
  const Effect& effect(int index) const { return effects_[index]; }

  // `place[c][i]`: placed frame of the i-th frame use of call c's piece.
  int structure_of(std::span<const Call> calls, std::span<const PlacedFrame> frames,
                   const std::vector<std::int32_t>& place);
  // `cells[p]`: cells under placed frame p, as (variable of the last write, masks, begin and end from the
  // frame's base).
  struct CellUnderFrame {
    std::int32_t frame, variable;  // the last use is variable + 1
    CellMasks masks;
    std::int64_t begin, end;
  };
  int effect_of(int structure, std::span<const CellUnderFrame> cells, std::int32_t variables,
                const std::array<std::int32_t, kStreams>& stream_variable);

 private:
  void time_piece(const Piece& piece, TimedPiece& timed) const;
  Structure make_structure(std::span<const Call> calls, std::span<const PlacedFrame> frames,
                           const std::vector<std::int32_t>& place);
  Effect make_effect(int structure, std::span<const CellUnderFrame> cells, std::int32_t variables,
                     const std::array<std::int32_t, kStreams>& stream_variable) const;
  void make_map(Effect& effect) const;

  const ProgramSet& set_;
  const CostModel& cost_;
  std::vector<TimedPiece> pieces_;
  std::vector<Structure> structures_;
  std::vector<Effect> effects_;
  Index structure_index_, effect_index_;
  std::vector<std::int64_t> key_;
};

}  // namespace meshwright
