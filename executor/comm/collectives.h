// The algorithms that a Program names, over MPI_Isend and MPI_Irecv only, so that what a rank sends is what
// the algorithm says. All are blocking and collective over `comm`.
//
// Symbols. p: ranks of `comm`, r: this rank. Chunk c: the c-th of p equal parts of a buffer; sizes must be
// divisible by p (checked). n: bytes of the whole buffer. With p = 1 nothing is sent. T: float or double,
// and std::int32_t for what only moves data.
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

namespace meshwright {

// dst = the ranks' src, in rank order. src.size() * p == dst.size(). In place: src may be chunk r of dst
// itself. p-1 steps around the ring; each rank sends n(p-1)/p bytes, n = bytes of dst.
template <class T>
void ring_all_gather(MPI_Comm comm, std::span<const T> src, std::span<T> dst);

// dst = chunk r of the sum of the ranks' src; dst += it with `accumulate`. src.size() == dst.size() * p. src
// is only read. In place: dst may be chunk r of src itself (not with `accumulate`), and then only that chunk
// changes. The sum of chunk c runs around the ring: ((x[c+1] + x[c+2]) + ...) + x[c], ranks mod p. scratch:
// dst.size() elements (an empty one will do for p = 1). The buffer travels in segments of the whole scratch
// if p = 2 and of half of it if p > 2, at most kSegmentBytes, so that sums are made in cache.
// p-1 steps around the ring; each rank sends n(p-1)/p bytes, n = bytes of src.
template <class T>
void ring_reduce_scatter(MPI_Comm comm, std::span<const T> src, std::span<T> dst, std::span<T> scratch,
                         bool accumulate = false);

// buffer = the sum of the ranks' buffers, the same bits on all of them: reduce-scatter, then all-gather, in
// place. scratch: buffer.size() / p elements. Each rank sends 2n(p-1)/p bytes.
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

// Segments that stay in a core's L2 cache (1 MiB) until they are added: 64 MiB on 2 ranks in shared memory
// took 27 ms in segments of 256 KiB to 1 MiB, 34 ms in one message, 30 ms in segments of 64 KiB.
constexpr std::size_t kSegmentBytes = std::size_t{512} << 10;

}  // namespace meshwright
