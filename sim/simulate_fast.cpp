// The fast path: a step without its operations.
//
// Everything that a stage's future depends on is a few moments: when each stream is free, and when parts of
// its memory were last written and last used. An operation starts at the latest of some of them and ends a
// fixed time later, so each new moment is a maximum of (old moment + constant): a linear map over (max, +)
// (Baccelli, Cohen, Olsder, Quadrat 1992, Synchronization and Linearity). Such maps compose. The map of a
// stretch of calls is worked out once for all layers that are alike, that of a chunk once for all
// microbatches, and a slot is one product. Only slots that talk to other stages are walked operation by
// operation.
//
// What must be remembered between stretches is little, as most dependencies follow from the compute stream's
// order:
//   joined    a compute operation later in the stretch depends on it; so it is over when the stretch's
//   compute is anchored  it depends on a compute operation of the stretch; so it starts after all compute
//   before the stretch
// If u is joined and v, in a later stretch, is anchored, then v starts after u, whatever they touch. So
// memory matters only where an operation that is not both ("loose": gathers ahead, reductions behind,
// transfers) touches it. Cutting the arena at the ends of what loose operations touch gives cells; of a cell
// we keep its last write and last use. Two operations that use different parts of one cell are then taken to
// depend on each other, which changes nothing: neither is loose (a loose one covers its cells), so by the
// above the one starts after the other anyway.
//
// Waits for other stages. A moment carries until when its chain waited for another stage (wait.h). That is
// only of interest while it lies after the time at which the compute stream is free. What depends on such a
// moment for the first time, of all operations of the compute stream, does all the waiting for it; so a map
// knows that operation of every variable, its gate: when the compute stream is free before it, and when it
// starts, as rows of the map.

#include <algorithm>
#include <array>
#include <cassert>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "model/program/live_memory.h"
#include "sim/checked_sum.h"
#include "sim/meeting.h"
#include "sim/simulate.h"
#include "sim/stage_totals.h"
#include "sim/stretch.h"
#include "sim/wait.h"

namespace meshwright {
namespace {

constexpr bool several(StreamMask streams) { return (streams & (streams - 1)) != 0; }

// Where and when operations touch a part of the arena. Times are slots.
struct Cell {
  static constexpr std::int32_t kNeverFirst = std::numeric_limits<std::int32_t>::max(), kNeverLast = -1;
  std::int64_t begin, end;
  bool loose = false;      // some loose operation covers it
  StreamMask streams = 0;  // that use it
  std::array<std::int32_t, kStreams> first_use, last_use, first_unjoined, last_unanchored;
  Cell(std::int64_t b, std::int64_t e) : begin(b), end(e) {
    first_use.fill(kNeverFirst);
    first_unjoined.fill(kNeverFirst);
    last_use.fill(kNeverLast);
    last_unanchored.fill(kNeverLast);
  }
};

// A variable of a stage. Kind: 0 for streams and cells that every slot finds in one place, else the anchor
// that moves it.
struct Ref {
  std::uint8_t anchor = 0;
  std::int32_t offset = 0;
  bool operator==(const Ref&) const = default;
};

struct Stretch {
  std::int32_t structure = 0, effect = -1;
  std::int32_t first_frame = 0, end_frame = 0;  // in the stage's placed frames
  std::vector<Ref> refs;
};

// A chunk with its rings in one of the two positions.
struct Variant {
  std::int32_t chunk = 0;
  std::uint8_t ring = 0;
  std::int32_t first_slot = 0, last_slot = 0, count = 0;
  std::vector<Stretch> stretches;
  bool meets = false;
  bool composed = false;
  std::vector<Ref> refs;  // of `map`, if composed
  MaxPlusMap map;
};

// ---- one stage
// -----------------------------------------------------------------------------------------------------

// A moment that may not be known yet: then it is the later of `moment` and the end of a meeting.
struct Variable {
  Moment moment;
  std::int32_t pending = -1;  // index in the stage's pending meetings
};

struct Meeting {
  std::int32_t missing = 0;
  Time start = 0, duration = 0;
};
using Meetings = std::vector<std::vector<Meeting>>;  // per place, in order

class Stage {
 public:
  // `all_durations`: of the operations of all stages together.
  Stage(Library& library, int index, Meetings& meetings, Time& all_durations)
      : library_(library),
        set_(library.set()),
        program_(set_.stages[index]),
        index_(index),
        meetings_(meetings),
        all_durations_(all_durations),
        met_(meetings.size(), 0) {}

