#pragma once

#include <cstdint>
#include <functional>

#include "executor/kernels/bf16.h"

namespace meshwright::kernels {

// Softmax cross-entropy of `rows` rows of `classes` logits, contiguous: returns the sum over rows of
// log(sum over v of e^logit_v) - logit_target. The sum over rows is in double. Leaves the logits as they are.
template <class T>
double cross_entropy(std::int64_t rows, std::int64_t classes, const std::int32_t* targets, const T* logits);

// The same sum, and the logits become its gradient times `scale`:  scale * (softmax(logits) -
// one_hot(target)).
template <class T>
double cross_entropy_backward(std::int64_t rows, std::int64_t classes, const std::int32_t* targets, Arithmetic<T> scale,
                              T* logits);

// Output head with a table shared with the embedding: logits = x table^T + bias, cross-entropy against targets;
// `chunk` rows at a time, so that the logits of all rows never exist together. FLOPs: 2 * rows * width *
// vocabulary forward only, 3 times that with gradients.
template <class T>
struct LmHead {
  std::int64_t rows = 0;
  std::int64_t width = 0;                 // C
  std::int64_t vocabulary = 0;            // V
  std::int64_t chunk = 0;                 // rows of a chunk, >= 1
  const T* x = nullptr;                   // (rows, C)
  const T* table = nullptr;               // (V, C)
  const T* bias = nullptr;                // (V), or none: 0
  const std::int32_t* targets = nullptr;  // (rows), in [0, V)
  T* scratch = nullptr;                   // lm_head_scratch() elements

  // Gradients of loss_scale * (sum of the losses); neither is computed if dx is null.
  Arithmetic<T> loss_scale = 1;
  T* dx = nullptr;                  // (rows, C), overwritten
  Arithmetic<T>* dtable = nullptr;  // (V, C)
  Arithmetic<T>* dbias = nullptr;   // (V), or none
  bool accumulate_dtable = true;    // added to dtable and dbias, or overwriting them (rows >= 1)

  // For tests and evaluation.
  bool sum_logits = false;
  // If not null, gets each chunk before it becomes gradients: number of its first row, its rows, its logits
  // (rows, V).
  const std::function<void(std::int64_t, std::int64_t, const T*)>* on_logits = nullptr;
};

struct LmHeadResult {
  double loss = 0;              // sum over the rows
  double logit_sum = 0;         // sum of all logits, if asked for
  double logit_square_sum = 0;  // and of their squares
};

// Elements: min(chunk, rows) * vocabulary.
std::int64_t lm_head_scratch(std::int64_t rows, std::int64_t vocabulary, std::int64_t chunk);

template <class T>
LmHeadResult lm_head(const LmHead<T>& head);

}  // namespace meshwright::kernels
