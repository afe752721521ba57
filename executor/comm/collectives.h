// The algorithms that a Program names, over MPI_Isend and MPI_Irecv only, so that what a rank sends is what
// the algorithm says. All are blocking and collective over `comm`.
//
// Symbols. p: ranks of `comm`, r: this rank. Chunk c: the c-th of p equal parts of a buffer; sizes must be
// divisible by p (checked). n: bytes of the whole buffer. With p = 1 nothing is sent. T: float, double or Bf16,
// of which two are added in float and the sum is rounded, and std::int32_t for what only moves data.
//
// Tags say which operation a message belongs to (executor/comm/message_tag.h). A message of another length than expected
// throws std::logic_error that names both ranks and both lengths: their programs differ.
//
// Determinism: sums have one order, given below, that depends on p alone; the same input gives the same bits.
// Buffers must not overlap unless a function says so. Nothing is allocated for large buffers: scratch is the
// caller's.
#pragma once

#include <mpi.h>

#include <cstddef>
#include <span>

#include "executor/kernels/bf16.h"
#include "model/program/layout.h"

namespace meshwright {

// dst = the ranks' src, in rank order. src.size() * p == dst.size(). In place: src may be chunk r of dst
// itself. p-1 steps around the ring; each rank sends n(p-1)/p bytes, n = bytes of dst.
template <class T>
void ring_all_gather(MPI_Comm comm, std::span<const T> src, std::span<T> dst);

// dst = chunk r of the sum of the ranks' src; dst += it with `accumulate`. src.size() == dst.size() * p. src
// is only read. In place: dst may be chunk r of src itself (not with `accumulate`), and then only that chunk
// changes. The sum of chunk c runs around the ring: ((x[c+1] + x[c+2]) + ...) + x[c], ranks mod p. scratch:
// dst.size() elements, or a segment of kSegmentBytes if p = 2 and two if p > 2 where that is less (an empty one will
// do for p = 1). The buffer travels in segments of the whole scratch if p = 2 and of half of it if p > 2, at most
// kSegmentBytes, so that sums are made in cache.
// p-1 steps around the ring; each rank sends n(p-1)/p bytes, n = bytes of src.
template <class T>
void ring_reduce_scatter(MPI_Comm comm, std::span<const T> src, std::span<T> dst, std::span<T> scratch,
                         bool accumulate = false);

// buffer = the sum of the ranks' buffers, the same bits on all of them: reduce-scatter, then all-gather, in
// place. scratch: as above, of buffer.size() / p elements. Each rank sends 2n(p-1)/p bytes.
template <class T>
void ring_all_reduce(MPI_Comm comm, std::span<T> buffer, std::span<T> scratch);

// buffer = the sum of the ranks' buffers in rank order, ((x[0] + x[1]) + ...) + x[p-1], so the same bits on
// all of them. For a few numbers: each rank sends its whole buffer to each other rank, n(p-1) bytes, in one
// step. Any size. scratch: buffer.size() * p elements.
template <class T>
void direct_all_reduce(MPI_Comm comm, std::span<T> buffer, std::span<T> scratch);

// A message under way. The buffer must stay as it is until wait() has returned. Must be waited for before it
// is destroyed, except by an exception (checked: the process aborts). Movable.
class PendingSend {
 public:
  PendingSend() = default;
  explicit PendingSend(MPI_Request request) : request_(request) {}
  PendingSend(PendingSend&& other) noexcept;
  PendingSend& operator=(PendingSend&& other) noexcept;
  ~PendingSend();

  void wait();                // returns at once if nothing is under way
  [[nodiscard]] bool done();  // without blocking; gives MPI a chance to make progress

 private:
  void expect_done() const;
  MPI_Request request_ = MPI_REQUEST_NULL;
};

// Point to point. Messages between two ranks of `comm` arrive in the order in which they were sent; the
// receiver's size must be the sender's (see below). The sender sends the bytes of `data`.
template <class T>
[[nodiscard]] PendingSend isend(MPI_Comm comm, int to, std::span<const T> data);
template <class T>
void recv(MPI_Comm comm, int from, std::span<T> data);

// Seconds that this thread waited until a message that it was to receive was there, since reset(): until the other rank had
// begun to send it. What comes after that is the message itself.
struct MessageWaits {
  double first = 0, all = 0;  // of the first message, of all
  bool any = false;

  void reset() { *this = {}; }
  void add(double seconds) {
    if (!any) first = seconds;
    any = true;
    all += seconds;
  }
};
MessageWaits& message_waits();

constexpr std::size_t kSegmentBytes = kRingSegmentBytes;  // which the Program's receive buffers are made for

}  // namespace meshwright
