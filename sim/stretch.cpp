#include "sim/stretch.h"

#include <algorithm>

#include "model/program/op_work.h"
#include "sim/checked_sum.h"
#include "sim/meeting.h"

namespace meshwright {

void Library::time_piece(const Piece& piece, TimedPiece& timed) const {
  timed.ready = true;
  std::array<int, kFrames> use_of_frame;
  use_of_frame.fill(-1);
  for (const Op& op : piece.ops) {
    if (std::holds_alternative<Free>(op)) continue;
    TimedOp t{&op,
              occupied_stream(op, cost_),
              meeting_place(op, 0, set_) != kNoMeeting,
              duration(op, piece, set_, cost_),
              static_cast<std::int32_t>(timed.operands.size()),
              0};
    add_checked(timed.all, t.duration, 1, kTimeLimit);
    if (!is_communication(op)) {
      timed.compute += t.duration;
      add_checked(timed.flops, work_of(op, piece).flops.value, 1, kFlopsLimit);
    } else if (const Bytes sent = bytes_sent(op, piece, set_.mesh); sent.value > 0) {
      const auto* collective = std::get_if<Collective>(&op);
      add_checked(timed.sent[collective ? static_cast<int>(collective->kind) : 3]
                            [static_cast<int>(collective ? collective->group : Group::kPp)],
                  sent.value, 1, kBytesLimit);
      timed.sends_any = true;
    }
    for_each_operand(op, [&](std::string_view, const View& view, Access access) {
      const Tensor& tensor = piece.tensors[view.tensor];
      const std::int64_t bytes = tensor.bytes();
      if (bytes == 0) return;
      const auto frame = static_cast<std::uint8_t>(tensor.frame);
      timed.operands.push_back({frame, access != Access::kRead, tensor.offset, tensor.offset + bytes});
      if (use_of_frame[frame] < 0) {
        use_of_frame[frame] = static_cast<int>(timed.frames.size());
        timed.frames.push_back({frame, 0, tensor.offset, tensor.offset + bytes});
      }
      FrameUse& use = timed.frames[use_of_frame[frame]];
      use.streams |= mask_of(t.stream);
      use.begin = std::min(use.begin, tensor.offset);
      use.end = std::max(use.end, tensor.offset + bytes);
    });
    t.end_operand = static_cast<std::int32_t>(timed.operands.size());
    timed.ops.push_back(t);
  }
}

int Library::structure_of(std::span<const Call> calls, std::span<const PlacedFrame> frames,
                          const std::vector<std::int32_t>& place) {
  key_.clear();
  for (const Call& call : calls) key_.push_back(call.piece);
  key_.push_back(-1);
  for (const std::int32_t p : place) key_.push_back(p);
  // Frames that overlap, with how far they are apart.
  for (std::size_t i = 0; i < frames.size(); ++i)
    for (std::size_t j = i + 1; j < frames.size(); ++j) {
      const PlacedFrame &a = frames[i], &b = frames[j];
      if (a.base + a.begin < b.base + b.end && b.base + b.begin < a.base + a.end) {
        key_.push_back(static_cast<std::int64_t>(i << 8 | j));
        key_.push_back(b.base - a.base);
      }
    }
  const auto [it, fresh] = structure_index_.try_emplace(key_, static_cast<std::int32_t>(structures_.size()));
  if (fresh) structures_.push_back(make_structure(calls, frames, place));
  return it->second;
}

Structure Library::make_structure(std::span<const Call> calls, std::span<const PlacedFrame> frames,
                                  const std::vector<std::int32_t>& place) {
  Structure s;
  std::size_t at = 0;
  for (const Call& call : calls) {
    const TimedPiece& timed = piece(call.piece);
    std::array<std::uint8_t, kFrames> placed{};
    for (const FrameUse& use : timed.frames) placed[use.frame] = static_cast<std::uint8_t>(place[at++]);
    const auto shift = static_cast<std::int32_t>(s.operands.size());
    for (const Operand& o : timed.operands) s.operands.push_back({placed[o.place], o.writes, o.begin, o.end});
    for (TimedOp op : timed.ops) {
      op.first_operand += shift;
      op.end_operand += shift;
      s.meets |= op.meets;
      s.streams |= mask_of(op.stream);
      s.ops.push_back({op, 0, 0, false, false});
    }
  }

  // Memory, cut at the ends of what operations off the compute stream touch; the rest can only order compute
  // by itself.
  std::vector<std::int64_t> cuts;
  for (const auto& op : s.ops)
    if (op.timed.stream != Stream::kCompute)
      for (std::int32_t i = op.timed.first_operand; i < op.timed.end_operand; ++i) {
        cuts.push_back(frames[s.operands[i].place].base + s.operands[i].begin);
        cuts.push_back(frames[s.operands[i].place].base + s.operands[i].end);
      }
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  struct Part {
    std::int32_t writer = -1;
    std::array<std::int32_t, kStreams> user;  // the last of each stream, writers too
    Part() { user.fill(-1); }
  };
  std::vector<Part> parts(cuts.size());

  std::array<std::int32_t, kStreams> last_of_stream;
  last_of_stream.fill(-1);
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(s.ops.size()); ++i) {
    auto& op = s.ops[i];
    const int stream = static_cast<int>(op.timed.stream);
    std::array<std::int32_t, kStreams> after;
    after.fill(-1);
    const auto for_each_part = [&](const Operand& o, auto&& f) {
      const std::int64_t begin = frames[o.place].base + o.begin, end = frames[o.place].base + o.end;
      auto c = static_cast<std::size_t>(std::upper_bound(cuts.begin(), cuts.end(), begin) - cuts.begin());
      for (c = c > 0 ? c - 1 : 0; c + 1 < cuts.size() && cuts[c] < end; ++c) f(parts[c]);
    };
    const std::span<const Operand> operands(s.operands.data() + op.timed.first_operand,
                                            s.operands.data() + op.timed.end_operand);
    if (!cuts.empty()) {
      for (const Operand& o : operands)
        for_each_part(o, [&](const Part& part) {
          if (part.writer >= 0) {
            std::int32_t& a = after[static_cast<int>(s.ops[part.writer].timed.stream)];
            a = std::max(a, part.writer);
          }
          if (o.writes)
            for (int k = 0; k < kStreams; ++k) after[k] = std::max(after[k], part.user[k]);
        });
      for (const Operand& o : operands)
        for_each_part(o, [&](Part& part) {
          if (o.writes) part.writer = i;
          part.user[stream] = i;
        });
    }
    op.first_dependency = static_cast<std::int32_t>(s.dependencies.size());
    op.anchored =
        op.timed.stream == Stream::kCompute || (last_of_stream[stream] >= 0 && s.ops[last_of_stream[stream]].anchored);
    for (int k = 0; k < kStreams; ++k)
      if (k != stream && after[k] >= 0) {
        s.dependencies.push_back(after[k]);
        op.anchored |= s.ops[after[k]].anchored;
      }
    op.end_dependency = static_cast<std::int32_t>(s.dependencies.size());
    last_of_stream[stream] = i;
  }