  // False if the program is not one that this way of simulating can do.
  bool prepare();

  // Goes on until the end or until a moment is needed that another stage has not settled; true at the end.
  // `settled`: called with the place of every meeting that this stage was the last to come to.
  template <class F>
  bool run(F&& settled);

  // After every stage is at its end: when the last operation ends.
  Moment end();
  RankReport report(Time step);

 private:
  struct AnchorValues {  // of one anchor: where its cells' variables lie, per value
    std::vector<std::int64_t> values;
    std::int32_t first_variable = 0, cells = 0;
  };

  void find_variants();
  bool anchors_are_apart();
  void find_cells();
  void find_effects();
  void compose(Variant& variant);
  template <class F>
  void for_each_cell(std::int64_t begin, std::int64_t end, F&& f) {
    auto c = std::upper_bound(cells_.begin(), cells_.end(), begin,
                              [](std::int64_t at, const Cell& cell) { return at < cell.end; });
    for (; c != cells_.end() && c->begin < end; ++c) f(*c);
  }
  static CellMasks masks(const Cell& cell, const Variant& variant);
  Ref ref_of(const Cell& cell) const;

  void find_anchors(const Slot& slot);
  Variable& at(Ref ref) { return variables_[anchor_base_[ref.anchor] + ref.offset]; }
  bool settle(Variable& v);
  bool settle_all(std::span<const Ref> refs);
  void apply(const MaxPlusMap& map, std::span<const Ref> refs);
  template <class F>
  bool walk(const Stretch& stretch, F&& settled);

  Library& library_;
  const ProgramSet& set_;
  const Program& program_;
  const int index_;
  Meetings& meetings_;
  Time& all_durations_;
  std::vector<std::int32_t> met_;  // per place

  std::vector<Variant> variants_;
  std::vector<std::int32_t> variant_of_slot_;
  std::vector<PlacedFrame> frames_;
  std::vector<Cell> cells_;
  std::array<std::int32_t, kAnchors + 1> first_cell_{};  // per anchor
  std::array<AnchorValues, kAnchors> anchors_;
  std::array<std::int32_t, kAnchors> anchor_base_{};
  StreamMask tracked_ = mask_of(Stream::kCompute);
  TrafficTable sent_{};
  StageTotals totals_;

  struct Pending {
    MeetingPlace place;
    std::int32_t nth;
    Moment ready;
  };
  std::vector<Pending> pending_;
  std::vector<Variable> variables_;
  std::vector<Moment> moments_;  // scratch of apply()
  std::vector<std::int32_t> gates_;

