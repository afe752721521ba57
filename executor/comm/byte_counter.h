// Counts what this process really sends, at MPI's profiling layer: byte_counter.cpp defines every MPI function that sends
// a message and the collectives that move data, and they pass on to PMPI_*. Whoever sends, by our collectives or around
// them, is seen here; but not persistent requests, one-sided communication, and collectives that return at once. MPI's own collectives are seen too, as operation "mpi-collective": what they send inside is
// theirs to choose, so a step must not use them, and a report that has such an entry differs from its
// prediction. Messages received, and not yet sent ones, count nothing. Safe to use from several threads.
#pragma once

#include <mpi.h>

#include <optional>

#include "model/program/mesh.h"
#include "model/program/step_report.h"

namespace meshwright {

// Bytes sent on `comm` from now on count for `group`. The mark goes with the communicator and ends with
// MPI_Comm_free.
void register_group(MPI_Comm comm, Group group);
std::optional<Group> registered_group(MPI_Comm comm);

void reset_traffic();

// Bytes sent since reset_traffic() by (operation, group): operations "all-gather", "reduce-scatter",
// "all-reduce", "send"; groups "tp", "dp", "pp", "pp-ends". A message with a foreign tag is "other", one on a
// communicator that was not registered has group "none". Without entries of 0 bytes, except that an MPI
// collective is listed whatever it sends.
Traffic traffic();

}  // namespace meshwright