  std::array<bool, kStreams> next_joined{};
  for (auto i = static_cast<std::int32_t>(s.ops.size()) - 1; i >= 0; --i) {
    auto& op = s.ops[i];
    const int stream = static_cast<int>(op.timed.stream);
    op.joined |= op.timed.stream == Stream::kCompute || next_joined[stream];
    next_joined[stream] = op.joined;
    if (op.joined)
      for (std::int32_t d = op.first_dependency; d < op.end_dependency; ++d) s.ops[s.dependencies[d]].joined = true;
  }
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(s.ops.size()); ++i)
    if (s.ops[i].loose()) s.loose.push_back(i);
  return s;
}

int Library::effect_of(int structure, std::span<const CellUnderFrame> cells, std::int32_t variables,
                       const std::array<std::int32_t, kStreams>& stream_variable) {
  key_.assign({structure, variables});
  for (const std::int32_t v : stream_variable) key_.push_back(v);
  for (const CellUnderFrame& c : cells) {
    key_.push_back(std::int64_t{c.frame} << 32 | c.variable);
    key_.push_back(c.masks.packed());
    key_.push_back(c.begin);
    key_.push_back(c.end);
  }
  const auto [it, fresh] = effect_index_.try_emplace(key_, static_cast<std::int32_t>(effects_.size()));
  if (fresh) effects_.push_back(make_effect(structure, cells, variables, stream_variable));
  return it->second;
}