  // Where run() stands: in the stretch that is walked, what has happened so far.
  std::int32_t slot_ = 0, stretch_ = 0, op_ = -1;
  std::int32_t posted_ = -1;  // pending meeting of the operation at hand
  std::vector<Variable> finish_, entry_;
  std::array<Variable, kStreams> stream_free_;
};

bool Stage::prepare() {
  find_variants();
  if (!anchors_are_apart()) return false;
  find_cells();
  find_effects();
  return true;
}

void Stage::find_variants() {
  std::vector<bool> turns(program_.chunks.size());
  for (std::size_t c = 0; c < turns.size(); ++c)
    for (const Call& call : program_.chunks[c].calls) turns[c] = turns[c] || call.weights_ring || call.grads_ring;
  std::vector<std::int32_t> variant_of(2 * turns.size(), -1);
  variant_of_slot_.reserve(program_.slots.size());
  for (std::int32_t i = 0; i < static_cast<std::int32_t>(program_.slots.size()); ++i) {
    const Slot& slot = program_.slots[i];
    const auto ring = static_cast<std::uint8_t>(turns[slot.chunk] ? slot.ring & 1 : 0);
    std::int32_t& index = variant_of[2 * slot.chunk + ring];
    if (index < 0) {
      index = static_cast<std::int32_t>(variants_.size());
      variants_.push_back({});
      variants_.back().chunk = slot.chunk;
      variants_.back().ring = ring;
      variants_.back().first_slot = i;
    }
    variants_[index].last_slot = i;
    ++variants_[index].count;
    variant_of_slot_.push_back(index);
  }

  std::vector<std::int32_t> place;
  Tensor origin;  // the first byte of a frame
  for (Variant& variant : variants_) {
    Slot slot;  // without anchors: addresses in their spaces
    slot.ring = variant.ring;
    const std::vector<Call>& calls = program_.chunks[variant.chunk].calls;
    for (std::size_t first = 0, end = 0; first < calls.size(); first = end) {
      Stretch stretch;
      stretch.first_frame = static_cast<std::int32_t>(frames_.size());
      place.clear();
      for (end = first;
           end < calls.size() && (end == first || (calls[end].block >= 0 && calls[end].block == calls[first].block));
           ++end) {
        const Call& call = calls[end];
        const TimedPiece& piece = library_.piece(call.piece);
        for (const FrameUse& use : piece.frames) {
          origin.frame = static_cast<Frame>(use.frame);
          const std::int64_t base = in_space(call.anchor[use.frame], address(slot, call, origin));
          auto f = stretch.first_frame;
          while (f < static_cast<std::int32_t>(frames_.size()) &&
                 (frames_[f].frame != use.frame || frames_[f].base != base))
            ++f;
          if (f == static_cast<std::int32_t>(frames_.size()))
            frames_.push_back({use.frame, 0, base, use.begin, use.end});
          PlacedFrame& placed = frames_[f];
          placed.streams |= use.streams;
          placed.begin = std::min(placed.begin, use.begin);
          placed.end = std::max(placed.end, use.end);
          place.push_back(f - stretch.first_frame);
        }
        add_checked(all_durations_, piece.all, variant.count, kTimeLimit);
        totals_.compute += piece.compute * variant.count;
        add_checked(totals_.flops.value, piece.flops, variant.count, kFlopsLimit);
        if (piece.sends_any)
          for (std::size_t k = 0; k < sent_.size(); ++k)
            for (std::size_t g = 0; g < kGroups; ++g)
              add_checked(sent_[k][g], piece.sent[k][g], variant.count, kBytesLimit);
      }
      stretch.end_frame = static_cast<std::int32_t>(frames_.size());
      stretch.structure =
          library_.structure_of({calls.data() + first, end - first},
                                {frames_.data() + stretch.first_frame, frames_.data() + stretch.end_frame}, place);
      variant.meets |= library_.structure(stretch.structure).meets;
      variant.stretches.push_back(std::move(stretch));
    }
  }
}

// Collects the values of every anchor that is used, and checks that what lies behind one value of an anchor
// overlaps neither what lies behind another, nor memory in a fixed place.
bool Stage::anchors_are_apart() {
  struct Hull {
    std::int64_t begin = std::numeric_limits<std::int64_t>::max(), end = std::numeric_limits<std::int64_t>::min();
  };
  std::array<Hull, kAnchors> hulls;
  const auto anchor_of = [](const PlacedFrame& f) { return static_cast<int>((f.base + f.begin) >> kAnchorShift); };
  const auto for_each_frame = [&](const Variant& v, auto&& f) {
    if (v.stretches.empty()) return;
    for (auto i = v.stretches.front().first_frame; i < v.stretches.back().end_frame; ++i) f(frames_[i]);
  };
  std::vector<std::uint8_t> uses(variants_.size(), 0);  // anchors, a bit each
  for (std::size_t v = 0; v < variants_.size(); ++v)
    for_each_frame(variants_[v], [&](const PlacedFrame& f) {
      const int a = anchor_of(f);
      uses[v] |= static_cast<std::uint8_t>(1u << a);
      const std::int64_t base = f.base - in_space(static_cast<Anchor>(a), 0);
      hulls[a].begin = std::min(hulls[a].begin, base + f.begin);
      hulls[a].end = std::max(hulls[a].end, base + f.end);
    });
  for (std::size_t i = 0; i < program_.slots.size(); ++i)
    for (int a = 1; a < kAnchors; ++a)
      if (uses[variant_of_slot_[i]] >> a & 1) {
        auto& values = anchors_[a].values;
        if (const std::int64_t v = program_.slots[i].anchor[a]; values.empty() || values.back() != v)
          values.push_back(v);
      }
  std::vector<std::pair<std::int64_t, std::int64_t>> behind;  // [begin, end) of every value of every anchor
  std::array<Hull, kAnchors> total;
  for (int a = 1; a < kAnchors; ++a) {
    auto& values = anchors_[a].values;
    std::sort(values.begin(), values.end());
    values.erase(std::unique(values.begin(), values.end()), values.end());
    if (values.empty()) continue;
    for (const std::int64_t v : values) behind.push_back({v + hulls[a].begin, v + hulls[a].end});
    total[a] = {behind[behind.size() - values.size()].first, behind.back().second};
  }
  std::sort(behind.begin(), behind.end());
  for (std::size_t i = 1; i < behind.size(); ++i)
    if (behind[i].first < behind[i - 1].second) return false;
  for (const PlacedFrame& f : frames_)
    if (anchor_of(f) == 0)
      for (int a = 1; a < kAnchors; ++a)
        if (f.base + f.begin < total[a].end && total[a].begin < f.base + f.end) return false;
  return true;
}

void Stage::find_cells() {
  // What loose operations touch.
  std::vector<std::int64_t> cuts;
  const auto for_each_loose = [&](auto&& f) {
    for (const Variant& variant : variants_)
      for (const Stretch& stretch : variant.stretches) {
        const Structure& s = library_.structure(stretch.structure);
        for (const std::int32_t i : s.loose)
          for (std::int32_t o = s.ops[i].timed.first_operand; o < s.ops[i].timed.end_operand; ++o) {
            const std::int64_t base = frames_[stretch.first_frame + s.operands[o].place].base;
            f(variant, s.ops[i], base + s.operands[o].begin, base + s.operands[o].end);
          }
      }
  };
  for_each_loose([&](const Variant&, const Structure::Operation& op, std::int64_t begin, std::int64_t end) {
    tracked_ |= mask_of(op.timed.stream);
    cuts.push_back(begin);
    cuts.push_back(end);
  });
  std::sort(cuts.begin(), cuts.end());
  cuts.erase(std::unique(cuts.begin(), cuts.end()), cuts.end());
  for (std::size_t i = 0; i + 1 < cuts.size(); ++i)
    if (cuts[i] >> kAnchorShift == (cuts[i + 1] - 1) >> kAnchorShift) cells_.emplace_back(cuts[i], cuts[i + 1]);

  for_each_loose([&](const Variant& variant, const Structure::Operation& op, std::int64_t begin, std::int64_t end) {
    const int stream = static_cast<int>(op.timed.stream);
    for_each_cell(begin, end, [&](Cell& cell) {
      cell.loose = true;
      if (!op.joined) cell.first_unjoined[stream] = std::min(cell.first_unjoined[stream], variant.first_slot);
      if (!op.anchored) cell.last_unanchored[stream] = std::max(cell.last_unanchored[stream], variant.last_slot);
    });
  });
  std::erase_if(cells_, [](const Cell& cell) { return !cell.loose; });
  for (const Variant& variant : variants_)
    for (const Stretch& stretch : variant.stretches)
      for (auto f = stretch.first_frame; f < stretch.end_frame; ++f)
        for_each_cell(frames_[f].base + frames_[f].begin, frames_[f].base + frames_[f].end, [&](Cell& cell) {
          cell.streams |= frames_[f].streams;
          for (int k = 0; k < kStreams; ++k)
            if (frames_[f].streams >> k & 1) {
              cell.first_use[k] = std::min(cell.first_use[k], variant.first_slot);
              cell.last_use[k] = std::max(cell.last_use[k], variant.last_slot);
            }
        });
  std::erase_if(cells_, [](const Cell& cell) { return !several(cell.streams); });  // the stream's order is enough

  for (const Cell& cell : cells_) ++first_cell_[(cell.begin >> kAnchorShift) + 1];
  for (int a = 0; a < kAnchors; ++a) first_cell_[a + 1] += first_cell_[a];
  auto variables = static_cast<std::int32_t>(kStreams + 2 * first_cell_[1]);
  for (int a = 1; a < kAnchors; ++a) {
    anchors_[a].first_variable = variables;
    anchors_[a].cells = first_cell_[a + 1] - first_cell_[a];
    variables += 2 * anchors_[a].cells * static_cast<std::int32_t>(anchors_[a].values.size());
  }
  variables_.resize(static_cast<std::size_t>(variables));
}

CellMasks Stage::masks(const Cell& cell, const Variant& variant) {
  CellMasks m;
  for (int k = 0; k < kStreams; ++k) {
    const auto bit = static_cast<StreamMask>(1u << k);
    if (cell.first_use[k] <= variant.last_slot) m.used_before |= bit;
    if (cell.first_unjoined[k] <= variant.last_slot) m.unjoined_before |= bit;
    if (cell.last_use[k] >= variant.first_slot) m.used_after |= bit;
    if (cell.last_unanchored[k] >= variant.first_slot) m.unanchored_after |= bit;
  }
  return m;
}

Ref Stage::ref_of(const Cell& cell) const {
  const auto anchor = static_cast<std::uint8_t>(cell.begin >> kAnchorShift);
  const auto index = static_cast<std::int32_t>(&cell - cells_.data()) - first_cell_[anchor];
  return {anchor, 2 * index + (anchor == 0 ? kStreams : 0)};
}

void Stage::find_effects() {
  std::vector<Library::CellUnderFrame> under;
  std::vector<Ref> refs;  // of all variables that a stretch may use
  for (Variant& variant : variants_) {
    for (Stretch& stretch : variant.stretches) {
      under.clear();
      refs.clear();
      std::array<std::int32_t, kStreams> stream_variable;
      for (int k = 0; k < kStreams; ++k) {
        const bool matters =
            (tracked_ & (library_.structure(stretch.structure).streams | mask_of(Stream::kCompute))) >> k & 1;
        stream_variable[k] = matters ? static_cast<std::int32_t>(refs.size()) : -1;
        if (matters) refs.push_back({0, k});
      }
      for (auto f = stretch.first_frame; f < stretch.end_frame; ++f)
        for_each_cell(frames_[f].base + frames_[f].begin, frames_[f].base + frames_[f].end, [&](Cell& cell) {
          const CellMasks m = masks(cell, variant);
          // Nobody has left, and nobody wants, anything here.
          if (!several(m.used_before | m.unjoined_before) && !several(m.used_after | m.unanchored_after)) return;
          const Ref write = ref_of(cell);
          auto v = static_cast<std::int32_t>(std::find(refs.begin(), refs.end(), write) - refs.begin());
          if (v == static_cast<std::int32_t>(refs.size())) {
            refs.push_back(write);
            refs.push_back({write.anchor, write.offset + 1});
          }
          under.push_back({f - stretch.first_frame, v, m, cell.begin - frames_[f].base, cell.end - frames_[f].base});
        });
      stretch.effect =
          library_.effect_of(stretch.structure, under, static_cast<std::int32_t>(refs.size()), stream_variable);
      const auto& kept = library_.effect(stretch.effect).kept;
      stretch.refs.reserve(kept.size());
      for (const std::int32_t v : kept) stretch.refs.push_back(refs[v]);
    }
    constexpr int kWorthIt = 4;  // slots
    if (!variant.meets && variant.stretches.size() > 1 && variant.count >= kWorthIt) compose(variant);
  }
}

// The product of the stretches' maps.
void Stage::compose(Variant& variant) {
  variant.composed = true;
  std::vector<std::int32_t> index_of(variables_.size() + kAnchors,
                                     -1);  // variables of a first value stand for all
  const auto local = [&](Ref ref) {
    std::int32_t& index = index_of[ref.anchor == 0 ? ref.offset : anchors_[ref.anchor].first_variable + ref.offset];
    if (index < 0) {
      index = static_cast<std::int32_t>(variant.refs.size());
      variant.refs.push_back(ref);
    }
    return index;
  };
  std::vector<std::int32_t> locals;  // of all stretches, one after another
  for (const Stretch& stretch : variant.stretches)
    for (const Ref ref : stretch.refs) locals.push_back(local(ref));

  const std::size_t n = variant.refs.size();
  std::vector<Time> now(n * n, kUnreachable), next;
  for (std::size_t v = 0; v < n; ++v) now[v * n + v] = 0;
  std::vector<bool> updated(n, false);
  const auto row_of = [&](const MaxPlusMap& map, const MaxPlusMap::Row& row, const std::int32_t* names, Time* to) {
    std::fill(to, to + n, kUnreachable);
    for (std::int32_t e = row.first; e < row.end; ++e) {
      const Time* from = now.data() + static_cast<std::size_t>(names[map.entries[e].variable]) * n;
      const Time delay = map.entries[e].delay;
      for (std::size_t v = 0; v < n; ++v) to[v] = std::max(to[v], from[v] + delay);
    }
  };
  variant.map.gate_of.assign(n, -1);
  std::vector<Time> free(n), start(n);
  const std::int32_t* names = locals.data();
  for (const Stretch& stretch : variant.stretches) {
    const MaxPlusMap& map = library_.effect(stretch.effect).map;
    for (const MaxPlusMap::Gate& gate : map.gates) {
      row_of(map, gate.free, names, free.data());
      row_of(map, gate.start, names, start.data());
      variant.map.pass(free, start);
    }
    next.resize(map.rows.size() * n);
    for (std::size_t r = 0; r < map.rows.size(); ++r) row_of(map, map.rows[r], names, next.data() + r * n);
    for (std::size_t r = 0; r < map.rows.size(); ++r) {
      const std::int32_t v = names[map.rows[r].variable];
      std::copy_n(next.data() + r * n, n, now.data() + static_cast<std::size_t>(v) * n);
      updated[v] = true;
    }
    names += stretch.refs.size();
  }
  for (std::size_t v = 0; v < n; ++v)
    if (updated[v])
      variant.map.rows.push_back(variant.map.make_row(static_cast<std::int32_t>(v), {now.data() + v * n, n}));
}

// ---- running
// -------------------------------------------------------------------------------------------------------

void Stage::find_anchors(const Slot& slot) {
  for (int a = 1; a < kAnchors; ++a) {
    const AnchorValues& anchor = anchors_[a];
    if (anchor.cells == 0) continue;
    const auto value =
        std::lower_bound(anchor.values.begin(), anchor.values.end(), slot.anchor[a]) - anchor.values.begin();
    anchor_base_[a] = anchor.first_variable + 2 * anchor.cells * static_cast<std::int32_t>(value);
  }
}

bool Stage::settle(Variable& v) {
  if (v.pending < 0) return true;
  const Pending& pending = pending_[v.pending];
  const Meeting& meeting = meetings_[pending.place][pending.nth];
  if (meeting.missing > 0) return false;
  const Moment end{meeting.start + meeting.duration, started(pending.ready, meeting.start).waited_until};
  v = {std::max(v.moment, end), -1};
  return true;
}

bool Stage::settle_all(std::span<const Ref> refs) {
  for (const Ref ref : refs)
    if (!settle(at(ref))) return false;
  return true;
}

// Precondition: the variables are settled.
void Stage::apply(const MaxPlusMap& map, std::span<const Ref> refs) {
  moments_.clear();
  Time latest_wait = 0;
  for (const Ref ref : refs) {
    moments_.push_back(at(ref).moment);
    latest_wait = std::max(latest_wait, moments_.back().waited_until);
  }
  const Time free_at_entry = moments_[0].time;
  if (latest_wait <= free_at_entry) {  // nobody waits for another stage
    for (const MaxPlusMap::Row& row : map.rows) {
      Time latest = 0;
      for (std::int32_t e = row.first; e < row.end; ++e)
        latest = std::max(latest, moments_[map.entries[e].variable].time + map.entries[e].delay);
      at(refs[row.variable]).moment = {latest, 0};
    }
    return;
  }
  const auto latest_of = [&](const MaxPlusMap::Row& row) {
    Moment latest;
    for (std::int32_t e = row.first; e < row.end; ++e) {
      const Moment& from = moments_[map.entries[e].variable];
      latest = std::max(latest, Moment{from.time + map.entries[e].delay, from.waited_until});
    }
    return latest;
  };
  gates_.clear();
  for (std::size_t v = 0; v < refs.size(); ++v)
    if (const std::int32_t gate = map.gate_of[v]; gate >= 0 && moments_[v].waited_until > free_at_entry &&
                                                  std::find(gates_.begin(), gates_.end(), gate) == gates_.end())
      gates_.push_back(gate);
  for (const std::int32_t gate : gates_)
    totals_.bubble += bubble_of(latest_of(map.gates[gate].free).time, latest_of(map.gates[gate].start));
  for (const MaxPlusMap::Row& row : map.rows) at(refs[row.variable]).moment = latest_of(row);
  at(refs[0]).moment.waited_until = 0;
}

// Operation by operation. False if it has to be called again, when another stage has got further.
template <class F>
bool Stage::walk(const Stretch& stretch, F&& settled) {
  const Effect& e = library_.effect(stretch.effect);
  const Structure& s = library_.structure(e.structure);
  if (op_ < 0) {  // at its begin: others are seen as they were before the stretch
    if (entry_.size() < stretch.refs.size()) entry_.resize(stretch.refs.size());
    for (std::size_t v = 0; v < stretch.refs.size(); ++v) {
      settle(at(stretch.refs[v]));
      entry_[v] = at(stretch.refs[v]);
    }
    for (int k = 0; k < kStreams; ++k)
      stream_free_[k] = e.stream_variable[k] >= 0 ? entry_[e.stream_variable[k]] : Variable{};
    finish_.assign(s.ops.size(), {});
    op_ = 0;
    posted_ = -1;
  }
  for (; op_ < static_cast<std::int32_t>(s.ops.size()); ++op_) {
    const auto& op = s.ops[op_];
    const int stream = static_cast<int>(op.timed.stream);
    const bool computes = op.timed.stream == Stream::kCompute;
    Variable& free = stream_free_[stream];

    if (posted_ < 0) {
      if (!settle(free)) return false;
      Moment ready = free.moment;
      for (std::int32_t d = op.first_dependency; d < op.end_dependency; ++d) {
        Variable& before = finish_[s.dependencies[d]];
        if (!settle(before)) return false;
        ready = std::max(ready, before.moment);
      }
      for (std::int32_t c = e.consults[op_].first; c < e.consults[op_].end; ++c) {
        Variable& before = entry_[e.pool[c]];
        if (!settle(before)) return false;
        ready = std::max(ready, before.moment);
      }
      if (op.timed.meets) {
        // A variable holds one meeting that is under way, not two.
        for (std::int32_t u = e.updates[op_].first; u < e.updates[op_].end; ++u)
          if (!settle(at(stretch.refs[e.pool[u]]))) return false;
        const MeetingPlace place = meeting_place(*op.timed.op, index_, set_);
        const std::int32_t nth = met_[place]++;
        auto& here = meetings_[place];
        if (nth == static_cast<std::int32_t>(here.size())) here.push_back({.missing = members_at(place, set_)});
        Meeting& meeting = here[nth];
        meeting.start = std::max(meeting.start, ready.time);
        meeting.duration = std::max(meeting.duration, op.timed.duration);
        posted_ = static_cast<std::int32_t>(pending_.size());
        pending_.push_back({place, nth, ready});
        if (--meeting.missing == 0) settled(place);
      } else {
        if (computes) totals_.bubble += bubble_of(free.moment.time, ready);
        finish_[op_] = {{ready.time + op.timed.duration, computes ? 0 : ready.waited_until}, -1};
      }
    }
    if (posted_ >= 0) {
      Variable end{{}, posted_};
      const bool known = settle(end);
      if (computes) {  // communication on the compute stream: how long it waited must be known
        if (!known) return false;
        const Pending& mine = pending_[posted_];
        totals_.bubble += bubble_of(free.moment.time, started(mine.ready, meetings_[mine.place][mine.nth].start));
        end.moment.waited_until = 0;
      }
      finish_[op_] = end;
      posted_ = -1;
    }
    free = finish_[op_];
    for (std::int32_t u = e.updates[op_].first; u < e.updates[op_].end; ++u) {
      Variable& to = at(stretch.refs[e.pool[u]]);
      to = {std::max(to.moment, free.moment), std::max(to.pending, free.pending)};
    }
  }
  for (int k = 0; k < kStreams; ++k)
    if (e.stream_variable[k] >= 0) at(stretch.refs[e.stream_variable[k]]) = stream_free_[k];
  op_ = -1;
  return true;
}

template <class F>
bool Stage::run(F&& settled) {
  for (; slot_ < static_cast<std::int32_t>(program_.slots.size()); ++slot_) {
    const Variant& variant = variants_[variant_of_slot_[slot_]];
    find_anchors(program_.slots[slot_]);
    if (variant.composed) {
      if (!settle_all(variant.refs)) return false;
      apply(variant.map, variant.refs);
      continue;
    }
    for (; stretch_ < static_cast<std::int32_t>(variant.stretches.size()); ++stretch_) {
      const Stretch& stretch = variant.stretches[stretch_];
      if (library_.structure(stretch.structure).meets) {
        if (!walk(stretch, settled)) return false;
      } else {
        if (!settle_all(stretch.refs)) return false;
        apply(library_.effect(stretch.effect).map, stretch.refs);
      }
    }
    stretch_ = 0;
  }
  return true;
}

Moment Stage::end() {
  Moment last;
  for (int k = 0; k < kStreams; ++k) {
    Variable& free = variables_[k];
    [[maybe_unused]] const bool known = settle(free);
    assert(known);
    last = std::max(last, free.moment);
  }
  return last;
}

RankReport Stage::report(Time step) {
  const Moment last = end();
  totals_.bubble += bubble_of(variables_[static_cast<int>(Stream::kCompute)].moment.time, last) + step - last.time;
  totals_.exposed = step - totals_.compute - totals_.bubble;
  RankReport rank = stage_report(program_);
  totals_.write(rank, last.time);
  constexpr std::array<std::string_view, 4> kNames{kCollectiveNames[0], kCollectiveNames[1], kCollectiveNames[2],
                                                   Send::kName};
  for (std::size_t k = 0; k < sent_.size(); ++k)
    for (std::size_t g = 0; g < kGroups; ++g)
      if (sent_[k][g] > 0) rank.traffic[{std::string(kNames[k]), std::string(kGroupNames[g])}] = {sent_[k][g]};
  return rank;
}

}  // namespace

std::optional<StepReport> simulate_fast(const ProgramSet& set, const CostModel& cost) {
  Library library(set, cost);
  Meetings meetings(static_cast<std::size_t>(meeting_places(set)));
  Time all_durations = 0;
  const auto count = set.stages.size();
  std::vector<Stage> stages;
  stages.reserve(count);
  for (std::size_t s = 0; s < count; ++s)
    if (!stages.emplace_back(library, static_cast<int>(s), meetings, all_durations).prepare()) return std::nullopt;

  std::vector<std::size_t> turn(count);  // whose turn it is, first come first served
  for (std::size_t s = 0; s < count; ++s) turn[s] = s;
  std::vector<bool> waiting(count, false);
  std::size_t at_end = 0;
  for (std::size_t next = 0; next < turn.size(); ++next) {
    const std::size_t stage = turn[next];
    const auto wake = [&](std::size_t s) {
      if (!waiting[s]) return;
      waiting[s] = false;
      turn.push_back(s);
    };
    const bool done = stages[stage].run([&](MeetingPlace place) {
      const auto [first, last] = stages_at(place, set);
      for (int s = first; s <= last; ++s) wake(static_cast<std::size_t>(s));
    });
    at_end += done;
    waiting[stage] = !done;
  }
  if (at_end < count) return std::nullopt;
  for (const auto& place : meetings)
    for (const Meeting& meeting : place)
      if (meeting.missing > 0) return std::nullopt;

  Time step = 0;
  for (Stage& stage : stages) step = std::max(step, stage.end().time);
  StepReport report{.step_time = to_seconds(step), .ranks = {}};
  for (Stage& stage : stages) report.ranks.push_back(stage.report(step));
  return report;
}

StepReport simulate(const ProgramSet& set, const CostModel& cost, const SimOptions& options) {
  std::optional<StepReport> report;
  if (!options.timeline) report = simulate_fast(set, cost);
  if (!report) report = simulate_full(set, cost, options);
  const auto largest =
      std::ranges::max_element(report->ranks, {}, [](const RankReport& r) { return r.arena_bytes.value; });
  MemoryWalk memory(set);
  for (auto rank = report->ranks.begin(); rank != report->ranks.end(); ++rank)
    if (options.live == SimOptions::Live::kEveryStage || rank == largest)
      rank->live = memory.peak(set.stages[static_cast<std::size_t>(rank->rank.pp)]);
  check_figures(*report);
  return *std::move(report);
}

}  // namespace meshwright
