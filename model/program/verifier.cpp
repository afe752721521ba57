#include "model/program/verifier.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include "model/program/piece_check.h"
#include "model/program/slot_name.h"

namespace meshwright {
namespace {

// s: stage   m: microbatch   An entry: a buffer of a microbatch in flight, where a slot's anchor points.

using Faults = std::vector<std::string>;

constexpr std::array<std::string_view, kAnchors> kAnchorNames{"fixed",  "stash",         "inbox",
                                                              "outbox", "gradient flow", "tokens"};
constexpr std::array kEntryAnchors{Anchor::kStash, Anchor::kInbox, Anchor::kOutbox, Anchor::kGradientFlow};
std::string_view name(Anchor a) { return kAnchorNames[static_cast<int>(a)]; }

// ---- chunks: what their calls do, taken together ----------------------------------------------------------

// A message or a collective among stages, at its place in a chunk.
struct Event {
  const Op* op = nullptr;
  std::int64_t bytes = 0;
  Anchor anchor = Anchor::kFixed;  // a message lies at slot.anchor[anchor] + [begin, end)
  std::int64_t begin = 0, end = 0;
};

// One buffer of a ring of two, as a chunk finds and leaves it. Blocks by index; unset: not touched.
struct RingBuffer {
  std::optional<int> expects;  // block that must be in it when the chunk begins
  std::optional<int> holds;    // block that is in it afterwards
  bool overwrites = false;     // the chunk writes it before it reads it
  bool unread = false;         // what it holds afterwards has not been read
  ByteRanges written;          // of what it holds, by this chunk
};
constexpr std::array kRingFrames{Frame::kWeights, Frame::kGrads};

struct ChunkFacts {
  std::array<ByteRanges, kAnchors> needs, writes, all;  // bytes from the anchor
  std::vector<Event> events;
  std::array<std::array<RingBuffer, 2>, 2> rings;  // [weights, grads][call.ring]
};

std::string call_name(const ProgramSet& set, const Call& call) {
  std::string text = set.pieces[call.piece].name;
  if (call.layer >= 0) text += fmt::format(" of layer {}", call.layer);
  return text;
}

class StageVerifier {
 public:
  StageVerifier(const ProgramSet& set, const std::vector<PieceFacts>& pieces, const Program& program, Faults& faults)
      : set_(set), pieces_(pieces), program_(program), faults_(faults) {}

  // False if indices point nowhere: then nothing else can be checked.
  bool indices_are_sound() {
    const std::size_t before = faults_.size();
    for (const Chunk& chunk : program_.chunks)
      for (const Call& call : chunk.calls) {
        if (call.piece < 0 || call.piece >= static_cast<int>(set_.pieces.size()))
          fault("chunk {}: there is no piece {}", chunk.name, call.piece);
        if (call.block < -1 || call.block >= static_cast<int>(set_.blocks().size()))
          fault("chunk {}: there is no block {}", chunk.name, call.block);
      }
    for (const Slot& slot : program_.slots)
      if (slot.chunk < 0 || slot.chunk >= static_cast<int>(program_.chunks.size()))
        fault("{}: there is no chunk {}", slot_name(slot), slot.chunk);
    return faults_.size() == before;
  }

  void verify() {
    check_regions();
    for (const Chunk& chunk : program_.chunks) chunks_.push_back(read_chunk(chunk));
    check_state();
    check_order();
    check_events();
    check_places();
    check_entries();
    check_rings();
    check_ends();
  }

  const Program& program() const { return program_; }
  const ChunkFacts& facts(const Slot& slot) const { return chunks_[slot.chunk]; }

 private:
  template <class... Args>
  void fault(fmt::format_string<Args...> format, Args&&... args) {
    faults_.push_back(fmt::format("stage {}, {}", program_.stage, fmt::format(format, std::forward<Args>(args)...)));
  }

