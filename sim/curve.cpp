#include "sim/curve.h"

#include <algorithm>
#include <cassert>
#include <cmath>
#include <utility>

namespace meshwright {

Curve::Curve(std::vector<Point> points) : points_(std::move(points)) {
  assert(!points_.empty());
  assert(
      std::is_sorted(points_.begin(), points_.end(), [](const Point& a, const Point& b) { return a.size < b.size; }));
}

double Curve::at(double size) const {
  if (size <= points_.front().size) return points_.front().value;
  if (size >= points_.back().size) return points_.back().value;
  const auto above =
      std::upper_bound(points_.begin(), points_.end(), size, [](double x, const Point& p) { return x < p.size; });
  const Point &low = *(above - 1), &high = *above;
  const double share = std::log(size / low.size) / std::log(high.size / low.size);
  return low.value * std::pow(high.value / low.value, share);
}

}  // namespace meshwright
