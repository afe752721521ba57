#include "model/program/live_memory.h"

#include <algorithm>
#include <deque>
#include <list>
#include <numeric>
#include <optional>

#include "model/program/byte_ranges.h"

namespace meshwright {
namespace {

constexpr int index(MemoryClass c) { return static_cast<int>(c); }

using Classes = std::array<std::int64_t, kMemoryClasses>;

std::int64_t sum(const Classes& bytes) { return std::accumulate(bytes.begin(), bytes.end(), std::int64_t{0}); }

// Of what lives throughout.
Classes kept(const Program& program) {
  Classes bytes = program.bytes_by_class();
  for (int c = 0; c < kMemoryClasses; ++c)
    if (!lives_throughout(static_cast<MemoryClass>(c))) bytes[c] = 0;
  return bytes;
}

// ---- operation by operation -------------------------------------------------------------------------------------------

class Count {
 public:
  explicit Count(const Program& program) : now_(kept(program)), bytes_(sum(now_)) {
    peak_ = {.bytes = bytes_, .at_peak = now_, .of_class = now_};
  }
  void write(MemoryClass c, std::int64_t begin, std::int64_t bytes) {
    if (!lives_throughout(c)) change(c, live_[index(c)].add(begin, begin + bytes));
  }
  void end(MemoryClass c, std::int64_t begin, std::int64_t bytes) {
    change(c, -live_[index(c)].remove(begin, begin + bytes));
  }
  void look() {
    for (int c = 0; c < kMemoryClasses; ++c) peak_.of_class[c] = std::max(peak_.of_class[c], now_[c]);
    if (bytes_ <= peak_.bytes) return;
    peak_.bytes = bytes_;
    peak_.at_peak = now_;
  }
  const MemoryPeak& peak() const { return peak_; }

 private:
  void change(MemoryClass c, std::int64_t bytes) {
    now_[index(c)] += bytes;
    bytes_ += bytes;
  }
  std::array<ByteRanges, kMemoryClasses> live_;
  Classes now_;
  std::int64_t bytes_;
  MemoryPeak peak_;
};

// ---- piece by piece, chunk by chunk -----------------------------------------------------------------------------------

// How far the live bytes rise while something runs, over what they are before.
struct Rise {
  Classes after{};     // change from before to after it
  Classes at_peak{};   // where the sum is largest, first
  Classes of_class{};  // the most of each class, at least 0
  std::int64_t peak = 0;

  // A moment at which they are `now` more.
  void look(const Classes& now) {
    for (int c = 0; c < kMemoryClasses; ++c) of_class[c] = std::max(of_class[c], now[c]);
    if (const std::int64_t bytes = sum(now); bytes > peak) {
      peak = bytes;
      at_peak = now;
    }
  }
  // `next` follows.
  void append(const Rise& next) {
    const std::int64_t before = sum(after);
    if (before + next.peak > peak) {
      peak = before + next.peak;
      for (int c = 0; c < kMemoryClasses; ++c) at_peak[c] = after[c] + next.at_peak[c];
    }
    for (int c = 0; c < kMemoryClasses; ++c) {
      of_class[c] = std::max(of_class[c], after[c] + next.of_class[c]);
      after[c] += next.after[c];
    }
  }
};

// Bytes that become live and end together, most of them: what one call writes in one frame.
struct Part {
  std::int64_t begin, end;  // hull
  std::int64_t bytes;       // live ones
  MemoryClass memory_class;
  const ByteRanges* written;  // from `base`
  std::int64_t base;
  bool operator==(const Part&) const = default;
};
using Parts = std::vector<Part>;  // ascending, apart

// Live bytes of a microbatch by anchor, from the anchor; [kFixed]: what is live whatever the microbatch, at its address.
using Living = std::array<Parts, kAnchors>;

}  // namespace

// What pieces do, and what chunks do to what they find: each worked out once.
class MemoryWalk::Pieces {
 public:
  explicit Pieces(const ProgramSet& set) : set_(set), of_piece_(set.pieces.size()) {}