  void check_regions() {
    regions_ = program_.regions;
    std::ranges::stable_sort(regions_, {}, &Region::offset);
    for (std::size_t i = 0; i < regions_.size(); ++i) {
      const Region& r = regions_[i];
      if (r.offset < 0 || r.bytes < 0 || r.offset + r.bytes > program_.arena_bytes)
        fault("region {}: [{}, {}) is not within the arena of {} bytes", r.name, r.offset, r.offset + r.bytes,
              program_.arena_bytes);
      if (i > 0 && regions_[i - 1].offset + regions_[i - 1].bytes > r.offset)
        fault("region {} lies over region {}", r.name, regions_[i - 1].name);
    }
  }
  bool within_a_region(std::int64_t begin, std::int64_t end) const {
    if (begin >= end) return true;
    auto it = std::ranges::upper_bound(regions_, begin, {}, &Region::offset);
    return it != regions_.begin() && (--it)->offset + it->bytes >= end;
  }

  ChunkFacts read_chunk(const Chunk& chunk) {
    ChunkFacts facts;
    for (const Call& call : chunk.calls) {
      const PieceFacts& piece = pieces_[call.piece];
      for (int f = 0; f < kFrames; ++f) {
        const FrameUse& use = piece.frames[f];
        const int anchor = static_cast<int>(call.anchor[f]);
        for (const auto& [begin, end] : use.needs.ranges())
          if (facts.writes[anchor].first_gap(begin + call.base[f], end + call.base[f]))
            facts.needs[anchor].add(begin + call.base[f], end + call.base[f]);
        facts.all[anchor].add(use.all, call.base[f]);
        if (call.anchor[f] == Anchor::kFixed) check_fixed_place(chunk, call, static_cast<Frame>(f));
      }
      for (int f = 0; f < kFrames; ++f)
        facts.writes[static_cast<int>(call.anchor[f])].add(piece.frames[f].writes, call.base[f]);
      for (const StageEvent& event : piece.events) {
        const std::int64_t base = call.base[static_cast<int>(event.frame)];
        facts.events.push_back(
            {event.op, event.bytes, call.anchor[static_cast<int>(event.frame)], base + event.begin, base + event.end});
      }
      read_rings(chunk, call, facts);
    }
    return facts;
  }

  void check_fixed_place(const Chunk& chunk, const Call& call, Frame frame) {
    const ByteRanges& use = pieces_[call.piece].frames[static_cast<int>(frame)].all;
    const std::int64_t base = call.base[static_cast<int>(frame)];
    const bool in_ring = (frame == Frame::kWeights && call.weights_ring) || (frame == Frame::kGrads && call.grads_ring);
    const std::int64_t turn = !in_ring ? 0 : frame == Frame::kWeights ? call.weights_turn : call.grads_turn;
    if (use.empty()) return;
    for (const std::int64_t begin : std::set{base, base + turn}) {
      if (!within_a_region(begin + use.begin(), begin + use.end()))
        fault("chunk {}, {}: frame {}, [{}, {}), is not within a region of the arena", chunk.name,
              call_name(set_, call), meshwright::name(frame), begin + use.begin(), begin + use.end());
      const bool of_block = !in_ring && is_state(frame);
      places_.insert(
          {begin + use.begin(), begin + use.end(), Anchor::kFixed, role(frame), of_block ? call.block : -1, 0});
    }
  }

  static bool is_state(Frame frame) { return frame >= Frame::kWeights && frame <= Frame::kMoment2; }
  // Frames of one block that may share memory have one role.
  static Frame role(Frame frame) {
    if (frame == Frame::kWeightShard || frame == Frame::kMaster) return Frame::kWeights;
    return frame == Frame::kGradShard ? Frame::kGrads : frame;
  }

