#include "model/modules/experts.h"

#include <algorithm>
#include <cmath>

#include "model/program/check.h"

namespace meshwright {
namespace {

// This rank's part of the columns of a gathered row.
View own_columns(const Forward& f, View v) {
  if (f.tp() == 1) return v;
  v.cols = f.width() / f.tp();
  v.own_cols = true;
  return v;
}

}  // namespace

Experts Experts::reduced(std::int64_t most) const {
  Experts small = *this;
  small.hidden = std::min(hidden, most);
  if (auto* gated_shared = std::get_if<GatedShared>(&small.shared))
    gated_shared->hidden = std::min(gated_shared->hidden, most);
  return small;
}

std::int64_t Experts::capacity(std::int64_t tokens) const {
  if (capacity_factor == 0) return 0;
  const double rows = static_cast<double>(tokens * choices) * capacity_factor / static_cast<double>(experts);
  return rows >= static_cast<double>(tokens) ? tokens : static_cast<std::int64_t>(std::floor(rows));
}

void Experts::list(ParameterList& list) const {
  const std::int64_t C = list.width();
  const int parts = gated ? 2 : 1;
  if (const auto* linear = std::get_if<LinearShared>(&shared)) {
    if (linear->count > 0) list.linear("moe.shared", C, linear->count * C, true, ModuleKind::kShared, Layout::shard(0));
  } else {
    const std::int64_t width = std::get<GatedShared>(shared).hidden;
    list.linear("moe.shared.0", C, 2 * width, false, ModuleKind::kShared, Layout::shard(1, 2));
    list.linear("moe.shared.1", width, C, false, ModuleKind::kShared, Layout::shard(0), {}, true);
  }
  list.linear("moe.router", C, experts, bias, ModuleKind::kRouter);
  if (correction) list.buffer("moe.router.correction", {1, experts}, ModuleKind::kRouter);
  const auto of_experts = [&](const std::string& name, std::int64_t in, std::int64_t out, Layout kernel, Layout tp,
                              bool ends_branch) {
    list.kernel(name + ".kernel", {experts, in, out}, ModuleKind::kExperts, kernel, ends_branch);
    if (bias) list.constant(name + ".bias", {experts, out}, 0, ModuleKind::kExperts, tp);
  };
  of_experts("moe.expert.0", C, parts * hidden, Layout::shard(2, parts), Layout::shard(1, parts), false);
  of_experts("moe.expert.1", hidden, C, Layout::shard(1), {}, true);
}

View Experts::forward(Forward& f, const View& own) const {
  check(capacity_factor == 0 || !f.context().train || capacity(f.tokens()) > 0, "experts that accept no token");
  const RouteShape shape{f.tokens(), f.batch(), experts, choices, f.context().train ? capacity(f.tokens()) : 0};
  const View own_scores = f.value("scores.own", f.own_rows(), experts, f.state());
  f.linear(own, "moe.router", own_scores);
  if (score == Score::kSigmoid)
    f.add(Sigmoid{own_scores});
  else
    f.add(Softmax{own_scores});
  const View scores = f.whole(own_scores, "scores"), h = f.whole(own, "h");
  const View choice = f.value("choice", f.rows(), choices, DType::kI32),
             slot = f.value("slot", f.rows(), choices, DType::kI32),
             gate = f.value("gate", f.rows(), choices, f.state()), rows = f.value("rows", 1, experts, DType::kI32);
  const ProgramSet& set = f.context().set;
  const std::int64_t fraction_tokens = set.balance_tokens();
  f.add(Route{.scores = scores,
              .choice = choice,
              .slot = slot,
              .gate = gate,
              .rows = rows,
              .fraction = fraction_tokens > 0 ? f.at(Frame::kBalance, "fraction", 1, experts, f.state())
                                              : f.value("fraction", f.batch(), experts, f.state()),
              .metrics = f.metrics(),
              .shape = shape,
              .balance_gradient = set.balance_weight * set.balance_factor() / static_cast<double>(set.step.sequences),
              .bias = correction ? f.param("moe.router.correction") : View{},
              .rule = rule,
              .fraction_tokens = fraction_tokens});

  const View combined = f.value("combined", f.rows(), f.width());
  bool added = false;
  if (const auto* linear = std::get_if<LinearShared>(&shared)) {  // the chunks of their output summed
    for (std::int64_t i = 0; i < linear->count; ++i)
      f.add(Gemm{.a = own_columns(f, h),
                 .b = f.param("moe.shared.kernel").columns(i * f.width(), f.width()),
                 .c = combined,
                 .accumulate = i > 0});
    added = linear->count > 0;
  } else {
    const std::int64_t channels = std::get<GatedShared>(shared).hidden / f.tp();
    const View up = f.value("shared.hidden", f.rows(), 2 * channels),
               activated = f.value("shared.activated", f.rows(), channels);
    f.linear(h, "moe.shared.0", up);
    f.add(GatedActivation{.kind = activation, .in = up, .out = activated},
          Gemm{.a = activated, .b = f.param("moe.shared.1.kernel"), .c = combined});
    added = true;
  }
  const std::int64_t row_capacity = shape.row_capacity(), buffer = shape.buffer_rows(), channels = hidden / f.tp();
  const View in = f.value("expert.in", buffer, f.width()),
             up = f.value("hidden", buffer, gated ? 2 * channels : channels),
             activated = f.value("activated", buffer, channels);
  f.add(Dispatch{h, slot, in, shape});
  f.add(GroupedGemm{.a = in,
                    .b = f.param("moe.expert.0.kernel"),
                    .c = up,
                    .bias = f.param_if("moe.expert.0.bias"),
                    .rows = rows,
                    .experts = experts,
                    .capacity = row_capacity});
  if (gated)
    f.add(GatedActivation{activation, up, activated, rows, experts, row_capacity});
  else
    f.add(Activation{activation, up, activated, rows, experts, row_capacity});
  f.add(ExpertCombine{.a = activated,
                      .w = f.param("moe.expert.1.kernel"),
                      .choice = choice,
                      .slot = slot,
                      .gate = gate,
                      .rows = rows,
                      .bias = f.param_if("moe.expert.1.bias"),
                      .product = f.value("expert.out", buffer, f.width()),
                      .out = combined,
                      .shape = shape,
                      .bias_scale = 1.0 / f.tp(),
                      .dropout = f.dropout(dropout),
                      .accumulate = added});
  return combined;
}

View Experts::output_bias(Forward& f) const { return f.param_if("moe.shared.bias"); }
std::int64_t Experts::bias_chunks() const {
  const auto* linear = std::get_if<LinearShared>(&shared);
  return linear && linear->count > 0 ? linear->count : 1;
}

}  // namespace meshwright
