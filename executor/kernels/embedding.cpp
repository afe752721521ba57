#include "executor/kernels/embedding.h"

#include <algorithm>

#include "executor/kernels/elementwise.h"

namespace meshwright::kernels {

template <class Real>
void embedding(std::int64_t rows, std::int64_t width, const std::int32_t* ids, const Real* table, Real* out) {
  for (std::int64_t r = 0; r < rows; ++r) std::copy_n(table + ids[r] * width, width, out + r * width);
}

template <class Real>
void embedding_backward(std::int64_t rows, std::int64_t width, const std::int32_t* ids, const Real* d, Real* dtable) {
  for (std::int64_t r = 0; r < rows; ++r) add(width, d + r * width, dtable + ids[r] * width);
}

#define MESHWRIGHT_INSTANTIATE(Real)                                                            \
  template void embedding(std::int64_t, std::int64_t, const std::int32_t*, const Real*, Real*); \
  template void embedding_backward(std::int64_t, std::int64_t, const std::int32_t*, const Real*, Real*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
