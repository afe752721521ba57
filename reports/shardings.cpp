#include "reports/shardings.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <array>
#include <map>
#include <optional>
#include <tuple>
#include <utility>

#include "model/program/check.h"
#include "reports/figures.h"
#include "reports/table.h"
#include "reports/text.h"

namespace meshwright {
namespace {

// Stages that keep a block.
std::vector<int> stages_of(const ProgramSet& set, int block) {
  std::vector<int> stages;
  for (std::size_t stage = 0; stage < set.stages.size(); ++stage)
    for (const BlockState& state : set.state_layout->stages[stage].blocks)
      if (state.block == block) stages.push_back(static_cast<int>(stage));
  return stages;
}

void add_parameters(const ProgramSet& set, std::vector<TensorSharding>& out) {
  std::map<int, std::size_t> row_of;  // by parameter: a tied table is in two blocks
  for (std::size_t block = 0; block < set.blocks().size(); ++block)
    for (const Unit& unit : set.blocks()[block].units)
      for (const ParameterPlacement& placement : unit.parameters) {
        const std::vector<int> stages = stages_of(set, static_cast<int>(block));
        const auto [it, is_new] = row_of.emplace(placement.parameter, out.size());
        if (!is_new) {
          TensorSharding& row = out[it->second];
          row.stages.insert(row.stages.end(), stages.begin(), stages.end());
          continue;
        }
        const Parameter& parameter = set.parameters()[placement.parameter];
        const bool cut = set.mesh.tp > 1 && placement.tp.kind == Layout::Kind::kShard;
        out.push_back({parameter.name,
                       TensorRole::kParameter,
                       parameter.shape,
                       stages,
                       kNotCut,
                       cut ? placement.tp.dim : kNotCut,
                       placement.local_shape,
                       set.compute,
                       {elements(placement.local_shape) * size_of(set.compute)}});
      }
}

// Units of every block, as each stage keeps them: which frames are apart follows from where they lie.
void add_state(const ProgramSet& set, std::vector<TensorSharding>& out) {
  for (std::size_t stage = 0; stage < set.stages.size(); ++stage)
    for (std::size_t b = 0; b < set.stages[stage].buffers.size(); ++b) {
      const BlockState& state = set.state_layout->stages[stage].blocks[b];
      const BlockBuffers& buffers = set.stages[stage].buffers[b];
      for (const Unit& unit : set.blocks()[state.block].units) {
        const auto add = [&](TensorRole role, bool sharded, DType dtype) {
          const std::int64_t local = sharded ? unit.padded / set.mesh.dp : unit.padded;
          const bool cut = sharded && set.mesh.dp > 1;
          out.push_back({unit.name,
                         role,
                         {unit.padded},
                         {static_cast<int>(stage)},
                         cut ? 0 : kNotCut,
                         kNotCut,
                         {local},
                         dtype,
                         {local * size_of(dtype)}});
        };
        add(TensorRole::kMaster, state.master_sharded, set.state);
        if (buffers.weights >= 0 || (state.weights >= 0 && state.weights != state.master))
          add(TensorRole::kWeights, false, set.compute);
        if (state.weight_shard >= 0 && state.weight_shard != state.master)
          add(TensorRole::kWeightShard, true, set.compute);
        if (buffers.grads >= 0) add(TensorRole::kGradients, false, set.state);
        if (buffers.grad_shard >= 0 && buffers.grad_shard != buffers.grads)
          add(TensorRole::kGradientShard, true, set.state);
        add(TensorRole::kMoment1, state.master_sharded, set.state);
        add(TensorRole::kMoment2, state.master_sharded, set.state);
      }
    }
}

bool is_activation(Frame frame) {
  return frame == Frame::kX || frame == Frame::kXOut || frame == Frame::kD || frame == Frame::kStash ||
         frame == Frame::kWorkspace || frame == Frame::kTokens;
}

// Shapes of the activations of a plan, by piece and tensor; a piece may use a name again for a later tensor.
using ActivationShapes = std::map<std::pair<std::string, std::string>, std::vector<Shape>>;
ActivationShapes activation_shapes(const ProgramSet& set) {
  ActivationShapes shapes;
  for (const Piece& piece : set.pieces)
    for (const Tensor& tensor : piece.tensors)
      if (is_activation(tensor.frame)) shapes[{piece.name, tensor.name}].push_back(tensor.shape);
  return shapes;
}

std::string_view without_ending(std::string_view name, std::string_view ending) {
  return name.ends_with(ending) ? name.substr(0, name.size() - ending.size()) : name;
}

// The dimension that is `factor` times larger in `whole`, where all others are equal.
std::optional<int> cut_dimension(const Shape& whole, const Shape& part, std::int64_t factor) {
  int dim = kNotCut;
  if (whole.size() != part.size()) return std::nullopt;
  for (std::size_t d = 0; d < whole.size(); ++d) {
    if (whole[d] == part[d]) continue;
    if (whole[d] != part[d] * factor || dim != kNotCut) return std::nullopt;
    dim = static_cast<int>(d);
  }
  return dim;
}

// What dp and tp cut is where the same plan without them has more: the program itself says it, no second list of layouts.
// `plan`: with its layers, so that their stages are the same.
void add_activations(const ProgramSet& set, const ModelSpec& model, const TrainingShape& shape, const Plan& plan,
                     std::vector<TensorSharding>& out) {
  Plan without_dp = plan;
  without_dp.mesh.dp = 1;
  without_dp.fsdp = 0;
  Plan without_both = without_dp;
  without_both.mesh.tp = 1;
  const auto no_dp = activation_shapes(lower(model, shape, without_dp));
  const auto whole = activation_shapes(lower(model, shape, without_both));

  std::map<int, std::vector<int>> stages_of_piece;
  for (std::size_t stage = 0; stage < set.stages.size(); ++stage)
    for (const Chunk& chunk : set.stages[stage].chunks)
      for (const Call& call : chunk.calls) {
        std::vector<int>& stages = stages_of_piece[call.piece];
        if (stages.empty() || stages.back() != static_cast<int>(stage)) stages.push_back(static_cast<int>(stage));
      }

  for (std::size_t p = 0; p < set.pieces.size(); ++p) {
    const Piece& piece = set.pieces[p];
    if (!stages_of_piece.contains(static_cast<int>(p))) continue;
    std::map<std::string, std::size_t> occurrences;
    for (const Tensor& tensor : piece.tensors) {
      if (!is_activation(tensor.frame)) continue;
      TensorSharding row{piece.name + "/" + tensor.name,
                         TensorRole::kActivation,
                         tensor.shape,
                         stages_of_piece[static_cast<int>(p)],
                         kNotCut,
                         kNotCut,
                         tensor.shape,
                         tensor.dtype,
                         {tensor.bytes()}};
      const std::size_t occurrence = occurrences[tensor.name]++;
      if (tensor.name.ends_with(".recv")) {  // a receive buffer is nobody's part of anything
        out.push_back(std::move(row));
        continue;
      }
      const auto find = [&](const ActivationShapes& shapes) -> std::optional<Shape> {
        auto it = shapes.find({piece.name, tensor.name});
        // This rank's part of a tensor that is whole without tp goes by the whole one's name there.
        if (it == shapes.end()) it = shapes.find({piece.name, std::string(without_ending(tensor.name, ".own"))});
        return it == shapes.end() || occurrence >= it->second.size() ? std::nullopt
                                                                     : std::optional(it->second[occurrence]);
      };
      if (const auto larger = find(no_dp))
        if (const auto dim = cut_dimension(*larger, row.global, set.mesh.dp)) {
          row.dp_dim = *dim;
          row.global = *larger;
        }
      if (const auto larger = find(whole))
        if (const auto dim = cut_dimension(*larger, row.global, set.mesh.tp)) {
          row.tp_dim = *dim;
          row.global = *larger;
        }
      out.push_back(std::move(row));
    }
  }
}

// "0-4,6", of ascending numbers.
std::string ranges_text(const std::vector<int>& numbers) {
  std::string text;
  for (std::size_t i = 0; i < numbers.size();) {
    std::size_t j = i;
    while (j + 1 < numbers.size() && numbers[j + 1] == numbers[j] + 1) ++j;
    text += fmt::format("{}{}", text.empty() ? "" : ",", numbers[i]);
    if (j > i) text += fmt::format("-{}", numbers[j]);
    i = j + 1;
  }
  return text;
}

// A row, and the layers that have one just like it.
struct Line {
  TensorSharding row;
  std::vector<int> layers;
  std::string rest;  // of the name, after the layer

