// Which chip a rank runs on. Each physical dimension of the topology is cut into factors, one per logical
// axis; a group of an axis is then a small grid of its own, whose steps may be longer than one hop.
// Not for: JAX's own assignment of devices to a mesh, or arbitrary device lists.
#pragma once

#include <array>
#include <string>
#include <vector>

#include "model/program/mesh.h"
#include "sim/topology.h"

namespace meshwright {

// One side of the grid that a group forms on the chips.
struct AxisFactor {
  int dimension = 0;  // physical
  int size = 1;       // members along it, at least 2
  int stride = 1;     // hops between neighbouring members
  // Groups whose members' messages cross every link between neighbouring members, this one included, as all groups
  // communicate at once: each gets 1/sharing of the link. Members `stride` apart leave room for as many groups between
  // them, so for groups along an axis it is the stride. Distance by itself takes bandwidth from nobody: see kPpEnds.
  int sharing = 1;
  bool wraps = false;  // the members close to a ring, as they span the whole of a wrapped dimension
  bool operator==(const AxisFactor&) const = default;
};

// How the members of one group lie: a grid of factors. Empty for a group of one. The product of sizes is the
// group's.
struct GroupPlacement {
  std::vector<AxisFactor> factors;
  int members() const;
};

// dp, pp and tp laid over a topology of the same number of chips.
// Nesting, from neighbours outwards: tp, dp, pp. So where axes share a dimension, tp groups are contiguous,
// dp groups are split only by tp, and pp steps over both: bytes per step fall in that order (tp works on
// activations in every layer, dp on weights once or twice a microbatch, pp passes one activation on).
// Order inside an axis: dp and tp count their factors up like digits, lowest dimension fastest. pp counts in
// a reflected (snake) order, so that consecutive stages differ by one step along one dimension.
class MeshMapping {
 public:
  // sizes[axis][d]: factor of physical dimension d, axes in the order tp, dp, pp; product: d's length.
  using Factors = std::array<std::vector<int>, 3>;
  MeshMapping(Topology topology, Factors sizes);

  const MeshShape& mesh() const { return mesh_; }
  const Factors& factors() const { return sizes_; }
  const Topology& topology() const { return topology_; }

  // Bijective from dp x pp x tp to the chips.
  int chip(const MeshCoordinates& rank) const;
  std::vector<int> coordinates(const MeshCoordinates& rank) const { return topology_.coordinates(chip(rank)); }

  // kPpEnds, the first and the last stage: a line of two, whose stride is the hops between them over all dimensions and
  // whose sharing is that of the dimension that is shared most. Derivation: a stage is a box of chips, s_d long in
  // dimension d (s_d: the product of the tp and dp factors there), and each of its ranks exchanges with the rank at the
  // same place of the other stage's box. Messages are routed dimension by dimension. Where the boxes differ along d, they
  // lie at least s_d apart, so a line of chips along d carries the messages of the s_d ranks that it has of a stage, all
  // in one direction and all offset by the same distance: at most, and between the boxes exactly, s_d of them cross a
  // link. Those that come back use the links of the other direction (or, half way round a ring, the ring's other half).
  // So a pair gets 1/s_d of a link however far apart its ends are: on an open line of 4 stages of one chip, all of it.
  const GroupPlacement& placement(Group group) const { return placements_[static_cast<int>(group)]; }
  // Neighbouring stages, the worst pair: hops between them, which is also how many such messages share a link
  // when all ranks send at once. 0 if pp is 1.
  int stage_hops() const;

  std::string describe() const;  // "tp: x2; dp: y2 z4; pp: y2 (stride 2)"
  bool operator==(const MeshMapping& o) const { return sizes_ == o.sizes_ && topology_.shape() == o.topology_.shape(); }

 private:
  Topology topology_;
  Factors sizes_;
  MeshShape mesh_;
  std::array<GroupPlacement, kGroups> placements_;
};

// Every way to lay the mesh over the topology, in a fixed order (tp prefers the first dimensions). Never
// empty: chips of equal number always factor. Precondition: mesh.ranks() == topology.chips().
std::vector<MeshMapping> mappings(const Topology& topology, const MeshShape& mesh);

}  // namespace meshwright
