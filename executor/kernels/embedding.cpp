#include "executor/kernels/embedding.h"

#include <algorithm>

#include "executor/kernels/elementwise.h"

namespace meshwright::kernels {

template <class T>
void embedding(const EmbeddingRows& rows, const T* table, const T* positions, double scale, T* out) {
  using Real = Arithmetic<T>;
  const std::int64_t width = rows.width;
  const Real factor = static_cast<Real>(scale);
  for (std::int64_t r = 0; r < rows.rows; ++r) {
    const T* from = table + rows.ids[r] * width;
    T* target = out + r * width;
    if (positions) {
      const T* position = positions + (rows.position_offset + r / rows.sequences) * width;
      for (std::int64_t c = 0; c < width; ++c) target[c] = factor * from[c] + position[c];
    } else if (scale != 1) {
      for (std::int64_t c = 0; c < width; ++c) target[c] = factor * from[c];
    } else {
      std::copy_n(from, width, target);
    }
  }
}

template <class T>
void embedding_backward(const EmbeddingRows& rows, const T* d, double scale, std::int64_t padding,
                        Arithmetic<T>* dtable, Arithmetic<T>* dpositions) {
  using Real = Arithmetic<T>;
  const std::int64_t width = rows.width;
  const Real factor = static_cast<Real>(scale);
  for (std::int64_t r = 0; r < rows.rows; ++r) {
    const T* row = d + r * width;
    if (dpositions) add(width, row, dpositions + (rows.position_offset + r / rows.sequences) * width);
    if (rows.ids[r] == padding) continue;
    Real* target = dtable + rows.ids[r] * width;
    for (std::int64_t c = 0; c < width; ++c) target[c] += factor * row[c];
  }
}

#define MESHWRIGHT_INSTANTIATE(T)                                                                           \
  template void embedding<T>(const EmbeddingRows&, const T*, const T*, double, T*);                         \
  template void embedding_backward<T>(const EmbeddingRows&, const T*, double, std::int64_t, Arithmetic<T>*, \
                                      Arithmetic<T>*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
MESHWRIGHT_INSTANTIATE(Bf16)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