  std::string name() const {
    if (layers.empty()) return row.name;
    if (layers.size() == 1) return fmt::format("layers.{}{}", layers.front(), rest);
    return fmt::format("layers.{{{}}}{}", ranges_text(layers), rest);
  }
};

std::vector<Line> merged(const std::vector<TensorSharding>& rows) {
  using Key = std::tuple<std::string, TensorRole, Shape, std::vector<int>, int, int, Shape, DType>;
  constexpr std::string_view kPrefix = "layers.";
  std::vector<Line> lines;
  std::map<Key, std::size_t> line_of;
  for (const TensorSharding& row : rows) {
    if (!row.name.starts_with(kPrefix)) {
      lines.push_back({row, {}, {}});
      continue;
    }
    const std::size_t end = std::min(row.name.find('.', kPrefix.size()), row.name.size());
    const std::string rest = row.name.substr(end);
    const int layer = std::stoi(row.name.substr(kPrefix.size(), end - kPrefix.size()));
    const Key key{rest, row.role, row.global, row.stages, row.dp_dim, row.tp_dim, row.local, row.dtype};
    const auto [it, is_new] = line_of.emplace(key, lines.size());
    if (is_new) lines.push_back({row, {}, rest});
    lines[it->second].layers.push_back(layer);
  }
  return lines;
}

std::string cut_text(int dim, int members) {
  return members == 1 ? "" : dim == kNotCut ? "-" : fmt::format("dim {} / {}", dim, members);
}

}  // namespace

Shardings shardings(const ModelSpec& model, const TrainingShape& shape, const Plan& plan, const MeshMapping& mapping) {
  check(mapping.mesh() == plan.mesh, "the mapping is of mesh {}, the plan of {}", to_string(mapping.mesh()),
        to_string(plan.mesh));
  Plan cut = plan;
  cut.layers = stage_layers(model, shape, plan);
  const ProgramSet set = lower(model, shape, cut);
  Shardings out{plan, {}, {}};
  add_parameters(set, out.tensors);
  add_state(set, out.tensors);
  add_activations(set, model, shape, cut, out.tensors);
  for (int dp = 0; dp < plan.mesh.dp; ++dp)
    for (int pp = 0; pp < plan.mesh.pp; ++pp)
      for (int tp = 0; tp < plan.mesh.tp; ++tp) {
        const MeshCoordinates at{dp, pp, tp};
        out.ranks.push_back({static_cast<int>(out.ranks.size()), at, mapping.chip(at), mapping.coordinates(at)});
      }
  return out;
}

std::string shardings_report(const Shardings& s, int columns) {
  const MeshShape& mesh = s.plan.mesh;
  struct Section {
    std::string_view title;
    TensorRole first, last;
  };
  constexpr std::array<Section, 3> kSections{{
      {"Parameters, as products read them: whole over dp", TensorRole::kParameter, TensorRole::kParameter},
      {"What a rank keeps, by flat units of parameters (padded; of a tp rank's own part)", TensorRole::kMaster,
       TensorRole::kMoment2},
      {"Activations of one microbatch, by piece of the program: rows are (token, sequence)", TensorRole::kActivation,
       TensorRole::kActivation},
  }};
  std::string text =
      paragraph(fmt::format("{}: dp {}, pp {}, tp {}", to_text(s.plan), mesh.dp, mesh.pp, mesh.tp), columns, 2);
  text += paragraph("\"dim 0 / 8\": dimension 0 in 8 parts; \"-\": not cut.", columns, 2);
  const std::vector<Line> lines = merged(s.tensors);
  for (const Section& section : kSections) {
    const bool one_role = section.first == section.last;  // which the title says
    Table table({{"tensor", Align::kLeft, "", 20},
                 {one_role ? "" : "what", Align::kLeft, "", 8},
                 {"global shape", Align::kLeft, "", 0, 2},
                 {"dp", Align::kLeft},
                 {"pp: stage", Align::kLeft, "stage", 8},
                 {"tp", Align::kLeft},
                 {"local shape", Align::kLeft},
                 {"dtype", Align::kLeft, "", 0, 1},
                 {"bytes of each", Align::kRight, "bytes"}});
    for (const Line& line : lines) {
      const TensorSharding& row = line.row;
      if (row.role < section.first || row.role > section.last) continue;
      table.add_row({line.name(), one_role ? "" : std::string(name(row.role)), to_string(row.global),
                     cut_text(row.dp_dim, mesh.dp), ranges_text(row.stages), cut_text(row.tp_dim, mesh.tp),
                     to_string(row.local), std::string(name(row.dtype)), with_commas(row.bytes.value)});
    }
    text += '\n' + paragraph(section.title, columns, 2) + table.render_within(columns, 2);
  }
  Table ranks({{"rank"}, {"dp"}, {"pp"}, {"tp"}, {"chip"}, {"at", Align::kLeft}});
  for (const RankPlace& place : s.ranks)
    ranks.add_row({fmt::format("{}", place.rank), fmt::format("{}", place.mesh.dp), fmt::format("{}", place.mesh.pp),
                   fmt::format("{}", place.mesh.tp), fmt::format("{}", place.chip),
                   fmt::format("({})", fmt::join(place.coordinates, ", "))});
  return text + "\nRanks\n" + ranks.render_within(columns, 2);
}

OrderedJson to_json(const Shardings& s) {
  const auto dim = [](int d) { return d == kNotCut ? OrderedJson(nullptr) : OrderedJson(d); };
  OrderedJson out{{"plan", to_text(s.plan)}, {"tensors", OrderedJson::array()}, {"ranks", OrderedJson::array()}};
  for (const TensorSharding& row : s.tensors)
    out["tensors"].push_back({{"name", row.name},
                              {"what", name(row.role)},
                              {"global_shape", row.global},
                              {"dp_dim", dim(row.dp_dim)},
                              {"stages", row.stages},
                              {"tp_dim", dim(row.tp_dim)},
                              {"local_shape", row.local},
                              {"dtype", name(row.dtype)},
                              {"bytes", row.bytes.value}});
  for (const RankPlace& place : s.ranks)
    out["ranks"].push_back({{"rank", place.rank},
                            {"dp", place.mesh.dp},
                            {"pp", place.mesh.pp},
                            {"tp", place.mesh.tp},
                            {"chip", place.chip},
                            {"chip_coordinates", place.coordinates}});
  return out;
}

}  // namespace meshwright
