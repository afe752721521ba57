#include "model/lowering/step_pieces.h"

#include <fmt/format.h>

#include <algorithm>

#include "model/lowering/layer_pieces.h"
#include "model/lowering/placement.h"
#include "model/program/layout.h"

namespace meshwright {
namespace {

class Writer {
 public:
  // `trained`: null for a training.
  Writer(const ModelSpec& model, const TrainingShape& shape, const Plan& plan, const ProgramSet* trained)
      : model_(model), plan_(plan), adam_(shape.adam) {
    out_.plan = plan;
    out_.width = model.width;
    set_.mesh = plan.mesh;
    set_.fsdp = plan.fsdp;
    set_.step = {shape.sequences, shape.tokens, shape.sequences / (plan.mesh.dp * std::int64_t{plan.microbatches}),
                 plan.microbatches};
    set_.compute = shape.compute;
    set_.state = shape.compute == DType::kF64 ? DType::kF64 : DType::kF32;
    set_experts(model, set_);
    // An evaluation has no backwards, which a balance over other sequences would wait for: it takes each sequence by itself.
    if (set_.moe_layers > 0 && !trained) set_.balance = model.balance;
    if (trained) {
      set_.purpose = Purpose::kEvaluation;
      set_.state_layout = trained->state_layout;
    } else {
      set_.state_layout = out_.layout = std::make_shared<StateLayout>(place_parameters(model, plan.mesh));
    }
    context_.width = model.width;
    context_.train = shape.train && out_.trains();
    context_.gradients = out_.trains();
    context_.attention_block = shape.attention_block;
    context_.logit_elements = shape.logit_elements;
  }

  StepPieces write() {
    if (out_.trains()) lay_out_comm_scratch();
    make_layer_kinds();
    make_shared_pieces();
    return std::move(out_);
  }

 private:
  int add(Piece piece) {
    set_.pieces.push_back(std::move(piece));
    return static_cast<int>(set_.pieces.size()) - 1;
  }

  // "moe" or "dense"; of several kinds of these, with the first layer of each: "dense.layer5".
  std::vector<std::string> names_of_kinds(const std::vector<int>& first_of_kind) const {
    const auto is_moe = [&](int layer) {
      return std::holds_alternative<Experts>(model_.layers[static_cast<std::size_t>(layer)].ffn);
    };
    std::vector<std::string> names;
    for (const int layer : first_of_kind) {
      names.emplace_back(is_moe(layer) ? "moe" : "dense");
      if (std::ranges::count(first_of_kind, is_moe(layer), is_moe) > 1) names.back() += fmt::format(".layer{}", layer);
    }
    return names;
  }

  void make_layer_kinds() {
    out_.kind_of_layer.resize(model_.layers.size());
    std::vector<int> first_of_kind;
    for (int layer = 0; layer < static_cast<int>(model_.layers.size()); ++layer) {
      int kind = 0;
      while (kind < static_cast<int>(first_of_kind.size()) &&
             !(model_.layers[first_of_kind[kind]] == model_.layers[layer]))
        ++kind;
      out_.kind_of_layer[layer] = kind;
      if (kind == static_cast<int>(first_of_kind.size())) first_of_kind.push_back(layer);
    }
    const std::vector<std::string> names = names_of_kinds(first_of_kind);
    for (std::size_t kind = 0; kind < names.size(); ++kind) {
      const std::string& name = names[kind];
      const Layer& spec = model_.layers[first_of_kind[kind]];
      const Block& block = set_.blocks()[first_of_kind[kind]];
      BlockPieces p = state_pieces(block, name, true);
      if (out_.trains()) {
        Differentiated pieces = layer_pieces(context_, spec, block, plan_.recompute, plan_.fsdp < 2, name);
        p.forward = add(std::move(pieces.forward));
        p.backward = add(std::move(pieces.backward));
        p.stash = pieces.stash_bytes;
      } else {
        p.forward = add(layer_forward(context_, spec, block, name));
      }
      p.experts = std::holds_alternative<Experts>(spec.ffn);
      out_.kinds.push_back(p);
    }
  }

