// MPI for the life of a process that is a rank.
#pragma once

#include <mpi.h>

#include <functional>
#include <string>

#include "executor/launch/heartbeat.h"

namespace meshwright {

// MPI_Init when made, on the core that the launcher claimed for this rank; MPI_Finalize when destroyed; one per process. Where it is left by an exception MPI stays active, as
// other ranks may be waiting: then abort().
class MpiSession {
 public:
  // Joins the heartbeat page of whoever started the ranks, or makes one with the other ranks of this machine. Throws
  // InputError if the world that MPI gives is not the one that the environment speaks of: then nobody started us.
  MpiSession();
  ~MpiSession();
  MpiSession(const MpiSession&) = delete;
  MpiSession& operator=(const MpiSession&) = delete;

  MPI_Comm world() const { return MPI_COMM_WORLD; }
  int rank() const;
  int ranks() const;
  HeartbeatPage& heartbeat() const;

  // What make() gives on rank 0, where alone it is called, on every rank. Collective.
  std::string from_rank_0(const std::function<std::string()>& make) const;

  static bool active();  // between MPI_Init and MPI_Finalize
  // Ends all ranks at once; the exit code of mpirun is `code`.
  [[noreturn]] static void abort(int code);
};

}  // namespace meshwright
