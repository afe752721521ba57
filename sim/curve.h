// A measured quantity as a function of size, between the sizes that were measured.
#pragma once

#include <vector>

namespace meshwright {

// Straight lines between the points on doubly logarithmic axes: exact for powers of the size, which is what
// times and rates look like between two regimes (latency bound: constant; bandwidth bound: proportional).
// Below the first and above the last point the value stays what it is there.
// Precondition: at least one point, sizes rising, sizes and values positive.
class Curve {
 public:
  struct Point {
    double size = 0, value = 0;
    bool operator==(const Point&) const = default;
  };
  Curve() = default;
  explicit Curve(std::vector<Point> points);

  double at(double size) const;
  const std::vector<Point>& points() const { return points_; }

 private:
  std::vector<Point> points_;
};

}  // namespace meshwright
