// From what a part of the model computes to the pieces of a step: its forward, keeping what the backward needs, and its
// backward, derived from the rules of model/program/derivative.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/plan.h"
#include "model/program/program.h"

namespace meshwright {

struct Differentiated {
  Piece forward, backward;
  std::int64_t stash_bytes = 0;  // what `forward` leaves in kStash for `backward`, of one microbatch
};

// How a piece's gradients are left.
struct GradientFrames {
  DType state = DType::kF32;  // of parameters' gradients
  // true: they are added to what earlier microbatches left in kGrads; false: written anew, padding of `block` included.
  bool accumulate = true;
  const Block* block = nullptr;
};

// What the backward computes again. `parts`: by tensor of the computation, the part of the layer that it comes from; null:
// none comes from any.
struct StashPolicy {
  Recompute recompute{};
  const std::vector<std::optional<RecomputeKind>>* parts = nullptr;
};

// `computation` is a piece without Free whose workspace holds all that it computes, kX -> kXOut. The gradient of kXOut
// comes in kD, and that of kX leaves there.
//
// What rules ask for of the computation's values is kept in the stash, but for what the policy computes again: then the
// backward begins by running again the part of the forward that leads from what is kept to that. Either way what is cheap
// (is_cheap_again) is computed again where it is used.
Differentiated differentiate(const Piece& computation, const MeshShape& mesh, const GradientFrames& frames,
                             const StashPolicy& policy, const std::string& name);

// A backward in two parts: what leads to the gradient of its input (kD), and what leads to gradients of parameters only. One
// after the other they do what the backward does, and leave the same bits.
struct SplitBackward {
  Piece input, weights;
  std::int64_t stash_bytes = 0;  // what `input` leaves in kStash, `stash_begin` bytes into it, for `weights`
};
SplitBackward split(const Piece& backward, std::int64_t stash_begin);

// Forward and backward as one piece, for the end of the model, which leaves its own gradient (LmHead).
Piece differentiate_at_once(Piece computation, const MeshShape& mesh, const GradientFrames& frames);

}  // namespace meshwright
