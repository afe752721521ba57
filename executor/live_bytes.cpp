#include "executor/live_bytes.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

#include "model/program/slot_name.h"

namespace meshwright {

LiveBytes::LiveBytes(const Program& program, std::function<void(std::int64_t, std::int64_t)> freed)
    : program_(program), freed_(std::move(freed)) {
  for (const Region& r : program.regions)
    if (lives_throughout(r.memory_class)) change(r.memory_class, r.bytes);
  peak_ = {.bytes = all_, .at_peak = now_, .of_class = now_};
}

void LiveBytes::change(MemoryClass c, std::int64_t bytes) {
  now_[static_cast<std::size_t>(c)] += bytes;
  all_ += bytes;
}

void LiveBytes::end(MemoryClass c, std::int64_t begin, std::int64_t end) {
  change(c, -live_[static_cast<std::size_t>(c)].remove(begin, end));
  if (freed_) freed_(begin, end);
}

void LiveBytes::executes(const Slot& slot, const Call& call, const Piece& piece, const Op& op) {
  if (const auto* free = std::get_if<Free>(&op)) {
    const Tensor& t = piece.tensors[static_cast<std::size_t>(free->tensor)];
    const std::int64_t begin = address(slot, call, t);
    return end(memory_class(call, t.frame), begin, begin + t.bytes());
  }
  for_each_operand(op, [&](std::string_view, const View& view, Access access) {
    const Tensor& t = piece.tensors[static_cast<std::size_t>(view.tensor)];
    const MemoryClass c = memory_class(call, t.frame);
    if (lives_throughout(c)) return;
    const std::int64_t begin = address(slot, call, t), end = begin + t.bytes();
    ByteRanges& live = live_[static_cast<std::size_t>(c)];
    if (access != Access::kWrite && !reads_dead_ && live.first_gap(begin, end))
      reads_dead_ = fmt::format("{} of {} in {} reads {}", op_name(op), piece.name, slot_name(slot), t.name);
    if (access != Access::kRead) change(c, live.add(begin, end));
  });
  for (std::size_t c = 0; c < now_.size(); ++c) peak_.of_class[c] = std::max(peak_.of_class[c], now_[c]);
  if (all_ <= peak_.bytes) return;
  peak_.bytes = all_;
  peak_.at_peak = now_;
}

void LiveBytes::call_ends(const Slot& slot, const Chunk& chunk, int call) {
  const auto first = std::ranges::lower_bound(chunk.ends, call, {}, &End::after);
  for (auto e = first; e != chunk.ends.end() && e->after == call; ++e) {
    const Call& of = chunk.calls[static_cast<std::size_t>(e->of)];
    const std::int64_t begin = address(slot, of, e->frame) + e->begin;
    end(memory_class(of, e->frame), begin, begin + e->bytes);
  }
}

void LiveBytes::slot_begins(int slot) {
  for (; next_begin_ < program_.begins.size() && program_.begins[next_begin_].slot == slot; ++next_begin_) {
    const EntryEdge& e = program_.begins[next_begin_];
    const MemoryClass c = memory_class(e.anchor);
    change(c, live_[static_cast<std::size_t>(c)].add(e.offset, e.offset + e.bytes));
  }
}

void LiveBytes::slot_ends(int slot) {
  for (; next_end_ < program_.ends.size() && program_.ends[next_end_].slot == slot; ++next_end_) {
    const EntryEdge& e = program_.ends[next_end_];
    end(memory_class(e.anchor), e.offset, e.offset + e.bytes);
  }
}

}  // namespace meshwright
