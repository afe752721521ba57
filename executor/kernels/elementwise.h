#pragma once

#include <cstdint>

#include "executor/kernels/bf16.h"

// T: what is stored, float, double or Bf16. Every kernel computes in Arithmetic<T>.
namespace meshwright::kernels {

template <class T>
void fill(std::int64_t n, T value, T* out);

// out[i] = x[i] in the other type. Instantiated for every pair of float and double, and of float and Bf16.
template <class To, class From>
void cast(std::int64_t n, const From* x, To* out);

// out[i] += x[i]. Out: T or Arithmetic<T>.
template <class T, class Out>
void add(std::int64_t n, const T* x, Out* out);

// x(r, c) += bias[c] for `rows` rows of n columns, leading dimension ld. X: T or Arithmetic<T>.
template <class T, class X>
void add_bias(std::int64_t rows, std::int64_t n, const T* bias, X* x, std::int64_t ld);

// out[q*n + c] = sum over rows of x(r, c), for every q < repeat, added to what is there if `accumulate`. rows
// may be 0. Summed in blocks (row_sums.h): the error does not grow with the rows.
template <class T>
void column_sum(std::int64_t rows, std::int64_t n, const T* x, std::int64_t ld, bool accumulate, std::int64_t repeat,
                Arithmetic<T>* out);

// s = 1 / (1 + e^-x).   In place allowed.
template <class T>
void sigmoid(std::int64_t n, const T* x, T* s);

// dx = ds * s * (1 - s), from the output s of sigmoid.   dx may be ds.
template <class T>
void sigmoid_backward(std::int64_t n, const T* s, const T* ds, T* dx);

// Each of `rows` rows of n becomes e^x / (sum of e^x), in place; no logit is too large. Real: float or double.
template <class Real>
void softmax(std::int64_t rows, std::int64_t n, Real* x);

// d = y (d - sum over the row of y d), in place, from the output y of softmax.
template <class Real>
void softmax_backward(std::int64_t rows, std::int64_t n, const Real* y, Real* d);

}  // namespace meshwright::kernels
