// Costs on a System: its compute and its network, with the mesh laid over its chips.
#pragma once

#include "model/program/program.h"
#include "sim/collective_cost.h"
#include "sim/cost_model.h"
#include "sim/mesh_mapping.h"
#include "sim/system.h"

namespace meshwright {

// The system must outlive the model. Precondition: mapping.mesh() is the mesh of the programs that are
// costed, and the system computes in their dtypes (require_dtype). Experts at capacity.
class SystemCostModel : public CostModel {
 public:
  SystemCostModel(const System& system, MeshMapping mapping) : system_(system), mapping_(std::move(mapping)) {}
  // With the mapping that suits the programs' traffic best.
  SystemCostModel(const System& system, const ProgramSet& set);

  const MeshMapping& mapping() const { return mapping_; }

  Time compute(const Op& op, const Piece& piece, const ProgramSet& set) const override;
  Time collective(const Collective& op, const Piece& piece, const ProgramSet& set) const override;
  Time point_to_point(const View& message, const Piece& piece, const ProgramSet& set) const override;
  bool overlaps_compute() const override { return system_.overlaps_compute; }

 private:
  const System& system_;
  MeshMapping mapping_;
};

// What a rank moves in a step along each axis: of every axis, on the stage where it is most.
AxisTraffic axis_traffic(const ProgramSet& set);

}  // namespace meshwright
