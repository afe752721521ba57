// What a rank keeps from one step to the next, and where: master weights, the optimizer's moments, and weights as products
// read them. A layout is made once per model, mesh, FSDP stage, dtypes and cut into stages; the programs that train and
// that evaluate refer to the same one. It takes the first bytes of a rank's arena; what a program has for itself lies
// behind it.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "model/program/layout.h"
#include "model/program/mesh.h"
#include "model/program/tensor.h"

namespace meshwright {

// A named tensor of the model, as reports and checkpoints know it.
struct Parameter {
  std::string name;  // "layers.3.mla.down.kernel"
  Shape shape;       // global
  bool trained = true;
};

// One parameter tensor within its unit. Gradients, master weights and moments lie the same way.
struct ParameterPlacement {
  int parameter = 0;        // index in StateLayout::parameters
  Layout tp;                // replicate or shard
  Shape local_shape;        // of one tp rank
  std::int64_t offset = 0;  // elements from the unit's begin
};

// Parameters that are gathered and reduced together over dp: one flat array, padded so that every cut is even.
struct Unit {
  std::string name;
  bool tp_replicated = false;  // gradients are then also summed over tp
  bool trained = true;       // false: buffers, which have no gradient and which no update changes; a block's last unit
  bool second_copy = false;  // of a tied table on the first stage: the last stage's counts in the gradient's norm
  std::vector<ParameterPlacement> parameters;
  std::int64_t elements = 0;  // without padding
  std::int64_t padded = 0;    // a multiple of 16 * dp * tp
  std::int64_t offset = 0;    // elements from the block's begin (whole), offset / dp when sharded over dp
};

// The parameters of a layer, or of the embedding, or of the head.
struct Block {
  std::string name;
  int layer = -1;
  std::vector<Unit> units;
  std::int64_t padded = 0;  // elements, sum over units
};

// A contiguous part of the arena.
struct Region {
  std::string name;
  MemoryClass memory_class;
  std::int64_t offset = 0, bytes = 0;
};

// Where a rank keeps a block's state, in bytes of its arena. -1: not kept (gathered when used).
struct BlockState {
  int block = 0;  // index in StateLayout::blocks
  std::int64_t weights = -1, weight_shard = -1, master = -1, moment1 = -1, moment2 = -1;
  bool master_sharded = false;  // master weights and moments hold 1/dp of each unit
};

// What each rank of a pipeline stage keeps: bytes [0, bytes) of its arena.
struct StageState {
  std::vector<BlockState> blocks;  // layers first
  std::vector<Region> regions;
  std::int64_t bytes = 0;
};

struct StateLayout {
  std::vector<Parameter> parameters;
  std::vector<Block> blocks;
  std::vector<StageState> stages;
};

// Elements of one parameter that a rank keeps, next to each other both there and in the whole tensor. Master weights,
// moments and reduced gradients of a block lie alike.
struct KeptRun {
  int block = 0;                      // index in StageState::blocks
  int parameter = 0;                  // index in StateLayout::parameters
  bool trained = true;                // else it has no gradient
  std::int64_t first = 0, count = 0;  // of the whole tensor, row-major
  std::int64_t at = 0;                // elements from the begin of the block's state on this rank
  // Of the ranks that keep these elements, this is the one that speaks for them: over all ranks, every element of every
  // parameter is owned once.
  bool owned = false;
};

// Calls f(run) for everything that the rank at `at` keeps.
template <class F>
void for_each_kept_run(const StateLayout& layout, const MeshShape& mesh, const MeshCoordinates& at, F&& f) {
  const std::vector<BlockState>& blocks = layout.stages[static_cast<std::size_t>(at.pp)].blocks;
  for (std::size_t b = 0; b < blocks.size(); ++b) {
    const int shards = blocks[b].master_sharded ? mesh.dp : 1;
    for (const Unit& unit : layout.blocks[static_cast<std::size_t>(blocks[b].block)].units) {
      const std::int64_t kept = unit.padded / shards, begin = shards > 1 ? at.dp * kept : 0;
      for (const ParameterPlacement& p : unit.parameters) {
        const bool owned =
            !unit.second_copy && (shards > 1 || at.dp == 0) && (p.tp.kind == Layout::Kind::kShard || at.tp == 0);
        for_each_run(layout.parameters[static_cast<std::size_t>(p.parameter)].shape, p.tp, mesh.tp, at.tp,
                     [&](std::int64_t local, std::int64_t whole, std::int64_t count) {
                       const std::int64_t first = p.offset + local, from = std::max(first, begin),
                                          to = std::min(first + count, begin + kept);
                       if (from < to)
                         f(KeptRun{.block = static_cast<int>(b),
                                   .parameter = p.parameter,
                                   .trained = unit.trained,
                                   .first = whole + from - first,
                                   .count = to - from,
                                   .at = unit.offset / shards + from - begin,
                                   .owned = owned});
                     });
      }
    }
  }
}

}  // namespace meshwright
