#include "model/lowering/stage_writer.h"

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <utility>

#include "model/lowering/lifetimes.h"
#include "model/lowering/placement.h"
#include "model/lowering/schedule.h"

namespace meshwright {
namespace {

class StageWriter {
 public:
  StageWriter(StepPieces& pieces, int stage, int first_layer, int layers)
      : p_(pieces),
        set_(pieces.set),
        mesh_(pieces.plan.mesh),
        stage_(stage),
        first_(first_layer),
        layers_(layers),
        state_(set_.state_layout->stages[static_cast<std::size_t>(stage)]),
        x_bytes_(align_up(pieces.own_rows() * pieces.width * size_of(pieces.set.compute))) {
    program_.stage = stage;
    program_.first_layer = first_layer;
    program_.layers = layers;
    program_.regions = state_.regions;
    program_.arena_bytes = state_.bytes;
  }

  void write() {
    write_schedule();
    lay_out_buffers();
    lay_out_entries();
    write_chunks();
    write_slots();
    // The workspace lies last: its high-water mark is the arena's.
    std::int64_t workspace = 0;
    for (const Chunk& chunk : program_.chunks)
      for (const Call& call : chunk.calls) workspace = std::max(workspace, set_.pieces[call.piece].workspace_bytes);
    const std::int64_t at = region("workspace", MemoryClass::kWorkspace, workspace);
    program_.arena_bytes = at + workspace;
    for (Chunk& chunk : program_.chunks)
      for (Call& call : chunk.calls) call.base[static_cast<int>(Frame::kWorkspace)] = at;
    set_.stages.push_back(std::move(program_));
  }

 private:
  // Slots of one microbatch's forward or backward; -1: there is none.
  struct Uses {
    int microbatch = 0, recv = -1, compute = -1, send = -1;
  };

  bool first() const { return stage_ == 0; }
  bool last() const { return stage_ == mesh_.pp - 1; }
  bool trains() const { return p_.trains(); }

  std::int64_t region(std::string name, MemoryClass memory_class, std::int64_t bytes) {
    const std::int64_t at = program_.arena_bytes;
    if (bytes > 0) program_.regions.push_back({std::move(name), memory_class, at, bytes});
    program_.arena_bytes += align_up(bytes);
    return at;
  }

  // Of choices' shares over the step's tokens (kBalance): one for each of the stage's layers with experts, or one to which they
  // all add, and all stages.
  std::int64_t balance_sums() const {
    if (set_.balance != Balance::kLayer) return set_.balance == Balance::kPooled ? 1 : 0;
    std::int64_t sums = 0;
    for (int i = 0; i < layers_; ++i) sums += static_cast<std::int64_t>(p_.of_block(first_ + i).experts);
    return sums;
  }

  // What lies beside the state but goes with its blocks; metrics.
  void lay_out_buffers() {
    const int fsdp = p_.plan.fsdp;
    const std::int64_t state = size_of(set_.state), compute = size_of(set_.compute);
    std::int64_t whole = 0, shard = 0, outside = 0;
    for (const BlockState& st : state_.blocks) {
      const Block& block = set_.blocks()[st.block];
      whole += block.padded;
      shard += p_.shard_elements(block);
      if (block.layer < 0) outside += block.padded;
    }
    std::int64_t weights = 0, grads = 0, grad_shards = 0;
    if (fsdp == 3) weights = region("weights gathered once", MemoryClass::kParameters, outside * compute);
    if (trains()) {
      grads = region("gradients", MemoryClass::kGradients, (fsdp >= 2 ? outside : whole) * state);
      grad_shards = fsdp >= 1 ? region("gradient shards", MemoryClass::kGradients, shard * state) : grads;
    }
    if (fsdp == 3) weights_ring_ = make_ring("gathered weights", set_.compute, true);
    if (fsdp >= 2 && trains()) grads_ring_ = make_ring("unreduced gradients", set_.state, false);

    place_of_block_.resize(set_.blocks().size());
    std::int64_t w = 0, s = 0, o = 0;  // elements so far: whole, shards, outside the layers
    for (const BlockState& st : state_.blocks) {
      const Block& block = set_.blocks()[st.block];
      const bool layer = block.layer >= 0;
      BlockBuffers own;
      if (fsdp == 3 && !layer) own.weights = weights + o * compute;
      if (trains()) {
        own.grads = fsdp >= 2 ? (layer ? -1 : grads + o * state) : grads + w * state;
        own.grad_shard = fsdp >= 1 ? grad_shards + s * state : own.grads;
      }
      place_of_block_[static_cast<std::size_t>(st.block)] = program_.buffers.size();
      program_.buffers.push_back(own);
      w += block.padded;
      s += p_.shard_elements(block);
      if (!layer) o += block.padded;
    }
    metrics_ = region("metrics", MemoryClass::kData,
                      align_up(p_.metrics_elements() * 8) +
                          (p_.metrics_members > 1 ? p_.metrics_members * p_.metrics_elements() * 8 : 0));
    const std::int64_t sums = balance_sums(),
                       balance = region("balance", MemoryClass::kData, sums * p_.balance_bytes());
    for (std::int64_t k = 0; k < sums; ++k) balance_.push_back(balance + k * p_.balance_bytes());
    auto next = balance_.begin();
    for (int i = 0; i < layers_; ++i) {
      const bool has_own = set_.balance == Balance::kLayer && p_.of_block(first_ + i).experts;
      layer_balance_.push_back(has_own ? *next++ : balance);
    }
    comm_scratch_ = region("receive buffers", MemoryClass::kBuffers, p_.comm_scratch_bytes);
  }

