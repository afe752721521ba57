#include "executor/kernels/embedding.h"

#include <algorithm>

#include "executor/kernels/elementwise.h"

namespace meshwright::kernels {

template <class Real>
void embedding(const EmbeddingRows& rows, const Real* table, const Real* positions, double scale, Real* out) {
  const std::int64_t width = rows.width;
  for (std::int64_t r = 0; r < rows.rows; ++r) {
    Real* target = out + r * width;
    std::copy_n(table + rows.ids[r] * width, width, target);
    if (scale != 1)
      for (std::int64_t c = 0; c < width; ++c) target[c] *= static_cast<Real>(scale);
    if (positions) add(width, positions + (rows.position_offset + r / rows.sequences) * width, target);
  }
}

template <class Real>
void embedding_backward(const EmbeddingRows& rows, const Real* d, double scale, std::int64_t padding, Real* dtable,
                        Real* dpositions) {
  const std::int64_t width = rows.width;
  const Real factor = static_cast<Real>(scale);
  for (std::int64_t r = 0; r < rows.rows; ++r) {
    const Real* row = d + r * width;
    if (dpositions) add(width, row, dpositions + (rows.position_offset + r / rows.sequences) * width);
    if (rows.ids[r] == padding) continue;
    Real* target = dtable + rows.ids[r] * width;
    for (std::int64_t c = 0; c < width; ++c) target[c] += factor * row[c];
  }
}

#define MESHWRIGHT_INSTANTIATE(Real)                                                      \
  template void embedding(const EmbeddingRows&, const Real*, const Real*, double, Real*); \
  template void embedding_backward(const EmbeddingRows&, const Real*, double, std::int64_t, Real*, Real*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
