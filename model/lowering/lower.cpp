#include "model/lowering/lower.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include <fmt/format.h>

#include "model/accounting.h"
#include "model/lowering/layer_pieces.h"
#include "model/lowering/placement.h"
#include "model/lowering/schedule.h"
#include "model/program/check.h"

namespace meshwright {
namespace {

// The pieces of a step and the calls that apply them: everything that the stages share.
class Lowering {
 public:
  Lowering(const ModelSpec& model, const TrainingShape& shape, const Plan& plan, std::vector<int> stage_layers)
      : model_(model), plan_(plan), stage_layers_(std::move(stage_layers)) {
    set_.mesh = plan.mesh;
    set_.fsdp = plan.fsdp;
    set_.step = {shape.sequences, shape.tokens, shape.sequences / (plan.mesh.dp * std::int64_t{plan.microbatches}), plan.microbatches};
    set_.compute = shape.compute;
    set_.state = shape.compute == DType::kF64 ? DType::kF64 : DType::kF32;
    for (const LayerSpec& layer : model.layers)
      if (const auto* moe = std::get_if<MoeSpec>(&layer.ffn)) {
        set_.experts = std::max(set_.experts, moe->experts);
        set_.choices = std::max(set_.choices, moe->choices);
        ++set_.moe_layers;
      }
    set_.balance_weight = model.balance_weight;
    place_parameters(model, set_);
    context_.width = model.width;
    context_.vocab = model.vocab;
    context_.dropout = shape.train ? model.dropout : 0.0;
    context_.balance_weight = model.balance_weight;
    context_.train = shape.train;
    context_.accumulate_grads = plan.fsdp < 2;
    lay_out_comm_scratch();
  }

  ProgramSet run() {
    make_layer_kinds();
    make_shared_pieces();
    int first = 0;
    for (int stage = 0; stage < plan_.mesh.pp; ++stage) {
      lower_stage(stage, first, stage_layers_[stage]);
      first += stage_layers_[stage];
    }
    return std::move(set_);
  }

 private:
  // Pieces of one kind of layer (or of a block outside the layers); -1: not needed.
  struct BlockPieces {
    int forward = -1, backward = -1;
    int gather = -1;        // weights over dp, FSDP 3
    int reduce_each = -1;   // gradients over dp after every microbatch, FSDP 2 and 3
    int reduce_last = -1;   // what is left to reduce after the last one
    int clear = -1;         // gradient accumulators to zero
    int norm = -1, update = -1;
    std::int64_t stash = 0;
  };

  int add(Piece piece) {
    set_.pieces.push_back(std::move(piece));
    return static_cast<int>(set_.pieces.size()) - 1;
  }

  void make_layer_kinds() {
    kind_of_layer_.resize(model_.layers.size());
    std::vector<int> first_of_kind;
    for (int layer = 0; layer < static_cast<int>(model_.layers.size()); ++layer) {
      int kind = 0;
      while (kind < static_cast<int>(first_of_kind.size()) && !(model_.layers[first_of_kind[kind]] == model_.layers[layer])) ++kind;
      kind_of_layer_[layer] = kind;
      if (kind < static_cast<int>(first_of_kind.size())) continue;
      first_of_kind.push_back(layer);
      const LayerSpec& spec = model_.layers[layer];
      const Block& block = set_.blocks[layer];
      const std::string name = std::holds_alternative<MoeSpec>(spec.ffn) ? "moe" : "dense";
      const bool recompute = plan_.recompute == Recompute::kFull;
      BlockPieces p = state_pieces(block, name, true, true);
      p.forward = add(layer_forward(context_, spec, block, recompute, name + ".forward"));
      p.backward = add(layer_backward(context_, spec, block, recompute, name + ".backward"));
      p.stash = recompute ? 0 : layer_stash_bytes(context_, spec);
      kinds_.push_back(p);
    }
  }

