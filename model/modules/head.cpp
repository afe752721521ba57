#include "model/modules/head.h"

#include <algorithm>
#include <string>

namespace meshwright {
void Head::list(ParameterList& list, std::int64_t vocab) const {
  if (norm) norm->list(list, "embedding.norm", list.width(), ModuleKind::kFinalNorm);
  if (!tied) list.transposed_kernel("head.kernel", {vocab, list.width()}, ModuleKind::kHead);
  if (bias) list.constant("head.bias", {1, vocab}, 0, ModuleKind::kHead);
}

void Head::forward(Forward& f, std::int64_t vocab, const View& x) const {
  const std::int64_t rows = f.own_rows();
  const View targets = f.at(Frame::kTokens, "targets", rows, 1, DType::kI32, align_up(rows * size_of(DType::kI32)));
  const View h = norm ? norm->forward(f, x, "embedding.norm", "h") : x;
  const std::int64_t chunk = std::min(rows, std::max<std::int64_t>(16, f.context().logit_elements / vocab / 16 * 16));
  const std::string table = tied ? "embedding.embedding" : "head.kernel";
  const bool gradients = f.context().gradients;
  f.add(LmHead{.x = h,
               .table = f.param(table),
               .targets = targets,
               .dx = gradients ? f.value("dh", rows, f.width()) : View{},
               .dtable = gradients ? f.grad(table) : View{},
               .logits = f.value("logits", chunk, vocab),
               .metrics = f.metrics(),
               .bias = f.param_if("head.bias"),
               .dbias = bias && gradients ? f.grad("head.bias") : View{},
               .scale = 1.0 / static_cast<double>(f.context().set.step.sequences * f.context().set.step.tokens)});
}

}  // namespace meshwright
