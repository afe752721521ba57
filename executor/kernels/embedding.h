#pragma once

#include <cstdint>

namespace meshwright::kernels {

// out row r = table row ids[r], for `rows` rows of `width`. Every id must be a row of the table.
template <class Real>
void embedding(std::int64_t rows, std::int64_t width, const std::int32_t* ids, const Real* table, Real* out);

// dtable row ids[r] += d row r, in the order of r, so the same input gives the same bits.
template <class Real>
void embedding_backward(std::int64_t rows, std::int64_t width, const std::int32_t* ids, const Real* d, Real* dtable);

}  // namespace meshwright::kernels
