// Tags of our messages. Every operation on a communicator has its own, so that a message can only be received by the
// operation that it was sent in: what kind it is, and a number that counts the collectives of the communicator, or the
// messages from one of its ranks to another.
#pragma once

#include <mpi.h>

#include "model/program/op.h"

namespace meshwright {

// What a message is part of; its tag says so.
enum class MessageKind : int { kAllGather, kReduceScatter, kAllReduce, kSend };
constexpr int kMessageKinds = 4;
constexpr MessageKind message_kind(CollectiveKind kind) { return static_cast<MessageKind>(kind); }
static_assert(message_kind(CollectiveKind::kAllReduce) == MessageKind::kAllReduce);

// MPI promises tags to 32767. Numbers begin anew after kTagNumbers operations: messages between two ranks keep their
// order, and there are never so many under way.
constexpr int kFirstTag = 4096;
constexpr int kTagNumbers = 4096;
constexpr int tag_of(MessageKind kind, int number) {
  return kFirstTag + number % kTagNumbers * kMessageKinds + static_cast<int>(kind);
}
static_assert(tag_of(MessageKind::kSend, kTagNumbers - 1) <= 32767);
constexpr bool is_our_tag(int tag) { return tag >= kFirstTag && tag < kFirstTag + kTagNumbers * kMessageKinds; }
constexpr MessageKind kind_of_tag(int tag) { return static_cast<MessageKind>((tag - kFirstTag) % kMessageKinds); }

// The tag of the next collective on `comm`, of the next message to `to`, of the next one from `from`. The same on all
// ranks that take part, as they call in the same order. The counts end with the communicator.
int next_collective_tag(MPI_Comm comm, MessageKind kind);
int next_send_tag(MPI_Comm comm, int to);
int next_recv_tag(MPI_Comm comm, int from);

}  // namespace meshwright
