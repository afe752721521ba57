// From what a part of the model computes to the pieces of a step: its forward, keeping what the backward needs, and its
// backward, derived from the rules of model/program/derivative.h.
#pragma once

#include <cstdint>
#include <string>

#include "model/lowering/stash_policy.h"
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

// `computation` is a piece without Free whose workspace holds all that it computes, kX -> kXOut. The gradient of kXOut
// comes in kD, and that of kX leaves there.
//
// What rules ask for of the computation's values is kept in the stash, but for what the policy computes again: then the
// backward begins by running again the part of the forward that leads from what is kept to that. Either way what is cheap
// (is_cheap_again) is computed again where it is used. Nothing is gathered twice.
Differentiated differentiate(const Piece& computation, const MeshShape& mesh, const GradientFrames& frames,
                             const StashPolicy& policy, const std::string& name);

// The computation alone, where nothing is differentiated: all that it computes lies in the workspace, and is freed after its
// last use.
Piece forward_alone(Piece computation, std::string name);

// Forward and backward as one piece, for the end of the model, which leaves its own gradient (LmHead).
Piece differentiate_at_once(Piece computation, const MeshShape& mesh, const GradientFrames& frames);

}  // namespace meshwright
