// A backward in two parts, for schedules that put something between them.
#pragma once

#include <cstdint>

#include "model/program/program.h"

namespace meshwright {

// A backward in two parts: what leads to the gradient of its input (kD), and what leads to gradients of parameters only. One
// after the other they do what the backward does, and leave the same bits.
struct SplitBackward {
  Piece input, weights;
  std::int64_t stash_bytes = 0;  // what `input` leaves in kStash, `stash_begin` bytes into it, for `weights`
};
SplitBackward split(const Piece& backward, std::int64_t stash_begin);

}  // namespace meshwright
