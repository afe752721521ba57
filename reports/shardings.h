// Where everything lies: how each tensor is cut over dp, pp and tp, what a rank holds of it, and on which chip each rank
// runs. Read off the Program that the plan becomes.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/input/json_reader.h"
#include "model/lowering/lower.h"
#include "sim/mesh_mapping.h"

namespace meshwright {

// What a row tells of. A unit is the flat array of the parameters that are gathered and reduced together over dp.
enum class TensorRole : std::uint8_t {
  kParameter,    // as products read it: whole over dp
  kMaster,       // units, from here to kMoment2: what a rank keeps
  kWeights,      //   a copy in the compute dtype, whole over dp
  kWeightShard,  //   its part of it
  kGradients,    //   whole over dp
  kGradientShard,
  kMoment1,
  kMoment2,
  kActivation,  // of one microbatch in one piece of the program; matrices, row (t, b) of a sequence's tokens
};
constexpr std::array<std::string_view, 9> kTensorRoleNames{"parameter",    "master weights", "weights",
                                                           "weight shard", "gradients",      "gradient shard",
                                                           "moment 1",     "moment 2",       "activation"};
constexpr std::string_view name(TensorRole r) { return kTensorRoleNames[static_cast<int>(r)]; }

constexpr int kNotCut = -1;

struct TensorSharding {
  std::string name;  // "layers.7.mla.down.kernel", "layers.7.replicated" (a unit), "dense.forward/hidden"
  TensorRole role = TensorRole::kParameter;
  Shape global;
  std::vector<int> stages;  // of the pipeline, that have it
  int dp_dim = kNotCut,
      tp_dim = kNotCut;  // dimension that the axis cuts; kNotCut: every rank has its own, of full extent
  Shape local;           // = global, but for the dimensions that are cut
  DType dtype = DType::kF32;
  Bytes bytes;  // of `local`
};

struct RankPlace {
  int rank = 0;
  MeshCoordinates mesh;
  int chip = 0;
  std::vector<int> coordinates;  // of the chip: x first
};

struct Shardings {
  Plan plan;
  std::vector<TensorSharding> tensors;
  std::vector<RankPlace> ranks;
};

// Asserts that the plan is legal and that the mapping is of its mesh.
Shardings shardings(const ModelSpec& model, const TrainingShape& shape, const Plan& plan, const MeshMapping& mapping);

// Equal rows of several layers are one line: layers.{0-4,6-10}.mla.down.kernel. No line is wider than `columns`,
// where that is 40 or more.
std::string shardings_report(const Shardings& shardings, int columns);
OrderedJson to_json(const Shardings& shardings);

}  // namespace meshwright
