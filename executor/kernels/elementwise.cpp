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

namespace {

constexpr double kTwiceRootTwoOverPi = 1.5957691216057307117597842397375;  // 2 * sqrt(2/pi)
constexpr double kCubic = 0.044715;

// From here on gelu(u) is u, its derivative 1, and at -u both are 0, to the last place: e^2z is e^603, which double can hold.
// What comes out at the end of this range stands for all that lies beyond, where u^3 and e^2z overflow and inf * 0 is NaN.
constexpr double kFlat = 20;

}  // namespace

template <class Real>
void gelu(std::int64_t n, const Real* u, Real* a) {
  for (std::int64_t i = 0; i < n; ++i) {
    const Real x = u[i] < Real(-kFlat) ? Real(-kFlat) : u[i];  // NaN stays NaN
    a[i] = x * logistic(Real(kTwiceRootTwoOverPi) * x * (Real(1) + Real(kCubic) * x * x));
  }
}

template <class Real>
void gelu_backward(std::int64_t n, const Real* u, const Real* da, Real* du) {
  for (std::int64_t i = 0; i < n; ++i) {
    const Real above = u[i] < Real(-kFlat) ? Real(-kFlat) : u[i];
    const Real x = above > Real(kFlat) ? Real(kFlat) : above;
    const Real e = fast_exp(-Real(kTwiceRootTwoOverPi) * x * (Real(1) + Real(kCubic) * x * x));
    const Real s = Real(1) / (Real(1) + e);  // so 1 - s = e * s, without cancellation
    const Real slope = Real(kTwiceRootTwoOverPi) * (Real(1) + Real(3 * kCubic) * x * x);
    du[i] = da[i] * (s + x * s * (e * s) * slope);
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

template void cast(std::int64_t, const float*, float*);
template void cast(std::int64_t, const double*, float*);
template void cast(std::int64_t, const float*, double*);
template void cast(std::int64_t, const double*, double*);

#define MESHWRIGHT_INSTANTIATE(Real)                                                                          \
  template void fill(std::int64_t, Real, Real*);                                                              \
  template void add(std::int64_t, const Real*, Real*);                                                        \
  template void add_bias(std::int64_t, std::int64_t, const Real*, Real*, std::int64_t);                       \
  template void column_sum(std::int64_t, std::int64_t, const Real*, std::int64_t, bool, std::int64_t, Real*); \
  template void gelu(std::int64_t, const Real*, Real*);                                                       \
  template void gelu_backward(std::int64_t, const Real*, const Real*, Real*);                                 \
  template void sigmoid(std::int64_t, const Real*, Real*);                                                    \
  template void sigmoid_backward(std::int64_t, const Real*, const Real*, Real*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
