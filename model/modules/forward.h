// Where modules write what they compute, forward, as a piece: values and parameters by name, operations, and the collective
// that a change of layout over tp needs. Knows one rank; how many ranks share the work comes from the extents. What becomes
// of the values (kept, freed, computed again) is decided afterwards: model/lowering/differentiate.h.
//
// The residual stream is cut along the sequence over tp ("own" rows); inside attention and feed-forward the sequence is whole
// and heads and hidden channels are cut. The pairs of all-gather and reduce-scatter between the two come from the layouts.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/plan.h"
#include "model/program/layout.h"
#include "model/program/program.h"

namespace meshwright {

// What the pieces of a step have in common.
struct StepContext {
  const ProgramSet& set;
  std::int64_t width = 0;     // C
  bool train = true;          // false: nothing is dropped, neither channels nor tokens
  bool gradients = true;      // false: nothing is differentiated, the head leaves no gradient
  // Sizes of what is computed in parts (TrainingShape).
  std::int64_t attention_block = 128;                   // rows of a block of scores
  std::int64_t logit_elements = std::int64_t{1} << 26;  // of one chunk of logits, at most
};

class Forward {
 public:
  // `block`: parameters that param() finds; may be null.
  Forward(std::string name, const StepContext& context, const Block* block);

  // ---- extents on this rank ----
  std::int64_t width() const { return context_.width; }
  std::int64_t batch() const { return context_.set.step.microbatch; }  // sequences of the microbatch
  std::int64_t tokens() const { return context_.set.step.tokens; }     // of a sequence
  std::int64_t rows() const { return tokens() * batch(); }             // of whole sequences
  std::int64_t own_rows() const { return rows() / tp(); }              // of this rank's part
  int tp() const { return context_.set.mesh.tp; }
  DType compute() const { return context_.set.compute; }
  DType state() const { return context_.set.state; }
  double dropout(double p) const { return context_.train ? p : 0; }
  const StepContext& context() const { return context_; }

  // ---- tensors ----
  // A value that the piece computes.
  View value(std::string_view name, std::int64_t rows, std::int64_t cols) { return value(name, rows, cols, compute()); }
  View value(std::string_view name, std::int64_t rows, std::int64_t cols, DType dtype);
  // A tensor `offset` bytes into a frame that the caller provides.
  View at(Frame frame, std::string_view name, std::int64_t rows, std::int64_t cols, DType dtype,
          std::int64_t offset = 0);
  View metrics();
  // A parameter of the block (in the compute dtype, whole over dp) or its gradient, by the name that its module gave it (of
  // "layers.7.mla.down.kernel": "mla.down.kernel"), as a matrix: all dimensions but the last are rows.
  View param(std::string_view name);
  View grad(std::string_view name);
  bool has(std::string_view name) const;
  View param_if(std::string_view name) { return has(name) ? param(name) : View{}; }

  // ---- operations ----
  template <class... Ops>
  void add(Ops&&... ops) {
    (piece_.ops.emplace_back(std::forward<Ops>(ops)), ...);
  }
  // x NAME.kernel + NAME.bias (where there is one) into `out`.
  void linear(const View& x, const std::string& name, const View& out);

  // Of activations, rows (t, b): `from` to `to` over tp. With one tp rank the tensor itself.
  View reshard(const View& x, const Layout& from, const Layout& to, std::string_view name);
  // The whole sequence of what is cut along it, gathered once however often it is asked for.
  View whole(const View& own, std::string_view name);
  // This rank's part of the sequence of a sum of which every tp rank has a summand.
  View own_sum(const View& summand, std::string_view name);

  // ---- what recomputation is told ----
  // Values made from now on come from this part of the layer; what was said before is returned.
  std::optional<RecomputeKind> from(std::optional<RecomputeKind> part) { return std::exchange(part_, part); }

  // The piece, and by tensor the part that it comes from.
  Piece take() { return std::move(piece_); }
  std::vector<std::optional<RecomputeKind>> take_parts() { return std::move(parts_); }

 private:
  View declare(Tensor tensor, std::int64_t rows, std::int64_t cols);
  const ParameterPlacement* find(std::string_view name, const Unit** unit) const;
  View parameter_view(Frame frame, std::string_view name, DType dtype, std::string_view prefix);

  Piece piece_;
  const StepContext& context_;
  const Block* block_;
  std::map<std::pair<Frame, std::string>, TensorId, std::less<>> named_;
  std::map<TensorId, View> gathered_;
  std::optional<RecomputeKind> part_;
  std::vector<std::optional<RecomputeKind>> parts_;  // by tensor
};

}  // namespace meshwright
