#pragma once

#include <cstdint>

namespace meshwright::kernels {

template <class Real>
void fill(std::int64_t n, Real value, Real* out);

// out[i] = x[i] in the other type. Instantiated for every pair of float and double.
template <class To, class From>
void cast(std::int64_t n, const From* x, To* out);

// out[i] += x[i].
template <class Real>
void add(std::int64_t n, const Real* x, Real* out);

// x(r, c) += bias[c] for `rows` rows of n columns, leading dimension ld.
template <class Real>
void add_bias(std::int64_t rows, std::int64_t n, const Real* bias, Real* x, std::int64_t ld);

// out[q*n + c] = sum over rows of x(r, c), for every q < repeat, added to what is there if `accumulate`. rows
// may be 0. Summed in blocks (row_sums.h): the error does not grow with the rows.
template <class Real>
void column_sum(std::int64_t rows, std::int64_t n, const Real* x, std::int64_t ld, bool accumulate, std::int64_t repeat,
                Real* out);

// a = gelu(u) = u/2 * (1 + tanh(z)) = u * logistic(2z),  z = sqrt(2/pi) * (u + 0.044715 u^3).   In place
// allowed. Hendrycks & Gimpel 2016. float: error below 3e-7 * max(1, |a|); double: as std::exp. On the whole real
// line: u at +infinity, 0 (to 1e-36) at -infinity. NaN stays NaN.
template <class Real>
void gelu(std::int64_t n, const Real* u, Real* a);

// du = da * gelu'(u),  gelu'(u) = s + u * s * (1 - s) * 2z',  s = logistic(2z).   du may be da or u. On the whole real
// line: 1 at +infinity, 0 (to 1e-34) at -infinity. NaN stays NaN.
template <class Real>
void gelu_backward(std::int64_t n, const Real* u, const Real* da, Real* du);

// s = 1 / (1 + e^-x).   In place allowed.
template <class Real>
void sigmoid(std::int64_t n, const Real* x, Real* s);

// dx = ds * s * (1 - s), from the output s of sigmoid.   dx may be ds.
template <class Real>
void sigmoid_backward(std::int64_t n, const Real* s, const Real* ds, Real* dx);

}  // namespace meshwright::kernels
