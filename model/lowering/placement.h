// Where parameters lie: cut over tp, grouped into units that are gathered and reduced together over dp.
#pragma once

#include <vector>

#include "model/program/program.h"
#include "model/spec.h"

namespace meshwright {

// The parameters and blocks of a model on a mesh: set.parameters, and set.blocks in the order of the layers, then the
// embedding (the token table), then, where `mesh.pp` > 1, the head (the table again, and the final norm; with one stage
// the embedding's block holds the final norm, too). Blocks of equal layers are placed equally.
void place_parameters(const ModelSpec& model, ProgramSet& set);

// Indices in set.blocks of the first stage's and of the last stage's block outside the layers.
int embedding_block(const ProgramSet& set);
int head_block(const ProgramSet& set);

}  // namespace meshwright
