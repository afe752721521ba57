#include "model/modules/embedding.h"

namespace meshwright {

void Embedding::list(ParameterList& list) const {
  list.table("embedding.embedding", {vocab, list.width()}, ModuleKind::kEmbedding);
  if (positions > 0) list.table("embedding.positions", {positions, list.width()}, ModuleKind::kPositions);
}

void Embedding::forward(Forward& f, const View& tokens, const View& y) const {
  const double p = f.dropout(dropout);
  const View out = p > 0 ? f.value("embedded", y.rows, y.cols) : y;
  f.add(Embed{.table = f.param("embedding.embedding"),
              .tokens = tokens,
              .positions = f.param_if("embedding.positions"),
              .out = out,
              .scale = scale,
              .batch = f.batch(),
              .padding = padding});
  if (p > 0) f.add(Residual{.in = out, .out = y, .batch = f.batch(), .dropout = p, .site = DropoutSite::kEmbedding});
}

}  // namespace meshwright
