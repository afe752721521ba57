#include "model/lowering/placement.h"

#include <string>
#include <string_view>
#include <utility>

#include "model/program/layout.h"

namespace meshwright {
namespace {

class Placer {
 public:
  Placer(const ModelSpec& model, ProgramSet& set) : specs_(parameters(model)), set_(set), tied_(model.head.tied) {
    for (const ParameterSpec& spec : specs_) set_.parameters.push_back({spec.name, spec.shape, spec.trained});
  }

  void place() {
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
      set_.blocks.push_back(std::move(block));
    }
    const bool one_stage = set_.mesh.pp == 1;
    Block first{.name = "embedding"};
    add_units(first, "embedding", table);
    if (tied_ && !one_stage) first.units.front().second_copy = true;
    if (one_stage) embedding.insert(embedding.end(), head.begin(), head.end());
    add_units(first, "embedding.other", embedding);
    set_.blocks.push_back(std::move(first));
    if (one_stage) return;
    Block last{.name = "head"};
    if (tied_) add_units(last, "head", table);
    add_units(last, "head.other", head);
    set_.blocks.push_back(std::move(last));
  }

 private:
  // Of these parameters: those that tp cuts, those that it replicates, whose gradients are summed over tp (without tp the two
  // are one), and buffers.
  void add_units(Block& block, const std::string& name, const std::vector<int>& members) const {
    const bool has_tp = set_.mesh.tp > 1;
    const auto add = [&](std::string_view ending, bool tp_replicated, bool trained, auto&& belongs) {
      Unit unit{.name = name + std::string(ending),
                .tp_replicated = tp_replicated,
                .trained = trained,
                .offset = block.padded};
      for (const int index : members) {
        const ParameterSpec& p = specs_[static_cast<std::size_t>(index)];
        if (!belongs(p)) continue;
        unit.parameters.push_back({index, p.tp, local_shape(p.shape, p.tp, set_.mesh.tp), unit.elements});
        unit.elements += elements(unit.parameters.back().local_shape);
      }
      if (unit.elements == 0) return;
      const std::int64_t grain = std::int64_t{16} * set_.mesh.dp * set_.mesh.tp;
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
  ProgramSet& set_;
  bool tied_;
};

}  // namespace

void place_parameters(const ModelSpec& model, ProgramSet& set) { Placer(model, set).place(); }

int embedding_block(const ProgramSet& set) { return static_cast<int>(set.blocks.size()) - (set.mesh.pp > 1 ? 2 : 1); }
int head_block(const ProgramSet& set) { return static_cast<int>(set.blocks.size()) - 1; }

}  // namespace meshwright
