#include "executor/comm/collectives.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <limits>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "executor/comm/byte_counter.h"
#include "executor/comm/message_tag.h"
#include "executor/kernels/progress.h"
#include "model/program/check.h"

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
template <>
MPI_Datatype mpi_type<Bf16>() {
  return MPI_UINT16_T;  // MPI only moves it
}

template <class T>
int mpi_count(std::span<T> data) {
  check(data.size() <= static_cast<std::size_t>(std::numeric_limits<int>::max()), "a message of {} elements",
        data.size());
  return static_cast<int>(data.size());
}

std::string kind_text(int tag) {
  const MessageKind kind = kind_of_tag(tag);
  return kind == MessageKind::kSend ? "send" : std::string(name(static_cast<CollectiveKind>(kind)));
}

// A rank of `comm` as the user knows it: by its number in the world.
int world_rank(MPI_Comm comm, int rank) {
  MPI_Group group = MPI_GROUP_NULL, world = MPI_GROUP_NULL;
  int found = rank;
  MPI_Comm_group(comm, &group);
  MPI_Comm_group(MPI_COMM_WORLD, &world);
  MPI_Group_translate_ranks(group, 1, &rank, world, &found);
  MPI_Group_free(&group);
  MPI_Group_free(&world);
  return found;
}

// Receives from one rank. The message is looked at first: Open MPI hangs where a long one meets a receive that is too
// short, and says nothing where one is shorter than expected.
template <class T>
void receive(MPI_Comm comm, int from, int tag, std::span<T> data) {
  MPI_Message message = MPI_MESSAGE_NULL;
  MPI_Status status;
  const double begin = MPI_Wtime();
  MPI_Mprobe(from, tag, comm, &message, &status);
  message_waits().add(MPI_Wtime() - begin);
  MPI_Count bytes = 0;
  MPI_Get_elements_x(&status, MPI_BYTE, &bytes);
  if (static_cast<std::size_t>(bytes) == data.size_bytes()) {
    MPI_Mrecv(data.data(), mpi_count(data), mpi_type<T>(), &message, MPI_STATUS_IGNORE);
    kernels::finished_block();
    return;
  }
  std::vector<std::byte> unwanted(static_cast<std::size_t>(bytes));  // so that its sender is not left waiting
  MPI_Mrecv(unwanted.data(), static_cast<int>(std::min<MPI_Count>(bytes, std::numeric_limits<int>::max())), MPI_BYTE,
            &message, MPI_STATUS_IGNORE);
  int own = 0;
  MPI_Comm_rank(comm, &own);
  const auto group = registered_group(comm);
  throw std::logic_error(
      fmt::format("{}{}: rank {} expected {} bytes from rank {}, which sent {}: they do not run the same program",
                  kind_text(tag), group ? fmt::format(" over {}", name(*group)) : "", world_rank(comm, own),
                  data.size_bytes(), world_rank(comm, from), bytes));
}

template <class T>
PendingSend send(MPI_Comm comm, int to, int tag, std::span<const T> data) {
  MPI_Request request = MPI_REQUEST_NULL;
  MPI_Isend(data.data(), mpi_count(data), mpi_type<T>(), to, tag, comm, &request);
  return PendingSend(request);
}

// Sends to the next rank of the ring and receives from the previous one, until both are done.
template <class T>
void pass_on(const Ring& ring, int tag, std::span<const T> out, std::span<T> in) {
  PendingSend sent = send(ring.comm, ring.next(), tag, out);
  receive(ring.comm, ring.previous(), tag, in);
  sent.wait();
}

template <class T>
void add_to(std::span<T> sum, std::span<const T> x) {
  T* s = sum.data();
  const T* a = x.data();
  for (std::size_t i = 0; i < sum.size(); ++i) s[i] += a[i];
}

