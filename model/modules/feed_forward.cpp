#include "model/modules/feed_forward.h"

#include <algorithm>

namespace meshwright {

FeedForward FeedForward::reduced(std::int64_t most) const {
  FeedForward small = *this;
  small.hidden = std::min(hidden, most);
  return small;
}

void FeedForward::list(ParameterList& list) const {
  const std::int64_t C = list.width();
  const int parts = gated ? 2 : 1;
  list.linear("ffn.0", C, parts * hidden, bias, ModuleKind::kFfn, Layout::shard(1, parts), Layout::shard(0, parts));
  list.linear("ffn.1", hidden, C, bias, ModuleKind::kFfn, Layout::shard(0), {}, true);
}

View FeedForward::forward(Forward& f, const View& own) const {
  const std::int64_t channels = hidden / f.tp();
  const View h = f.whole(own, "h");
  const View up = f.value("hidden", f.rows(), gated ? 2 * channels : channels),
             activated = f.value("activated", f.rows(), channels);
  f.linear(h, "ffn.0", up);
  if (gated)
    f.add(GatedActivation{.kind = activation, .in = up, .out = activated});
  else
    f.add(Activation{.kind = activation, .in = up, .out = activated});
  const View summand = f.value("projected", f.rows(), f.width());
  f.add(Gemm{.a = activated, .b = f.param("ffn.1.kernel"), .c = summand});
  return summand;
}

View FeedForward::output_bias(Forward& f) const { return f.param_if("ffn.1.bias"); }

}  // namespace meshwright
