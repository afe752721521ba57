#include "model/program/program.h"

#include <fmt/format.h>

#include <algorithm>
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
    return at;
  }
  void free(std::int64_t at) { living_.erase(at); }
  std::int64_t high_water() const { return high_water_; }

 private:
  std::map<std::int64_t, std::int64_t> living_;  // begin to end
  std::int64_t high_water_ = 0;
};

// Appends " name=value" for attributes and " name=tensor[rows x cols]@address" for operands.
struct FieldWriter {
  std::string& line;
  const Program& program;
  const Slot& slot;
  const Call& call;
  const Piece& piece;

  void operator()(std::string_view field, const View& view, Access) const {
    if (!view) return;
    const Tensor& tensor = piece.tensors[view.tensor];
    line += fmt::format(" {}={}[{}x{}]@{}{}", field, tensor.name, view.rows, view.cols,
                        address(program, slot, call, tensor) + view.offset * size_of(tensor.dtype),
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
  enum class Life { kUnborn, kLiving, kFreed };
  std::vector<Life> life(piece.tensors.size(), Life::kUnborn);
  FirstFit workspace;
  const auto in_workspace = [&](TensorId t) { return piece.tensors[t].frame == Frame::kWorkspace; };
  for (const Op& op : piece.ops) {
    if (const auto* free = std::get_if<Free>(&op)) {
      const Tensor& tensor = piece.tensors[free->tensor];
      check(in_workspace(free->tensor), "{}: {} is freed, but lies outside the workspace", piece.name, tensor.name);
      check(life[free->tensor] == Life::kLiving, "{}: {} is freed {}", piece.name, tensor.name,
            life[free->tensor] == Life::kFreed ? "twice" : "before it is written");
      workspace.free(tensor.offset);
      life[free->tensor] = Life::kFreed;
      continue;
    }
    for_each_operand(op, [&](std::string_view, const View& view, Access access) {
      if (!in_workspace(view.tensor)) return;
      check(life[view.tensor] != Life::kFreed, "{}: {} uses {} after it was freed", piece.name, op_name(op),
            piece.tensors[view.tensor].name);
      check(access == Access::kWrite || life[view.tensor] == Life::kLiving,
            "{}: {} reads {} before anything is written to it", piece.name, op_name(op),
            piece.tensors[view.tensor].name);
    });
    for_each_operand(op, [&](std::string_view, const View& view, Access) {
      if (!in_workspace(view.tensor) || life[view.tensor] == Life::kLiving) return;
      Tensor& tensor = piece.tensors[view.tensor];
      tensor.offset = workspace.place(tensor.bytes());
      life[view.tensor] = Life::kLiving;
    });
  }
  for (TensorId t = 0; t < static_cast<TensorId>(piece.tensors.size()); ++t) {
    if (!in_workspace(t)) continue;
    check(life[t] != Life::kUnborn, "{}: {} is never written", piece.name, piece.tensors[t].name);
    check(life[t] == Life::kFreed, "{}: {} is never freed", piece.name, piece.tensors[t].name);
  }
  piece.workspace_bytes = workspace.high_water();
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
          std::remove_cvref_t<decltype(o)>::fields(o, FieldWriter{line, program, slot, call, piece});
        },
        op);
    text += line + "\n";
  });
  return text;
}

}  // namespace meshwright