  void make_shared_pieces() {
    const Block& embedding = set_.blocks[embedding_block(set_)];
    const Block& last = set_.blocks[head_block(set_)];
    embed_ = add(embed_forward(context_, embedding));
    embed_backward_ = add(meshwright::embed_backward(context_, embedding));
    head_ = add(meshwright::head(context_, last));
    ends_first_ = state_pieces(embedding, "embedding", false, plan_.mesh.pp == 1);
    ends_last_ = plan_.mesh.pp == 1 ? ends_first_ : state_pieces(last, "head", false, true);
    const std::int64_t x = context_.own_rows() * model_.width;
    const auto message = [&](std::string name, Frame frame, auto op) {
      Piece piece{std::move(name), {{"x", {context_.own_rows(), model_.width}, set_.compute, frame, 0}}, {}, 0};
      op.x = View{0, 1, x, x, 0};
      piece.ops.emplace_back(op);
      return add(std::move(piece));
    };
    if (plan_.mesh.pp > 1) {
      send_forward_ = message("send.forward", Frame::kXOut, Send{{}, Direction::kNext});
      recv_forward_ = message("recv.forward", Frame::kXOut, Recv{{}, Direction::kPrevious});
      send_backward_ = message("send.backward", Frame::kD, Send{{}, Direction::kPrevious});
      recv_backward_ = message("recv.backward", Frame::kD, Recv{{}, Direction::kNext});
      const Unit& table = set_.blocks[embedding_block(set_)].units.front();
      reduce_ends_ = add(reduction("reduce.ends", Frame::kGradShard, shard_elements(table), Group::kPpEnds));
    }
    clear_metrics_ = add(clear_piece("clear.metrics", Frame::kMetrics, metrics_elements(), DType::kF64));
    metrics_tp_dp_ = -1;
    if (plan_.mesh.tp > 1 || plan_.mesh.dp > 1) {
      Piece piece = metrics_piece("sum.metrics");
      if (plan_.mesh.tp > 1) add_metrics_reduction(piece, Group::kTp);
      if (plan_.mesh.dp > 1) add_metrics_reduction(piece, Group::kDp);
      metrics_tp_dp_ = add(std::move(piece));
    }
    if (plan_.mesh.pp > 1) {
      Piece piece = metrics_piece("sum.metrics.pp");
      add_metrics_reduction(piece, Group::kPp);
      metrics_pp_ = add(std::move(piece));
    }
  }

  std::int64_t metrics_elements() const { return kLoadFirst + set_.experts; }
  bool state_sharded() const { return plan_.fsdp >= 1; }
  std::int64_t shard_elements(const Unit& unit) const { return state_sharded() ? unit.padded / plan_.mesh.dp : unit.padded; }
  std::int64_t shard_elements(const Block& block) const { return state_sharded() ? block.padded / plan_.mesh.dp : block.padded; }
  bool low_precision() const { return set_.compute != set_.state; }

  static Piece clear_piece(std::string name, Frame frame, std::int64_t n, DType dtype) {
    return {std::move(name), {{"x", {1, n}, dtype, frame, 0}}, {Fill{View{0, 1, n, n, 0}}}, 0};
  }

