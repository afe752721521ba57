#include "model/lowering/placement.h"

#include <string>

#include "model/accounting.h"
#include "model/lowering/layout.h"

namespace meshwright {
namespace {

// A block's parameters as units: those that tp cuts, and those that it replicates, whose gradients are summed over tp.
Block make_block(std::string name, int layer, const std::vector<int>& members, const ProgramSet& set) {
  Block block{.name = std::move(name), .layer = layer};
  const std::int64_t grain = std::int64_t{16} * set.mesh.dp * set.mesh.tp;
  for (const bool replicated : {false, true}) {
    if (replicated && set.mesh.tp == 1) break;  // then the two are one
    Unit unit{
        .name = block.name + (replicated ? ".replicated" : ""), .tp_replicated = replicated, .offset = block.padded};
    for (const int index : members) {
      const Parameter& p = set.parameters[index];
      const Layout layout = tensor_parallel_layout(p.name);
      if (set.mesh.tp > 1 && (layout.kind == Layout::Kind::kReplicate) != replicated) continue;
      unit.parameters.push_back({index, layout, local_shape(p.shape, layout, set.mesh.tp), unit.elements});
      unit.elements += elements(unit.parameters.back().local_shape);
    }
    if (unit.elements == 0) continue;
    unit.padded = (unit.elements + grain - 1) / grain * grain;
    block.padded += unit.padded;
    block.units.push_back(std::move(unit));
  }
  return block;
}

}  // namespace

void place_parameters(const ModelSpec& model, ProgramSet& set) {
  std::vector<std::vector<int>> of_layer(model.layers.size());
  std::vector<int> table, final_norm;
  for (const ParameterSpec& spec : parameters(model)) {
    const int index = static_cast<int>(set.parameters.size());
    set.parameters.push_back({spec.name, spec.shape});
    if (spec.name.starts_with("layers."))
      of_layer[static_cast<std::size_t>(std::stoi(spec.name.substr(7)))].push_back(index);
    else
      (spec.name == "embedding.embedding" ? table : final_norm).push_back(index);
  }
  for (int layer = 0; layer < static_cast<int>(of_layer.size()); ++layer)
    set.blocks.push_back(make_block("layers." + std::to_string(layer), layer, of_layer[layer], set));
  // The table is its block's first unit, so that both copies lie alike and can be summed over the two ends of pp.
  const auto outside = [&](std::string name, bool with_norm) {
    Block block = make_block(name, -1, table, set);
    if (with_norm) {
      const Block norm = make_block("final_norm", -1, final_norm, set);
      for (Unit unit : norm.units) {
        unit.offset += block.padded;
        block.units.push_back(std::move(unit));
      }
      block.padded += norm.padded;
    }
    set.blocks.push_back(std::move(block));
  };
  outside("embedding", set.mesh.pp == 1);
  if (set.mesh.pp > 1) outside("head", true);
}

int embedding_block(const ProgramSet& set) { return static_cast<int>(set.blocks.size()) - (set.mesh.pp > 1 ? 2 : 1); }
int head_block(const ProgramSet& set) { return static_cast<int>(set.blocks.size()) - 1; }

}  // namespace meshwright
