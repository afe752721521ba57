#include "executor/kernels/lm_head.h"

#include <algorithm>
#include <cmath>
#include <type_traits>

#include "executor/kernels/elementwise.h"
#include "executor/kernels/gemm.h"
#include "executor/kernels/vector_math.h"
#include "model/program/check.h"

namespace meshwright::kernels {

namespace {

// Sum of e^(x - top).
template <class T>
double sum_of_exponentials(std::int64_t n, const T* x, Arithmetic<T> top) {
  constexpr std::int64_t kRun = 1024;  // exponentials made at a time, on the stack
  Arithmetic<T> exponentials[kRun];
  double total = 0;
  for (std::int64_t first = 0; first < n; first += kRun) {
    const std::int64_t run = std::min(kRun, n - first);
    for (std::int64_t i = 0; i < run; ++i) exponentials[i] = fast_exp(x[first + i] - top);
    total += static_cast<double>(sum(run, exponentials));
  }
  return total;
}

}  // namespace

template <class T>
double cross_entropy(std::int64_t rows, std::int64_t classes, const std::int32_t* targets, const T* logits) {
  double loss = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    const T* row = logits + r * classes;
    const Arithmetic<T> top = largest(classes, row);
    const double total = sum_of_exponentials(classes, row, top);
    loss += std::log(total) + static_cast<double>(top) - static_cast<double>(row[targets[r]]);
  }
  return loss;
}

template <class T>
double cross_entropy_backward(std::int64_t rows, std::int64_t classes, const std::int32_t* targets, Arithmetic<T> scale,
                              T* logits) {
  using Real = Arithmetic<T>;
  constexpr bool kInPlace = std::is_same_v<T, Real>;  // exponentials can wait where the logits were, not rounded
  double loss = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    T* row = logits + r * classes;
    const Real top = largest(classes, row);
    const double target = static_cast<Real>(row[targets[r]]);
    double total = 0;
    if constexpr (kInPlace) {
      for (std::int64_t v = 0; v < classes; ++v) row[v] = fast_exp(row[v] - top);
      total = sum(classes, row);
    } else {
      total = sum_of_exponentials(classes, row, top);
    }
    loss += std::log(total) + static_cast<double>(top) - target;
    const Real factor = static_cast<Real>(static_cast<double>(scale) / total);
    if constexpr (kInPlace) {
      for (std::int64_t v = 0; v < classes; ++v) row[v] *= factor;
      row[targets[r]] -= scale;
    } else {
      const Real of_target = fast_exp(static_cast<Real>(target) - top) * factor - scale;
      for (std::int64_t v = 0; v < classes; ++v) row[v] = fast_exp(row[v] - top) * factor;
      row[targets[r]] = of_target;
    }
  }
  return loss;
}

std::int64_t lm_head_scratch(std::int64_t rows, std::int64_t vocabulary, std::int64_t chunk) {
  return std::min(chunk, rows) * vocabulary;
}

template <class T>
LmHeadResult lm_head(const LmHead<T>& head) {
  using Real = Arithmetic<T>;
  check(head.chunk >= 1, "head: chunks of {} rows", head.chunk);
  const std::int64_t C = head.width, V = head.vocabulary;
  T* logits = head.scratch;
  LmHeadResult result;
  for (std::int64_t first = 0; first < head.rows; first += head.chunk) {
    const std::int64_t rows = std::min(head.chunk, head.rows - first);
    const T* x = head.x + first * C;
    gemm<T>(Transpose::kNo, Transpose::kYes, rows, V, C, Real(1), x, C, head.table, C, Real(0), logits, V);
    if (head.bias) add_bias(rows, V, head.bias, logits, V);
    if (head.on_logits) (*head.on_logits)(first, rows, logits);
    if (head.sum_logits) {
      for (std::int64_t i = 0; i < rows * V; ++i) {
        const double logit = static_cast<Real>(logits[i]);
        result.logit_sum += logit;
        result.logit_square_sum += logit * logit;
      }
    }
    if (!head.dx) {
      result.loss += cross_entropy(rows, V, head.targets + first, logits);
      continue;
    }
    result.loss += cross_entropy_backward(rows, V, head.targets + first, head.loss_scale, logits);
    gemm<T>(Transpose::kNo, Transpose::kNo, rows, C, V, Real(1), logits, V, head.table, C, Real(0), head.dx + first * C,
            C);
    mixed_gemm<T, T, Real>(Transpose::kYes, Transpose::kNo, V, C, rows, Real(1), logits, V, x, C,
                           Real(first > 0 || head.accumulate_dtable ? 1 : 0), head.dtable, C);
    if (head.dbias) column_sum<T>(rows, V, logits, V, first > 0 || head.accumulate_dtable, 1, head.dbias);
  }
  return result;
}

#define MESHWRIGHT_INSTANTIATE(T)                                                                                \
  template double cross_entropy<T>(std::int64_t, std::int64_t, const std::int32_t*, const T*);                   \
  template double cross_entropy_backward<T>(std::int64_t, std::int64_t, const std::int32_t*, Arithmetic<T>, T*); \
  template LmHeadResult lm_head<T>(const LmHead<T>&);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
MESHWRIGHT_INSTANTIATE(Bf16)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