  struct Frames {
    struct Written {
      Frame frame;
      ByteRanges ranges;
      std::int64_t bytes = 0;
    };
    bool ready = false;
    std::vector<Written> written;                      // frames whose bytes may become live
    struct Step {                                      // an operation that writes to such a frame, or the piece's begin
      std::vector<std::pair<int, std::int64_t>> adds;  // index in `written`, bytes that nothing has written before
      std::int64_t workspace = 0;                      // the most until the next such operation
    };
    std::vector<Step> steps;
    std::vector<std::pair<std::uint64_t, Rise>> rises;  // by what is new of the frames, and their classes
  };

  Frames& frames(int piece) {
    Frames& f = of_piece_[static_cast<std::size_t>(piece)];
    if (!f.ready) read(set_.pieces[static_cast<std::size_t>(piece)], f);
    return f;
  }

  // `fresh[i]`: the bytes of written[i] are not live yet, and are then of this class.
  static const Rise& rise(Frames& f, const std::array<std::optional<MemoryClass>, kFrames>& fresh) {
    std::uint64_t key = 0;
    for (std::size_t i = 0; i < f.written.size(); ++i)
      key = key << 4 | (fresh[i] ? 8u | static_cast<unsigned>(index(*fresh[i])) : 0u);
    for (const auto& [known, rise] : f.rises)
      if (known == key) return rise;
    Rise rise;
    for (const Frames::Step& step : f.steps) {
      for (const auto& [i, bytes] : step.adds)
        if (const auto& c = fresh[static_cast<std::size_t>(i)]) rise.after[index(*c)] += bytes;
      Classes now = rise.after;
      now[index(MemoryClass::kWorkspace)] += step.workspace;
      rise.look(now);
    }
    return f.rises.emplace_back(key, rise).second;
  }

 private:
  void read(const Piece& piece, Frames& f) const {
    f.ready = true;
    f.steps.emplace_back();
    std::int64_t workspace = 0;
    std::vector<bool> living(piece.tensors.size(), false);
    for (const Op& op : piece.ops) {
      if (const auto* free = std::get_if<Free>(&op)) {
        if (living[static_cast<std::size_t>(free->tensor)])
          workspace -= piece.tensors[static_cast<std::size_t>(free->tensor)].bytes();
        living[static_cast<std::size_t>(free->tensor)] = false;
        continue;
      }
      bool first = true;
      for_each_operand(op, [&](std::string_view, const View& view, Access access) {
        if (access == Access::kRead) return;
        const Tensor& t = piece.tensors[static_cast<std::size_t>(view.tensor)];
        if (t.frame == Frame::kWorkspace) {
          if (!living[static_cast<std::size_t>(view.tensor)]) workspace += t.bytes();
          living[static_cast<std::size_t>(view.tensor)] = true;
          return;
        }
        if (is_state(t.frame)) return;
        auto w = std::ranges::find(f.written, t.frame, &Frames::Written::frame);
        if (w == f.written.end()) w = f.written.insert(w, {t.frame, {}, 0});
        const std::int64_t added = w->ranges.add(t.offset, t.offset + t.bytes());
        if (added == 0) return;
        w->bytes += added;
        if (first) f.steps.emplace_back();
        first = false;
        f.steps.back().adds.emplace_back(static_cast<int>(w - f.written.begin()), added);
      });
      f.steps.back().workspace = std::max(f.steps.back().workspace, workspace);
    }
  }
  // Frames whose bytes are of a class that lives throughout, wherever they lie.
  static bool is_state(Frame frame) {
    switch (frame) {
      case Frame::kWeightShard:
      case Frame::kMaster:
      case Frame::kGradShard:
      case Frame::kMoment1:
      case Frame::kMoment2:
      case Frame::kTokens:
      case Frame::kMetrics:
      case Frame::kBalance:
        return true;
      default:
        return false;
    }
  }

  const ProgramSet& set_;
  std::vector<Frames> of_piece_;
};

namespace {

// One stage. Microbatches that have gone through the same chunks hold the same: they are in the same state.
template <class Pieces>
class StageWalk {
 public:
  StageWalk(Pieces& pieces, const Program& program)
      : pieces_(pieces), program_(program), last_passage_(program.chunks.size()) {}

