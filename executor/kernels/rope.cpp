#include "executor/kernels/rope.h"

#include <cmath>

#include "model/program/check.h"

namespace meshwright::kernels {

template <class Real>
RopeTable<Real>::RopeTable(std::int64_t width, std::int64_t positions) : width_(width), positions_(positions) {
  check(width > 0 && width % 2 == 0 && positions >= 0, "rope: {} positions of width {}", positions, width);
  const std::int64_t pairs = width / 2;
  cosines_.resize(positions * pairs);
  sines_.resize(positions * pairs);
  for (std::int64_t i = 0; i < pairs; ++i) {
    const double frequency = std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(width));
    for (std::int64_t tau = 1; tau <= positions; ++tau) {
      cosines_[(tau - 1) * pairs + i] = static_cast<Real>(std::cos(tau * frequency));
      sines_[(tau - 1) * pairs + i] = static_cast<Real>(std::sin(tau * frequency));
    }
  }
}

template <class Real>
void rope(const RopeTable<Real>& table, const RopeRows& rows, bool inverse, Real* x) {
  const std::int64_t pairs = table.width() / 2;
  check(rows.position_offset >= 0 && rows.position_offset + rows.tokens <= table.positions(),
        "rope: {} positions from {} in a table of {}", rows.tokens, rows.position_offset, table.positions());
  check(rows.ld >= rows.heads * table.width(), "rope: rows overlap: {}", rows.ld);
  const Real sign = inverse ? Real(-1) : Real(1);
  for (std::int64_t t = 0; t < rows.tokens; ++t) {
    const Real* cosines = table.cosines(rows.position_offset + t + 1);
    const Real* sines = table.sines(rows.position_offset + t + 1);
    for (std::int64_t b = 0; b < rows.sequences; ++b) {
      Real* row = x + (t * rows.sequences + b) * rows.ld;
      for (std::int64_t h = 0; h < rows.heads; ++h, row += 2 * pairs) {
        for (std::int64_t i = 0; i < pairs; ++i) {
          const Real even = row[2 * i], odd = row[2 * i + 1], sine = sign * sines[i];
          row[2 * i] = even * cosines[i] - odd * sine;
          row[2 * i + 1] = odd * cosines[i] + even * sine;
        }
      }
    }
  }
}

template class RopeTable<float>;
template class RopeTable<double>;
template void rope(const RopeTable<float>&, const RopeRows&, bool, float*);
template void rope(const RopeTable<double>&, const RopeRows&, bool, double*);

}  // namespace meshwright::kernels
