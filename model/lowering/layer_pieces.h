// What each part of the model computes on one rank, forward, and the pieces that follow from it. The whole of the model's
// mathematics that is distributed stands here and in layer_pieces.cpp, in the order in which it runs.
//
// The residual stream is cut along the sequence over tp; inside attention and feed-forward the sequence is whole and
// heads and hidden channels are cut. The pairs of all-gather and reduce-scatter between the two come from the layouts.
#pragma once

#include "model/lowering/differentiate.h"
#include "model/program/program.h"
#include "model/spec.h"

namespace meshwright {

// What the pieces of a step need to know beside the layer: extents on one rank.
struct PieceContext {
  const ProgramSet& set;
  std::int64_t width = 0;  // C
  std::int64_t vocab = 0;  // V
  double dropout = 0;      // 0 when not training
  double balance_weight = 0;
  bool train = true;
  // Gradients of a layer are added to what earlier microbatches left (FSDP 0 and 1), or written anew into a buffer that
  // is reduced after each microbatch (FSDP 2 and 3).
  bool accumulate_grads = true;

  std::int64_t batch() const { return set.step.microbatch; }      // B
  std::int64_t tokens() const { return set.step.tokens; }         // T
  std::int64_t rows() const { return tokens() * batch(); }        // of the whole sequence
  std::int64_t own_rows() const { return rows() / set.mesh.tp; }  // of this rank's part
};

// kX -> kXOut, and kD -> kD with gradients into kGrads.
Differentiated layer_pieces(const PieceContext& context, const LayerSpec& layer, const Block& block,
                            Recompute recompute, const std::string& name);
// Token ids -> kXOut, and the gradient of the table from kD.
Differentiated embedding_pieces(const PieceContext& context, const Block& block);
// Final norm, logits, loss and their gradient: kX -> kD.
Piece head(const PieceContext& context, const Block& block);

}  // namespace meshwright
