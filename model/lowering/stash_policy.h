// Which of the values that a backward pass needs are kept for it, and which it computes again.
#pragma once

#include <optional>
#include <vector>

#include "model/plan.h"
#include "model/program/program.h"

namespace meshwright {

// What the backward computes again. `parts`: by tensor of the computation, the part of the layer that it comes from; null:
// none comes from any.
struct StashPolicy {
  Recompute recompute{};
  const std::vector<std::optional<RecomputeKind>>* parts = nullptr;
};

// Of the tensors that are `needed`, those that are computed again, by tensor of the computation. By Recompute::
//   kFull       all
//   kSelective  at most half of the bytes stay. What came over the network does; then, from that on which the operations that
//               write it spend the most FLOPs a byte of what they write, down, each value that still fits into the half.
//               Values that are as costly go in the order of the computation.
//   kinds       what comes from these parts of the layer
std::vector<bool> computed_again(const Piece& computation, const std::vector<bool>& needed, const StashPolicy& policy);

}  // namespace meshwright