  void read_rings(const Chunk& chunk, const Call& call, ChunkFacts& facts) {
    for (int r = 0; r < 2; ++r) {
      if (!(r == 0 ? call.weights_ring : call.grads_ring)) continue;
      const FrameUse& use = pieces_[call.piece].frames[static_cast<int>(kRingFrames[r])];
      RingBuffer& buffer = facts.rings[r][call.ring & 1];
      if (!use.needs.empty()) {
        if (buffer.holds && *buffer.holds != call.block)
          fault("chunk {}, {}: its {} ring buffer holds those of {}", chunk.name, call_name(set_, call),
                meshwright::name(kRingFrames[r]), block_name(*buffer.holds));
        else if (const auto gap = buffer.holds ? buffer.written.first_gap(use.needs) : std::nullopt)
          fault("chunk {}, {}: reads byte {} of its {} ring buffer, which nothing has written", chunk.name,
                call_name(set_, call), *gap, meshwright::name(kRingFrames[r]));
        if (!buffer.holds) buffer.expects = call.block;
        buffer.holds = call.block;
        buffer.unread = false;
      }
      if (!use.writes.empty()) {
        if (use.needs.empty()) {
          if (r == 1 && buffer.unread)
            fault("chunk {}, {}: overwrites the gradients of {} before they are reduced", chunk.name,
                  call_name(set_, call), block_name(*buffer.holds));
          if (!buffer.holds) buffer.overwrites = true;
          buffer.unread = true;
          buffer.written = {};
        }
        buffer.written.add(use.writes);
        buffer.holds = call.block;
      }
    }
  }
  std::string block_name(int block) const { return block < 0 ? "no block" : set_.blocks()[block].name; }

  void check_ends() {
    for (const Chunk& chunk : program_.chunks)
      for (std::size_t i = 0; i < chunk.ends.size(); ++i) {
        const End& end = chunk.ends[i];
        for (const int call : {end.after, end.of})
          if (call < 0 || call >= static_cast<int>(chunk.calls.size()))
            fault("chunk {}: there is no call {} for an end", chunk.name, call);
        if (i > 0 && end.after < chunk.ends[i - 1].after)
          fault("chunk {}: the end behind call {} has no place in their order", chunk.name, end.after);
      }
  }

  // An evaluation leaves the state as it is: the first bytes of the arena.
  void check_state() {
    if (set_.purpose != Purpose::kEvaluation) return;
    const auto stage = static_cast<std::size_t>(program_.stage);
    const std::vector<StageState>& states = set_.state_layout->stages;
    const std::int64_t state = stage < states.size() ? states[stage].bytes : 0;
    for (std::size_t c = 0; c < chunks_.size(); ++c)
      if (chunks_[c].writes[static_cast<int>(Anchor::kFixed)].intersects(0, state))
        fault("chunk {}: an evaluation writes to the state", program_.chunks[c].name);
  }

  // Every microbatch: receive, forward, send, receive, backward, send; each once. An evaluation has no backward.
  void check_order() {
    const bool first = program_.stage == 0, last = program_.stage + 1 == set_.mesh.pp;
    std::vector<Action> order{Action::kRecvForward, Action::kForward, Action::kSendForward};
    if (set_.purpose == Purpose::kTraining)
      order.insert(order.end(), {Action::kRecvBackward, Action::kBackward, Action::kSendBackward});
    std::erase_if(order, [&](Action a) {
      return (first && (a == Action::kRecvForward || a == Action::kSendBackward)) ||
             (last && (a == Action::kSendForward || a == Action::kRecvBackward));
    });

    std::map<std::pair<int, Action>, std::vector<std::size_t>> slots;  // by microbatch and action
    for (std::size_t i = 0; i < program_.slots.size(); ++i) {
      const Slot& slot = program_.slots[i];
      if (slot.action == Action::kBegin || slot.action >= Action::kReduce) continue;
      slots[{slot.microbatch, slot.action}].push_back(i);
      if (slot.microbatch < 0 || slot.microbatch >= set_.step.microbatches)
        fault("slot {} ({}): there are {} microbatches", i, slot_name(slot), set_.step.microbatches);
      else if (std::ranges::find(order, slot.action) == order.end())
        fault("slot {} ({}): there is no stage for it", i, slot_name(slot));
    }
    for (int m = 0; m < set_.step.microbatches; ++m) {
      std::optional<std::size_t> before;
      for (const Action action : order) {
        const auto& at = slots[{m, action}];
        const std::string what = slot_name({.action = action, .microbatch = m});
        if (at.size() != 1) {
          fault("{}: is there {} times, not once", what, at.size());
          break;
        }
        if (before && at[0] < *before)
          fault("slot {} ({}): comes before {}, slot {}", at[0], what, slot_name(program_.slots[*before]), *before);
        before = at[0];
      }
    }
  }

