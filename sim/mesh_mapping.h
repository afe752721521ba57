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
  // Hops between neighbouring members. Other groups have members on the chips between and use the same
  // links: `stride` groups share every link of the line, so each gets 1/stride of it.
  int stride = 1;
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

  // kPpEnds: first and last stage, taken as a line of two along the dimension in which they are farthest
  // apart.
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
