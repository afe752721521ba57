// Where the planner meets the simulator: a system of sim/ as the planner's Machine.
#pragma once

#include <string>

#include "planner/evaluate.h"
#include "sim/collective_cost.h"
#include "sim/cost_model.h"
#include "sim/mesh_mapping.h"
#include "sim/system.h"

namespace meshwright {

// What operations cost on a system whose chips the mesh is laid over by `mapping`. Keeps a reference to the
// system.
class SystemCostModel final : public CostModel {
 public:
  SystemCostModel(const System& system, MeshMapping mapping) : system_(system), mapping_(std::move(mapping)) {}

  Time compute(const Op& op, const Piece& piece, const ProgramSet& set) const override;
  Time collective(const Collective& op, const Piece& piece, const ProgramSet& set) const override;
  Time point_to_point(const View& message, const Piece& piece, const ProgramSet& set) const override;
  bool overlaps_compute() const override { return system_.overlaps_compute; }

  const MeshMapping& mapping() const { return mapping_; }

 private:
  const System& system_;
  MeshMapping mapping_;
};

// What one rank moves along each axis in a step, as choose_mapping() weighs it; mean over the stages.
AxisTraffic axis_traffic(const ProgramSet& programs);

// The cost model of a plan on a system: the mapping is the one with the least communication time for the
// plan's traffic. Precondition: the system has programs.mesh.ranks() devices.
SystemCostModel cost_model(const System& system, const ProgramSet& programs);

// The system as a machine for problems that compute in `compute`. Keeps a copy of it.
// Throws InputError if the system has no peak for that type.
Machine machine(const System& system, DType compute, Refuse refuse = {});

// Every number of a system that costs depend on, as text: equal texts, equal predictions. For SearchKey.
std::string describe(const System& system);

}  // namespace meshwright
