// Collectives follow from layouts: going from one layout of a tensor over a group to another is the collective.
// Nobody writes communication by hand.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>

#include "model/program/op.h"
#include "model/program/tensor.h"

namespace meshwright {

// partial -> replicate: all-reduce; partial -> shard: reduce-scatter; shard -> replicate: all-gather;
// equal layouts, and replicate -> shard (everyone drops what it doesn't keep): none. There is no way to kPartial.
std::optional<CollectiveKind> reshard(const Layout& from, const Layout& to);

// Elements of the receive buffer of a ring reduction of n elements over p members: chunks travel in segments that stay in a
// core's cache while they are added, one being received and, of more than two members, one being passed on. (64 MiB on 2
// ranks in shared memory took 27 ms in segments of 256 KiB to 1 MiB, 34 ms in one message, 30 ms in segments of 64 KiB.)
constexpr std::int64_t kRingSegmentBytes = std::int64_t{512} << 10;
constexpr std::int64_t ring_scratch(std::int64_t n, int members, DType dtype) {
  return std::min(n / members, (members > 2 ? 2 : 1) * kRingSegmentBytes / size_of(dtype));
}

// Shape of one rank's part of a tensor of `shape` in `layout` over a group of `members`.
Shape local_shape(const Shape& shape, const Layout& layout, int members);

// Calls f(local, whole, n) for the runs of elements that are contiguous in one member's part and in the whole tensor:
// where a run begins in each, and its length. In order of `local`.
template <class F>
void for_each_run(const Shape& shape, const Layout& layout, int members, int member, F&& f) {
  if (layout.kind != Layout::Kind::kShard || members == 1) {
    f(std::int64_t{0}, std::int64_t{0}, elements(shape));
    return;
  }
  std::int64_t outer = 1, inner = 1;
  for (int i = 0; i < layout.dim; ++i) outer *= shape[i];
  for (std::size_t i = layout.dim + 1; i < shape.size(); ++i) inner *= shape[i];
  const std::int64_t block = shape[layout.dim] / layout.blocks * inner, run = block / members;
  std::int64_t local = 0;
  for (std::int64_t b = 0; b < outer * layout.blocks; ++b, local += run) f(local, b * block + member * run, run);
}

}  // namespace meshwright
