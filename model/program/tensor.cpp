#include "model/program/tensor.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <functional>
#include <numeric>

namespace meshwright {

std::int64_t elements(const Shape& shape) {
  return std::accumulate(shape.begin(), shape.end(), std::int64_t{1}, std::multiplies<>());
}

std::string to_string(const Shape& shape) { return fmt::format("({})", fmt::join(shape, ", ")); }

std::string to_string(const Layout& layout) {
  switch (layout.kind) {
    case Layout::Kind::kReplicate:
      return "replicate";
    case Layout::Kind::kPartial:
      return "partial";
    case Layout::Kind::kShard:
      break;
  }
  return layout.blocks == 1 ? fmt::format("shard({})", layout.dim)
                            : fmt::format("shard({}, {} blocks)", layout.dim, layout.blocks);
}

}  // namespace meshwright
