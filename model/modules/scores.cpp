#include "model/modules/scores.h"

#include <algorithm>

namespace meshwright {
void rotate(Forward& f, const View& x, std::int64_t heads, std::int64_t head_width, std::int64_t width,
            const RopeSpec& rope, bool own_part) {
  f.add(Rope{.x = x,
             .heads = heads,
             .head_width = head_width,
             .width = width,
             .batch = f.batch(),
             .spec = rope,
             .own_sequence_part = own_part});
}

View attend(Forward& f, const HeadInputs& in, AttentionShape shape, double dropout, std::string_view out_kernel) {
  shape.tokens = f.tokens();
  shape.batch = f.batch();
  shape.block = std::min(f.context().attention_block, f.tokens());
  const auto before = f.from(RecomputeKind::kAttentionCore);
  const View attended = f.value("attended", f.rows(), shape.heads * shape.value_dim);
  f.add(Attention{.q = in.q,
                  .k = in.k,
                  .v = in.v,
                  .qr = in.qr,
                  .kr = in.kr,
                  .out = attended,
                  .lse = f.value("lse", f.batch() * shape.heads, f.tokens(), f.state()),
                  .scratch = f.value("scores", shape.block, shape.block_columns(), f.state()),
                  .shape = shape,
                  .dropout = f.dropout(dropout)});
  f.from(before);
  const View summand = f.value("projected", f.rows(), f.width());
  f.add(Gemm{.a = attended, .b = f.param(out_kernel), .c = summand});
  return summand;
}

}  // namespace meshwright
