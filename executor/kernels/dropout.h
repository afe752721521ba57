#pragma once

#include <cstdint>

#include "executor/kernels/bf16.h"

namespace meshwright::kernels {

// The dropout of one site in one step. An element is kept with probability 1 - p and then divided by 1 - p.
// Whether it is kept is a pure function of (seed, step, site, global element), the same in float and double
// and on every mesh.
struct Dropout {
  std::uint64_t seed = 0;
  std::uint32_t step = 0;
  std::uint32_t site = 0;  // which dropout of the model
  double p = 0;            // in [0, 1); with 0 nothing is drawn
};

// Which tokens the rows of a matrix are: row t*sequences + b is token position_offset + t of sequence
// sequence_index[b]. Their global number is sequence_index[b] * sequence_length + position_offset + t.
struct TokenRows {
  std::int64_t tokens = 0;           // of each sequence that are here
  std::int64_t sequences = 0;        // B
  std::int64_t sequence_length = 0;  // T, of the whole sequence
  std::int64_t position_offset = 0;
  const std::int64_t* sequence_index = nullptr;  // (B), global

  std::int64_t rows() const { return tokens * sequences; }
  std::int64_t global_token(std::int64_t t, std::int64_t b) const {
    return sequence_index[b] * sequence_length + position_offset + t;
  }
};

// out[i] = 0 if global element first + i is dropped, else 1 / (1 - p).
template <class Real>
void dropout_multipliers(const Dropout& dropout, std::int64_t first, std::int64_t n, Real* out);

// out = x + dropout(in + bias), x null: 0:  x, in and out are (rows, width) contiguous; bias is `bias_chunks` chunks of
// `width` that are summed (several, for the shared experts), or null. Element (row, c) is global element
// global_token * width + c. out may be x or in.
template <class T>
struct Residual {
  TokenRows rows;
  std::int64_t width = 0;
  Dropout dropout;
  const T* bias = nullptr;
  std::int64_t bias_chunks = 1;
};
template <class T>
void residual(const Residual<T>& residual, const T* x, const T* in, T* out);

// din = dropout's multipliers * dout, the gradient of `in`;  dbias = column sums of din, the same sums into
// every one of `bias_chunks` chunks, added to what is there if `accumulate_dbias`; not computed if dbias is
// null. din may be dout. (The gradient of x is dout itself.) Of `residual`, bias itself is not used.
template <class T>
void residual_backward(const Residual<T>& residual, const T* dout, T* din, Arithmetic<T>* dbias, bool accumulate_dbias);

}  // namespace meshwright::kernels