  // A slot that sends or receives does that, once; no other slot does.
  void check_events() {
    for (std::size_t i = 0; i < program_.slots.size(); ++i) {
      const Slot& slot = program_.slots[i];
      std::vector<std::string> expected, found;
      if (slot.action == Action::kSendForward) expected = {"send next"};
      if (slot.action == Action::kSendBackward) expected = {"send previous"};
      if (slot.action == Action::kRecvForward) expected = {"recv previous"};
      if (slot.action == Action::kRecvBackward) expected = {"recv next"};
      for (const Event& event : facts(slot).events)
        if (!std::holds_alternative<Collective>(*event.op)) found.emplace_back(meshwright::name(stream_of(*event.op)));
      if (expected != found)
        fault("slot {} ({}): its messages are [{}], not [{}]", i, slot_name(slot), fmt::join(found, ", "),
              fmt::join(expected, ", "));
    }
  }

  // Entries lie within a region, and what is not the same is apart: entries, blocks' weights, gradients and
  // moments, rings, workspace.
  void check_places() {
    std::array<ByteRanges, kAnchors> extent;
    for (const Slot& slot : program_.slots)
      for (int a = 0; a < kAnchors; ++a) extent[a].add(facts(slot).all[a].begin(), facts(slot).all[a].end());
    std::set<std::tuple<Anchor, std::int64_t>> seen;
    for (std::size_t i = 0; i < program_.slots.size(); ++i) {
      const Slot& slot = program_.slots[i];
      if (slot.anchor[static_cast<int>(Anchor::kFixed)] != 0)
        fault("slot {} ({}): its fixed anchor is not 0", i, slot_name(slot));
      for (int a = 1; a < kAnchors; ++a) {
        const auto anchor = static_cast<Anchor>(a);
        const std::int64_t at = slot.anchor[a];
        if (facts(slot).all[a].empty() || !seen.insert({anchor, at}).second) continue;
        const std::int64_t begin = at + extent[a].begin(), end = at + extent[a].end();
        if (!within_a_region(begin, end))
          fault("slot {} ({}): its {} entry, [{}, {}), is not within a region of the arena", i, slot_name(slot),
                name(anchor), begin, end);
        places_.insert({begin, end, anchor, Frame::kX, -1, at});
      }
    }
    const Place* reaching = nullptr;  // of the places so far, the one that ends last
    for (const Place& place : places_) {
      if (reaching && reaching->end > place.begin && !place.is_part_of(*reaching))
        fault("{} lies over {}", describe(place), describe(*reaching));
      if (!reaching || place.end > reaching->end) reaching = &place;
    }
  }

  // Bytes of the arena and what they are for: an entry of an anchor, or a frame (role) of a block.
  struct Place {
    std::int64_t begin, end;
    Anchor anchor;
    Frame role;
    int block;
    std::int64_t at;
    auto operator<=>(const Place&) const = default;
    bool is_part_of(const Place& o) const {
      return std::tie(anchor, role, block, at) == std::tie(o.anchor, o.role, o.block, o.at);
    }
  };
  std::string describe(const Place& p) const {
    std::string what =
        p.anchor != Anchor::kFixed ? fmt::format("{} entry", name(p.anchor)) : std::string(meshwright::name(p.role));
    if (p.block >= 0) what += fmt::format(" of {}", block_name(p.block));
    return fmt::format("{} [{}, {})", what, p.begin, p.end);
  }