  // In-place ring all-reduce of n elements of a frame.
  Piece reduction(std::string name, Frame frame, std::int64_t n, Group group) {
    Piece piece{.name = std::move(name)};
    add_reduction(piece, frame, 0, n, group, "x");
    return piece;
  }
  void add_reduction(Piece& piece, Frame frame, std::int64_t offset, std::int64_t n, Group group, const std::string& name) {
    const View x = declare(piece, {name, {1, n}, set_.state, frame, offset});
    const View scratch = comm_scratch(piece, n, group);
    piece.ops.emplace_back(Collective{.kind = CollectiveKind::kAllReduce, .group = group, .src = x, .dst = x,
                                      .scratch = scratch, .in_place = true});
  }
  static View declare(Piece& piece, Tensor tensor) {
    const std::int64_t n = elements(tensor.shape);
    piece.tensors.push_back(std::move(tensor));
    return {static_cast<TensorId>(piece.tensors.size()) - 1, 1, n, n, 0};
  }
  // Receive buffers of reductions, one per group, as reductions of different groups may run at the same time.
  void lay_out_comm_scratch() {
    std::array<std::int64_t, kGroups> need{};
    const auto reduce = [&](Group group, std::int64_t n) {
      if (const int p = group_size(plan_.mesh, group); p > 1)
        need[static_cast<int>(group)] = std::max(need[static_cast<int>(group)], ring_scratch(n, p));
    };
    for (const Block& block : set_.blocks)
      for (const Unit& unit : block.units) {
        reduce(Group::kDp, unit.padded);
        if (unit.tp_replicated) reduce(Group::kTp, shard_elements(unit));
      }
    reduce(Group::kPpEnds, shard_elements(set_.blocks[embedding_block(set_)].units.front()));
    for (int g = 0; g < kGroups; ++g) {
      comm_scratch_[g] = comm_scratch_bytes_;
      comm_scratch_bytes_ += align_up(need[g] * size_of(set_.state));
    }
  }
  View comm_scratch(Piece& piece, std::int64_t n, Group group) {
    const std::int64_t size = ring_scratch(n, group_size(plan_.mesh, group));
    return declare(piece, {fmt::format("recv.{}", piece.tensors.size()), {1, size}, set_.state, Frame::kCommScratch,
                           comm_scratch_[static_cast<int>(group)]});
  }

  Piece metrics_piece(std::string name) {
    return {std::move(name), {{"metrics", {1, metrics_elements()}, DType::kF64, Frame::kMetrics, 0}}, {}, 0};
  }
  void add_metrics_reduction(Piece& piece, Group group) {
    const int members = group_size(plan_.mesh, group);
    metrics_members_ = std::max(metrics_members_, members);
    const View metrics{0, 1, metrics_elements(), metrics_elements(), 0};
    const View scratch = declare(piece, {fmt::format("recv.{}", meshwright::name(group)), {members, metrics_elements()},
                                         DType::kF64, Frame::kMetrics, align_up(metrics_elements() * 8)});
    piece.ops.emplace_back(Collective{.kind = CollectiveKind::kAllReduce, .group = group, .algorithm = Algorithm::kDirect,
                                      .src = metrics, .dst = metrics, .scratch = scratch, .in_place = true});
  }