  // None if a chunk ends or writes a part of what is live together.
  std::optional<MemoryPeak> run() {
    MemoryPeak peak;
    Classes now = kept(program_);
    std::int64_t bytes = sum(now);
    peak = {.bytes = bytes, .at_peak = now, .of_class = now};
    states_.emplace_back();
    std::vector<int> state;  // of each microbatch
    int fixed = 0, none = 0;
    std::size_t next_begin = 0, next_end = 0;
    for (std::size_t i = 0; i < program_.slots.size(); ++i) {
      const Slot& slot = program_.slots[i];
      const auto state_of_microbatch = [&](int m) -> int& {
        if (m >= static_cast<int>(state.size())) state.resize(static_cast<std::size_t>(m) + 1, 0);
        return state[static_cast<std::size_t>(m)];
      };
      for (; next_begin < program_.begins.size() && program_.begins[next_begin].slot == static_cast<int>(i);
           ++next_begin) {
        const EntryEdge& begin = program_.begins[next_begin];
        if (begin.microbatch < 0 || !begin_entry(state_of_microbatch(begin.microbatch), begin)) return std::nullopt;
        now[index(memory_class(begin.anchor))] += begin.bytes;
        bytes += begin.bytes;
      }
      int& mine = slot.microbatch < 0 ? none : state_of_microbatch(slot.microbatch);
      const Passage* passage = pass({mine, fixed, slot.chunk, slot.ring & 1});
      if (!passage) return std::nullopt;
      const Rise& rise = passage->rise;
      if (bytes + rise.peak > peak.bytes) {
        peak.bytes = bytes + rise.peak;
        for (int c = 0; c < kMemoryClasses; ++c) peak.at_peak[c] = now[c] + rise.at_peak[c];
      }
      for (const int c : kChanging) {
        peak.of_class[c] = std::max(peak.of_class[c], now[c] + rise.of_class[c]);
        now[c] += rise.after[c];
      }
      bytes += passage->bytes_after;
      mine = passage->state;
      fixed = passage->fixed;
      for (; next_end < program_.ends.size() && program_.ends[next_end].slot == static_cast<int>(i); ++next_end) {
        const EntryEdge& end = program_.ends[next_end];
        if (end.microbatch < 0 || end.microbatch >= static_cast<int>(state.size())) return std::nullopt;
        const std::int64_t freed = end_entry(state[static_cast<std::size_t>(end.microbatch)], end.anchor);
        now[index(memory_class(end.anchor))] -= freed;
        bytes -= freed;
      }
    }
    return peak;
  }

 private:
  struct Key {
    int state, fixed, chunk, ring;
    bool operator==(const Key&) const = default;
  };
  struct Passage {  // of a chunk: from one state to another
    Key key;
    int state, fixed;
    Rise rise;
    std::int64_t bytes_after;
  };
  // Classes that do not live throughout.
  static constexpr std::array kChanging{index(MemoryClass::kActivations), index(MemoryClass::kWorkspace),
                                        index(MemoryClass::kBuffers)};

  const Passage* pass(const Key& key) {
    const Passage*& last = last_passage_[static_cast<std::size_t>(key.chunk)];
    if (last && last->key == key) return last;
    for (const Passage& p : passages_)
      if (p.key == key) return last = &p;
    Living living = states_[static_cast<std::size_t>(key.state)];
    living[0] = states_[static_cast<std::size_t>(key.fixed)][0];
    Rise rise;
    if (!walk(program_.chunks[static_cast<std::size_t>(key.chunk)], key.ring, living, rise)) return nullptr;
    Living fixed;
    fixed[0] = std::move(living[0]);
    living[0] = {};
    const int to_fixed = state_of(std::move(fixed)), to = state_of(std::move(living));
    return last = &passages_.emplace_back(Passage{key, to, to_fixed, rise, sum(rise.after)});
  }