  // A slot finds in its entries what slots of the same microbatch left there: all bytes that it reads, and
  // nobody has begun to reuse them.
  void check_entries() {
    struct Content {
      int microbatch = -1;
      std::size_t writer = 0;        // last slot that wrote
      std::vector<int> chunks = {};  // that wrote it for this microbatch
    };
    std::map<std::pair<Anchor, std::int64_t>, Content> entries;
    std::map<std::tuple<Anchor, std::vector<int>, int>, std::optional<std::int64_t>> gaps;  // known: writers, reader
    auto end = program_.ends.begin();
    for (std::size_t i = 0; i < program_.slots.size(); ++i) {
      const Slot& slot = program_.slots[i];
      for (const Anchor anchor : kEntryAnchors) {
        const int a = static_cast<int>(anchor);
        const ByteRanges &needs = facts(slot).needs[a], &writes = facts(slot).writes[a];
        if (needs.empty() && writes.empty()) continue;
        Content& content = entries[{anchor, slot.anchor[a]}];
        if (!needs.empty()) check_content(i, anchor, content, gaps);
        if (writes.empty()) continue;
        if (content.microbatch != slot.microbatch) content = {.microbatch = slot.microbatch};
        content.writer = i;
        if (std::ranges::find(content.chunks, slot.chunk) == content.chunks.end()) content.chunks.push_back(slot.chunk);
      }
      for (; end != program_.ends.end() && end->slot == static_cast<int>(i); ++end)
        if (const auto found = entries.find({end->anchor, end->offset});
            found == entries.end() || found->second.microbatch != end->microbatch)
          fault("slot {} ({}): the end of microbatch {}'s {} entry {}, which does not hold it", i, slot_name(slot),
                end->microbatch, name(end->anchor), end->offset);
        else
          entries.erase(found);
    }
    if (end != program_.ends.end()) fault("the end behind slot {} has no place in their order", end->slot);
  }
  template <class Content, class Gaps>
  void check_content(std::size_t i, Anchor anchor, const Content& content, Gaps& gaps) {
    const Slot& slot = program_.slots[i];
    const int a = static_cast<int>(anchor);
    if (content.chunks.empty())
      return fault("slot {} ({}): reads {} entry {}, which nothing has written", i, slot_name(slot), name(anchor),
                   slot.anchor[a]);
    if (content.microbatch != slot.microbatch)
      return fault("slot {} ({}): reads {} entry {}, which holds microbatch {}, written by slot {} ({})", i,
                   slot_name(slot), name(anchor), slot.anchor[a], content.microbatch, content.writer,
                   slot_name(program_.slots[content.writer]));
    const auto [it, is_new] = gaps.try_emplace({anchor, content.chunks, slot.chunk});
    if (!is_new) return;
    ByteRanges written;
    for (const int c : content.chunks) written.add(chunks_[c].writes[a]);
    it->second = written.first_gap(facts(slot).needs[a]);
    if (it->second)
      fault("slot {} ({}): reads byte {} of its {} entry, which chunk {} does not write", i, slot_name(slot),
            *it->second, name(anchor), program_.chunks[content.chunks.back()].name);
  }

  // What a call finds in a ring of two is its own block's: gathered weights, or gradients to reduce.
  void check_rings() {
    for (int r = 0; r < 2; ++r) {
      std::array<std::optional<int>, 2> holds;
      std::array<bool, 2> unread{};
      for (std::size_t i = 0; i < program_.slots.size(); ++i) {
        const Slot& slot = program_.slots[i];
        for (int side = 0; side < 2; ++side) {
          const RingBuffer& buffer = facts(slot).rings[r][side];
          if (!buffer.holds) continue;
          const int b = (side ^ slot.ring) & 1;
          if (buffer.expects && holds[b] != buffer.expects)
            fault("slot {} ({}): expects {} of {} in ring buffer {}, which holds {}", i, slot_name(slot),
                  meshwright::name(kRingFrames[r]), block_name(*buffer.expects), b,
                  holds[b] ? fmt::format("those of {}", block_name(*holds[b])) : "nothing");
          if (r == 1 && buffer.overwrites && unread[b])
            fault("slot {} ({}): overwrites the gradients of {} before they are reduced", i, slot_name(slot),
                  block_name(*holds[b]));
          holds[b] = buffer.holds;
          unread[b] = buffer.unread;
        }
      }
      for (int b = 0; r == 1 && b < 2; ++b)
        if (unread[b]) fault("end: the gradients of {} in ring buffer {} are never reduced", block_name(*holds[b]), b);
    }
  }

