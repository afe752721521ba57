#include "executor/comm/collectives.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "executor/comm/byte_counter.h"

namespace meshwright {
namespace {

struct Ring {
  explicit Ring(MPI_Comm comm) : comm(comm) {
    MPI_Comm_size(comm, &p);
    MPI_Comm_rank(comm, &r);
  }
  int next() const { return (r + 1) % p; }
  int previous() const { return (r + p - 1) % p; }
  int chunk(int c) const { return ((c % p) + p) % p; }  // of any sign

  MPI_Comm comm;
  int p = 1, r = 0;
};

template <class T>
MPI_Datatype mpi_type();
template <>
MPI_Datatype mpi_type<float>() {
  return MPI_FLOAT;
}
template <>
MPI_Datatype mpi_type<double>() {
  return MPI_DOUBLE;
}
template <>
MPI_Datatype mpi_type<std::int32_t>() {
  return MPI_INT32_T;
}

template <class T>
int mpi_count(std::span<T> data) {
  assert(data.size() <= static_cast<std::size_t>(std::numeric_limits<int>::max()));
  return static_cast<int>(data.size());
}

// Sends to the next rank of the ring and receives from the previous one, until both are done.
template <class T>
void pass_on(const Ring& ring, MessageKind kind, std::span<const T> out, std::span<T> in) {
  const int tag = tag_of(kind);
  std::array<MPI_Request, 2> requests;
  MPI_Irecv(in.data(), mpi_count(in), mpi_type<T>(), ring.previous(), tag, ring.comm, &requests[0]);
  MPI_Isend(out.data(), mpi_count(out), mpi_type<T>(), ring.next(), tag, ring.comm, &requests[1]);
  MPI_Waitall(2, requests.data(), MPI_STATUSES_IGNORE);
}

template <class T>
void add_to(std::span<T> sum, std::span<const T> x) {
  T* s = sum.data();
  const T* a = x.data();
  for (std::size_t i = 0; i < sum.size(); ++i) s[i] += a[i];
}

template <class T>
void all_gather(const Ring& ring, MessageKind kind, std::span<const T> src, std::span<T> dst) {
  const std::size_t n = src.size();
  assert(dst.size() == n * ring.p);
  const auto chunk = [&](int c) { return dst.subspan(ring.chunk(c) * n, n); };
  if (src.data() != chunk(ring.r).data() && n > 0) std::memcpy(chunk(ring.r).data(), src.data(), n * sizeof(T));
  for (int step = 0; step < ring.p - 1; ++step) {
    pass_on<T>(ring, kind, chunk(ring.r - step), chunk(ring.r - step - 1));
  }
}

// The partial sum of chunk c starts at rank c+1 and ends at rank c: in step s a rank passes on chunk r-1-s,
// and adds its own part to what it gets of chunk r-2-s. Each segment of a chunk goes all the way before the
// next one starts.
template <class T>
void reduce_scatter(const Ring& ring, MessageKind kind, std::span<const T> src, std::span<T> dst, std::span<T> scratch,
                    bool accumulate) {
  const std::size_t n = dst.size();
  assert(src.size() == n * ring.p);
  const auto own = [&](int c, std::size_t first, std::size_t count) {
    return src.subspan(ring.chunk(c) * n + first, count);
  };
  const bool in_place = dst.data() == own(ring.r, 0, n).data();
  assert(!(in_place && accumulate && n > 0));
  if (ring.p == 1) {
    if (accumulate) {
      add_to<T>(dst, src);
    } else if (!in_place && n > 0) {
      std::memcpy(dst.data(), src.data(), n * sizeof(T));
    }
    return;
  }

  assert(scratch.size() >= n);
  std::array<T, 2> tiny;
  if (scratch.size() < tiny.size()) scratch = tiny;  // a chunk of one element: more than two ranks need two buffers
  const std::size_t buffers = ring.p == 2 ? 1 : 2;
  const std::size_t longest = std::min(scratch.size() / buffers, kSegmentBytes / sizeof(T));
  for (std::size_t first = 0; first < n; first += longest) {
    const std::size_t count = std::min(longest, n - first);
    std::span<T> sum = scratch.subspan(0, count);                              // what was received
    std::span<T> other = ring.p == 2 ? sum : scratch.subspan(longest, count);  // what is passed on
    pass_on<T>(ring, kind, own(ring.r - 1, first, count), sum);
    for (int step = 1; step < ring.p - 1; ++step) {
      add_to<T>(sum, own(ring.r - 1 - step, first, count));
      std::swap(sum, other);
      pass_on<T>(ring, kind, other, sum);
    }
    const T* received = sum.data();
    const T* mine = own(ring.r, first, count).data();
    T* result = dst.data() + first;
    if (accumulate) {
      for (std::size_t i = 0; i < count; ++i) result[i] += received[i] + mine[i];
    } else {
      for (std::size_t i = 0; i < count; ++i) result[i] = received[i] + mine[i];
    }
  }
}

}  // namespace

template <class T>
void ring_all_gather(MPI_Comm comm, std::span<const T> src, std::span<T> dst) {
  all_gather<T>(Ring(comm), MessageKind::kAllGather, src, dst);
}

template <class T>
void ring_reduce_scatter(MPI_Comm comm, std::span<const T> src, std::span<T> dst, std::span<T> scratch,
                         bool accumulate) {
  reduce_scatter<T>(Ring(comm), MessageKind::kReduceScatter, src, dst, scratch, accumulate);
}

template <class T>
void ring_all_reduce(MPI_Comm comm, std::span<T> buffer, std::span<T> scratch) {
  const Ring ring(comm);
  assert(buffer.size() % ring.p == 0);
  const std::size_t n = buffer.size() / ring.p;
  const std::span<T> own = buffer.subspan(ring.r * n, n);
  reduce_scatter<T>(ring, MessageKind::kAllReduce, buffer, own, scratch, false);
  all_gather<T>(ring, MessageKind::kAllReduce, own, buffer);
}

template <class T>
void direct_all_reduce(MPI_Comm comm, std::span<T> buffer, std::span<T> scratch) {
  const Ring ring(comm);
  const std::size_t n = buffer.size();
  if (ring.p == 1 || n == 0) return;
  assert(scratch.size() >= n * ring.p);
  const int tag = tag_of(MessageKind::kAllReduce);
  const auto from = [&](int q) { return scratch.subspan(q * n, n); };
  std::vector<MPI_Request> requests;
  requests.reserve(2 * ring.p);
  for (int q = 0; q < ring.p; ++q) {
    if (q == ring.r) continue;
    MPI_Irecv(from(q).data(), mpi_count(buffer), mpi_type<T>(), q, tag, comm, &requests.emplace_back());
  }
  for (int step = 1; step < ring.p; ++step) {  // starting behind oneself, so that not all send to rank 0 first
    MPI_Isend(buffer.data(), mpi_count(buffer), mpi_type<T>(), ring.chunk(ring.r + step), tag, comm,
              &requests.emplace_back());
  }
  std::memcpy(from(ring.r).data(), buffer.data(), n * sizeof(T));
  MPI_Waitall(static_cast<int>(requests.size()), requests.data(), MPI_STATUSES_IGNORE);
  std::memcpy(buffer.data(), from(0).data(), n * sizeof(T));
  for (int q = 1; q < ring.p; ++q) add_to<T>(buffer, from(q));
}

PendingSend::PendingSend(PendingSend&& other) noexcept : request_(std::exchange(other.request_, MPI_REQUEST_NULL)) {}

PendingSend& PendingSend::operator=(PendingSend&& other) noexcept {
  assert(request_ == MPI_REQUEST_NULL);
  request_ = std::exchange(other.request_, MPI_REQUEST_NULL);
  return *this;
}

PendingSend::~PendingSend() { assert(request_ == MPI_REQUEST_NULL); }

void PendingSend::wait() { MPI_Wait(&request_, MPI_STATUS_IGNORE); }

bool PendingSend::done() {
  int flag = 0;
  MPI_Test(&request_, &flag, MPI_STATUS_IGNORE);
  return flag != 0;
}

template <class T>
PendingSend isend(MPI_Comm comm, int to, std::span<const T> data) {
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_Isend(data.data(), mpi_count(data), mpi_type<T>(), to, tag_of(MessageKind::kSend), comm, &request);
  return PendingSend(request);
}

template <class T>
void recv(MPI_Comm comm, int from, std::span<T> data) {
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_Irecv(data.data(), mpi_count(data), mpi_type<T>(), from, tag_of(MessageKind::kSend), comm, &request);
  MPI_Wait(&request, MPI_STATUS_IGNORE);
}

template void ring_all_gather(MPI_Comm, std::span<const float>, std::span<float>);
template void ring_all_gather(MPI_Comm, std::span<const double>, std::span<double>);
template void ring_all_gather(MPI_Comm, std::span<const std::int32_t>, std::span<std::int32_t>);
template void ring_reduce_scatter(MPI_Comm, std::span<const float>, std::span<float>, std::span<float>, bool);
template void ring_reduce_scatter(MPI_Comm, std::span<const double>, std::span<double>, std::span<double>, bool);
template void ring_all_reduce(MPI_Comm, std::span<float>, std::span<float>);
template void ring_all_reduce(MPI_Comm, std::span<double>, std::span<double>);
template void direct_all_reduce(MPI_Comm, std::span<float>, std::span<float>);
template void direct_all_reduce(MPI_Comm, std::span<double>, std::span<double>);
template PendingSend isend(MPI_Comm, int, std::span<const float>);
template PendingSend isend(MPI_Comm, int, std::span<const double>);
template PendingSend isend(MPI_Comm, int, std::span<const std::int32_t>);
template void recv(MPI_Comm, int, std::span<float>);
template void recv(MPI_Comm, int, std::span<double>);
template void recv(MPI_Comm, int, std::span<std::int32_t>);

}  // namespace meshwright
