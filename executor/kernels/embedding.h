#pragma once

#include <cstdint>

#include "executor/kernels/bf16.h"

namespace meshwright::kernels {

// Rows (t, b), row = t * sequences + b, of the tokens `ids`; every id must be a row of the table.
struct EmbeddingRows {
  std::int64_t rows = 0, width = 0;
  std::int64_t sequences = 1;
  std::int64_t position_offset = 0;  // of token t = 0 in its whole sequence
  const std::int32_t* ids = nullptr;
};

// out row r = scale * table row ids[r] + positions row position_offset + t. positions may be null: 0.
template <class T>
void embedding(const EmbeddingRows& rows, const T* table, const T* positions, double scale, T* out);

// dtable row ids[r] += scale * d row r, but for rows whose id is `padding`;  dpositions row position_offset + t += d row r,
// if dpositions is not null. In the order of r, so the same input gives the same bits.
template <class T>
void embedding_backward(const EmbeddingRows& rows, const T* d, double scale, std::int64_t padding,
                        Arithmetic<T>* dtable, Arithmetic<T>* dpositions);

}  // namespace meshwright::kernels