Effect Library::make_effect(int structure, std::span<const CellUnderFrame> cells, std::int32_t variables,
                            const std::array<std::int32_t, kStreams>& stream_variable) const {
  const Structure& s = structures_[structure];
  Effect e;
  e.structure = structure;
  std::array<std::size_t, 257> first_cell;  // per placed frame
  for (std::size_t f = 0, c = 0; f < first_cell.size(); ++f) {
    while (c < cells.size() && cells[c].frame < static_cast<std::int32_t>(f)) ++c;
    first_cell[f] = c;
  }
  for (const auto& op : s.ops) {
    const auto others = static_cast<StreamMask>(~mask_of(op.timed.stream));
    const auto add = [&](std::int32_t first, std::int32_t variable) {
      if (std::find(e.pool.begin() + first, e.pool.end(), variable) == e.pool.end()) e.pool.push_back(variable);
    };
    const auto for_each_cell = [&](auto&& f) {
      for (std::int32_t i = op.timed.first_operand; i < op.timed.end_operand; ++i) {
        const Operand& o = s.operands[i];
        for (auto c = first_cell[o.place]; c < first_cell[o.place + 1]; ++c)
          if (cells[c].begin < o.end && o.begin < cells[c].end) f(o, cells[c]);
      }
    };
    const auto first_consult = static_cast<std::int32_t>(e.pool.size());
    for_each_cell([&](const Operand& o, const CellUnderFrame& c) {
      if (others & (op.anchored ? c.masks.unjoined_before : c.masks.used_before))
        add(first_consult, c.variable + o.writes);
    });
    const auto first_update = static_cast<std::int32_t>(e.pool.size());
    for_each_cell([&](const Operand& o, const CellUnderFrame& c) {
      if (!(others & (op.joined ? c.masks.unanchored_after : c.masks.used_after | c.masks.unanchored_after))) return;
      if (o.writes) add(first_update, c.variable);
      add(first_update, c.variable + 1);
    });
    e.consults.push_back({first_consult, first_update});
    e.updates.push_back({first_update, static_cast<std::int32_t>(e.pool.size())});
  }
  std::vector<std::int32_t> number(static_cast<std::size_t>(variables), -1);
  const auto keep = [&](std::int32_t v) {
    if (number[v] >= 0) return;
    number[v] = static_cast<std::int32_t>(e.kept.size());
    e.kept.push_back(v);
  };
  for (const std::int32_t v : stream_variable)
    if (v >= 0) keep(v);
  for (const std::int32_t v : e.pool) keep(v);
  for (int k = 0; k < kStreams; ++k) e.stream_variable[k] = stream_variable[k] >= 0 ? number[stream_variable[k]] : -1;
  for (std::int32_t& v : e.pool) v = number[v];
  if (!s.meets) make_map(e);
  return e;
}

// Runs the structure on vectors in place of moments: entry v of a vector is the delay since variable v.
void Library::make_map(Effect& e) const {
  const Structure& s = structures_[e.structure];
  const std::size_t n = e.kept.size();
  using Vector = Time*;
  std::vector<Time> storage((s.ops.size() + kStreams + n) * n, kUnreachable);
  const auto finish = [&](std::size_t op) -> Vector { return storage.data() + op * n; };
  const auto stream_free = [&](int stream) -> Vector { return storage.data() + (s.ops.size() + stream) * n; };
  const auto variable = [&](std::size_t v) -> Vector { return storage.data() + (s.ops.size() + kStreams + v) * n; };
  const auto raise = [&](Vector to, const Time* from) {
    for (std::size_t v = 0; v < n; ++v) to[v] = std::max(to[v], from[v]);
  };
  std::vector<bool> updated(n, false);
  for (std::size_t v = 0; v < n; ++v) variable(v)[v] = 0;
  for (int k = 0; k < kStreams; ++k)
    if (e.stream_variable[k] >= 0) stream_free(k)[e.stream_variable[k]] = 0;

  std::vector<Time> before(n);
  e.map.gate_of.assign(n, -1);
  for (std::size_t i = 0; i < s.ops.size(); ++i) {
    const auto& op = s.ops[i];
    const int stream = static_cast<int>(op.timed.stream);
    const Vector free = stream_free(stream);
    const bool computes = op.timed.stream == Stream::kCompute;
    if (computes) std::copy(free, free + n, before.begin());
    for (std::int32_t d = op.first_dependency; d < op.end_dependency; ++d) raise(free, finish(s.dependencies[d]));
    for (std::int32_t c = e.consults[i].first; c < e.consults[i].end; ++c)
      free[e.pool[c]] = std::max<Time>(free[e.pool[c]], 0);
    if (computes) e.map.pass(before, {free, n});
    for (std::size_t v = 0; v < n; ++v) free[v] += op.timed.duration;  // kUnreachable stays far below 0
    std::copy(free, free + n, finish(i));
    for (std::int32_t u = e.updates[i].first; u < e.updates[i].end; ++u) {
      raise(variable(e.pool[u]), free);
      updated[e.pool[u]] = true;
    }
  }
  for (int k = 0; k < kStreams; ++k)
    if (const std::int32_t v = e.stream_variable[k]; v >= 0) {
      std::copy(stream_free(k), stream_free(k) + n, variable(v));
      updated[v] = true;
    }
  for (std::size_t v = 0; v < n; ++v)
    if (updated[v]) e.map.rows.push_back(e.map.make_row(static_cast<std::int32_t>(v), {variable(v), n}));
}

}  // namespace meshwright
