// Pieces of what the model computes: forward as its modules write it, backward as the rules of operations derive it.
#pragma once

#include <string>

#include "model/lowering/differentiate.h"
#include "model/modules/forward.h"
#include "model/program/program.h"
#include "model/spec.h"

namespace meshwright {

// kX -> kXOut, and kD -> kD with gradients into kGrads. `accumulate`: gradients are added to what earlier microbatches left
// (FSDP 0 and 1), or written anew into a buffer that is reduced after each microbatch (FSDP 2 and 3).
Differentiated layer_pieces(const StepContext& context, const Layer& layer, const Block& block, Recompute recompute,
                            bool accumulate, const std::string& name);
// The forward alone, which keeps nothing: kX -> kXOut.
Piece layer_forward(const StepContext& context, const Layer& layer, const Block& block, const std::string& name);
// Token ids -> kXOut, and the gradient of the tables from kD.
Differentiated embedding_pieces(const StepContext& context, const ModelSpec& model, const Block& block);
Piece embedding_forward(const StepContext& context, const ModelSpec& model, const Block& block);
// Final norm, logits, loss and, where the context has gradients, these: kX -> kD.
Piece head_piece(const StepContext& context, const ModelSpec& model, const Block& block);

}  // namespace meshwright
