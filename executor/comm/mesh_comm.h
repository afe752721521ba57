// A rank's place on the mesh and its communicators, one per group that a Program names.
#pragma once

#include <mpi.h>

#include <array>

#include "model/program/mesh.h"

namespace meshwright {

// Owns its communicators; destroy it before MPI_Finalize. Where an exception destroys it, it frees nothing, as that is
// collective. Rank r of `comm` has coordinates
// r = (d * pp + p) * tp + t, tp innermost. In a group, members stand in the order of the coordinate that
// differs.
class MeshComm {
 public:
  // Collective over `comm`, whose size must be shape.ranks() (checked). `comm` stays the caller's.
  MeshComm(MPI_Comm comm, const MeshShape& shape);
  ~MeshComm();
  MeshComm(const MeshComm&) = delete;
  MeshComm& operator=(const MeshComm&) = delete;

  const MeshShape& shape() const { return shape_; }
  const MeshCoordinates& coordinates() const { return coordinates_; }
  int rank() const { return (coordinates_.dp * shape_.pp + coordinates_.pp) * shape_.tp + coordinates_.tp; }

  // All ranks of the mesh, ours alone: nobody else's messages can meet those sent on it. For set-up,
  // gathering reports and the like, outside steps; its bytes count for group "none".
  MPI_Comm all() const { return all_; }

  // This rank's group; MPI_COMM_NULL for kPpEnds on a stage that is neither the first nor the last.
  MPI_Comm comm(Group group) const { return comms_[static_cast<int>(group)]; }
  bool member(Group group) const { return comm(group) != MPI_COMM_NULL; }
  int size(Group group) const { return group_size(shape_, group); }
  int index(Group group) const;  // this rank's place in it, from 0; precondition: member(group)

 private:
  MeshShape shape_;
  MeshCoordinates coordinates_;
  MPI_Comm all_ = MPI_COMM_NULL;
  std::array<MPI_Comm, kGroups> comms_;
};

}  // namespace meshwright