template <class T>
void all_gather(const Ring& ring, int tag, std::span<const T> src, std::span<T> dst) {
  const std::size_t n = src.size();
  check(dst.size() == n * ring.p, "all-gather: {} elements of each of {} ranks, {} in all", n, ring.p, dst.size());
  const auto chunk = [&](int c) { return dst.subspan(ring.chunk(c) * n, n); };
  if (src.data() != chunk(ring.r).data() && n > 0) std::memcpy(chunk(ring.r).data(), src.data(), n * sizeof(T));
  for (int step = 0; step < ring.p - 1; ++step) {
    pass_on<T>(ring, tag, chunk(ring.r - step), chunk(ring.r - step - 1));
  }
}

// The partial sum of chunk c starts at rank c+1 and ends at rank c: in step s a rank passes on chunk r-1-s,
// and adds its own part to what it gets of chunk r-2-s. Each segment of a chunk goes all the way before the
// next one starts.
template <class T>
void reduce_scatter(const Ring& ring, int tag, std::span<const T> src, std::span<T> dst, std::span<T> scratch,
                    bool accumulate) {
  const std::size_t n = dst.size();
  check(src.size() == n * ring.p, "reduce-scatter: {} elements for each of {} ranks, {} in all", n, ring.p, src.size());
  const auto own = [&](int c, std::size_t first, std::size_t count) {
    return src.subspan(ring.chunk(c) * n + first, count);
  };
  const bool in_place = dst.data() == own(ring.r, 0, n).data();
  check(!(in_place && accumulate && n > 0), "reduce-scatter: in place, it can't accumulate");
  if (ring.p == 1) {
    if (accumulate) {
      add_to<T>(dst, src);
    } else if (!in_place && n > 0) {
      std::memcpy(dst.data(), src.data(), n * sizeof(T));
    }
    return;
  }

  const std::size_t buffers = ring.p == 2 ? 1 : 2;
  const std::size_t needed = std::min(n, buffers * (kSegmentBytes / sizeof(T)));
  check(scratch.size() >= needed, "reduce-scatter: {} elements of scratch, {} are needed", scratch.size(), needed);
  std::array<T, 2> tiny;
  if (scratch.size() < tiny.size()) scratch = tiny;  // a chunk of one element: more than two ranks need two buffers
  const std::size_t longest = std::min(scratch.size() / buffers, kSegmentBytes / sizeof(T));
  for (std::size_t first = 0; first < n; first += longest) {
    const std::size_t count = std::min(longest, n - first);
    std::span<T> sum = scratch.subspan(0, count);                              // what was received
    std::span<T> other = ring.p == 2 ? sum : scratch.subspan(longest, count);  // what is passed on
    pass_on<T>(ring, tag, own(ring.r - 1, first, count), sum);
    for (int step = 1; step < ring.p - 1; ++step) {
      add_to<T>(sum, own(ring.r - 1 - step, first, count));
      std::swap(sum, other);
      pass_on<T>(ring, tag, other, sum);
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

MessageWaits& message_waits() {
  thread_local MessageWaits waits;
  return waits;
}

template <class T>
void ring_all_gather(MPI_Comm comm, std::span<const T> src, std::span<T> dst) {
  all_gather<T>(Ring(comm), next_collective_tag(comm, MessageKind::kAllGather), src, dst);
}

template <class T>
void ring_reduce_scatter(MPI_Comm comm, std::span<const T> src, std::span<T> dst, std::span<T> scratch,
                         bool accumulate) {
  reduce_scatter<T>(Ring(comm), next_collective_tag(comm, MessageKind::kReduceScatter), src, dst, scratch, accumulate);
}

template <class T>
void ring_all_reduce(MPI_Comm comm, std::span<T> buffer, std::span<T> scratch) {
  const Ring ring(comm);
  check(buffer.size() % ring.p == 0, "all-reduce: {} elements on {} ranks", buffer.size(), ring.p);
  const int tag = next_collective_tag(comm, MessageKind::kAllReduce);
  const std::size_t n = buffer.size() / ring.p;
  const std::span<T> own = buffer.subspan(ring.r * n, n);
  reduce_scatter<T>(ring, tag, buffer, own, scratch, false);
  all_gather<T>(ring, tag, own, buffer);
}

template <class T>
void direct_all_reduce(MPI_Comm comm, std::span<T> buffer, std::span<T> scratch) {
  const Ring ring(comm);
  const std::size_t n = buffer.size();
  if (ring.p == 1 || n == 0) return;
  check(scratch.size() >= n * ring.p, "all-reduce: {} elements of scratch, {} are needed", scratch.size(), n * ring.p);
  const auto from = [&](int q) { return scratch.subspan(q * n, n); };
  const int tag = next_collective_tag(comm, MessageKind::kAllReduce);
  std::vector<PendingSend> sent;
  for (int step = 1; step < ring.p; ++step)  // starting behind oneself, so that not all send to rank 0 first
    sent.push_back(send<T>(comm, ring.chunk(ring.r + step), tag, buffer));
  std::memcpy(from(ring.r).data(), buffer.data(), n * sizeof(T));
  for (int q = 0; q < ring.p; ++q)
    if (q != ring.r) receive(comm, q, tag, from(q));
  for (PendingSend& s : sent) s.wait();
  std::memcpy(buffer.data(), from(0).data(), n * sizeof(T));
  for (int q = 1; q < ring.p; ++q) add_to<T>(buffer, from(q));
}

PendingSend::PendingSend(PendingSend&& other) noexcept : request_(std::exchange(other.request_, MPI_REQUEST_NULL)) {}

PendingSend& PendingSend::operator=(PendingSend&& other) noexcept {
  expect_done();
  request_ = std::exchange(other.request_, MPI_REQUEST_NULL);
  return *this;
}

PendingSend::~PendingSend() {
  if (std::uncaught_exceptions() == 0) expect_done();  // an exception ends the process, and the message with it
}

// The buffer would change under the message. There is no caller to catch an exception here.
void PendingSend::expect_done() const {
  if (request_ == MPI_REQUEST_NULL) return;
  std::fputs("internal error: a message that is under way was given up\n", stderr);
  std::abort();
}

void PendingSend::wait() { MPI_Wait(&request_, MPI_STATUS_IGNORE); }

bool PendingSend::done() {
  int flag = 0;
  MPI_Test(&request_, &flag, MPI_STATUS_IGNORE);
  return flag != 0;
}

template <class T>
PendingSend isend(MPI_Comm comm, int to, std::span<const T> data) {
  return send(comm, to, next_send_tag(comm, to), data);
}

template <class T>
void recv(MPI_Comm comm, int from, std::span<T> data) {
  receive(comm, from, next_recv_tag(comm, from), data);
}

template void ring_all_gather(MPI_Comm, std::span<const float>, std::span<float>);
template void ring_all_gather(MPI_Comm, std::span<const double>, std::span<double>);
template void ring_all_gather(MPI_Comm, std::span<const std::int32_t>, std::span<std::int32_t>);
template void ring_all_gather(MPI_Comm, std::span<const Bf16>, std::span<Bf16>);
template void ring_reduce_scatter(MPI_Comm, std::span<const float>, std::span<float>, std::span<float>, bool);
template void ring_reduce_scatter(MPI_Comm, std::span<const double>, std::span<double>, std::span<double>, bool);
template void ring_reduce_scatter(MPI_Comm, std::span<const Bf16>, std::span<Bf16>, std::span<Bf16>, bool);
template void ring_all_reduce(MPI_Comm, std::span<Bf16>, std::span<Bf16>);
template void ring_all_reduce(MPI_Comm, std::span<float>, std::span<float>);
template void ring_all_reduce(MPI_Comm, std::span<double>, std::span<double>);
template void direct_all_reduce(MPI_Comm, std::span<float>, std::span<float>);
template void direct_all_reduce(MPI_Comm, std::span<double>, std::span<double>);
template PendingSend isend(MPI_Comm, int, std::span<const float>);
template PendingSend isend(MPI_Comm, int, std::span<const double>);
template PendingSend isend(MPI_Comm, int, std::span<const std::int32_t>);
template PendingSend isend(MPI_Comm, int, std::span<const Bf16>);
template void recv(MPI_Comm, int, std::span<float>);
template void recv(MPI_Comm, int, std::span<double>);
template void recv(MPI_Comm, int, std::span<std::int32_t>);
template void recv(MPI_Comm, int, std::span<Bf16>);

}  // namespace meshwright