  int state_of(Living&& living) {
    const auto known = std::ranges::find(states_, living);
    if (known != states_.end()) return static_cast<int>(known - states_.begin());
    states_.push_back(std::move(living));
    return static_cast<int>(states_.size()) - 1;
  }

  // False if something is there already.
  bool begin_entry(int& state, const EntryEdge& begin) {
    const auto a = static_cast<std::size_t>(begin.anchor);
    for (const auto& [from, which, bytes, to] : entry_begins_)
      if (from == state && which == begin.anchor && bytes == begin.bytes) {
        state = to;
        return true;
      }
    Living living = states_[static_cast<std::size_t>(state)];
    if (!living[a].empty()) return false;
    auto message = std::ranges::find(messages_, begin.bytes, &ByteRanges::end);
    if (message == messages_.end()) {
      message = messages_.insert(message, ByteRanges());
      message->add(0, begin.bytes);
    }
    living[a].push_back({0, begin.bytes, begin.bytes, memory_class(begin.anchor), &*message, 0});
    const int to = state_of(std::move(living));
    entry_begins_.push_back({state, begin.anchor, begin.bytes, to});
    state = to;
    return true;
  }

  std::int64_t end_entry(int& state, Anchor anchor) {
    const auto a = static_cast<std::size_t>(anchor);
    for (const auto& [from, which, to, freed] : entry_ends_)
      if (from == state && which == anchor) {
        state = to;
        return freed;
      }
    std::int64_t freed = 0;
    for (const Part& part : states_[static_cast<std::size_t>(state)][a]) freed += part.bytes;
    Living living = states_[static_cast<std::size_t>(state)];
    living[a].clear();
    const int to = state_of(std::move(living));
    entry_ends_.push_back({state, anchor, to, freed});
    state = to;
    return freed;
  }

  bool walk(const Chunk& chunk, int ring, Living& living, Rise& rise) {
    Slot slot;  // addresses from their anchors
    slot.ring = static_cast<std::uint8_t>(ring);
    std::size_t next_end = 0;
    for (int k = 0; k < static_cast<int>(chunk.calls.size()); ++k) {
      const Call& call = chunk.calls[static_cast<std::size_t>(k)];
      auto& frames = pieces_.frames(call.piece);
      std::array<std::optional<MemoryClass>, kFrames> fresh;
      for (std::size_t i = 0; i < frames.written.size(); ++i) {
        const auto& w = frames.written[i];
        const MemoryClass c = memory_class(call, w.frame);
        if (lives_throughout(c)) continue;
        Parts& parts = living[static_cast<std::size_t>(call.anchor[static_cast<std::size_t>(w.frame)])];
        const std::int64_t base = address(slot, call, w.frame), begin = base + w.ranges.begin(),
                           end = base + w.ranges.end();
        const auto at = std::ranges::upper_bound(parts, begin, {}, &Part::end);  // the first that ends behind begin
        if (at == parts.end() || at->begin >= end) {
          fresh[i] = c;
          parts.insert(at, {begin, end, w.bytes, c, &w.ranges, base});
        } else if (at->memory_class != c || !holds(*at, w.ranges, base)) {
          return false;
        }
      }
      rise.append(Pieces::rise(frames, fresh));
      for (; next_end < chunk.ends.size() && chunk.ends[next_end].after == k; ++next_end) {
        const End& end = chunk.ends[next_end];
        const Call& of = chunk.calls[static_cast<std::size_t>(end.of)];
        Parts& parts = living[static_cast<std::size_t>(of.anchor[static_cast<std::size_t>(end.frame)])];
        const std::int64_t begin = address(slot, of, end.frame) + end.begin;
        const auto first = std::ranges::upper_bound(parts, begin, {}, &Part::end);
        auto last = first;
        for (; last != parts.end() && last->begin < begin + end.bytes; ++last) {
          if (last->begin < begin || last->end > begin + end.bytes) return false;
          rise.after[index(last->memory_class)] -= last->bytes;
        }
        parts.erase(first, last);
      }
    }
    return true;
  }