  // The slots of the schedule, and the lifetimes of what they use. Nothing here knows one schedule from another.
  void write_schedule() {
    const int m = set_.step.microbatches;
    const auto emit = [&](Action action, int microbatch) {
      program_.slots.push_back({.action = action, .microbatch = microbatch});
      return static_cast<int>(program_.slots.size()) - 1;
    };
    constexpr std::size_t kSlotsOfPass = 3, kSlotsAround = 5;
    program_.slots.reserve(2 * kSlotsOfPass * static_cast<std::size_t>(m) + kSlotsAround);
    forwards_.reserve(static_cast<std::size_t>(m));
    backwards_.reserve(static_cast<std::size_t>(m));
    emit(Action::kBegin, -1);
    for (const StageAction& a : trains() ? stage_actions(p_.plan.schedule, stage_, mesh_.pp, m) : forward_actions(m)) {
      if (!a.forward && backwards_.empty() && p_.sum_balance >= 0 && balance_sums() > 0)
        balance_slot_ = emit(Action::kReduce, -1);
      Uses u{.microbatch = a.microbatch};
      if (a.forward ? !first() : !last())
        u.recv = emit(a.forward ? Action::kRecvForward : Action::kRecvBackward, a.microbatch);
      u.compute = emit(a.forward ? Action::kForward : Action::kBackward, a.microbatch);
      if (a.forward ? !last() : !first())
        u.send = emit(a.forward ? Action::kSendForward : Action::kSendBackward, a.microbatch);
      (a.forward ? forwards_ : backwards_).push_back(u);
    }
  }

  // A ring of two for parameters or gradients of layers. The first buffer of each layer begins where the ring does, the second
  // `turn` bytes behind it: right behind the first buffers of the layers that come before or after it in the schedule.
  struct Ring {
    std::int64_t offset = 0, bytes = 0;
    std::vector<std::int64_t> size, turn;  // by layer of the stage
  };
  Ring make_ring(std::string name, DType dtype, bool forwards_too) {
    Ring ring;
    for (int i = 0; i < layers_; ++i) ring.size.push_back(align_up(set_.blocks()[first_ + i].padded * size_of(dtype)));
    ring.turn.resize(ring.size.size());
    const auto neighbours = [&](int a, int b) {
      ring.turn[a] = std::max(ring.turn[a], ring.size[b]);
      ring.turn[b] = std::max(ring.turn[b], ring.size[a]);
    };
    for (int i = 0; i + 1 < layers_; ++i) neighbours(i, i + 1);
    std::optional<int> before;  // the layer that the last pass over the layers ended with
    for (const Slot& slot : program_.slots) {
      const bool forward = slot.action == Action::kForward;
      if (!(forward ? forwards_too : slot.action == Action::kBackward)) continue;
      if (before) neighbours(*before, forward ? 0 : layers_ - 1);
      before = forward ? layers_ - 1 : 0;
    }
    for (int i = 0; i < layers_; ++i) ring.bytes = std::max(ring.bytes, ring.turn[i] + ring.size[i]);
    ring.offset = region(std::move(name), MemoryClass::kBuffers, ring.bytes);
    return ring;
  }

