// For set-up that keeps its result in a cache, such as training a tokenizer: made by one rank, found by the
// others.
#pragma once

#include <mpi.h>

#include <utility>

namespace meshwright {

// f() on rank 0 of `comm`, then on all others at once; its result on each. Collective. If f throws on rank 0,
// the others call it all the same (and, having the same input, most likely throw too); nobody is left
// waiting.
template <class F>
auto rank_0_first(MPI_Comm comm, F&& f) {
  int rank = 0;
  MPI_Comm_rank(comm, &rank);
  struct Gate {  // passed by rank 0 when it leaves f, by whatever way
    MPI_Comm comm;
    bool passed;
    void pass() {
      if (!std::exchange(passed, true)) MPI_Barrier(comm);
    }
    ~Gate() { pass(); }
  } gate{comm, false};
  if (rank != 0) gate.pass();
  return std::forward<F>(f)();
}

}  // namespace meshwright