  void make_shared_pieces() {
    const Block& embedding = set_.blocks()[embedding_block(set_)];
    const Block& last = set_.blocks()[head_block(set_)];
    if (out_.trains()) {
      Differentiated embed = embedding_pieces(context_, model_, embedding);
      out_.embed = add(std::move(embed.forward));
      out_.embed_backward = add(std::move(embed.backward));
    } else {
      out_.embed = add(embedding_forward(context_, model_, embedding));
    }
    out_.head = add(head_piece(context_, model_, last));
    out_.embedding = state_pieces(embedding, "embedding", false);
    out_.last = plan_.mesh.pp == 1 ? out_.embedding : state_pieces(last, "head", false);
    const std::int64_t x = out_.own_rows() * model_.width;
    const auto message = [&](std::string name, Frame frame, auto op) {
      Piece piece{std::move(name), {{"x", {out_.own_rows(), model_.width}, set_.compute, frame, 0}}, {}, 0};
      op.x = View{0, 1, x, x, 0};
      piece.ops.emplace_back(op);
      return add(std::move(piece));
    };
    if (plan_.mesh.pp > 1) {
      out_.send_forward = message("send.forward", Frame::kXOut, Send{{}, Direction::kNext});
      out_.recv_forward = message("recv.forward", Frame::kXOut, Recv{{}, Direction::kPrevious});
    }
    if (plan_.mesh.pp > 1 && out_.trains()) {
      out_.send_backward = message("send.backward", Frame::kD, Send{{}, Direction::kPrevious});
      out_.recv_backward = message("recv.backward", Frame::kD, Recv{{}, Direction::kNext});
      const Unit& table = set_.blocks()[embedding_block(set_)].units.front();
      if (table.second_copy)
        out_.reduce_ends = add(reduction("reduce.ends", Frame::kGradShard, out_.shard_elements(table), Group::kPpEnds));
    }
    out_.clear_metrics = add(clear_piece("clear.metrics", Frame::kMetrics, out_.metrics_elements(), DType::kF64));
    if (plan_.mesh.tp > 1 || plan_.mesh.dp > 1) {
      Piece piece = metrics_piece("sum.metrics");
      if (plan_.mesh.tp > 1) add_metrics_reduction(piece, Group::kTp);
      if (plan_.mesh.dp > 1) add_metrics_reduction(piece, Group::kDp);
      out_.metrics_tp_dp = add(std::move(piece));
    }
    if (plan_.mesh.pp > 1) {
      Piece piece = metrics_piece("sum.metrics.pp");
      add_metrics_reduction(piece, Group::kPp);
      out_.metrics_pp = add(std::move(piece));
    }
    if (set_.balance_tokens() > 0) {
      out_.clear_balance = add(clear_piece("clear.balance", Frame::kBalance, set_.experts, set_.state));
      Piece piece{.name = "sum.balance"};
      const View fraction = declare(piece, {"fraction", {1, set_.experts}, set_.state, Frame::kBalance, 0});
      for (const Group group : balance_groups())
        add_direct_sum(piece, fraction, comm_scratch(piece, balance_scratch(group), group), group);
      if (!piece.ops.empty()) out_.sum_balance = add(std::move(piece));
    }
  }
  // Whose ranks have parts of a balance loss' shares: all tp ranks route alike.
  std::vector<Group> balance_groups() const {
    std::vector<Group> groups;
    if (set_.balance_tokens() > 0 && plan_.mesh.dp > 1) groups.push_back(Group::kDp);
    if (set_.balance == Balance::kPooled && plan_.mesh.pp > 1) groups.push_back(Group::kPp);
    return groups;
  }
  std::int64_t balance_scratch(Group group) const { return group_size(plan_.mesh, group) * set_.experts; }

  static Piece clear_piece(std::string name, Frame frame, std::int64_t n, DType dtype) {
    return {std::move(name), {{"x", {1, n}, dtype, frame, 0}}, {Fill{View{0, 1, n, n, 0}}}, 0};
  }

