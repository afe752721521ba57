// Which element of a checkpoint's tensors is which element of our parameters: names and shapes are those that Hugging Face's
// save_pretrained writes (miniGPT's are flax's), while our kernels are (in, out), gate and up are one kernel, the experts of a
// layer are one tensor, and latent attention keeps what heads rotate apart from what they don't.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/program/tensor.h"
#include "model/spec.h"

namespace meshwright {

// A rectangle of a tensor that is seen as a matrix, row-major, with rows of `pitch` elements.
struct Rectangle {
  int tensor = 0;  // index
  std::int64_t row = 0, column = 0, pitch = 1;
};

// `rows` x `columns` elements of a checkpoint's tensor that are as many of one of our parameters, or, transposed, columns x
// rows of them.
struct WeightPiece {
  Rectangle ours, theirs;  // of WeightMap's parameters and tensors
  std::int64_t rows = 0, columns = 0;
  bool transposed = false;
};

struct CheckpointTensor {
  std::string name;
  Shape shape;
};

// Every element of every parameter, buffers included, is in one piece, and every element of every tensor.
struct WeightMap {
  std::vector<ParameterSpec> parameters;  // of the model, in its order
  std::vector<CheckpointTensor> tensors;
  std::vector<WeightPiece> pieces;
  // Tensors that a file may have besides: tables that are computed, a tied head, layers that are not built. "*" at either end
  // stands for anything.
  std::vector<std::string> skipped;
  std::string optional_prefix;  // some files leave it out before every name; empty: none do

  bool skips(const std::string& tensor) const;
};

// `family`: HuggingFaceModel's, whose model this is.
WeightMap weight_map(const std::string& family, const ModelSpec& model);

// Calls visit(i, j) with the index of an element of our parameter and of the same element of the tensor, for all of a piece,
// in the tensor's order.
template <class Visit>
void for_each_element(const WeightPiece& piece, Visit&& visit) {
  const std::int64_t by_row = piece.transposed ? 1 : piece.ours.pitch,
                     by_column = piece.transposed ? piece.ours.pitch : 1;
  const std::int64_t ours = piece.ours.row * piece.ours.pitch + piece.ours.column;
  for (std::int64_t r = 0; r < piece.rows; ++r) {
    const std::int64_t theirs = (piece.theirs.row + r) * piece.theirs.pitch + piece.theirs.column;
    for (std::int64_t c = 0; c < piece.columns; ++c) visit(ours + r * by_row + c * by_column, theirs + c);
  }
}

}  // namespace meshwright