  // What FSDP does with a block: gather, reduce, clear, norm, update. `layer`: gathered per use and reduced per
  // microbatch where the stage of FSDP says so; the blocks outside the layers are gathered and reduced once per step.
  // `in_norm`: false for the first of two copies of the table.
  BlockPieces state_pieces(const Block& block, const std::string& name, bool layer, bool in_norm) {
    BlockPieces p;
    const MeshShape& mesh = plan_.mesh;
    const int size = static_cast<int>(size_of(set_.state)), compute_size = static_cast<int>(size_of(set_.compute));
    const int shards = state_sharded() ? mesh.dp : 1;
    const bool reduce_per_microbatch = layer && plan_.fsdp >= 2;

    if (plan_.fsdp == 3) {
      Piece gather{.name = name + ".gather"};
      for (const Unit& u : block.units) add_gather(gather, u, Frame::kWeightShard, compute_size);
      p.gather = add(std::move(gather));
    }
    Piece each{.name = name + ".reduce"}, last{.name = name + ".reduce_last"};
    for (const Unit& u : block.units) {
      if (mesh.dp > 1) {
        Piece& piece = reduce_per_microbatch ? each : last;
        if (plan_.fsdp == 0) {
          add_reduction(piece, Frame::kGrads, u.offset * size, u.padded, Group::kDp, "d." + u.name);
        } else {
          Collective op{.kind = CollectiveKind::kReduceScatter, .group = Group::kDp, .accumulate = reduce_per_microbatch};
          op.src = declare(piece, {"d." + u.name, {1, u.padded}, set_.state, Frame::kGrads, u.offset * size});
          op.dst = declare(piece, {"d." + u.name + ".shard", {1, u.padded / mesh.dp}, set_.state, Frame::kGradShard,
                                   u.offset / mesh.dp * size});
          op.scratch = comm_scratch(piece, u.padded, Group::kDp);
          piece.ops.emplace_back(op);
        }
      }
      if (mesh.tp > 1 && u.tp_replicated)
        add_reduction(last, Frame::kGradShard, u.offset / shards * size, shard_elements(u), Group::kTp, "d." + u.name + ".own");
    }
    if (!each.ops.empty()) p.reduce_each = add(std::move(each));
    if (!last.ops.empty()) p.reduce_last = add(std::move(last));

    // Accumulators: whole gradients, or shards of them.
    const bool shard_accumulates = reduce_per_microbatch;
    p.clear = add(clear_piece(name + ".clear", shard_accumulates ? Frame::kGradShard : Frame::kGrads,
                              shard_accumulates ? shard_elements(block) : block.padded, set_.state));

    if (in_norm) {
      Piece norm{.name = name + ".norm"};
      const View metrics = declare(norm, {"metrics", {1, metrics_elements()}, DType::kF64, Frame::kMetrics, 0});
      for (const Unit& u : block.units) {
        const double copies = (u.tp_replicated ? mesh.tp : 1) * (state_sharded() ? 1.0 : mesh.dp);
        norm.ops.emplace_back(SumSquares{declare(norm, {"d." + u.name, {1, shard_elements(u)}, set_.state, Frame::kGradShard,
                                                        u.offset / shards * size}),
                                         metrics, 1.0 / copies});
      }
      p.norm = add(std::move(norm));
    }

    Piece update{.name = name + ".update"};
    const std::int64_t n = shard_elements(block);
    const View metrics = declare(update, {"metrics", {1, metrics_elements()}, DType::kF64, Frame::kMetrics, 0});
    const View grad = declare(update, {"d", {1, n}, set_.state, Frame::kGradShard, 0});
    const View master = declare(update, {"master", {1, n}, set_.state, Frame::kMaster, 0});
    const View m = declare(update, {"m", {1, n}, set_.state, Frame::kMoment1, 0});
    const View v = declare(update, {"v", {1, n}, set_.state, Frame::kMoment2, 0});
    update.ops.emplace_back(AdamW{grad, metrics, master, m, v});
    if (low_precision())
      update.ops.emplace_back(Cast{master, declare(update, {"weights", {1, n}, set_.compute,
                                                            state_sharded() ? Frame::kWeightShard : Frame::kWeights, 0})});
    if (plan_.fsdp == 1 || plan_.fsdp == 2)
      for (const Unit& u : block.units)
        add_gather(update, u, low_precision() ? Frame::kWeightShard : Frame::kMaster, compute_size);
    p.update = add(std::move(update));
    return p;
  }

  void add_gather(Piece& piece, const Unit& u, Frame from, int size) {
    Collective op{.kind = CollectiveKind::kAllGather, .group = Group::kDp};
    op.src = declare(piece, {u.name + ".shard", {1, u.padded / plan_.mesh.dp}, set_.compute, from,
                             u.offset / plan_.mesh.dp * size});
    op.dst = declare(piece, {u.name, {1, u.padded}, set_.compute, Frame::kWeights, u.offset * size});
    piece.ops.emplace_back(op);
  }

  void lower_stage(int stage, int first_layer, int layers);

