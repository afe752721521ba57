// The middle of a set of measurements.
#pragma once

#include <algorithm>
#include <cstddef>
#include <vector>

namespace meshwright {

// Of an even number of values the upper middle one. At least one value.
inline double median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

}  // namespace meshwright
