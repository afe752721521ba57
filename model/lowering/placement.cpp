#include "model/lowering/placement.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

#include "model/program/layout.h"

namespace meshwright {
namespace {

class Placer {
 public:
  Placer(const ModelSpec& model, const MeshShape& mesh)
      : specs_(parameters(model)), mesh_(mesh), tied_(model.head.tied) {
    for (const ParameterSpec& spec : specs_) out_.parameters.push_back({spec.name, spec.shape, spec.trained});
  }

  StateLayout place() {
    write_blocks();
    return std::move(out_);
  }

 private:
  void write_blocks() {
    std::vector<std::vector<int>> of_layer;
    std::vector<int> table, embedding, head;
    for (int i = 0; i < static_cast<int>(specs_.size()); ++i) {
      const ParameterSpec& spec = specs_[static_cast<std::size_t>(i)];
      if (spec.layer != kNoLayer) {
        of_layer.resize(static_cast<std::size_t>(spec.layer) + 1);
        of_layer.back().push_back(i);
      } else {
        (spec.module == ModuleKind::kEmbedding   ? table
         : spec.module == ModuleKind::kPositions ? embedding
                                                 : head)
            .push_back(i);
      }
    }
    for (std::size_t layer = 0; layer < of_layer.size(); ++layer) {
      const std::string name = "layers." + std::to_string(layer);
      Block block{.name = name, .layer = static_cast<int>(layer)};
      add_units(block, name, of_layer[layer]);
      out_.blocks.push_back(std::move(block));
    }
    const bool one_stage = mesh_.pp == 1;
    Block first{.name = "embedding"};
    add_units(first, "embedding", table);
    if (tied_ && !one_stage) first.units.front().second_copy = true;
    if (one_stage) embedding.insert(embedding.end(), head.begin(), head.end());
    add_units(first, "embedding.other", embedding);
    out_.blocks.push_back(std::move(first));
    if (one_stage) return;
    Block last{.name = "head"};
    if (tied_) add_units(last, "head", table);
    add_units(last, "head.other", head);
    out_.blocks.push_back(std::move(last));
  }

  // Of these parameters: those that tp cuts, those that it replicates, whose gradients are summed over tp (without tp the two
  // are one), and buffers.
  void add_units(Block& block, const std::string& name, const std::vector<int>& members) const {
    const bool has_tp = mesh_.tp > 1;
    const auto add = [&](std::string_view ending, bool tp_replicated, bool trained, auto&& belongs) {
      Unit unit{.name = name + std::string(ending),
                .tp_replicated = tp_replicated,
                .trained = trained,
                .offset = block.padded};
      for (const int index : members) {
        const ParameterSpec& p = specs_[static_cast<std::size_t>(index)];
        if (!belongs(p)) continue;
        unit.parameters.push_back({index, p.tp, local_shape(p.shape, p.tp, mesh_.tp), unit.elements});
        unit.elements += elements(unit.parameters.back().local_shape);
      }
      if (unit.elements == 0) return;
      const std::int64_t grain = std::int64_t{16} * mesh_.dp * mesh_.tp;
      unit.padded = (unit.elements + grain - 1) / grain * grain;
      block.padded += unit.padded;
      block.units.push_back(std::move(unit));
    };
    const auto cut = [&](const ParameterSpec& p) { return !has_tp || p.tp.kind != Layout::Kind::kReplicate; };
    add("", false, true, [&](const ParameterSpec& p) { return p.trained && cut(p); });
    add(".replicated", true, true, [&](const ParameterSpec& p) { return p.trained && !cut(p); });
    add(".buffers", false, false, [&](const ParameterSpec& p) { return !p.trained; });
  }

  const std::vector<ParameterSpec> specs_;
  const MeshShape mesh_;
  const bool tied_;
  StateLayout out_;
};

}  // namespace

StateLayout place_parameters(const ModelSpec& model, const MeshShape& mesh) { return Placer(model, mesh).place(); }

void set_experts(const ModelSpec& model, ProgramSet& set) {
  for (const Layer& layer : model.layers)
    if (const auto* moe = std::get_if<Experts>(&layer.ffn)) {
      set.experts = std::max(set.experts, moe->experts);
      set.choices = std::max(set.choices, moe->choices);
      ++set.moe_layers;
    }
  set.balance_weight = model.balance_weight;
}

StageState place_state(const ProgramSet& set, int stage, int first_layer, int layers) {
  StageState out;
  const auto add = [&](int block) { out.blocks.push_back({.block = block}); };
  for (int i = 0; i < layers; ++i) add(first_layer + i);
  if (stage == 0) add(embedding_block(set));
  if (stage == set.mesh.pp - 1 && set.mesh.pp > 1) add(head_block(set));

  const std::int64_t state = size_of(set.state), compute = size_of(set.compute);
  const bool low = set.compute != set.state, sharded = set.fsdp >= 1;
  const auto block_of = [&](const BlockState& s) -> const Block& {
    return set.blocks()[static_cast<std::size_t>(s.block)];
  };
  const auto shard_of = [&](const Block& block) { return sharded ? block.padded / set.mesh.dp : block.padded; };
  std::int64_t whole = 0, shard = 0;
  for (const BlockState& s : out.blocks) {
    whole += block_of(s).padded;
    shard += shard_of(block_of(s));
  }
  const auto region = [&](std::string name, MemoryClass memory_class, std::int64_t bytes) {
    const std::int64_t at = out.bytes;
    out.regions.push_back({std::move(name), memory_class, at, bytes});
    out.bytes += align_up(bytes);
    return at;
  };
  // Which share memory: without sharding and casting, weights are master weights; a shard of master weights is what is
  // gathered unless products read a narrower type.
  const std::int64_t master = region("master weights", MemoryClass::kParameters, shard * state);
  const bool weights_apart = set.fsdp != 3 && (low || sharded);
  const std::int64_t weights = weights_apart ? region("weights", MemoryClass::kParameters, whole * compute) : master;
  const std::int64_t weight_shard =
      sharded && low ? region("weight shards", MemoryClass::kParameters, shard * compute) : master;
  const std::int64_t m = region("moment 1", MemoryClass::kOptimizer, shard * state);
  const std::int64_t v = region("moment 2", MemoryClass::kOptimizer, shard * state);
  std::int64_t w = 0, s = 0;  // elements so far: whole, shards
  for (BlockState& to : out.blocks) {
    const Block& block = block_of(to);
    to.master = master + s * state;
    to.master_sharded = sharded;
    if (set.fsdp != 3) to.weights = weights + w * compute;
    if (sharded) to.weight_shard = low ? weight_shard + s * compute : to.master;
    to.moment1 = m + s * state;
    to.moment2 = v + s * state;
    w += block.padded;
    s += shard_of(block);
  }
  return out;
}

int embedding_block(const ProgramSet& set) { return static_cast<int>(set.blocks().size()) - (set.mesh.pp > 1 ? 2 : 1); }
int head_block(const ProgramSet& set) { return static_cast<int>(set.blocks().size()) - 1; }

}  // namespace meshwright