  static bool holds(const Part& part, const ByteRanges& ranges, std::int64_t base) {
    if (part.written == &ranges && part.base == base) return true;
    for (const auto& [begin, end] : ranges.ranges())
      if (part.written->first_gap(begin + base - part.base, end + base - part.base)) return false;
    return true;
  }

  Pieces& pieces_;
  const Program& program_;
  std::vector<Living> states_;
  std::deque<Passage> passages_;
  std::vector<const Passage*> last_passage_;  // by chunk: most slots do what the last one of their chunk did
  struct EntryEnded {
    int state;
    Anchor anchor;
    int to;
    std::int64_t freed;
  };
  std::vector<EntryEnded> entry_ends_;
  struct EntryBegun {
    int state;
    Anchor anchor;
    std::int64_t bytes;
    int to;
  };
  std::vector<EntryBegun> entry_begins_;
  std::list<ByteRanges> messages_;  // by their size
};

}  // namespace

MemoryWalk::MemoryWalk(const ProgramSet& set) : set_(set), pieces_(std::make_unique<Pieces>(set)) {}
MemoryWalk::~MemoryWalk() = default;

MemoryPeak MemoryWalk::peak(const Program& program) {
  if (auto peak = StageWalk<Pieces>(*pieces_, program).run()) return *peak;
  return peak_by_operation(set_, program);
}

MemoryPeak peak_by_operation(const ProgramSet& set, const Program& program) {
  Count count(program);
  std::size_t next_begin = 0, next_entry_end = 0;
  for (std::size_t i = 0; i < program.slots.size(); ++i) {
    const Slot& slot = program.slots[i];
    for (; next_begin < program.begins.size() && program.begins[next_begin].slot == static_cast<int>(i); ++next_begin) {
      const EntryEdge& begin = program.begins[next_begin];
      count.write(memory_class(begin.anchor), begin.offset, begin.bytes);
    }
    const Chunk& chunk = program.chunks[static_cast<std::size_t>(slot.chunk)];
    std::size_t next_end = 0;
    for (std::size_t k = 0; k < chunk.calls.size(); ++k) {
      const Call& call = chunk.calls[k];
      const Piece& piece = set.pieces[static_cast<std::size_t>(call.piece)];
      for (const Op& op : piece.ops) {
        if (const auto* free = std::get_if<Free>(&op)) {
          const Tensor& t = piece.tensors[static_cast<std::size_t>(free->tensor)];
          count.end(memory_class(call, t.frame), address(slot, call, t), t.bytes());
          continue;
        }
        for_each_operand(op, [&](std::string_view, const View& view, Access access) {
          const Tensor& t = piece.tensors[static_cast<std::size_t>(view.tensor)];
          if (access != Access::kRead) count.write(memory_class(call, t.frame), address(slot, call, t), t.bytes());
        });
        count.look();
      }
      for (; next_end < chunk.ends.size() && chunk.ends[next_end].after == static_cast<int>(k); ++next_end) {
        const End& end = chunk.ends[next_end];
        const Call& of = chunk.calls[static_cast<std::size_t>(end.of)];
        count.end(memory_class(of, end.frame), address(slot, of, end.frame) + end.begin, end.bytes);
      }
    }
    for (; next_entry_end < program.ends.size() && program.ends[next_entry_end].slot == static_cast<int>(i);
         ++next_entry_end) {
      const EntryEdge& end = program.ends[next_entry_end];
      count.end(memory_class(end.anchor), end.offset, end.bytes);
    }
  }
  return count.peak();
}

// ---- at the times of a timeline ---------------------------------------------------------------------------------------

namespace {

// Bytes that are always used together, between two neighbouring begins or ends of operands.
struct TimedPart {
  bool live = false;
  std::int64_t begin = 0, end = 0;
  // Who wrote it: a tensor may be written in several windows, one after another.
  OpPlace writer;
  TensorId tensor = kNoTensor;
  MemoryClass memory_class = MemoryClass::kActivations;
};

class TimedWalk {
 public:
  TimedWalk(const ProgramSet& set, const Program& program) : set_(set), program_(program) {}

