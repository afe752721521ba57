#include "model/program/program.h"

#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <map>
#include <type_traits>

#include "model/program/check.h"
#include "model/program/slot_name.h"

namespace meshwright {
namespace {

constexpr std::int64_t kAlignment = 64;  // bytes, of every workspace tensor

std::int64_t align(std::int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

// The workspace while operations pass by: living tensors by where they begin.
class FirstFit {
 public:
  std::int64_t place(std::int64_t bytes) {
    bytes = align(std::max<std::int64_t>(bytes, 1));
    std::int64_t at = 0;
    for (const auto& [begin, end] : living_) {
      if (begin - at >= bytes) break;
      at = end;
    }
    living_[at] = at + bytes;
    high_water_ = std::max(high_water_, at + bytes);
    most_ = std::max(most_, now_ += bytes);
    return at;
  }
  void free(std::int64_t at) {
    const auto it = living_.find(at);
    now_ -= it->second - it->first;
    living_.erase(it);
  }
  std::int64_t high_water() const { return high_water_; }
  std::int64_t most() const { return most_; }  // bytes of living tensors: no placement needs less

 private:
  std::map<std::int64_t, std::int64_t> living_;  // begin to end
  std::int64_t high_water_ = 0, now_ = 0, most_ = 0;
};

// A tensor of the workspace: it lives from operation `first` up to operation `end`.
struct Life {
  TensorId tensor = kNoTensor;
  std::size_t first = 0, end = 0;
  std::int64_t bytes = 0, at = 0;
};

// Places the largest first, each in the smallest gap between those that live when it does. Returns the high-water mark.
std::int64_t place_largest_first(std::vector<Life>& lives) {
  std::ranges::stable_sort(lives, std::greater<>(), &Life::bytes);
  std::int64_t high_water = 0;
  std::vector<std::pair<std::int64_t, std::int64_t>> taken;  // begin and end
  for (std::size_t i = 0; i < lives.size(); ++i) {
    taken.clear();
    for (std::size_t j = 0; j < i; ++j)
      if (lives[j].first < lives[i].end && lives[i].first < lives[j].end)
        taken.emplace_back(lives[j].at, lives[j].at + lives[j].bytes);
    std::ranges::sort(taken);
    std::int64_t at = 0, best = -1, best_gap = 0;
    for (const auto& [begin, end] : taken) {
      if (const std::int64_t gap = begin - at; gap >= lives[i].bytes && (best < 0 || gap < best_gap)) {
        best = at;
        best_gap = gap;
      }
      at = std::max(at, end);
    }
    lives[i].at = best < 0 ? at : best;
    high_water = std::max(high_water, lives[i].at + lives[i].bytes);
  }
  return high_water;
}

// Appends " name=value" for attributes and " name=tensor[rows x cols]@address" for operands.
struct FieldWriter {
  std::string& line;
  const Slot& slot;
  const Call& call;
  const Piece& piece;

  void operator()(std::string_view field, const View& view, Access, ExpertRows = {}) const {
    if (!view) return;
    const Tensor& tensor = piece.tensors[view.tensor];
    line += fmt::format(" {}={}[{}x{}]@{}{}", field, tensor.name, view.rows, view.cols,
                        address(slot, call, tensor) + view.offset * size_of(tensor.dtype),
                        view.own_rows   ? "+own rows"
                        : view.own_cols ? "+own columns"
                                        : "");
  }
  void operator()(std::string_view field, bool set) const {
    if (set) line += fmt::format(" {}", field);
  }
  void operator()(std::string_view field, std::string_view value) const { line += fmt::format(" {}={}", field, value); }
  template <class T>
  requires std::is_arithmetic_v<T>
  void operator()(std::string_view field, T value) const { line += fmt::format(" {}={}", field, value); }
};

}  // namespace

std::array<std::int64_t, kMemoryClasses> Program::bytes_by_class() const {
  std::array<std::int64_t, kMemoryClasses> bytes{};
  for (const Region& region : regions) bytes[static_cast<int>(region.memory_class)] += region.bytes;
  return bytes;
}

MemoryClass memory_class(Anchor anchor) {
  switch (anchor) {
    case Anchor::kOutbox:
    case Anchor::kGradientFlow:
      return MemoryClass::kBuffers;
    case Anchor::kTokens:
      return MemoryClass::kData;
    case Anchor::kFixed:
    case Anchor::kStash:
    case Anchor::kInbox:
      break;
  }
  return MemoryClass::kActivations;
}

MemoryClass memory_class(const Call& call, Frame frame) {
  if (const Anchor anchor = call.anchor[static_cast<int>(frame)]; anchor != Anchor::kFixed) return memory_class(anchor);
  switch (frame) {
    case Frame::kX:
    case Frame::kXOut:
    case Frame::kStash:
      return MemoryClass::kActivations;
    case Frame::kD:
    case Frame::kCommScratch:
      return MemoryClass::kBuffers;
    case Frame::kWorkspace:
      return MemoryClass::kWorkspace;
    case Frame::kWeights:
      return call.weights_ring ? MemoryClass::kBuffers : MemoryClass::kParameters;
    case Frame::kWeightShard:
    case Frame::kMaster:
      return MemoryClass::kParameters;
    case Frame::kGrads:
      return call.grads_ring ? MemoryClass::kBuffers : MemoryClass::kGradients;
    case Frame::kGradShard:
      return MemoryClass::kGradients;
    case Frame::kMoment1:
    case Frame::kMoment2:
      return MemoryClass::kOptimizer;
    case Frame::kTokens:
    case Frame::kMetrics:
    case Frame::kBalance:
      return MemoryClass::kData;
  }
  return MemoryClass::kData;
}

void drop_unused_tensors(Piece& piece) {
  std::vector<TensorId> place(piece.tensors.size(), kNoTensor);
  std::vector<Tensor> used;
  for (Op& op : piece.ops)
    map_operands(op, [&](std::string_view, View& v, Access) {
      if (!v) return;
      TensorId& at = place[static_cast<std::size_t>(v.tensor)];
      if (at == kNoTensor) {
        at = static_cast<TensorId>(used.size());
        used.push_back(piece.tensors[static_cast<std::size_t>(v.tensor)]);
      }
      v.tensor = at;
    });
  piece.tensors = std::move(used);
}

void free_after_last_use(Piece& piece) {
  std::vector<std::size_t> last(piece.tensors.size());
  for (std::size_t i = 0; i < piece.ops.size(); ++i)
    for_each_operand(piece.ops[i], [&](std::string_view, const View& v, Access) {
      last[static_cast<std::size_t>(v.tensor)] = i + 1;
    });
  std::vector<std::vector<TensorId>> ends(piece.ops.size() + 1);
  for (TensorId t = 0; t < static_cast<TensorId>(last.size()); ++t)
    if (piece.tensors[t].frame == Frame::kWorkspace) ends[last[static_cast<std::size_t>(t)]].push_back(t);
  std::vector<Op> ops;
  ops.reserve(piece.ops.size() + piece.tensors.size());
  for (std::size_t i = 0; i < piece.ops.size(); ++i) {
    ops.push_back(std::move(piece.ops[i]));
    for (const TensorId t : ends[i + 1]) ops.emplace_back(Free{t});
  }
  piece.ops = std::move(ops);
}

void place_workspace(Piece& piece) {
  enum class Phase { kUnborn, kLiving, kFreed };
  std::vector<Phase> life(piece.tensors.size(), Phase::kUnborn);
  FirstFit workspace;
  const auto in_workspace = [&](TensorId t) { return piece.tensors[t].frame == Frame::kWorkspace; };
  for (const Op& op : piece.ops) {
    if (const auto* free = std::get_if<Free>(&op)) {
      const Tensor& tensor = piece.tensors[free->tensor];
      check(in_workspace(free->tensor), "{}: {} is freed, but lies outside the workspace", piece.name, tensor.name);
      check(life[free->tensor] == Phase::kLiving, "{}: {} is freed {}", piece.name, tensor.name,
            life[free->tensor] == Phase::kFreed ? "twice" : "before it is written");
      workspace.free(tensor.offset);
      life[free->tensor] = Phase::kFreed;
      continue;
    }
    for_each_operand(op, [&](std::string_view, const View& view, Access access) {
      if (!in_workspace(view.tensor)) return;
      check(life[view.tensor] != Phase::kFreed, "{}: {} uses {} after it was freed", piece.name, op_name(op),
            piece.tensors[view.tensor].name);
      check(access == Access::kWrite || life[view.tensor] == Phase::kLiving,
            "{}: {} reads {} before anything is written to it", piece.name, op_name(op),
            piece.tensors[view.tensor].name);
    });
    for_each_operand(op, [&](std::string_view, const View& view, Access) {
      if (!in_workspace(view.tensor) || life[view.tensor] == Phase::kLiving) return;
      Tensor& tensor = piece.tensors[view.tensor];
      tensor.offset = workspace.place(tensor.bytes());
      life[view.tensor] = Phase::kLiving;
    });
  }
  for (TensorId t = 0; t < static_cast<TensorId>(piece.tensors.size()); ++t) {
    if (!in_workspace(t)) continue;
    check(life[t] != Phase::kUnborn, "{}: {} is never written", piece.name, piece.tensors[t].name);
    check(life[t] == Phase::kFreed, "{}: {} is never freed", piece.name, piece.tensors[t].name);
  }
  piece.workspace_bytes = workspace.high_water();
  // First fit leaves holes where a large tensor comes after small ones; then what is placed by size may need less. But
  // it takes memory again sooner: who writes there would wait for communication that still uses it.
  constexpr double kWorthIt = 1.005;
  if (static_cast<double>(workspace.high_water()) <= kWorthIt * static_cast<double>(workspace.most())) return;
  if (std::ranges::any_of(piece.ops, [](const Op& op) { return std::holds_alternative<Collective>(op); })) return;
  std::vector<Life> lives;
  std::vector<std::size_t> life_of(piece.tensors.size());
  for (std::size_t i = 0; i < piece.ops.size(); ++i) {
    const auto mentioned = [&](TensorId t) {
      if (!in_workspace(t)) return;
      if (life_of[t] == 0) {
        lives.push_back({t, i, 0, align(std::max<std::int64_t>(piece.tensors[t].bytes(), 1))});
        life_of[t] = lives.size();
      }
      lives[life_of[t] - 1].end = i;
    };
    if (const auto* free = std::get_if<Free>(&piece.ops[i]))
      mentioned(free->tensor);
    else
      for_each_operand(piece.ops[i], [&](std::string_view, const View& view, Access) { mentioned(view.tensor); });
  }
  if (place_largest_first(lives) >= piece.workspace_bytes) return;
  piece.workspace_bytes = 0;
  for (const Life& l : lives) {
    Tensor& tensor = piece.tensors[l.tensor];
    tensor.offset = l.at;
    piece.workspace_bytes = std::max(piece.workspace_bytes, l.at + tensor.bytes());
  }
}

std::string slot_name(const Slot& slot) {
  switch (slot.action) {
    case Action::kBegin:
      return "begin";
    case Action::kForward:
      return fmt::format("F{}", slot.microbatch);
    case Action::kBackward:
      return fmt::format("B{}", slot.microbatch);
    case Action::kSendForward:
      return fmt::format("send F{}", slot.microbatch);
    case Action::kRecvForward:
      return fmt::format("recv F{}", slot.microbatch);
    case Action::kSendBackward:
      return fmt::format("send B{}", slot.microbatch);
    case Action::kRecvBackward:
      return fmt::format("recv B{}", slot.microbatch);
    case Action::kReduce:
      return "reduce";
    case Action::kNorm:
      return "norm";
    case Action::kUpdate:
      return "update";
  }
  return {};
}

PlacedOp op_at(const ProgramSet& set, const Program& program, const OpPlace& place) {
  const Slot& slot = program.slots[static_cast<std::size_t>(place.slot)];
  const Call& call = program.chunks[static_cast<std::size_t>(slot.chunk)].calls[static_cast<std::size_t>(place.call)];
  const Piece& piece = set.pieces[static_cast<std::size_t>(call.piece)];
  return {slot, call, piece, piece.ops[static_cast<std::size_t>(place.op)]};
}

OpPlace place_of(const Program& program, const Slot& slot, const Call& call, const Piece& piece, const Op& op) {
  const Chunk& chunk = program.chunks[static_cast<std::size_t>(slot.chunk)];
  return {static_cast<int>(&slot - program.slots.data()), static_cast<int>(&call - chunk.calls.data()),
          static_cast<int>(&op - piece.ops.data())};
}

std::string brief(const Program& program) {
  std::string text;
  for (const Slot& slot : program.slots) {
    std::string word;
    switch (slot.action) {
      case Action::kForward:
      case Action::kBackward:
        word = slot_name(slot);
        break;
      case Action::kSendForward:
      case Action::kSendBackward:
        word = "send";
        break;
      case Action::kRecvForward:
      case Action::kRecvBackward:
        word = "recv";
        break;
      case Action::kBegin:
      case Action::kReduce:
      case Action::kNorm:
      case Action::kUpdate:
        continue;
    }
    text += text.empty() ? word : " " + word;
  }
  return text;
}

std::string to_text(const ProgramSet& set, const Program& program) {
  std::string text;
  for_each_op(set, program, [&](const Slot& slot, const Call& call, const Piece& piece, const Op& op) {
    std::string line = slot_name(slot);
    if (call.layer >= 0) line += fmt::format(" L{}", call.layer);
    line += fmt::format(" {}: {}", piece.name, op_name(op));
    if (const auto* collective = std::get_if<Collective>(&op)) {
      line += fmt::format(" {}", name(collective->group));
      if (collective->algorithm == Algorithm::kDirect) line += " direct";
    }
    if (const auto* free = std::get_if<Free>(&op)) line += fmt::format(" {}", piece.tensors[free->tensor].name);
    std::visit(
        [&](const auto& o) {
          std::remove_cvref_t<decltype(o)>::fields(o, FieldWriter{line, slot, call, piece});
        },
        op);
    text += line + "\n";
  });
  return text;
}

}  // namespace meshwright
