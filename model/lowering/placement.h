// Where parameters lie: cut over tp, grouped into units that are gathered and reduced together over dp.
#pragma once

#include <vector>

#include "model/program/program.h"
#include "model/spec.h"

namespace meshwright {

// The parameters and blocks of a model on a mesh: set.parameters, and set.blocks in the order of the layers, then the
// embedding (its tables), then, where `mesh.pp` > 1, the head (the table again if it is tied, and what is the head's; with one
// stage the embedding's block holds these, too). The token table is its block's first unit, so that both copies lie alike.
// Blocks of equal layers are placed equally.
void place_parameters(const ModelSpec& model, ProgramSet& set);

// Indices in set.blocks of the first stage's and of the last stage's block outside the layers.
int embedding_block(const ProgramSet& set);
int head_block(const ProgramSet& set);

}  // namespace meshwright