  // An entry for every microbatch behind `anchor`, where things of `stride` bytes with these lifetimes lie; those of the
  // k-th forward or backward.
  void lay_out(Anchor anchor, std::string name, MemoryClass memory_class, std::int64_t stride,
               const std::vector<Uses>& uses, std::vector<Lifetime> lifetimes) {
    const std::int64_t at = region(std::move(name), memory_class, stride * place_entries(lifetimes));
    for (std::size_t k = 0; k < uses.size(); ++k) {
      const std::int64_t offset = at + lifetimes[k].entry * stride;
      anchors_[static_cast<std::size_t>(uses[k].microbatch)][static_cast<int>(anchor)] = offset;
      if (lives_throughout(memory_class) || stride == 0) continue;
      const bool received = anchor == Anchor::kInbox || anchor == Anchor::kGradientFlow;
      if (received && lifetimes[k].first < uses[k].recv)
        program_.begins.push_back(
            {lifetimes[k].first, uses[k].microbatch, anchor, offset, p_.own_rows() * p_.width * size_of(set_.compute)});
      program_.ends.push_back({lifetimes[k].last, uses[k].microbatch, anchor, offset, stride});
    }
  }

  // Entries of microbatches. A lifetime goes from the first write to the last use, and on over what may be under way: what is
  // received may arrive while the slot before of its kind computes (a forward before a forward), and what is sent leave
  // while the next one does; what is received and sent again has the one in front of it and not, too, the one behind.
  void lay_out_entries() {
    const auto m = static_cast<std::size_t>(set_.step.microbatches);
    const std::int64_t x = x_bytes_;
    anchors_.resize(m);
    std::vector<int> backward_of(m);  // slot
    for (const Uses& u : backwards_) backward_of[static_cast<std::size_t>(u.microbatch)] = u.compute;
    // A microbatch's stash: for every layer what it saves and, but for the first, its input; then the head's input. Without a
    // backward nothing is saved, and inputs take turns in two places.
    std::int64_t stash = 0;
    const auto input = [&](int i) {
      if (trains()) return std::exchange(stash, stash + x);
      stash = std::max(stash, (2 - i % 2) * x);
      return (1 - i % 2) * x;
    };
    for (int i = 0; i < layers_; ++i) {
      layer_input_.push_back(i > 0 ? input(i) : 0);  // the first's is in the inbox
      layer_stash_.push_back(stash);
      stash += p_.of_block(first_ + i).stash;
    }
    if (last()) head_input_ = input(layers_);
    std::vector<Lifetime> stashes(m), inputs(m), outputs(m), flows(m), tokens(m);
    for (std::size_t k = 0; k < m; ++k) {
      const Uses& f = forwards_[k];
      const int end = trains() ? backward_of[static_cast<std::size_t>(f.microbatch)] : f.compute;
      stashes[k] = {f.compute, end};
      inputs[k] = {f.recv < 0 ? f.compute : k > 0 ? forwards_[k - 1].compute : f.recv, end};
      outputs[k] = {f.compute, k + 1 < m ? forwards_[k + 1].compute : f.send};
      tokens[k] = {0, end};
      if (!trains()) continue;
      const Uses& b = backwards_[k];
      flows[k].first = b.recv < 0 ? b.compute : k > 0 ? backwards_[k - 1].compute : b.recv;
      flows[k].last = b.send < 0   ? b.compute
                      : k + 1 == m ? b.send
                      : b.recv < 0 ? backwards_[k + 1].compute
                                   : backwards_[k + 1].compute - 1;
    }
    lay_out(Anchor::kStash, "stash", MemoryClass::kActivations, stash, forwards_, std::move(stashes));
    lay_out(Anchor::kInbox, "stage inputs", MemoryClass::kActivations, x, forwards_, std::move(inputs));
    if (!last()) lay_out(Anchor::kOutbox, "stage outputs", MemoryClass::kBuffers, x, forwards_, std::move(outputs));
    if (trains())
      lay_out(Anchor::kGradientFlow, "gradient of the residual stream", MemoryClass::kBuffers, x, backwards_,
              std::move(flows));
    std::ranges::stable_sort(program_.begins, {}, &EntryEdge::slot);
    std::ranges::stable_sort(program_.ends, {}, &EntryEdge::slot);
    if (first() || last())
      lay_out(Anchor::kTokens, "tokens", MemoryClass::kData, 2 * align_up(p_.own_rows() * size_of(DType::kI32)),
              forwards_, std::move(tokens));
  }

  static void set(Call& call, Frame frame, std::int64_t base, Anchor anchor = Anchor::kFixed) {
    call.base[static_cast<int>(frame)] = base;
    call.anchor[static_cast<int>(frame)] = anchor;
  }