  const ModelSpec& model_;
  Plan plan_;
  std::vector<int> stage_layers_;
  ProgramSet set_;
  PieceContext context_{.set = set_};
  std::vector<int> kind_of_layer_;
  std::vector<BlockPieces> kinds_;
  BlockPieces ends_first_, ends_last_;
  int embed_ = -1, embed_backward_ = -1, head_ = -1;
  int send_forward_ = -1, recv_forward_ = -1, send_backward_ = -1, recv_backward_ = -1;
  int reduce_ends_ = -1, clear_metrics_ = -1, metrics_tp_dp_ = -1, metrics_pp_ = -1;
  int metrics_members_ = 1;
  std::array<std::int64_t, kGroups> comm_scratch_{};  // where a group's receive buffer begins in its frame, bytes
  std::int64_t comm_scratch_bytes_ = 0;
  friend class StageWriter;
};

// Lays out one stage's arena and writes its chunks and slots.
class StageWriter {
 public:
  StageWriter(Lowering& lowering, int stage, int first_layer, int layers)
      : l_(lowering), set_(lowering.set_), mesh_(lowering.plan_.mesh), stage_(stage), first_(first_layer), layers_(layers) {
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
    const int fsdp = l_.plan_.fsdp;
    const std::int64_t state = size_of(set_.state), compute = size_of(set_.compute);
    const bool low = l_.low_precision();
    std::int64_t whole = 0, shard = 0, outside = 0, largest_layer = 0;
    for (const int b : blocks()) {
      const Block& block = set_.blocks[b];
      whole += block.padded;
      shard += l_.shard_elements(block);
      if (block.layer < 0) outside += block.padded;
      else largest_layer = std::max(largest_layer, block.padded);
    }
    // Which frames share memory: without sharding and casting, weights are master weights; a shard of master weights is
    // what is gathered unless products read a narrower type.
    const std::int64_t master = region("master weights", MemoryClass::kParameters, shard * state);
    const bool weights_apart = low || fsdp == 1 || fsdp == 2;
    const std::int64_t weights = fsdp == 3 ? region("weights gathered once", MemoryClass::kParameters, outside * compute)
                                 : weights_apart ? region("weights", MemoryClass::kParameters, whole * compute)
                                                 : master;
    const std::int64_t weight_shard = fsdp >= 1 && low ? region("weight shards", MemoryClass::kParameters, shard * compute) : master;
    const std::int64_t m = region("moment 1", MemoryClass::kOptimizer, shard * state);
    const std::int64_t v = region("moment 2", MemoryClass::kOptimizer, shard * state);
    const std::int64_t grads = region("gradients", MemoryClass::kGradients, (fsdp >= 2 ? outside : whole) * state);
    const std::int64_t grad_shards = fsdp >= 1 ? region("gradient shards", MemoryClass::kGradients, shard * state) : grads;
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
      st.master_sharded = l_.state_sharded();
      st.weights = fsdp == 3 ? (layer ? -1 : weights + o * compute) : weights + w * compute;
      st.weight_shard = fsdp >= 1 ? (low ? weight_shard + s * compute : st.master) : -1;
      st.grads = fsdp >= 2 ? (layer ? -1 : grads + o * state) : grads + w * state;
      st.grad_shard = fsdp >= 1 ? grad_shards + s * state : st.grads;
      st.moment1 = m + s * state;
      st.moment2 = v + s * state;
      st.counts_in_norm = !(b == embedding_block(set_) && mesh_.pp > 1);
      states_.push_back(st);
      w += block.padded;
      s += l_.shard_elements(block);
      if (!layer) o += block.padded;
    }
    metrics_ = region("metrics", MemoryClass::kData,
                      align_up(l_.metrics_elements() * 8) + (l_.metrics_members_ > 1 ? l_.metrics_members_ * l_.metrics_elements() * 8 : 0));
    comm_scratch_ = region("receive buffers", MemoryClass::kBuffers, l_.comm_scratch_bytes_);
  }

