#include "model/lowering/stage_writer.h"

#include <algorithm>
#include <numeric>
#include <string>
#include <utility>

#include "model/lowering/placement.h"
#include "model/lowering/schedule.h"

namespace meshwright {
namespace {

class StageWriter {
 public:
  StageWriter(StepPieces& pieces, int stage, int first_layer, int layers)
      : p_(pieces), set_(pieces.set), mesh_(pieces.plan.mesh), stage_(stage), first_(first_layer), layers_(layers) {
    program_.stage = stage;
    program_.first_layer = first_layer;
    program_.layers = layers;
  }

  void write() {
    lay_out_state();
    lay_out_activations();
    write_chunks();
    write_slots();
    // The workspace lies last: its high-water mark is the arena's.
    std::int64_t workspace = 0;
    for (const Chunk& chunk : program_.chunks)
      for (const Call& call : chunk.calls) workspace = std::max(workspace, set_.pieces[call.piece].workspace_bytes);
    const std::int64_t at = region("workspace", MemoryClass::kWorkspace, workspace);
    for (Chunk& chunk : program_.chunks)
      for (Call& call : chunk.calls) call.base[static_cast<int>(Frame::kWorkspace)] = at;
    set_.stages.push_back(std::move(program_));
    set_.state_of.push_back(std::move(states_));
  }

 private:
  bool first() const { return stage_ == 0; }
  bool last() const { return stage_ == mesh_.pp - 1; }

  std::int64_t region(std::string name, MemoryClass memory_class, std::int64_t bytes) {
    const std::int64_t at = program_.arena_bytes;
    if (bytes > 0) program_.regions.push_back({std::move(name), memory_class, at, bytes});
    program_.arena_bytes += align_up(bytes);
    return at;
  }

  // Blocks whose parameters this stage keeps, layers first.
  std::vector<int> blocks() const {
    std::vector<int> mine(static_cast<std::size_t>(layers_));
    std::iota(mine.begin(), mine.end(), first_);
    if (first()) mine.push_back(embedding_block(set_));
    if (last() && mesh_.pp > 1) mine.push_back(head_block(set_));
    return mine;
  }

  void lay_out_state() {
    const int fsdp = p_.plan.fsdp;
    const std::int64_t state = size_of(set_.state), compute = size_of(set_.compute);
    const bool low = p_.low_precision();
    std::int64_t whole = 0, shard = 0, outside = 0, largest_layer = 0;
    for (const int b : blocks()) {
      const Block& block = set_.blocks[b];
      whole += block.padded;
      shard += p_.shard_elements(block);
      if (block.layer < 0)
        outside += block.padded;
      else
        largest_layer = std::max(largest_layer, block.padded);
    }
    // Which frames share memory: without sharding and casting, weights are master weights; a shard of master weights is
    // what is gathered unless products read a narrower type.
    const std::int64_t master = region("master weights", MemoryClass::kParameters, shard * state);
    const bool weights_apart = low || fsdp == 1 || fsdp == 2;
    const std::int64_t weights = fsdp == 3
                                     ? region("weights gathered once", MemoryClass::kParameters, outside * compute)
                                 : weights_apart ? region("weights", MemoryClass::kParameters, whole * compute)
                                                 : master;
    const std::int64_t weight_shard =
        fsdp >= 1 && low ? region("weight shards", MemoryClass::kParameters, shard * compute) : master;
    const std::int64_t m = region("moment 1", MemoryClass::kOptimizer, shard * state);
    const std::int64_t v = region("moment 2", MemoryClass::kOptimizer, shard * state);
    const std::int64_t grads = region("gradients", MemoryClass::kGradients, (fsdp >= 2 ? outside : whole) * state);
    const std::int64_t grad_shards =
        fsdp >= 1 ? region("gradient shards", MemoryClass::kGradients, shard * state) : grads;
    if (fsdp == 3) {
      program_.weights_ring_stride = align_up(largest_layer * compute);
      weights_ring_ = region("gathered weights", MemoryClass::kBuffers, 2 * program_.weights_ring_stride);
    }
    if (fsdp >= 2) {
      program_.grads_ring_stride = align_up(largest_layer * state);
      grads_ring_ = region("unreduced gradients", MemoryClass::kBuffers, 2 * program_.grads_ring_stride);
    }

    std::int64_t w = 0, s = 0, o = 0;  // elements so far: whole, shards, outside the layers
    for (const int b : blocks()) {
      const Block& block = set_.blocks[b];
      const bool layer = block.layer >= 0;
      BlockState st{.block = b};
      st.master = master + s * state;
      st.master_sharded = p_.state_sharded();
      st.weights = fsdp == 3 ? (layer ? -1 : weights + o * compute) : weights + w * compute;
      st.weight_shard = fsdp >= 1 ? (low ? weight_shard + s * compute : st.master) : -1;
      st.grads = fsdp >= 2 ? (layer ? -1 : grads + o * state) : grads + w * state;
      st.grad_shard = fsdp >= 1 ? grad_shards + s * state : st.grads;
      st.moment1 = m + s * state;
      st.moment2 = v + s * state;
      states_.push_back(st);
      w += block.padded;
      s += p_.shard_elements(block);
      if (!layer) o += block.padded;
    }
    metrics_ = region("metrics", MemoryClass::kData,
                      align_up(p_.metrics_elements() * 8) +
                          (p_.metrics_members > 1 ? p_.metrics_members * p_.metrics_elements() * 8 : 0));
    comm_scratch_ = region("receive buffers", MemoryClass::kBuffers, p_.comm_scratch_bytes);
  }

