#include "executor/comm/byte_counter.h"

#include <array>
#include <atomic>
#include <string>

#include "executor/comm/message_tag.h"

namespace meshwright {
namespace {

constexpr int kOther = kMessageKinds;  // a tag that is not ours
constexpr int kMpiCollective = kMessageKinds + 1;
constexpr int kKinds = kMessageKinds + 2;
constexpr int kNoGroup = kGroups;

struct Count {
  std::atomic<std::int64_t> bytes = 0, calls = 0;
};
std::array<std::array<Count, kGroups + 1>, kKinds> counts;

// The communicator attribute that holds its group + 1.
int group_key() {
  static const int key = [] {
    int k = MPI_KEYVAL_INVALID;
    MPI_Comm_create_keyval(MPI_COMM_NULL_COPY_FN, MPI_COMM_NULL_DELETE_FN, &k, nullptr);
    return k;
  }();
  return key;
}

int group_of(MPI_Comm comm) {
  void* value = nullptr;
  int found = 0;
  PMPI_Comm_get_attr(comm, group_key(), &value, &found);
  return found ? static_cast<int>(reinterpret_cast<std::intptr_t>(value)) - 1 : kNoGroup;
}

int counted_as(int tag) { return is_our_tag(tag) ? static_cast<int>(kind_of_tag(tag)) : kOther; }

void count(int kind, int elements, MPI_Datatype type, MPI_Comm comm) {
  int size = 0;
  PMPI_Type_size(type, &size);
  Count& c = counts[kind][group_of(comm)];
  c.bytes.fetch_add(static_cast<std::int64_t>(elements) * size, std::memory_order_relaxed);
  c.calls.fetch_add(1, std::memory_order_relaxed);
}

std::string kind_text(int kind) {
  switch (kind) {
    case static_cast<int>(MessageKind::kSend):
      return "send";
    case kOther:
      return "other";
    case kMpiCollective:
      return "mpi-collective";
    default:
      return std::string(name(static_cast<CollectiveKind>(kind)));
  }
}

}  // namespace

void register_group(MPI_Comm comm, Group group) {
  MPI_Comm_set_attr(comm, group_key(), reinterpret_cast<void*>(static_cast<std::intptr_t>(group) + 1));
}

std::optional<Group> registered_group(MPI_Comm comm) {
  const int group = group_of(comm);
  return group == kNoGroup ? std::nullopt : std::optional(static_cast<Group>(group));
}

void reset_traffic() {
  for (auto& row : counts) {
    for (Count& c : row) c.bytes = c.calls = 0;
  }
}

Traffic traffic() {
  Traffic result;
  for (int k = 0; k < kKinds; ++k) {
    for (int g = 0; g <= kGroups; ++g) {
      const Count& c = counts[k][g];
      if (c.bytes == 0 && !(k == kMpiCollective && c.calls > 0)) continue;
      const std::string group = g == kNoGroup ? "none" : std::string(name(static_cast<Group>(g)));
      result[{kind_text(k), group}] = Bytes{c.bytes};
    }
  }
  return result;
}

}  // namespace meshwright

// The profiling layer. MPI's headers declare these with C linkage.
extern "C" {

#define MESHWRIGHT_SEND(Name)                                                                   \
  int MPI_##Name(const void* buf, int n, MPI_Datatype type, int dest, int tag, MPI_Comm comm) { \
    meshwright::count(meshwright::counted_as(tag), n, type, comm);                              \
    return PMPI_##Name(buf, n, type, dest, tag, comm);                                          \
  }
MESHWRIGHT_SEND(Send)
MESHWRIGHT_SEND(Ssend)
MESHWRIGHT_SEND(Bsend)
MESHWRIGHT_SEND(Rsend)
#undef MESHWRIGHT_SEND

#define MESHWRIGHT_ISEND(Name)                                                                                        \
  int MPI_##Name(const void* buf, int n, MPI_Datatype type, int dest, int tag, MPI_Comm comm, MPI_Request* request) { \
    meshwright::count(meshwright::counted_as(tag), n, type, comm);                                                    \
    return PMPI_##Name(buf, n, type, dest, tag, comm, request);                                                       \
  }
MESHWRIGHT_ISEND(Isend)
MESHWRIGHT_ISEND(Issend)
MESHWRIGHT_ISEND(Ibsend)
MESHWRIGHT_ISEND(Irsend)
#undef MESHWRIGHT_ISEND

