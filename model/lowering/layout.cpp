#include "model/lowering/layout.h"

#include <array>
#include <stdexcept>
#include <utility>

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

Layout tensor_parallel_layout(std::string_view parameter_name) {
  static constexpr std::array<std::pair<std::string_view, Layout>, 14> kCut{{
      {"mla.kvup.kernel", Layout::shard(1, 2)},  // keys of all heads, then values of all heads
      {"mla.kvup.bias", Layout::shard(0, 2)},
      {"mla.qup.kernel", Layout::shard(1)},
      {"mla.qup.bias", Layout::shard(0)},
      {"mla.qr.kernel", Layout::shard(1)},
      {"mla.qr.bias", Layout::shard(0)},
      {"mla.out.kernel", Layout::shard(0)},
      {"ffn.0.kernel", Layout::shard(1)},
      {"ffn.0.bias", Layout::shard(0)},
      {"ffn.1.kernel", Layout::shard(0)},
      {"moe.shared.kernel", Layout::shard(0)},
      {"moe.expert.0.kernel", Layout::shard(2)},
      {"moe.expert.0.bias", Layout::shard(1)},
      {"moe.expert.1.kernel", Layout::shard(1)},
  }};
  for (const auto& [ending, layout] : kCut)
    if (parameter_name.ends_with(ending)) return layout;
  return Layout::replicate();
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
