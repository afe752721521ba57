// Where parameters lie: cut over tp, grouped into units that are gathered and reduced together over dp; and where a rank keeps
// their state.
#pragma once

#include <vector>

#include "model/program/program.h"
#include "model/spec.h"

namespace meshwright {

// The parameters and blocks of a model on a mesh, no stages: blocks in the order of the layers, then the
// embedding (its tables), then, where `mesh.pp` > 1, the head (the table again if it is tied, and what is the head's; with one
// stage the embedding's block holds these, too). The token table is its block's first unit, so that both copies lie alike.
// Blocks of equal layers are placed equally.
StateLayout place_parameters(const ModelSpec& model, const MeshShape& mesh);

// What the set says of all layers of experts together, but for the tokens of the balance loss.
void set_experts(const ModelSpec& model, ProgramSet& set);

// Where a rank of stage `stage`, of layers [first_layer, first_layer + layers), keeps the state of its blocks.
StageState place_state(const ProgramSet& set, int stage, int first_layer, int layers);

// Indices in set.blocks() of the first stage's and of the last stage's block outside the layers.
int embedding_block(const ProgramSet& set);
int head_block(const ProgramSet& set);

}  // namespace meshwright
