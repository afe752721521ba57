#include "executor/comm/mesh_comm.h"

#include <exception>

#include "executor/comm/byte_counter.h"
#include "model/program/check.h"

namespace meshwright {

MeshComm::MeshComm(MPI_Comm comm, const MeshShape& shape) : shape_(shape) {
  comms_.fill(MPI_COMM_NULL);
  int ranks = 0;
  MPI_Comm_size(comm, &ranks);
  check(ranks == shape.ranks(), "mesh {} on {} ranks", to_string(shape), ranks);
  MPI_Comm_dup(comm, &all_);
  int rank = 0;
  MPI_Comm_rank(all_, &rank);
  coordinates_ = {rank / (shape.pp * shape.tp), rank / shape.tp % shape.pp, rank % shape.tp};

  // Ranks of one colour form a communicator, in the order of `key`.
  const auto split = [&](Group group, int colour, int key) {
    MPI_Comm& c = comms_[static_cast<int>(group)];
    MPI_Comm_split(all_, colour, key, &c);
    if (c != MPI_COMM_NULL) register_group(c, group);
  };
  const auto [d, p, t] = coordinates_;
  const bool end = p == 0 || p == shape.pp - 1;
  split(Group::kTp, d * shape.pp + p, t);
  split(Group::kDp, p * shape.tp + t, d);
  split(Group::kPp, d * shape.tp + t, p);
  split(Group::kPpEnds, end ? d * shape.tp + t : MPI_UNDEFINED, p);
}

MeshComm::~MeshComm() {
  if (std::uncaught_exceptions() > 0) return;  // other ranks may be elsewhere: freeing would wait for them
  for (MPI_Comm& c : comms_) {
    if (c != MPI_COMM_NULL) MPI_Comm_free(&c);
  }
  MPI_Comm_free(&all_);
}

int MeshComm::index(Group group) const {
  check(member(group), "mesh: a rank that is no member of {}", name(group));
  switch (group) {
    case Group::kTp:
      return coordinates_.tp;
    case Group::kDp:
      return coordinates_.dp;
    case Group::kPp:
      return coordinates_.pp;
    case Group::kPpEnds:
      return coordinates_.pp == 0 ? 0 : 1;
  }
  return 0;
}

}  // namespace meshwright