int MPI_Sendrecv(const void* sendbuf, int sendn, MPI_Datatype sendtype, int dest, int sendtag, void* recvbuf, int recvn,
                 MPI_Datatype recvtype, int source, int recvtag, MPI_Comm comm, MPI_Status* status) {
  meshwright::count(meshwright::counted_as(sendtag), sendn, sendtype, comm);
  return PMPI_Sendrecv(sendbuf, sendn, sendtype, dest, sendtag, recvbuf, recvn, recvtype, source, recvtag, comm,
                       status);
}

int MPI_Sendrecv_replace(void* buf, int n, MPI_Datatype type, int dest, int sendtag, int source, int recvtag,
                         MPI_Comm comm, MPI_Status* status) {
  meshwright::count(meshwright::counted_as(sendtag), n, type, comm);
  return PMPI_Sendrecv_replace(buf, n, type, dest, sendtag, source, recvtag, comm, status);
}

int MPI_Allreduce(const void* sendbuf, void* recvbuf, int n, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  meshwright::count(meshwright::kMpiCollective, n, type, comm);
  return PMPI_Allreduce(sendbuf, recvbuf, n, type, op, comm);
}

int MPI_Reduce(const void* sendbuf, void* recvbuf, int n, MPI_Datatype type, MPI_Op op, int root, MPI_Comm comm) {
  meshwright::count(meshwright::kMpiCollective, n, type, comm);
  return PMPI_Reduce(sendbuf, recvbuf, n, type, op, root, comm);
}

int MPI_Bcast(void* buf, int n, MPI_Datatype type, int root, MPI_Comm comm) {
  meshwright::count(meshwright::kMpiCollective, n, type, comm);
  return PMPI_Bcast(buf, n, type, root, comm);
}

int MPI_Gather(const void* sendbuf, int sendn, MPI_Datatype sendtype, void* recvbuf, int recvn, MPI_Datatype recvtype,
               int root, MPI_Comm comm) {
  meshwright::count(meshwright::kMpiCollective, sendn, sendtype, comm);
  return PMPI_Gather(sendbuf, sendn, sendtype, recvbuf, recvn, recvtype, root, comm);
}

int MPI_Gatherv(const void* sendbuf, int sendn, MPI_Datatype sendtype, void* recvbuf, const int recvn[],
                const int displacements[], MPI_Datatype recvtype, int root, MPI_Comm comm) {
  meshwright::count(meshwright::kMpiCollective, sendn, sendtype, comm);
  return PMPI_Gatherv(sendbuf, sendn, sendtype, recvbuf, recvn, displacements, recvtype, root, comm);
}

int MPI_Scatter(const void* sendbuf, int sendn, MPI_Datatype sendtype, void* recvbuf, int recvn, MPI_Datatype recvtype,
                int root, MPI_Comm comm) {
  meshwright::count(meshwright::kMpiCollective, recvn, recvtype, comm);
  return PMPI_Scatter(sendbuf, sendn, sendtype, recvbuf, recvn, recvtype, root, comm);
}

int MPI_Allgatherv(const void* sendbuf, int sendn, MPI_Datatype sendtype, void* recvbuf, const int recvn[],
                   const int displacements[], MPI_Datatype recvtype, MPI_Comm comm) {
  meshwright::count(meshwright::kMpiCollective, sendn, sendtype, comm);
  return PMPI_Allgatherv(sendbuf, sendn, sendtype, recvbuf, recvn, displacements, recvtype, comm);
}

int MPI_Allgather(const void* sendbuf, int sendn, MPI_Datatype sendtype, void* recvbuf, int recvn,
                  MPI_Datatype recvtype, MPI_Comm comm) {
  meshwright::count(meshwright::kMpiCollective, sendn, sendtype, comm);
  return PMPI_Allgather(sendbuf, sendn, sendtype, recvbuf, recvn, recvtype, comm);
}

int MPI_Reduce_scatter_block(const void* sendbuf, void* recvbuf, int n, MPI_Datatype type, MPI_Op op, MPI_Comm comm) {
  meshwright::count(meshwright::kMpiCollective, n, type, comm);
  return PMPI_Reduce_scatter_block(sendbuf, recvbuf, n, type, op, comm);
}

int MPI_Alltoall(const void* sendbuf, int sendn, MPI_Datatype sendtype, void* recvbuf, int recvn, MPI_Datatype recvtype,
                 MPI_Comm comm) {
  meshwright::count(meshwright::kMpiCollective, sendn, sendtype, comm);
  return PMPI_Alltoall(sendbuf, sendn, sendtype, recvbuf, recvn, recvtype, comm);
}

}  // extern "C"
