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
  if (rank != 0) {
    MPI_Barrier(comm);
    return std::forward<F>(f)();
  }
  try {
    auto result = f();
    MPI_Barrier(comm);
    return result;
  } catch (...) {
    MPI_Barrier(comm);
    throw;
  }
}

}  // namespace meshwright
