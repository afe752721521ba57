#include "executor/kernels/elementwise.h"

#include <algorithm>
#include <cmath>

#include "executor/kernels/row_sums.h"
#include "executor/kernels/vector_math.h"
#include "model/program/check.h"

namespace meshwright::kernels {

template <class Real>
void fill(std::int64_t n, Real value, Real* out) {
  std::fill(out, out + n, value);
}

template <class To, class From>
void cast(std::int64_t n, const From* x, To* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<To>(x[i]);
}

template <class Real>
void add(std::int64_t n, const Real* x, Real* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] += x[i];
}

template <class Real>
void add_bias(std::int64_t rows, std::int64_t n, const Real* bias, Real* x, std::int64_t ld) {
  for (std::int64_t r = 0; r < rows; ++r) {
    Real* row = x + r * ld;
    for (std::int64_t c = 0; c < n; ++c) row[c] += bias[c];
  }
}

template <class Real>
void column_sum(std::int64_t rows, std::int64_t n, const Real* x, std::int64_t ld, bool accumulate, std::int64_t repeat,
                Real* out) {
  check(repeat >= 1, "column sum: repeated {} times", repeat);
  double totals[kSumColumns];
  for (std::int64_t first = 0; first < n; first += kSumColumns) {
    const std::int64_t columns = std::min(kSumColumns, n - first);
    sum_rows<Real>(
        rows, columns, [&](std::int64_t r, Real* sums) { add(columns, x + r * ld + first, sums); }, totals);
    for (std::int64_t q = 0; q < repeat; ++q) store_sums(columns, totals, accumulate, out + q * n + first);
  }
}

template <class Real>
void sigmoid(std::int64_t n, const Real* x, Real* s) {
  for (std::int64_t i = 0; i < n; ++i) s[i] = logistic(x[i]);
}

template <class Real>
void sigmoid_backward(std::int64_t n, const Real* s, const Real* ds, Real* dx) {
  for (std::int64_t i = 0; i < n; ++i) dx[i] = ds[i] * s[i] * (Real(1) - s[i]);
}

template <class Real>
void softmax(std::int64_t rows, std::int64_t n, Real* x) {
  for (std::int64_t r = 0; r < rows; ++r) {
    Real* row = x + r * n;
    const Real top = largest(n, row);
    for (std::int64_t c = 0; c < n; ++c) row[c] = fast_exp(row[c] - top);
    const Real inverse = Real(1) / sum(n, row);
    for (std::int64_t c = 0; c < n; ++c) row[c] *= inverse;
  }
}

template <class Real>
void softmax_backward(std::int64_t rows, std::int64_t n, const Real* y, Real* d) {
  for (std::int64_t r = 0; r < rows; ++r) {
    const Real* out = y + r * n;
    Real* row = d + r * n;
    const Real mean = dot(n, out, row);
    for (std::int64_t c = 0; c < n; ++c) row[c] = out[c] * (row[c] - mean);
  }
}

template void cast(std::int64_t, const float*, float*);
template void cast(std::int64_t, const double*, float*);
template void cast(std::int64_t, const float*, double*);
template void cast(std::int64_t, const double*, double*);

#define MESHWRIGHT_INSTANTIATE(Real)                                                                          \
  template void fill(std::int64_t, Real, Real*);                                                              \
  template void add(std::int64_t, const Real*, Real*);                                                        \
  template void add_bias(std::int64_t, std::int64_t, const Real*, Real*, std::int64_t);                       \
  template void column_sum(std::int64_t, std::int64_t, const Real*, std::int64_t, bool, std::int64_t, Real*); \
  template void sigmoid(std::int64_t, const Real*, Real*);                                                    \
  template void sigmoid_backward(std::int64_t, const Real*, const Real*, Real*);                              \
  template void softmax(std::int64_t, std::int64_t, Real*);                                                   \
  template void softmax_backward(std::int64_t, std::int64_t, const Real*, Real*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
