#include "executor/kernels/rope.h"

#include <cmath>

#include "model/program/check.h"

namespace meshwright::kernels {

template <class Real>
RopeTable<Real>::RopeTable(const RopeSpec& spec, std::int64_t width, std::int64_t positions)
    : spec_(spec), width_(width), positions_(positions) {
  check(width > 0 && width % 2 == 0 && positions >= 0, "rope: {} positions of width {}", positions, width);
  const std::int64_t pairs = width / 2;
  cosines_.resize(positions * pairs);
  sines_.resize(positions * pairs);
  const std::vector<double> frequencies = rope_frequencies(spec, width);
  for (std::int64_t i = 0; i < pairs; ++i) {
    for (std::int64_t tau = 1; tau <= positions; ++tau) {
      const double angle = static_cast<double>(tau) * frequencies[static_cast<std::size_t>(i)];
      cosines_[(tau - 1) * pairs + i] = static_cast<Real>(spec.attention_factor * std::cos(angle));
      sines_[(tau - 1) * pairs + i] = static_cast<Real>(spec.attention_factor * std::sin(angle));
    }
  }
}

namespace {

template <class T, class Real>
void rotate_adjacent(std::int64_t pairs, const Real* cosines, const Real* sines, Real sign, T* x) {
  for (std::int64_t i = 0; i < pairs; ++i) {
    const Real even = x[2 * i], odd = x[2 * i + 1], sine = sign * sines[i];
    x[2 * i] = even * cosines[i] - odd * sine;
    x[2 * i + 1] = odd * cosines[i] + even * sine;
  }
}

template <class T, class Real>
void rotate_halves(std::int64_t pairs, const Real* __restrict cosines, const Real* __restrict sines, Real sign,
                   T* __restrict low, T* __restrict high) {
  for (std::int64_t i = 0; i < pairs; ++i) {
    const Real a = low[i], b = high[i], sine = sign * sines[i];
    low[i] = a * cosines[i] - b * sine;
    high[i] = b * cosines[i] + a * sine;
  }
}

}  // namespace

template <class T>
void rope(const RopeTable<Arithmetic<T>>& table, const RopeRows& rows, bool inverse, T* x) {
  using Real = Arithmetic<T>;
  const std::int64_t pairs = table.width() / 2;
  check(rows.position_offset >= 0 && rows.position_offset + rows.tokens <= table.positions(),
        "rope: {} positions from {} in a table of {}", rows.tokens, rows.position_offset, table.positions());
  check(rows.head_width >= table.width() && rows.ld >= (rows.heads - 1) * rows.head_width + table.width(),
        "rope: {} heads of {} in rows of {}", rows.heads, rows.head_width, rows.ld);
  const bool halves = table.spec().pairing == RopePairing::kHalf;
  const Real sign = inverse ? Real(-1) : Real(1);
  for (std::int64_t t = 0; t < rows.tokens; ++t) {
    const Real* cosines = table.cosines(rows.position_offset + t + 1);
    const Real* sines = table.sines(rows.position_offset + t + 1);
    for (std::int64_t b = 0; b < rows.sequences; ++b) {
      T* head = x + (t * rows.sequences + b) * rows.ld;
      for (std::int64_t h = 0; h < rows.heads; ++h, head += rows.head_width) {
        if (halves)
          rotate_halves(pairs, cosines, sines, sign, head, head + pairs);
        else
          rotate_adjacent(pairs, cosines, sines, sign, head);
      }
    }
  }
}

template class RopeTable<float>;
template class RopeTable<double>;
template void rope<float>(const RopeTable<float>&, const RopeRows&, bool, float*);
template void rope<double>(const RopeTable<double>&, const RopeRows&, bool, double*);
template void rope<Bf16>(const RopeTable<float>&, const RopeRows&, bool, Bf16*);

}  // namespace meshwright::kernels