  std::array<LiveBytes, kMemoryClasses> run(
      const std::vector<Interval>& timeline,
      const std::function<std::pair<std::int64_t, std::int64_t>(std::size_t)>& times) {
    cut(timeline);
    for (std::size_t i = 0; i < timeline.size(); ++i) {
      const auto [begin, end] = times(i);
      const OpPlace& place = timeline[i].place;
      for_each_range(place, [&](std::int64_t first, std::int64_t last, Access access, TensorId tensor, MemoryClass c) {
        for (std::size_t p = part_at(first); cuts_[p] < last; ++p) touch(p, access, place, tensor, c, begin, end);
      });
    }
    for (std::size_t p = 0; p < parts_.size(); ++p) finish(p);
    std::array<LiveBytes, kMemoryClasses> live;
    for (int c = 0; c < kMemoryClasses; ++c) {
      std::int64_t bytes = kept(program_)[c];
      live[c][0] = bytes;
      for (const auto& [time, change] : changes_[c])
        if (change != 0) live[c][time] = bytes += change;
    }
    return live;
  }

 private:
  // Operands in memory that is used for different things in turn.
  template <class F>
  void for_each_range(const OpPlace& place, F&& f) const {
    const PlacedOp placed = op_at(set_, program_, place);
    for_each_operand(placed.op, [&](std::string_view, const View& view, Access access) {
      const Tensor& tensor = placed.piece.tensors[static_cast<std::size_t>(view.tensor)];
      const std::int64_t first = address(placed.slot, placed.call, tensor);
      const MemoryClass c = memory_class(placed.call, tensor.frame);
      if (tensor.bytes() > 0 && !lives_throughout(c)) f(first, first + tensor.bytes(), access, view.tensor, c);
    });
  }

  void cut(const std::vector<Interval>& timeline) {
    for (const Interval& i : timeline)
      for_each_range(i.place, [&](std::int64_t first, std::int64_t last, Access, TensorId, MemoryClass) {
        cuts_.push_back(first);
        cuts_.push_back(last);
      });
    std::sort(cuts_.begin(), cuts_.end());
    cuts_.erase(std::unique(cuts_.begin(), cuts_.end()), cuts_.end());
    parts_.resize(cuts_.size());
  }
  std::size_t part_at(std::int64_t address) const {
    return static_cast<std::size_t>(std::lower_bound(cuts_.begin(), cuts_.end(), address) - cuts_.begin());
  }

  void touch(std::size_t p, Access access, const OpPlace& place, TensorId tensor, MemoryClass c, std::int64_t begin,
             std::int64_t end) {
    TimedPart& part = parts_[p];
    const bool another_window =
        part.tensor == tensor && part.writer.slot == place.slot && part.writer.call == place.call;
    if (access == Access::kWrite && !another_window) finish(p);
    if (!part.live) part = {true, begin, end, {}, kNoTensor, c};
    part.end = std::max(part.end, end);
    if (access == Access::kWrite) {
      part.writer = place;
      part.tensor = tensor;
    }
  }

  void finish(std::size_t p) {
    TimedPart& part = parts_[p];
    if (!part.live) return;
    part.live = false;
    auto& changes = changes_[index(part.memory_class)];
    const std::int64_t bytes = cuts_[p + 1] - cuts_[p];
    changes[part.begin] += bytes;
    changes[part.end] -= bytes;
  }

  const ProgramSet& set_;
  const Program& program_;
  std::vector<std::int64_t> cuts_;
  std::vector<TimedPart> parts_;  // parts_[p]: from cuts_[p] to the next one
  std::array<std::map<std::int64_t, std::int64_t>, kMemoryClasses> changes_;
};

}  // namespace

std::array<LiveBytes, kMemoryClasses> live_bytes(
    const ProgramSet& set, const Program& program, const std::vector<Interval>& timeline,
    const std::function<std::pair<std::int64_t, std::int64_t>(std::size_t)>& times) {
  return TimedWalk(set, program).run(timeline, times);
}

}  // namespace meshwright
