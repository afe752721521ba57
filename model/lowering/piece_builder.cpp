#include "model/lowering/piece_builder.h"

#include <stdexcept>

#include "model/lowering/layout.h"
#include "model/program/check.h"

namespace meshwright {

PieceBuilder::PieceBuilder(std::string name, const ProgramSet& set, const Block* block)
    : set_(set), block_(block), tp_(set.mesh.tp), compute_(set.compute) {
  piece_.name = std::move(name);
}

View PieceBuilder::declare(Tensor tensor, std::int64_t rows, std::int64_t cols) {
  piece_.tensors.push_back(std::move(tensor));
  return {static_cast<TensorId>(piece_.tensors.size()) - 1, rows, cols, cols, 0};
}

View PieceBuilder::value(std::string_view name, std::int64_t rows, std::int64_t cols, DType dtype) {
  return declare({std::string(name), {rows, cols}, dtype, Frame::kWorkspace, 0}, rows, cols);
}

View PieceBuilder::at(Frame frame, std::string_view name, std::int64_t rows, std::int64_t cols, DType dtype,
                      std::int64_t offset) {
  const auto key = std::pair(frame, std::string(name));
  if (const auto it = named_.find(key); it != named_.end()) return {it->second, rows, cols, cols, 0};
  const View v = declare({std::string(name), {rows, cols}, dtype, frame, offset}, rows, cols);
  named_.emplace(key, v.tensor);
  return v;
}

View PieceBuilder::parameter_view(Frame frame, std::string_view name, DType dtype, std::string_view prefix) {
  for (const Unit& unit : block_->units)
    for (const ParameterPlacement& p : unit.parameters) {
      const std::string& full = set_.parameters[p.parameter].name;
      if (!full.ends_with(name) || (full.size() > name.size() && full[full.size() - name.size() - 1] != '.')) continue;
      const std::int64_t cols = p.local_shape.back();
      return at(frame, std::string(prefix) + std::string(name), elements(p.local_shape) / cols, cols, dtype,
                (unit.offset + p.offset) * size_of(dtype));
    }
  throw std::logic_error("piece " + piece_.name + ": no parameter " + std::string(name));
}

View PieceBuilder::param(std::string_view name) { return parameter_view(Frame::kWeights, name, compute_, ""); }
View PieceBuilder::grad(std::string_view name) { return parameter_view(Frame::kGrads, name, set_.state, "d."); }

View PieceBuilder::reshard(const View& x, const Layout& from, const Layout& to, std::string_view name) {
  const auto kind = meshwright::reshard(from, to);
  if (!kind || tp_ == 1) return x;
  check(*kind != CollectiveKind::kAllReduce, "piece {}: no computation sums in place", piece_.name);
  const bool gather = *kind == CollectiveKind::kAllGather;
  const DType dtype = piece_.tensors[x.tensor].dtype;
  Collective op{.kind = *kind, .group = Group::kTp, .src = x};
  op.dst = value(name, gather ? x.rows * tp_ : x.rows / tp_, x.cols, dtype);
  if (!gather) op.scratch = value(std::string(name) + ".recv", 1, ring_scratch(x.rows * x.cols, tp_), dtype);
  const View dst = op.dst;
  add(std::move(op));
  return dst;
}

}  // namespace meshwright