  // A call of `piece` on a block this stage keeps, with the frames that do not depend on the slot.
  Call call(int piece, int block) const {
    Call c{.piece = piece, .block = block};
    set(c, Frame::kMetrics, metrics_);
    set(c, Frame::kCommScratch, comm_scratch_);
    set(c, Frame::kTokens, 0, Anchor::kTokens);
    set(c, Frame::kD, 0, Anchor::kGradientFlow);
    if (block < 0) return c;
    const std::size_t place = place_of_block_[static_cast<std::size_t>(block)];
    const BlockState& st = state_.blocks[place];
    const BlockBuffers& own = program_.buffers[place];
    c.layer = set_.blocks()[block].layer;
    c.weights_ring = st.weights < 0 && own.weights < 0;
    c.grads_ring = trains() && own.grads < 0;
    set(c, Frame::kWeights, c.weights_ring ? weights_ring_.offset : std::max(st.weights, own.weights));
    set(c, Frame::kGrads, c.grads_ring ? grads_ring_.offset : own.grads);
    if (c.weights_ring) c.weights_turn = weights_ring_.turn[block - first_];
    if (c.grads_ring) c.grads_turn = grads_ring_.turn[block - first_];
    set(c, Frame::kWeightShard, st.weight_shard);
    set(c, Frame::kMaster, st.master);
    set(c, Frame::kGradShard, own.grad_shard);
    set(c, Frame::kMoment1, st.moment1);
    set(c, Frame::kMoment2, st.moment2);
    return c;
  }

  // A chunk while it is written, with the ends of what its calls use.
  class Calls {
   public:
    explicit Calls(std::int64_t comm_scratch) : comm_scratch_(comm_scratch) {}
    int add(const Call& call) {
      calls.push_back(call);
      return static_cast<int>(calls.size()) - 1;
    }
    // A call that computes: what is under way has time until it is over.
    int compute(const Call& call) {
      const int added = add(call);
      settle();
      return added;
    }
    // A call that communicates beside the next one that computes.
    int reduce(const Call& call) {
      const int added = add(call);
      under_way_.push_back({0, added, Frame::kCommScratch, 0, comm_scratch_});
      return added;
    }
    // Behind the last call; `later`: when it, too, is over.
    void end(int of, Frame frame, std::int64_t bytes, bool later = false) {
      if (later)
        under_way_.push_back({0, of, frame, 0, bytes});
      else if (bytes > 0)
        ends.push_back({static_cast<int>(calls.size()) - 1, of, frame, 0, bytes});
    }
    void settle() {
      for (const End& e : under_way_) end(e.of, e.frame, e.bytes);
      under_way_.clear();
    }
    std::vector<Call> calls;
    std::vector<End> ends;

   private:
    std::int64_t comm_scratch_;
    std::vector<End> under_way_;
  };
  Calls calls() const { return Calls(p_.comm_scratch_bytes); }

  int chunk(std::string name, Calls calls) {
    calls.settle();
    program_.chunks.push_back({std::move(name), std::move(calls.calls), std::move(calls.ends)});
    return static_cast<int>(program_.chunks.size()) - 1;
  }

  Call layer_call(int piece, int i, int turn) const {
    Call c = call(piece, first_ + i);
    c.ring = static_cast<std::uint8_t>(turn & 1);
    set(c, Frame::kBalance, layer_balance_[i]);
    set(c, Frame::kStash, layer_stash_[i], Anchor::kStash);
    set(c, Frame::kX, i > 0 ? layer_input_[i] : 0, i > 0 ? Anchor::kStash : Anchor::kInbox);
    if (i + 1 < layers_)
      set(c, Frame::kXOut, layer_input_[i + 1], Anchor::kStash);
    else if (last())
      set(c, Frame::kXOut, head_input_, Anchor::kStash);
    else
      set(c, Frame::kXOut, 0, Anchor::kOutbox);
    return c;
  }