  void lay_out_activations() {
    const std::int64_t x = align_up(l_.context_.own_rows() * l_.model_.width * size_of(set_.compute));
    const int m = set_.step.microbatches;
    const int in_flight = microbatches_in_flight(l_.plan_.schedule, stage_, mesh_.pp, m);
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
      at += l_.kinds_[l_.kind_of_layer_[first_ + i]].stash;
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
    tokens_stride_ = 2 * align_up(l_.context_.own_rows() * size_of(DType::kI32));
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
    const BlockState& st = *std::find_if(states_.begin(), states_.end(), [&](const BlockState& s) { return s.block == block; });
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

  const Lowering::BlockPieces& pieces_of(int block) const {
    if (set_.blocks[block].layer >= 0) return l_.kinds_[l_.kind_of_layer_[block]];
    return block == embedding_block(set_) ? l_.ends_first_ : l_.ends_last_;
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
    if (i + 1 < layers_) set(c, Frame::kXOut, layer_input_[i + 1], Anchor::kStash);
    else if (last()) set(c, Frame::kXOut, head_input_, Anchor::kStash);
    else set(c, Frame::kXOut, 0, Anchor::kOutbox);
    return c;
  }

  std::vector<Call> forward_calls() const {
    std::vector<Call> calls;
    if (first()) {
      Call embed = call(l_.embed_, embedding_block(set_));
      set(embed, Frame::kXOut, 0, Anchor::kInbox);
      calls.push_back(embed);
    }
    for (int i = 0; i < layers_; ++i) {
      const auto& kind = l_.kinds_[l_.kind_of_layer_[first_ + i]];
      if (kind.gather >= 0) calls.push_back(layer_call(kind.gather, i));
      calls.push_back(layer_call(kind.forward, i));
    }
    return calls;
  }

  std::vector<Call> backward_calls(bool last_microbatch) const {
    std::vector<Call> calls;
    const auto reduce_outside = [&](int block) {
      if (const int piece = pieces_of(block).reduce_last; last_microbatch && piece >= 0) calls.push_back(call(piece, block));
    };
    if (last()) {
      Call head = call(l_.head_, head_block(set_));
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
    const auto kind_of = [&](int i) -> const Lowering::BlockPieces& { return l_.kinds_[l_.kind_of_layer_[first_ + i]]; };
    add(layers_ - 1, kind_of(layers_ - 1).gather);
    for (int i = layers_ - 1; i >= 0; --i) {
      if (i > 0) add(i - 1, kind_of(i - 1).gather);
      add(i, kind_of(i).backward);
      add(i, kind_of(i).reduce_each);
      if (last_microbatch) add(i, kind_of(i).reduce_last);
    }
    if (first()) {
      calls.push_back(call(l_.embed_backward_, embedding_block(set_)));
      reduce_outside(embedding_block(set_));
    }
    return calls;
  }

  void write_chunks() {
    std::vector<Call> begin{call(l_.clear_metrics_, -1)};
    for (const int b : blocks()) {
      begin.push_back(call(pieces_of(b).clear, b));
      if (set_.blocks[b].layer < 0 && pieces_of(b).gather >= 0) begin.push_back(call(pieces_of(b).gather, b));
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
      send_forward_ = message("send forward", l_.send_forward_, Frame::kXOut, Anchor::kOutbox);
      recv_backward_ = message("receive backward", l_.recv_backward_, Frame::kD, Anchor::kGradientFlow);
    }
    if (!first()) {
      recv_forward_ = message("receive forward", l_.recv_forward_, Frame::kXOut, Anchor::kInbox);
      send_backward_ = message("send backward", l_.send_backward_, Frame::kD, Anchor::kGradientFlow);
    }
    if (mesh_.pp > 1 && (first() || last()))
      reduce_ends_ = chunk("reduce table", {call(l_.reduce_ends_, first() ? embedding_block(set_) : head_block(set_))});
    std::vector<Call> norm, update;
    for (const int b : blocks()) {
      if (pieces_of(b).norm >= 0) norm.push_back(call(pieces_of(b).norm, b));
      update.push_back(call(pieces_of(b).update, b));
    }
    if (l_.metrics_tp_dp_ >= 0) norm.push_back(call(l_.metrics_tp_dp_, -1));
    norm_ = chunk("norm", std::move(norm));
    if (mesh_.pp > 1) norm_pp_ = chunk("norm over pp", {call(l_.metrics_pp_, -1)});
    update_ = chunk("update", std::move(update));
  }

  Slot slot(Action action, int microbatch, int chunk) {
    // The rings go on where the last slot stopped, so that its first buffer is not the one that was used last.
    const Slot s{.action = action, .microbatch = microbatch, .chunk = chunk, .ring = ring_};
    const bool turns = action == Action::kForward ? l_.plan_.fsdp == 3 : action == Action::kBackward && l_.plan_.fsdp >= 2;
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
    for (const StageAction& a : stage_actions(l_.plan_.schedule, stage_, mesh_.pp, m)) {
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

  Lowering& l_;
  ProgramSet& set_;
  const MeshShape mesh_;
  int stage_, first_, layers_;
  Program program_;
  std::vector<BlockState> states_;
  std::int64_t weights_ring_ = 0, grads_ring_ = 0, metrics_ = 0, comm_scratch_ = 0, x_bytes_ = 0;
  std::vector<std::int64_t> layer_input_, layer_stash_;
  std::int64_t head_input_ = 0, stash_ = 0, stash_stride_ = 0, inbox_ = 0, outbox_ = 0, flow_ = 0, tokens_ = 0, tokens_stride_ = 0;
  int stashes_ = 0, inboxes_ = 0, outboxes_ = 0, flows_ = 0;
  int begin_ = -1, forward_ = -1, backward_ = -1, backward_last_ = -1, send_forward_ = -1, recv_forward_ = -1,
      send_backward_ = -1, recv_backward_ = -1, reduce_ends_ = -1, norm_ = -1, norm_pp_ = -1, update_ = -1;
  std::uint8_t ring_ = 0;
};

void Lowering::lower_stage(int stage, int first_layer, int layers) { StageWriter(*this, stage, first_layer, layers).write(); }

std::string divisors(std::int64_t n, std::int64_t at_most = std::numeric_limits<std::int64_t>::max()) {
  std::vector<std::int64_t> all;
  for (std::int64_t d = 1; d <= std::min(n, at_most); ++d)
    if (n % d == 0) all.push_back(d);
  return fmt::format("{}", fmt::join(all, ", "));
}

}  // namespace

std::optional<std::string> not_lowerable(const ModelSpec& model) {
  for (const LayerSpec& layer : model.layers) {
    if (!std::holds_alternative<MlaSpec>(layer.attention)) return "multi-head attention";
    if (layer.norm != NormKind::kRmsNormWithShift) return "LayerNorm";
    if (const auto* ffn = std::get_if<DenseFfnSpec>(&layer.ffn)) {
      if (ffn->gated) return "a gated feed-forward";
      if (!ffn->bias) return "a feed-forward without biases";
      if (ffn->activation != Activation::kGeluTanh) return "an activation other than GELU";
    }
  }
  if (!model.tied_embedding) return "an untied embedding";
  if (model.learned_positions) return "learned positions";
  if (model.final_norm != NormKind::kRmsNormWithShift) return "LayerNorm";
  return std::nullopt;
}

std::vector<Illegality> illegalities(const ModelSpec& model, const TrainingShape& shape, const Plan& plan) {
  std::vector<Illegality> found;
  const auto [dp, pp, tp] = plan.mesh;
  std::int64_t heads_gcd = 0;
  for (const LayerSpec& layer : model.layers) heads_gcd = std::gcd(heads_gcd, std::gcd(heads(layer.attention), kv_heads(layer.attention)));
  if (heads_gcd % tp)
    found.push_back({"tp does not divide the heads", fmt::format("{} heads, tp {}", heads_gcd, tp), "tp from " + divisors(heads_gcd)});
  if (shape.tokens % tp)
    found.push_back({"tp does not divide the sequence length", fmt::format("{} tokens, tp {}", shape.tokens, tp),
                     "a power of two, or a tp that divides it"});
  for (const LayerSpec& layer : model.layers) {
    const auto* moe = std::get_if<MoeSpec>(&layer.ffn);
    const std::int64_t hidden = moe ? moe->hidden : std::get<DenseFfnSpec>(layer.ffn).hidden;
    if (hidden % tp || (moe && model.width % tp)) {
      found.push_back({"tp does not divide the feed-forward", fmt::format("hidden width {}, width {}, tp {}", hidden, model.width, tp),
                       "tp from " + divisors(std::gcd(hidden, model.width), 64)});
      break;
    }
  }
  if (const auto layers = static_cast<std::int64_t>(model.layers.size()); pp > layers)
    found.push_back({"more stages than layers", fmt::format("{} layers, pp {}", layers, pp), fmt::format("pp at most {}", layers)});
  if (shape.sequences % dp)
    found.push_back({"dp does not divide the global batch", fmt::format("{} sequences, dp {}", shape.sequences, dp),
                     "dp from " + divisors(shape.sequences, 4096)});
  else if (shape.sequences / dp % plan.microbatches)
    found.push_back({"microbatches do not divide a dp shard's sequences",
                     fmt::format("{} sequences, {} microbatches", shape.sequences / dp, plan.microbatches),
                     "microbatches from " + divisors(shape.sequences / dp, 4096)});
  if (plan.fsdp != 0 && dp == 1)
    found.push_back({"FSDP without data parallelism", fmt::format("fsdp {}, dp 1", plan.fsdp), "fsdp=0, or dp above 1"});
  return found;
}

std::vector<int> balanced_stages(const ModelSpec& model, const TrainingShape& shape, int stages) {
  const int layers = static_cast<int>(model.layers.size());
  // Costs in FLOPs of one sequence forward; the logits come after the last layer.
  std::vector<double> before(static_cast<std::size_t>(layers) + 1, 0.0);
  for (int i = 0; i < layers; ++i)
    before[i + 1] = before[i] + static_cast<double>(layer_forward_flops(model.layers[i], model.width, shape.tokens).total().value);
  const double logits = static_cast<double>(logits_forward_flops(model, shape.tokens).value);
  const auto cost = [&](int from, int to, bool last) { return before[to] - before[from] + (last ? logits : 0.0); };
  // best[s][i]: (costliest stage, sum of squares) of the first i layers in s stages; the last stage also has the logits.
  using Score = std::pair<double, double>;
  const Score none{std::numeric_limits<double>::infinity(), 0};
  std::vector<std::vector<Score>> best(static_cast<std::size_t>(stages) + 1, std::vector<Score>(static_cast<std::size_t>(layers) + 1, none));
  std::vector<std::vector<int>> cut(best.size(), std::vector<int>(static_cast<std::size_t>(layers) + 1, 0));
  best[0][0] = {0, 0};
  for (int s = 1; s <= stages; ++s)
    for (int i = s; i <= layers; ++i)
      for (int j = s - 1; j < i; ++j) {
        if (best[s - 1][j] == none) continue;
        const double c = cost(j, i, s == stages);
        const Score score{std::max(best[s - 1][j].first, c), best[s - 1][j].second + c * c};
        if (score <= best[s][i]) {
          best[s][i] = score;
          cut[s][i] = j;
        }
      }
  std::vector<int> sizes(static_cast<std::size_t>(stages));
  for (int s = stages, i = layers; s > 0; --s) {
    sizes[s - 1] = i - cut[s][i];
    i = cut[s][i];
  }
  return sizes;
}

ProgramSet lower(const ModelSpec& model, const TrainingShape& shape, const Plan& plan,
                 const std::optional<std::vector<int>>& stage_layers) {
  check(!not_lowerable(model), "lower: {}", not_lowerable(model).value_or(""));
  const auto faults = illegalities(model, shape, plan);
  check(faults.empty(), "lower: {}", faults.empty() ? "" : faults.front().reason + ": " + faults.front().detail);
  return Lowering(model, shape, plan, stage_layers ? *stage_layers : balanced_stages(model, shape, plan.mesh.pp)).run();
}

}  // namespace meshwright