  const ProgramSet& set_;
  const std::vector<PieceFacts>& pieces_;
  const Program& program_;
  Faults& faults_;
  std::vector<Region> regions_;  // by offset
  std::set<Place> places_;       // by begin
  std::vector<ChunkFacts> chunks_;
};

// ---- across stages ----------------------------------------------------------------------------------------

struct Message {
  int microbatch;
  std::int64_t bytes;
  bool operator==(const Message&) const = default;
};

std::vector<Message> messages(const StageVerifier& stage, Stream stream) {
  std::vector<Message> list;
  for (const Slot& slot : stage.program().slots)
    for (const Event& event : stage.facts(slot).events)
      if (stream_of(*event.op) == stream) list.push_back({slot.microbatch, event.bytes});
  return list;
}

std::string describe(const std::vector<Message>& list, std::size_t i) {
  if (i >= list.size()) return "nothing";
  return fmt::format("microbatch {} ({} bytes)", list[i].microbatch, list[i].bytes);
}

// What one stage sends is what its neighbour receives, in the same order.
void compare_messages(const StageVerifier& sender, Stream out, const StageVerifier& receiver, Stream in,
                      Faults& faults) {
  const auto sent = messages(sender, out), received = messages(receiver, in);
  for (std::size_t i = 0; i < std::max(sent.size(), received.size()); ++i) {
    if (i < sent.size() && i < received.size() && sent[i] == received[i]) continue;
    faults.push_back(fmt::format("stages {} and {}: message {} sent is {}, message {} received is {}",
                                 sender.program().stage, receiver.program().stage, i, describe(sent, i), i,
                                 describe(received, i)));
    return;
  }
}

std::vector<std::string> collectives(const StageVerifier& stage, Group group) {
  std::vector<std::string> list;
  for (const Slot& slot : stage.program().slots)
    for (const Event& event : stage.facts(slot).events)
      if (const auto* c = std::get_if<Collective>(event.op); c && c->group == group)
        list.push_back(fmt::format("{}{} of {} bytes", name(c->kind),
                                   c->algorithm == Algorithm::kDirect ? " direct" : "", event.bytes));
  return list;
}

// The members of a group run the same collectives in the same order.
void compare_collectives(const std::vector<StageVerifier>& stages, Group group, Faults& faults) {
  const auto expected = collectives(stages.front(), group);
  for (std::size_t s = 1; s < stages.size(); ++s) {
    const auto found = collectives(stages[s], group);
    if (group == Group::kPpEnds && s + 1 < stages.size()) {
      if (!found.empty()) faults.push_back(fmt::format("stage {}: runs {} among the ends of pp", s, found.front()));
      continue;
    }
    for (std::size_t i = 0; i < std::max(expected.size(), found.size()); ++i) {
      const std::string a = i < expected.size() ? expected[i] : "nothing", b = i < found.size() ? found[i] : "nothing";
      if (a == b) continue;
      faults.push_back(fmt::format("stages 0 and {}: collective {} of {} is {} on the one, {} on the other", s, i,
                                   name(group), a, b));
      break;
    }
  }
}

// Runs every stage's slots one after another, in the abstract: a send is posted, and is finished once it is
// received; a receive waits for its message; a collective among stages waits for all of them; whoever writes
// where an unfinished send lies waits for that. This is stricter than streams are, so what passes runs on an
// interpreter of either kind.
class DeadlockSearch {
 public:
  explicit DeadlockSearch(const std::vector<StageVerifier>& stages) : stages_(stages), at_(stages.size()) {}

  std::optional<std::string> run() {
    bool moved = true;
    while (moved) {
      moved = false;
      for (std::size_t s = 0; s < stages_.size(); ++s)
        while (advance(s)) moved = true;
    }
    std::vector<std::string> waiting;
    for (std::size_t s = 0; s < stages_.size(); ++s)
      waiting.push_back(at_[s].slot == slots(s).size() ? fmt::format("stage {} has finished", s)
                                                       : fmt::format("stage {} waits in slot {} ({})", s, at_[s].slot,
                                                                     slot_name(slots(s)[at_[s].slot])));
    const bool all_finished = std::ranges::all_of(waiting, [](const auto& w) { return w.ends_with("finished"); });
    if (all_finished) return std::nullopt;
    return fmt::format("deadlock: {}", fmt::join(waiting, ", "));
  }

 private:
  struct Position {
    std::size_t slot = 0, event = 0;
    std::array<int, 2> sent{}, received{};  // [to next, to previous] and [from previous, from next]
    std::array<std::map<int, std::pair<std::int64_t, std::int64_t>>, 2> unfinished;  // sent: message to where it lies
    std::array<int, kGroups> entered{};  // collectives that the stage has reached
    bool in_collective = false;
  };

  const std::vector<Slot>& slots(std::size_t s) const { return stages_[s].program().slots; }