  void lay_out_activations() {
    const std::int64_t x = align_up(p_.own_rows() * p_.width * size_of(set_.compute));
    const int m = set_.step.microbatches;
    const int in_flight = microbatches_in_flight(p_.plan.schedule, stage_, mesh_.pp, m);
    // A microbatch's stash: for every layer what it saves and, but for the first, its input; then the head's input.
    std::int64_t at = 0;
    for (int i = 0; i < layers_; ++i) {
      if (i > 0) {
        layer_input_.push_back(at);
        at += x;
      } else {
        layer_input_.push_back(0);  // in the inbox
      }
      layer_stash_.push_back(at);
      at += p_.of_block(first_ + i).stash;
    }
    if (last()) {
      head_input_ = at;
      at += x;
    }
    stash_stride_ = at;
    stashes_ = in_flight;
    stash_ = region("stash", MemoryClass::kActivations, stash_stride_ * stashes_);
    // The first layer's input: one more than in flight where it is received, so that it can arrive early.
    inboxes_ = in_flight + (first() || in_flight == m ? 0 : 1);
    inbox_ = region("stage inputs", MemoryClass::kActivations, x * inboxes_);
    outboxes_ = last() ? 0 : std::min(2, m);
    outbox_ = region("stage outputs", MemoryClass::kBuffers, x * outboxes_);
    flows_ = mesh_.pp > 1 ? std::min(2, m) : 1;
    flow_ = region("gradient of the residual stream", MemoryClass::kBuffers, x * flows_);
    x_bytes_ = x;
    tokens_stride_ = 2 * align_up(p_.own_rows() * size_of(DType::kI32));
    tokens_ = first() || last() ? region("tokens", MemoryClass::kData, tokens_stride_ * m) : program_.arena_bytes;
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
    const BlockState& st =
        *std::find_if(states_.begin(), states_.end(), [&](const BlockState& s) { return s.block == block; });
    c.layer = set_.blocks[block].layer;
    c.weights_ring = st.weights < 0;
    c.grads_ring = st.grads < 0;
    set(c, Frame::kWeights, c.weights_ring ? weights_ring_ : st.weights);
    set(c, Frame::kGrads, c.grads_ring ? grads_ring_ : st.grads);
    set(c, Frame::kWeightShard, st.weight_shard);
    set(c, Frame::kMaster, st.master);
    set(c, Frame::kGradShard, st.grad_shard);
    set(c, Frame::kMoment1, st.moment1);
    set(c, Frame::kMoment2, st.moment2);
    return c;
  }

  int chunk(std::string name, std::vector<Call> calls) {
    program_.chunks.push_back({std::move(name), std::move(calls)});
    return static_cast<int>(program_.chunks.size()) - 1;
  }