  // In-place ring all-reduce of n elements of a frame.
  Piece reduction(std::string name, Frame frame, std::int64_t n, Group group) {
    Piece piece{.name = std::move(name)};
    add_reduction(piece, frame, 0, n, group, "x");
    return piece;
  }
  void add_reduction(Piece& piece, Frame frame, std::int64_t offset, std::int64_t n, Group group,
                     const std::string& name) {
    const View x = declare(piece, {name, {1, n}, set_.state, frame, offset});
    const View scratch = comm_scratch(piece, ring_scratch(n, group_size(plan_.mesh, group), set_.state), group);
    piece.ops.emplace_back(Collective{.kind = *reshard(Layout::partial(), Layout::replicate()),
                                      .group = group,
                                      .src = x,
                                      .dst = x,
                                      .scratch = scratch,
                                      .in_place = true});
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
        need[static_cast<int>(group)] = std::max(need[static_cast<int>(group)], ring_scratch(n, p, set_.state));
    };
    for (const Block& block : set_.blocks())
      for (const Unit& unit : block.units) {
        reduce(Group::kDp, unit.padded);
        if (unit.tp_replicated) reduce(Group::kTp, out_.shard_elements(unit));
      }
    if (const Unit& table = set_.blocks()[embedding_block(set_)].units.front(); table.second_copy)
      reduce(Group::kPpEnds, out_.shard_elements(table));
    for (const Group group : balance_groups())
      need[static_cast<int>(group)] = std::max(need[static_cast<int>(group)], balance_scratch(group));
    for (int g = 0; g < kGroups; ++g) {
      out_.comm_scratch[g] = out_.comm_scratch_bytes;
      out_.comm_scratch_bytes += align_up(need[g] * size_of(set_.state));
    }
  }
  View comm_scratch(Piece& piece, std::int64_t size, Group group) {
    return declare(piece, {fmt::format("recv.{}", piece.tensors.size()),
                           {1, size},
                           set_.state,
                           Frame::kCommScratch,
                           out_.comm_scratch[static_cast<int>(group)]});
  }

  Piece metrics_piece(std::string name) {
    return {std::move(name), {{"metrics", {1, out_.metrics_elements()}, DType::kF64, Frame::kMetrics, 0}}, {}, 0};
  }
  void add_metrics_reduction(Piece& piece, Group group) {
    const int members = group_size(plan_.mesh, group);
    out_.metrics_members = std::max(out_.metrics_members, members);
    const View metrics{0, 1, out_.metrics_elements(), out_.metrics_elements(), 0};
    const View scratch = declare(piece, {fmt::format("recv.{}", meshwright::name(group)),
                                         {members, out_.metrics_elements()},
                                         DType::kF64,
                                         Frame::kMetrics,
                                         align_up(out_.metrics_elements() * 8)});
    add_direct_sum(piece, metrics, scratch, group);
  }
  static void add_direct_sum(Piece& piece, const View& x, const View& scratch, Group group) {
    piece.ops.emplace_back(Collective{.kind = CollectiveKind::kAllReduce,
                                      .group = group,
                                      .algorithm = Algorithm::kDirect,
                                      .src = x,
                                      .dst = x,
                                      .scratch = scratch,
                                      .in_place = true});
  }

