#include "model/modules/forward.h"

#include <stdexcept>

#include "model/program/check.h"

namespace meshwright {
namespace {

const Layout kWhole = Layout::replicate(), kSequence = Layout::shard(0), kSummand = Layout::partial();

}  // namespace

Forward::Forward(std::string name, const StepContext& context, const Block* block) : context_(context), block_(block) {
  piece_.name = std::move(name);
}

View Forward::declare(Tensor tensor, std::int64_t rows, std::int64_t cols) {
  piece_.tensors.push_back(std::move(tensor));
  parts_.push_back(part_);
  return {static_cast<TensorId>(piece_.tensors.size()) - 1, rows, cols, cols, 0};
}

View Forward::value(std::string_view name, std::int64_t rows, std::int64_t cols, DType dtype) {
  return declare({std::string(name), {rows, cols}, dtype, Frame::kWorkspace, 0}, rows, cols);
}

View Forward::at(Frame frame, std::string_view name, std::int64_t rows, std::int64_t cols, DType dtype,
                 std::int64_t offset) {
  const auto key = std::pair(frame, std::string(name));
  if (const auto it = named_.find(key); it != named_.end()) return {it->second, rows, cols, cols, 0};
  const View v = declare({std::string(name), {rows, cols}, dtype, frame, offset}, rows, cols);
  named_.emplace(key, v.tensor);
  return v;
}

View Forward::metrics() { return at(Frame::kMetrics, "metrics", 1, kLoadFirst + context_.set.experts, DType::kF64); }

const ParameterPlacement* Forward::find(std::string_view name, const Unit** in) const {
  const std::string whole_name = (block_->layer >= 0 ? block_->name + "." : "") + std::string(name);
  for (const Unit& unit : block_->units)
    for (const ParameterPlacement& p : unit.parameters) {
      if (context_.set.parameters()[static_cast<std::size_t>(p.parameter)].name != whole_name) continue;
      *in = &unit;
      return &p;
    }
  return nullptr;
}

View Forward::parameter_view(Frame frame, std::string_view name, DType dtype, std::string_view prefix) {
  const Unit* unit = nullptr;
  const ParameterPlacement* p = find(name, &unit);
  check(p, "piece {}: no parameter {}", piece_.name, name);
  const std::int64_t cols = p->local_shape.back();
  return at(frame, std::string(prefix) + std::string(name), elements(p->local_shape) / cols, cols, dtype,
            (unit->offset + p->offset) * size_of(dtype));
}

View Forward::param(std::string_view name) { return parameter_view(Frame::kWeights, name, compute(), ""); }
View Forward::grad(std::string_view name) { return parameter_view(Frame::kGrads, name, state(), "d."); }
bool Forward::has(std::string_view name) const {
  const Unit* unit = nullptr;
  return find(name, &unit) != nullptr;
}

void Forward::linear(const View& x, const std::string& name, const View& out) {
  add(Gemm{.a = x, .b = param(name + ".kernel"), .c = out, .bias = param_if(name + ".bias")});
}

View Forward::reshard(const View& x, const Layout& from, const Layout& to, std::string_view name) {
  const auto kind = meshwright::reshard(from, to);
  if (!kind || tp() == 1) return x;
  const DType dtype = piece_.tensors[static_cast<std::size_t>(x.tensor)].dtype;
  Collective op{.kind = *kind, .group = Group::kTp, .src = x};
  if (*kind != CollectiveKind::kAllGather)
    op.scratch =
        value(std::string(name) + ".recv", 1,
              *kind == CollectiveKind::kAllReduce ? ring_scratch(x.rows * x.cols, tp(), dtype) : x.rows * x.cols / tp(),
              dtype);
  op.in_place = *kind == CollectiveKind::kAllReduce;
  op.dst = *kind == CollectiveKind::kAllReduce
               ? x
               : value(name, *kind == CollectiveKind::kAllGather ? x.rows * tp() : x.rows / tp(), x.cols, dtype);
  const View dst = op.dst;
  add(std::move(op));
  return dst;
}

View Forward::whole(const View& own, std::string_view name) {
  if (const auto it = gathered_.find(own.tensor); it != gathered_.end()) return it->second;
  return gathered_[own.tensor] = reshard(own, kSequence, kWhole, name);
}

View Forward::own_sum(const View& summand, std::string_view name) {
  return reshard(summand, kSummand, kSequence, name);
}

}  // namespace meshwright
