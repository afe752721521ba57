// What the verifier learns from a piece by reading its operations once: its faults, and what it does to the
// frames that its callers provide.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "model/program/byte_ranges.h"
#include "model/program/program.h"

namespace meshwright {

// Of one frame, in bytes from its begin; whole tensors.
struct FrameUse {
  ByteRanges needs;  // read before the piece has written them: someone must have, before
  ByteRanges writes;
  ByteRanges all;  // mentioned in any way; of kWorkspace: all of it
};

// A message to a neighbour along pp, or a collective among stages, in program order.
struct StageEvent {
  const Op* op = nullptr;
  std::int64_t bytes = 0;           // of the message, or of the collective's buffer
  Frame frame = Frame::kX;          // a message's tensor
  std::int64_t begin = 0, end = 0;  // and where it lies, in bytes from the frame's begin
};

struct PieceFacts {
  std::array<FrameUse, kFrames> frames;
  std::vector<StageEvent> events;
  std::vector<std::string> faults;
};

// The facts point into `piece`. Checked: views lie within their tensors; every element that is read was
// written before, unless its frame is the caller's to fill; workspace tensors are freed once, not used
// afterwards, and apart while they live; matrix products and collectives agree about extents, and operands
// about dtypes; collectives have company.
PieceFacts check_piece(const Piece& piece, const MeshShape& mesh);

}  // namespace meshwright
