#include "model/program/layout.h"

#include <stdexcept>

namespace meshwright {

std::optional<CollectiveKind> reshard(const Layout& from, const Layout& to) {
  using Kind = Layout::Kind;
  if (from == to) return std::nullopt;
  if (to.kind == Kind::kPartial) throw std::logic_error("reshard: no collective leads to a partial sum");
  if (from.kind == Kind::kPartial)
    return to.kind == Kind::kShard ? CollectiveKind::kReduceScatter : CollectiveKind::kAllReduce;
  if (from.kind == Kind::kShard && to.kind == Kind::kReplicate) return CollectiveKind::kAllGather;
  if (from.kind == Kind::kReplicate) return std::nullopt;
  throw std::logic_error("reshard: from one cut to another is an all-to-all, which no layout here needs");
}

Shape local_shape(const Shape& shape, const Layout& layout, int members) {
  Shape local = shape;
  if (layout.kind == Layout::Kind::kShard) {
    if (local[layout.dim] % (static_cast<std::int64_t>(members) * layout.blocks) != 0)
      throw std::logic_error("local_shape: uneven cut of " + to_string(shape));
    local[layout.dim] /= members;
  }
  return local;
}

}  // namespace meshwright