  // One event, or the end of a slot. False if the stage must wait or has finished.
  bool advance(std::size_t s) {
    Position& p = at_[s];
    if (p.slot == slots(s).size()) return false;
    const Slot& slot = slots(s)[p.slot];
    const ChunkFacts& chunk = stages_[s].facts(slot);
    if (p.event == 0 && !p.in_collective && writes_into_unfinished_send(p, slot, chunk)) return false;
    if (p.event == chunk.events.size()) {
      ++p.slot;
      p.event = 0;
      return true;
    }
    const Event& event = chunk.events[p.event];
    if (const auto* send = std::get_if<Send>(event.op)) {
      const int way = send->to == Direction::kNext ? 0 : 1;
      const std::int64_t at = slot.anchor[static_cast<int>(event.anchor)];
      p.unfinished[way].emplace(p.sent[way]++, std::pair(at + event.begin, at + event.end));
    } else if (const auto* recv = std::get_if<Recv>(event.op)) {
      const int way = recv->from == Direction::kPrevious ? 0 : 1;
      Position& sender = at_[way == 0 ? s - 1 : s + 1];
      if (sender.sent[way] <= p.received[way]) return false;
      sender.unfinished[way].erase(p.received[way]++);
    } else if (const auto* collective = std::get_if<Collective>(event.op)) {
      const int group = static_cast<int>(collective->group);
      if (!p.in_collective) ++p.entered[group];
      p.in_collective = true;
      for (std::size_t other = 0; other < at_.size(); ++other) {
        const bool member = collective->group == Group::kPp || other == 0 || other + 1 == at_.size();
        if (member && at_[other].entered[group] < p.entered[group]) return false;
      }
      p.in_collective = false;
    }
    ++p.event;
    return true;
  }

  static bool writes_into_unfinished_send(const Position& p, const Slot& slot, const ChunkFacts& chunk) {
    for (const auto& sends : p.unfinished)
      for (const auto& [message, place] : sends)
        for (int a = 0; a < kAnchors; ++a)
          if (chunk.writes[a].intersects(place.first - slot.anchor[a], place.second - slot.anchor[a])) return true;
    return false;
  }

  const std::vector<StageVerifier>& stages_;
  std::vector<Position> at_;
};

}  // namespace

std::vector<std::string> verify(const ProgramSet& set) {
  Faults faults;
  std::vector<PieceFacts> pieces;
  for (const Piece& piece : set.pieces) {
    pieces.push_back(check_piece(piece, set.mesh));
    faults.insert(faults.end(), pieces.back().faults.begin(), pieces.back().faults.end());
  }
  if (static_cast<int>(set.stages.size()) != set.mesh.pp) {
    faults.push_back(fmt::format("there are {} programs for {} stages", set.stages.size(), set.mesh.pp));
    return faults;
  }
  std::vector<StageVerifier> stages;
  bool sound = true;
  for (int s = 0; s < set.mesh.pp; ++s) {
    if (set.stages[s].stage != s)
      faults.push_back(fmt::format("program {} says that it is stage {}", s, set.stages[s].stage));
    sound &= stages.emplace_back(set, pieces, set.stages[s], faults).indices_are_sound();
  }
  if (!sound) return faults;
  for (StageVerifier& stage : stages) stage.verify();

  const std::size_t before = faults.size();
  for (std::size_t s = 0; s + 1 < stages.size(); ++s) {
    compare_messages(stages[s], Stream::kSendNext, stages[s + 1], Stream::kRecvPrevious, faults);
    compare_messages(stages[s + 1], Stream::kSendPrevious, stages[s], Stream::kRecvNext, faults);
  }
  compare_collectives(stages, Group::kPp, faults);
  compare_collectives(stages, Group::kPpEnds, faults);
  const bool ends_are_quiet = stages.size() == 1 || (messages(stages.front(), Stream::kRecvPrevious).empty() &&
                                                     messages(stages.back(), Stream::kRecvNext).empty());
  if (faults.size() == before && ends_are_quiet)
    if (auto deadlock = DeadlockSearch(stages).run()) faults.push_back(std::move(*deadlock));
  return faults;
}

}  // namespace meshwright