  Call layer_call(int piece, int i) const {
    Call c = call(piece, first_ + i);
    c.ring = static_cast<std::uint8_t>(i & 1);
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

  std::vector<Call> forward_calls() const {
    std::vector<Call> calls;
    if (first()) {
      Call embed = call(p_.embed, embedding_block(set_));
      set(embed, Frame::kXOut, 0, Anchor::kInbox);
      calls.push_back(embed);
    }
    for (int i = 0; i < layers_; ++i) {
      const auto& kind = p_.of_block(first_ + i);
      if (kind.gather >= 0) calls.push_back(layer_call(kind.gather, i));
      calls.push_back(layer_call(kind.forward, i));
    }
    return calls;
  }

  std::vector<Call> backward_calls(bool last_microbatch) const {
    std::vector<Call> calls;
    const auto reduce_outside = [&](int block) {
      if (const int piece = p_.of_block(block).reduce_last; last_microbatch && piece >= 0)
        calls.push_back(call(piece, block));
    };
    if (last()) {
      Call head = call(p_.head, head_block(set_));
      set(head, Frame::kX, head_input_, Anchor::kStash);
      calls.push_back(head);
      if (mesh_.pp > 1) reduce_outside(head_block(set_));
    }
    // Layers in reverse. A layer's weights are gathered before the layer behind it runs, so that the gather does not queue
    // after that layer's reduction on the dp stream, which waits for its backward.
    const auto add = [&](int i, int piece) {
      if (i < 0 || piece < 0) return;
      calls.push_back(layer_call(piece, i));
      calls.back().ring = static_cast<std::uint8_t>((layers_ - 1 - i) & 1);
    };
    const auto kind_of = [&](int i) -> const BlockPieces& { return p_.of_block(first_ + i); };
    add(layers_ - 1, kind_of(layers_ - 1).gather);
    for (int i = layers_ - 1; i >= 0; --i) {
      if (i > 0) add(i - 1, kind_of(i - 1).gather);
      add(i, kind_of(i).backward);
      add(i, kind_of(i).reduce_each);
      if (last_microbatch) add(i, kind_of(i).reduce_last);
    }
    if (first()) {
      calls.push_back(call(p_.embed_backward, embedding_block(set_)));
      reduce_outside(embedding_block(set_));
    }
    return calls;
  }

  void write_chunks() {
    std::vector<Call> begin{call(p_.clear_metrics, -1)};
    for (const int b : blocks()) {
      begin.push_back(call(p_.of_block(b).clear, b));
      if (set_.blocks[b].layer < 0 && p_.of_block(b).gather >= 0) begin.push_back(call(p_.of_block(b).gather, b));
    }
    begin_ = chunk("begin", std::move(begin));
    forward_ = chunk("forward", forward_calls());
    backward_ = chunk("backward", backward_calls(false));
    backward_last_ = chunk("backward, last microbatch", backward_calls(true));

    const auto message = [&](const char* name, int piece, Frame frame, Anchor anchor) {
      Call c = call(piece, -1);
      set(c, frame, 0, anchor);
      return chunk(name, {c});
    };
    if (!last()) {
      send_forward_ = message("send forward", p_.send_forward, Frame::kXOut, Anchor::kOutbox);
      recv_backward_ = message("receive backward", p_.recv_backward, Frame::kD, Anchor::kGradientFlow);
    }
    if (!first()) {
      recv_forward_ = message("receive forward", p_.recv_forward, Frame::kXOut, Anchor::kInbox);
      send_backward_ = message("send backward", p_.send_backward, Frame::kD, Anchor::kGradientFlow);
    }
    if (p_.reduce_ends >= 0 && (first() || last()))
      reduce_ends_ = chunk("reduce table", {call(p_.reduce_ends, first() ? embedding_block(set_) : head_block(set_))});
    std::vector<Call> norm, update;
    for (const int b : blocks()) {
      if (p_.of_block(b).norm >= 0) norm.push_back(call(p_.of_block(b).norm, b));
      update.push_back(call(p_.of_block(b).update, b));
    }
    if (p_.metrics_tp_dp >= 0) norm.push_back(call(p_.metrics_tp_dp, -1));
    norm_ = chunk("norm", std::move(norm));
    if (mesh_.pp > 1) norm_pp_ = chunk("norm over pp", {call(p_.metrics_pp, -1)});
    update_ = chunk("update", std::move(update));
  }

  Slot slot(Action action, int microbatch, int chunk) {
    // The rings go on where the last slot stopped, so that its first buffer is not the one that was used last.
    const Slot s{.action = action, .microbatch = microbatch, .chunk = chunk, .ring = ring_};
    const bool turns =
        action == Action::kForward ? p_.plan.fsdp == 3 : action == Action::kBackward && p_.plan.fsdp >= 2;
    if (turns) ring_ ^= static_cast<std::uint8_t>(layers_ & 1);
    return s;
  }

  void write_slots() {
    const int m = set_.step.microbatches;
    program_.slots.push_back(slot(Action::kBegin, -1, begin_));
    int forwards = 0, backwards = 0;
    std::vector<std::array<std::int64_t, kAnchors>> anchors(static_cast<std::size_t>(m));
    const auto emit = [&](Action action, int microbatch, int chunk, const std::array<std::int64_t, kAnchors>& anchor) {
      Slot s = slot(action, microbatch, chunk);
      s.anchor = anchor;
      program_.slots.push_back(s);
    };
    for (const StageAction& a : stage_actions(p_.plan.schedule, stage_, mesh_.pp, m)) {
      auto& anchor = anchors[a.microbatch];
      const auto at = [&](Anchor which) -> std::int64_t& { return anchor[static_cast<int>(which)]; };
      if (a.forward) {
        at(Anchor::kStash) = stash_ + forwards % stashes_ * stash_stride_;
        at(Anchor::kInbox) = inbox_ + forwards % inboxes_ * x_bytes_;
        at(Anchor::kOutbox) = outboxes_ ? outbox_ + forwards % outboxes_ * x_bytes_ : 0;
        at(Anchor::kTokens) = tokens_ + a.microbatch * tokens_stride_;
        ++forwards;
        if (!first()) emit(Action::kRecvForward, a.microbatch, recv_forward_, anchor);
        emit(Action::kForward, a.microbatch, forward_, anchor);
        if (!last()) emit(Action::kSendForward, a.microbatch, send_forward_, anchor);
      } else {
        at(Anchor::kGradientFlow) = flow_ + backwards % flows_ * x_bytes_;
        ++backwards;
        if (!last()) emit(Action::kRecvBackward, a.microbatch, recv_backward_, anchor);
        emit(Action::kBackward, a.microbatch, backwards == m ? backward_last_ : backward_, anchor);
        if (!first()) emit(Action::kSendBackward, a.microbatch, send_backward_, anchor);
      }
    }
    if (reduce_ends_ >= 0) program_.slots.push_back(slot(Action::kReduce, -1, reduce_ends_));
    program_.slots.push_back(slot(Action::kNorm, -1, norm_));
    if (norm_pp_ >= 0) program_.slots.push_back(slot(Action::kReduce, -1, norm_pp_));
    program_.slots.push_back(slot(Action::kUpdate, -1, update_));
  }

  const StepPieces& p_;
  ProgramSet& set_;
  const MeshShape mesh_;
  int stage_, first_, layers_;
  Program program_;
  std::vector<BlockState> states_;
  std::int64_t weights_ring_ = 0, grads_ring_ = 0, metrics_ = 0, comm_scratch_ = 0, x_bytes_ = 0;
  std::vector<std::int64_t> layer_input_, layer_stash_;
  std::int64_t head_input_ = 0, stash_ = 0, stash_stride_ = 0, inbox_ = 0, outbox_ = 0, flow_ = 0, tokens_ = 0,
               tokens_stride_ = 0;
  int stashes_ = 0, inboxes_ = 0, outboxes_ = 0, flows_ = 0;
  int begin_ = -1, forward_ = -1, backward_ = -1, backward_last_ = -1, send_forward_ = -1, recv_forward_ = -1,
      send_backward_ = -1, recv_backward_ = -1, reduce_ends_ = -1, norm_ = -1, norm_pp_ = -1, update_ = -1;
  std::uint8_t ring_ = 0;
};

}  // namespace

void write_stage(StepPieces& pieces, int stage, int first_layer, int layers) {
  StageWriter(pieces, stage, first_layer, layers).write();
}

}  // namespace meshwright
