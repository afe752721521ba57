// Writes what a part of the model computes, forward, as a piece: declares tensors by frame, appends operations, and inserts
// the collective that a change of layout over tp needs. Knows one rank; how many ranks share the work comes from the extents
// it is given. What becomes of the values (kept, freed, computed again) is decided afterwards: differentiate.h.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <utility>

#include "model/program/program.h"

namespace meshwright {

class PieceBuilder {
 public:
  // `block`: parameters that param() and grad() find by name; may be null.
  PieceBuilder(std::string name, const ProgramSet& set, const Block* block);

  int tp() const { return tp_; }
  DType compute() const { return compute_; }

  // A value that the piece computes.
  View value(std::string_view name, std::int64_t rows, std::int64_t cols) { return value(name, rows, cols, compute_); }
  View value(std::string_view name, std::int64_t rows, std::int64_t cols, DType dtype);
  // A tensor `offset` bytes into a frame that the caller provides.
  View at(Frame frame, std::string_view name, std::int64_t rows, std::int64_t cols, DType dtype,
          std::int64_t offset = 0);
  // A parameter of the block (in the compute dtype, whole over dp) or its gradient, by the name after the block's
  // prefix ("mla.down.kernel"), as a matrix: all dimensions but the last are rows.
  View param(std::string_view name);
  View grad(std::string_view name);

  template <class... Ops>
  void add(Ops&&... ops) {
    (piece_.ops.emplace_back(std::forward<Ops>(ops)), ...);
  }

  // Of activations, rows (t, b): `from` to `to` over tp. With one tp rank the tensor itself.
  View reshard(const View& x, const Layout& from, const Layout& to, std::string_view name);

  Piece take() { return std::move(piece_); }

 private:
  View declare(Tensor tensor, std::int64_t rows, std::int64_t cols);
  View parameter_view(Frame frame, std::string_view name, DType dtype, std::string_view prefix);

  Piece piece_;
  const ProgramSet& set_;
  const Block* block_;
  int tp_;
  DType compute_;
  std::map<std::pair<Frame, std::string>, TensorId, std::less<>> named_;
};

constexpr std::int64_t align_up(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }

// Elements of the receive buffer of a ring reduction of n elements over p members.
constexpr std::int64_t ring_scratch(std::int64_t n, int members) { return n / members; }

}  // namespace meshwright
