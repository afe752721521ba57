#include "executor/kernels/elementwise.h"

#include <algorithm>
#include <cmath>

#include "executor/kernels/row_sums.h"
#include "executor/kernels/vector_math.h"
#include "model/program/check.h"

namespace meshwright::kernels {

template <class T>
void fill(std::int64_t n, T value, T* out) {
  std::fill(out, out + n, value);
}

template <class To, class From>
void cast(std::int64_t n, const From* x, To* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<To>(x[i]);
}

template <class T, class Out>
void add(std::int64_t n, const T* x, Out* out) {
  for (std::int64_t i = 0; i < n; ++i) out[i] += x[i];
}

template <class T, class X>
void add_bias(std::int64_t rows, std::int64_t n, const T* bias, X* x, std::int64_t ld) {
  for (std::int64_t r = 0; r < rows; ++r) {
    X* row = x + r * ld;
    for (std::int64_t c = 0; c < n; ++c) row[c] += bias[c];
  }
}

template <class T>
void column_sum(std::int64_t rows, std::int64_t n, const T* x, std::int64_t ld, bool accumulate, std::int64_t repeat,
                Arithmetic<T>* out) {
  using Real = Arithmetic<T>;
  check(repeat >= 1, "column sum: repeated {} times", repeat);
  double totals[kSumColumns];
  for (std::int64_t first = 0; first < n; first += kSumColumns) {
    const std::int64_t columns = std::min(kSumColumns, n - first);
    sum_rows<Real>(
        rows, columns, [&](std::int64_t r, Real* sums) { add(columns, x + r * ld + first, sums); }, totals);
    for (std::int64_t q = 0; q < repeat; ++q) store_sums(columns, totals, accumulate, out + q * n + first);
  }
}

template <class T>
void sigmoid(std::int64_t n, const T* x, T* s) {
  for (std::int64_t i = 0; i < n; ++i) s[i] = logistic(Arithmetic<T>(x[i]));
}

template <class T>
void sigmoid_backward(std::int64_t n, const T* s, const T* ds, T* dx) {
  for (std::int64_t i = 0; i < n; ++i) dx[i] = ds[i] * s[i] * (Arithmetic<T>(1) - s[i]);
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
template void cast(std::int64_t, const float*, Bf16*);
template void cast(std::int64_t, const Bf16*, float*);
template void cast(std::int64_t, const Bf16*, Bf16*);

template void softmax(std::int64_t, std::int64_t, float*);
template void softmax(std::int64_t, std::int64_t, double*);
template void softmax_backward(std::int64_t, std::int64_t, const float*, float*);
template void softmax_backward(std::int64_t, std::int64_t, const double*, double*);

template void add(std::int64_t, const Bf16*, float*);
template void add_bias(std::int64_t, std::int64_t, const Bf16*, float*, std::int64_t);

#define MESHWRIGHT_INSTANTIATE(T)                                                                                      \
  template void fill(std::int64_t, T, T*);                                                                             \
  template void add(std::int64_t, const T*, T*);                                                                       \
  template void add_bias(std::int64_t, std::int64_t, const T*, T*, std::int64_t);                                      \
  template void column_sum<T>(std::int64_t, std::int64_t, const T*, std::int64_t, bool, std::int64_t, Arithmetic<T>*); \
  template void sigmoid(std::int64_t, const T*, T*);                                                                   \
  template void sigmoid_backward(std::int64_t, const T*, const T*, T*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
MESHWRIGHT_INSTANTIATE(Bf16)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
