// One stage's Program: its arena, chunks and slots.
#pragma once

#include "model/lowering/step_pieces.h"

namespace meshwright {

// Appends stage `stage` (layers first_layer .. first_layer + layers) to pieces.set.stages; the layout has its state. Stages in
// order.
void write_stage(StepPieces& pieces, int stage, int first_layer, int layers);

}  // namespace meshwright
