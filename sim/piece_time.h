// What a piece of a program takes by itself: for who weighs pieces before there are stages to simulate.
#pragma once

#include <span>
#include <vector>

#include "model/program/program.h"
#include "model/program/units.h"
#include "sim/cost_model.h"

namespace meshwright {

struct PieceTime {
  Time busy = 0;    // from its first operation to its last, of a piece that computes or keeps others from computing
  Time beside = 0;  // the same, of a piece that only communicates while the device computes
};

// The times of these pieces on an idle device, by index of piece; 0 for all others. Their operations wait for each
// other as in a step (op.h, simulate.h). Precondition: the pieces meet no other stage.
std::vector<PieceTime> piece_times(const ProgramSet& set, std::span<const int> pieces, const CostModel& cost);

}  // namespace meshwright
