#pragma once

#include <algorithm>
#include <cstdint>

// Sums of columns over any number of rows, without the error of one running sum. Internal to executor/kernels.
//
// Blocks of kSumRows rows are summed in Real, where all lanes of a vector work, and the blocks' sums in double. For float,
// |sum - exact| <= kSumRows * 2^-24 * (sum of |x|), whatever the number of rows: one running sum has rows * 2^-24. Blocks
// begin at row 0, so that the bits depend on the input and its number of rows alone.
namespace meshwright::kernels {

constexpr std::int64_t kSumRows = 64;      // of a block
constexpr std::int64_t kSumColumns = 256;  // that a block's sums are kept of at a time: they stay in L1

// totals[c] += sums[c], and sums[c] = 0.
template <class Real>
inline void add_block(std::int64_t columns, Real* __restrict sums, double* __restrict totals) {
  for (std::int64_t c = 0; c < columns; ++c) totals[c] += static_cast<double>(sums[c]);
  std::fill_n(sums, columns, Real(0));
}

// totals[c] = sum over r < rows of row r, for c < columns <= kSumColumns; add(r, sums) adds row r to sums, c by c.
template <class Real, class Add>
[[gnu::always_inline]] inline void sum_rows(std::int64_t rows, std::int64_t columns, Add add, double* totals) {
  Real sums[kSumColumns];
  std::fill_n(sums, columns, Real(0));
  std::fill_n(totals, columns, 0.0);
  for (std::int64_t first = 0; first < rows; first += kSumRows) {
    const std::int64_t end = std::min(rows, first + kSumRows);
    for (std::int64_t r = first; r < end; ++r) add(r, sums);
    add_block(columns, sums, totals);
  }
}

// out[c] = totals[c], or out[c] += totals[c], rounded once.
template <class Real>
inline void store_sums(std::int64_t columns, const double* __restrict totals, bool accumulate, Real* __restrict out) {
  if (accumulate) {
    for (std::int64_t c = 0; c < columns; ++c) out[c] = static_cast<Real>(static_cast<double>(out[c]) + totals[c]);
  } else {
    for (std::int64_t c = 0; c < columns; ++c) out[c] = static_cast<Real>(totals[c]);
  }
}

}  // namespace meshwright::kernels
