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

// s = 1 / (1 + e^-x).   In place allowed.
template <class Real>
void sigmoid(std::int64_t n, const Real* x, Real* s);

// dx = ds * s * (1 - s), from the output s of sigmoid.   dx may be ds.
template <class Real>
void sigmoid_backward(std::int64_t n, const Real* s, const Real* ds, Real* dx);

// Each of `rows` rows of n becomes e^x / (sum of e^x), in place; no logit is too large.
template <class Real>
void softmax(std::int64_t rows, std::int64_t n, Real* x);

// d = y (d - sum over the row of y d), in place, from the output y of softmax.
template <class Real>
void softmax_backward(std::int64_t rows, std::int64_t n, const Real* y, Real* d);

}  // namespace meshwright::kernels