  // What FSDP does with a block: gather, reduce, clear, norm, update. `layer`: gathered per use and reduced per
  // microbatch where the stage of FSDP says so; the blocks outside the layers are gathered and reduced once per step.
  BlockPieces state_pieces(const Block& block, const std::string& name, bool layer) {
    BlockPieces p;
    const MeshShape& mesh = plan_.mesh;
    const int size = static_cast<int>(size_of(set_.state)), compute_size = static_cast<int>(size_of(set_.compute));
    const int shards = out_.state_sharded() ? mesh.dp : 1;
    const bool reduce_per_microbatch = layer && plan_.fsdp >= 2;

    if (plan_.fsdp == 3) {
      Piece gather{.name = name + ".gather"};
      for (const Unit& u : block.units) add_gather(gather, u, Frame::kWeightShard, compute_size);
      p.gather = add(std::move(gather));
    }
    if (!out_.trains()) return p;
    Piece each{.name = name + ".reduce"}, last{.name = name + ".reduce_last"};
    for (const Unit& u : block.units) {
      if (!u.trained) continue;
      // A dp shard's gradient is a summand; what is wanted is the whole sum, or a shard of it.
      const auto kind = reshard(Layout::partial(), out_.state_sharded() ? Layout::shard(0) : Layout::replicate());
      if (mesh.dp > 1) {
        Piece& piece = reduce_per_microbatch ? each : last;
        if (kind == CollectiveKind::kAllReduce) {
          add_reduction(piece, Frame::kGrads, u.offset * size, u.padded, Group::kDp, "d." + u.name);
        } else {
          Collective op{.kind = *kind, .group = Group::kDp, .accumulate = reduce_per_microbatch};
          op.src = declare(piece, {"d." + u.name, {1, u.padded}, set_.state, Frame::kGrads, u.offset * size});
          op.dst = declare(piece, {"d." + u.name + ".shard",
                                   {1, u.padded / mesh.dp},
                                   set_.state,
                                   Frame::kGradShard,
                                   u.offset / mesh.dp * size});
          op.scratch = comm_scratch(piece, ring_scratch(u.padded, mesh.dp, set_.state), Group::kDp);
          piece.ops.emplace_back(op);
        }
      }
      if (mesh.tp > 1 && u.tp_replicated)
        add_reduction(last, Frame::kGradShard, u.offset / shards * size, out_.shard_elements(u), Group::kTp,
                      "d." + u.name + ".own");
    }
    if (!each.ops.empty()) p.reduce_each = add(std::move(each));
    if (!last.ops.empty()) p.reduce_last = add(std::move(last));

    const bool shard_accumulates = reduce_per_microbatch;  // else the whole gradient does
    p.clear = add(clear_piece(name + ".clear", shard_accumulates ? Frame::kGradShard : Frame::kGrads,
                              shard_accumulates ? out_.shard_elements(block) : block.padded, set_.state));

    Piece norm{.name = name + ".norm"};
    const View sums = declare(norm, {"metrics", {1, out_.metrics_elements()}, DType::kF64, Frame::kMetrics, 0});
    for (const Unit& u : block.units) {
      if (!u.trained || u.second_copy) continue;
      const double copies = (u.tp_replicated ? mesh.tp : 1) * (out_.state_sharded() ? 1.0 : mesh.dp);
      norm.ops.emplace_back(SumSquares{
          declare(
              norm,
              {"d." + u.name, {1, out_.shard_elements(u)}, set_.state, Frame::kGradShard, u.offset / shards * size}),
          sums, 1.0 / copies});
    }
    if (!norm.ops.empty()) p.norm = add(std::move(norm));

    Piece update{.name = name + ".update"};
    const std::int64_t all = out_.shard_elements(block),
                       n = all - (block.units.back().trained ? 0 : out_.shard_elements(block.units.back()));
    const View metrics = declare(update, {"metrics", {1, out_.metrics_elements()}, DType::kF64, Frame::kMetrics, 0});
    const View grad = declare(update, {"d", {1, n}, set_.state, Frame::kGradShard, 0});
    const View master = declare(update, {"master", {1, n}, set_.state, Frame::kMaster, 0});
    const View m = declare(update, {"m", {1, n}, set_.state, Frame::kMoment1, 0});
    const View v = declare(update, {"v", {1, n}, set_.state, Frame::kMoment2, 0});
    update.ops.emplace_back(AdamW{grad, metrics, master, m, v, adam_});
    if (out_.low_precision())
      update.ops.emplace_back(Cast{
          master,
          declare(update,
                  {"weights", {1, n}, set_.compute, out_.state_sharded() ? Frame::kWeightShard : Frame::kWeights, 0})});
    if (plan_.fsdp == 1 || plan_.fsdp == 2)
      for (const Unit& u : block.units)
        add_gather(update, u, out_.low_precision() ? Frame::kWeightShard : Frame::kMaster, compute_size);
    p.update = add(std::move(update));
    return p;
  }

  void add_gather(Piece& piece, const Unit& u, Frame from, int size) {
    Collective op{.kind = *reshard(Layout::shard(0), Layout::replicate()), .group = Group::kDp};
    op.src = declare(
        piece, {u.name + ".shard", {1, u.padded / plan_.mesh.dp}, set_.compute, from, u.offset / plan_.mesh.dp * size});
    op.dst = declare(piece, {u.name, {1, u.padded}, set_.compute, Frame::kWeights, u.offset * size});
    piece.ops.emplace_back(op);
  }

  const ModelSpec& model_;
  const Plan& plan_;
  const AdamSpec adam_;
  StepPieces out_;
  ProgramSet& set_ = out_.set;
  StepContext context_{.set = set_};
};

}  // namespace

const BlockPieces& StepPieces::of_block(int block) const {
  const int layer = set.blocks()[static_cast<std::size_t>(block)].layer;
  if (layer >= 0) return kinds[static_cast<std::size_t>(kind_of_layer[static_cast<std::size_t>(layer)])];
  return block == embedding_block(set) ? embedding : last;
}

StepPieces make_step_pieces(const ModelSpec& model, const TrainingShape& shape, const Plan& plan) {
  return Writer(model, shape, plan, nullptr).write();
}

StepPieces make_evaluation_pieces(const ModelSpec& model, const TrainingShape& shape, const Plan& plan,
                                  const ProgramSet& trained) {
  return Writer(model, shape, plan, &trained).write();
}

}  // namespace meshwright