  Calls forward_calls() const {
    Calls calls = this->calls();
    calls.calls.reserve(2 * static_cast<std::size_t>(layers_) + 1);
    if (first()) {
      Call embed = call(p_.embed, embedding_block(set_));
      set(embed, Frame::kXOut, 0, Anchor::kInbox);
      calls.compute(embed);
    }
    const auto gather = [&](int i) {
      if (i == layers_) return -1;
      const int piece = p_.of_block(first_ + i).gather;
      return piece >= 0 ? calls.add(layer_call(piece, i, i)) : -1;
    };
    int gathered = gather(0);
    for (int i = 0; i < layers_; ++i) {
      const int next = gather(i + 1);
      calls.compute(layer_call(p_.of_block(first_ + i).forward, i, i));
      if (gathered >= 0) calls.end(gathered, Frame::kWeights, weights_ring_.size[i]);
      gathered = next;
    }
    if (last() && !trains()) calls.compute(head_call());
    return calls;
  }

  Call head_call() const {
    Call head = call(p_.head, head_block(set_));
    set(head, Frame::kX, head_input_, Anchor::kStash);
    return head;
  }

  Calls backward_calls(bool last_microbatch) const {
    Calls calls = this->calls();
    calls.calls.reserve(4 * static_cast<std::size_t>(layers_) + 4);
    const auto reduce_outside = [&](int block) {
      if (const int piece = p_.of_block(block).reduce_last; last_microbatch && piece >= 0)
        calls.reduce(call(piece, block));
    };
    if (last()) {
      calls.compute(head_call());
      if (mesh_.pp > 1) reduce_outside(head_block(set_));
    }
    // Layers in reverse. A layer's weights are gathered before the layer behind it runs, so that the gather does not queue
    // after that layer's reduction on the dp stream, which waits for its backward.
    const auto gather = [&](int i) {
      if (i < 0) return -1;
      const int piece = p_.of_block(first_ + i).gather;
      return piece >= 0 ? calls.add(layer_call(piece, i, layers_ - 1 - i)) : -1;
    };
    int gathered = gather(layers_ - 1);
    for (int i = layers_ - 1; i >= 0; --i) {
      const BlockPieces& kind = p_.of_block(first_ + i);
      const int next = gather(i - 1);
      const int backward = calls.compute(layer_call(kind.backward, i, layers_ - 1 - i));
      if (gathered >= 0) calls.end(gathered, Frame::kWeights, weights_ring_.size[i]);
      gathered = next;
      if (kind.reduce_each >= 0) calls.reduce(layer_call(kind.reduce_each, i, layers_ - 1 - i));
      if (last_microbatch && kind.reduce_last >= 0) calls.reduce(layer_call(kind.reduce_last, i, layers_ - 1 - i));
      if (p_.plan.fsdp >= 2) calls.end(backward, Frame::kGrads, grads_ring_.size[i], true);
    }
    if (first()) {
      calls.compute(call(p_.embed_backward, embedding_block(set_)));
      reduce_outside(embedding_block(set_));
    }
    return calls;
  }

  void write_chunks() {
    Calls begin = calls();
    begin.add(call(p_.clear_metrics, -1));
    for (const BlockState& st : state_.blocks) {
      const int b = st.block;
      if (trains()) begin.add(call(p_.of_block(b).clear, b));
      if (set_.blocks()[b].layer < 0 && p_.of_block(b).gather >= 0) begin.add(call(p_.of_block(b).gather, b));
    }
    const auto of_balance = [&](int piece, std::int64_t at) {
      Call c = call(piece, -1);
      set(c, Frame::kBalance, at);
      return c;
    };
    for (const std::int64_t at : balance_) begin.add(of_balance(p_.clear_balance, at));
    begin_ = chunk("begin", std::move(begin));
    if (balance_slot_ >= 0) {
      Calls sums = calls();
      for (const std::int64_t at : balance_) sums.reduce(of_balance(p_.sum_balance, at));
      sum_balance_ = chunk("sum balance", std::move(sums));
    }
    forward_ = chunk("forward", forward_calls());
    if (trains()) {
      backward_ = chunk("backward", backward_calls(false));
      backward_last_ = chunk("backward, last microbatch", backward_calls(true));
    }

    const auto message = [&](const char* name, int piece, Frame frame, Anchor anchor) {
      Call c = call(piece, -1);
      set(c, frame, 0, anchor);
      Calls message_calls = calls();
      message_calls.add(c);
      return chunk(name, std::move(message_calls));
    };
    if (!last()) send_forward_ = message("send forward", p_.send_forward, Frame::kXOut, Anchor::kOutbox);
    if (!last() && trains())
      recv_backward_ = message("receive backward", p_.recv_backward, Frame::kD, Anchor::kGradientFlow);
    if (!first()) recv_forward_ = message("receive forward", p_.recv_forward, Frame::kXOut, Anchor::kInbox);
    if (!first() && trains())
      send_backward_ = message("send backward", p_.send_backward, Frame::kD, Anchor::kGradientFlow);
    if (p_.reduce_ends >= 0 && (first() || last())) {
      Calls ends = calls();
      ends.reduce(call(p_.reduce_ends, first() ? embedding_block(set_) : head_block(set_)));
      reduce_ends_ = chunk("reduce table", std::move(ends));
    }
    Calls sums = calls(), update = calls();
    for (const BlockState& st : state_.blocks) {
      const BlockPieces& pieces = p_.of_block(st.block);
      if (pieces.norm >= 0) sums.add(call(pieces.norm, st.block));
      if (trains()) update.add(call(pieces.update, st.block));
    }
    if (p_.metrics_tp_dp >= 0) sums.add(call(p_.metrics_tp_dp, -1));
    if (!sums.calls.empty()) sums_ = chunk(trains() ? "norm" : "metrics", std::move(sums));
    if (mesh_.pp > 1) {
      Calls over_pp = calls();
      over_pp.add(call(p_.metrics_pp, -1));
      sums_pp_ = chunk(trains() ? "norm over pp" : "metrics over pp", std::move(over_pp));
    }
    if (trains()) update_ = chunk("update", std::move(update));
  }

