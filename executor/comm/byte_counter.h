// Counts what this process really sends, at MPI's profiling layer: byte_counter.cpp defines MPI_Send,
// MPI_Isend and MPI_Sendrecv, and they pass on to PMPI_*. Whoever sends, by our collectives or around them,
// is seen here. MPI's own collectives are seen too, as operation "mpi-collective": what they send inside is
// theirs to choose, so a step must not use them, and a report that has such an entry differs from its
// prediction. Messages received, and not yet sent ones, count nothing. Safe to use from several threads.
#pragma once

#include <mpi.h>

#include "model/program/mesh.h"
#include "model/program/op.h"
#include "model/program/step_report.h"

namespace meshwright {

// What a message is part of; its MPI tag says so.
enum class MessageKind : int { kAllGather, kReduceScatter, kAllReduce, kSend };
constexpr int kMessageKinds = 4;
constexpr int kFirstTag = 4096;
constexpr int tag_of(MessageKind kind) { return kFirstTag + static_cast<int>(kind); }
constexpr MessageKind message_kind(CollectiveKind kind) { return static_cast<MessageKind>(kind); }
static_assert(message_kind(CollectiveKind::kAllReduce) == MessageKind::kAllReduce);

// Bytes sent on `comm` from now on count for `group`. The mark goes with the communicator and ends with
// MPI_Comm_free.
void register_group(MPI_Comm comm, Group group);

void reset_traffic();

// Bytes sent since reset_traffic() by (operation, group): operations "all-gather", "reduce-scatter",
// "all-reduce", "send"; groups "tp", "dp", "pp", "pp-ends". A message with a foreign tag is "other", one on a
// communicator that was not registered has group "none". Without entries of 0 bytes, except that an MPI
// collective is listed whatever it sends.
Traffic traffic();

}  // namespace meshwright
