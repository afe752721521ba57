#include "executor/kernels/lm_head.h"

#include <algorithm>
#include <cmath>

#include "executor/kernels/elementwise.h"
#include "executor/kernels/gemm.h"
#include "executor/kernels/vector_math.h"
#include "model/program/check.h"

namespace meshwright::kernels {

template <class Real>
double cross_entropy(std::int64_t rows, std::int64_t classes, const std::int32_t* targets, const Real* logits) {
  constexpr std::int64_t kRun = 1024;  // exponentials made at a time, on the stack
  Real exponentials[kRun];
  double loss = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    const Real* row = logits + r * classes;
    const Real top = largest(classes, row);
    double total = 0;
    for (std::int64_t first = 0; first < classes; first += kRun) {
      const std::int64_t run = std::min(kRun, classes - first);
      for (std::int64_t i = 0; i < run; ++i) exponentials[i] = fast_exp(row[first + i] - top);
      total += static_cast<double>(sum(run, exponentials));
    }
    loss += std::log(total) + static_cast<double>(top) - static_cast<double>(row[targets[r]]);
  }
  return loss;
}

template <class Real>
double cross_entropy_backward(std::int64_t rows, std::int64_t classes, const std::int32_t* targets, Real scale,
                              Real* logits) {
  double loss = 0;
  for (std::int64_t r = 0; r < rows; ++r) {
    Real* row = logits + r * classes;
    const Real top = largest(classes, row);
    const double target = row[targets[r]];
    for (std::int64_t v = 0; v < classes; ++v) row[v] = fast_exp(row[v] - top);
    const double total = sum(classes, row);
    loss += std::log(total) + static_cast<double>(top) - target;
    const Real factor = static_cast<Real>(static_cast<double>(scale) / total);
    for (std::int64_t v = 0; v < classes; ++v) row[v] *= factor;
    row[targets[r]] -= scale;
  }
  return loss;
}

std::int64_t lm_head_scratch(std::int64_t rows, std::int64_t vocabulary, std::int64_t chunk) {
  return std::min(chunk, rows) * vocabulary;
}

template <class Real>
LmHeadResult lm_head(const LmHead<Real>& head) {
  check(head.chunk >= 1, "head: chunks of {} rows", head.chunk);
  const std::int64_t C = head.width, V = head.vocabulary;
  Real* logits = head.scratch;
  LmHeadResult result;
  for (std::int64_t first = 0; first < head.rows; first += head.chunk) {
    const std::int64_t rows = std::min(head.chunk, head.rows - first);
    const Real* x = head.x + first * C;
    gemm(Transpose::kNo, Transpose::kYes, rows, V, C, Real(1), x, C, head.table, C, Real(0), logits, V);
    if (head.bias) add_bias(rows, V, head.bias, logits, V);
    if (head.on_logits) (*head.on_logits)(first, rows, logits);
    if (head.sum_logits) {
      for (std::int64_t i = 0; i < rows * V; ++i) {
        const double logit = logits[i];
        result.logit_sum += logit;
        result.logit_square_sum += logit * logit;
      }
    }
    if (!head.dx) {
      result.loss += cross_entropy(rows, V, head.targets + first, logits);
      continue;
    }
    result.loss += cross_entropy_backward(rows, V, head.targets + first, head.loss_scale, logits);
    gemm(Transpose::kNo, Transpose::kNo, rows, C, V, Real(1), logits, V, head.table, C, Real(0), head.dx + first * C,
         C);
    gemm(Transpose::kYes, Transpose::kNo, V, C, rows, Real(1), logits, V, x, C,
         Real(first > 0 || head.accumulate_dtable ? 1 : 0), head.dtable, C);
    if (head.dbias) column_sum(rows, V, logits, V, first > 0 || head.accumulate_dtable, 1, head.dbias);
  }
  return result;
}

#define MESHWRIGHT_INSTANTIATE(Real)                                                                    \
  template double cross_entropy(std::int64_t, std::int64_t, const std::int32_t*, const Real*);          \
  template double cross_entropy_backward(std::int64_t, std::int64_t, const std::int32_t*, Real, Real*); \
  template LmHeadResult lm_head(const LmHead<Real>&);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