  // What the slots of the schedule run, and on what; then the end of the step.
  void write_slots() {
    for (Slot& slot : program_.slots) {
      slot.chunk = chunk_of(slot);
      if (slot.microbatch >= 0) slot.anchor = anchors_[static_cast<std::size_t>(slot.microbatch)];
      // The rings go on where the last slot stopped, so that its first buffer is not the one that was used last.
      slot.ring = ring_;
      const bool turns =
          slot.action == Action::kForward ? p_.plan.fsdp == 3 : slot.action == Action::kBackward && p_.plan.fsdp >= 2;
      if (turns) ring_ ^= static_cast<std::uint8_t>(layers_ & 1);
    }
    const auto emit = [&](Action action, int chunk) {
      program_.slots.push_back({.action = action, .microbatch = -1, .chunk = chunk, .ring = ring_});
    };
    if (reduce_ends_ >= 0) emit(Action::kReduce, reduce_ends_);
    if (sums_ >= 0) emit(trains() ? Action::kNorm : Action::kReduce, sums_);
    if (sums_pp_ >= 0) emit(Action::kReduce, sums_pp_);
    if (trains()) emit(Action::kUpdate, update_);
  }
  int chunk_of(const Slot& slot) const {
    switch (slot.action) {
      case Action::kForward:
        return forward_;
      case Action::kBackward:
        return slot.microbatch == backwards_.back().microbatch ? backward_last_ : backward_;
      case Action::kSendForward:
        return send_forward_;
      case Action::kRecvForward:
        return recv_forward_;
      case Action::kSendBackward:
        return send_backward_;
      case Action::kRecvBackward:
        return recv_backward_;
      case Action::kReduce:  // the others follow when the schedule is over
        return sum_balance_;
      default:
        return begin_;
    }
  }

  const StepPieces& p_;
  ProgramSet& set_;
  const MeshShape mesh_;
  int stage_, first_, layers_;
  Program program_;
  const StageState& state_;
  std::vector<std::size_t> place_of_block_;  // index in state_.blocks, of the blocks that this stage keeps
  std::vector<Uses> forwards_, backwards_;   // in the order of the schedule
  std::vector<std::array<std::int64_t, kAnchors>> anchors_;  // by microbatch
  Ring weights_ring_, grads_ring_;
  std::int64_t metrics_ = 0, comm_scratch_ = 0, head_input_ = 0;
  const std::int64_t x_bytes_;  // of the residual stream, one microbatch
  std::vector<std::int64_t> layer_input_, layer_stash_;
  std::vector<std::int64_t> balance_, layer_balance_;  // where the sums of kBalance lie; by layer of the stage
  int begin_ = -1, forward_ = -1, backward_ = -1, backward_last_ = -1, send_forward_ = -1, recv_forward_ = -1,
      send_backward_ = -1, recv_backward_ = -1, reduce_ends_ = -1, sums_ = -1, sums_pp_ = -1, update_ = -1,
      sum_balance_ = -1, balance_slot_ = -1;
  std::uint8_t ring_ = 0;
};

}  // namespace

void write_stage(StepPieces& pieces, int stage, int first_layer, int layers) {
  StageWriter(pieces, stage, first_layer, layers).write();
}

}  // namespace meshwright
