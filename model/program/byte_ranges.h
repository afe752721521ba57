// A set of bytes, as disjoint ranges.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>

namespace meshwright {

class ByteRanges {
 public:
  // Adds [begin, end). Ranges that touch become one.
  void add(std::int64_t begin, std::int64_t end) {
    if (begin >= end) return;
    auto it = ranges_.upper_bound(begin);
    if (it != ranges_.begin() && std::prev(it)->second >= begin) it = std::prev(it);
    while (it != ranges_.end() && it->first <= end) {
      begin = std::min(begin, it->first);
      end = std::max(end, it->second);
      it = ranges_.erase(it);
    }
    ranges_.emplace(begin, end);
  }
  void add(const ByteRanges& other, std::int64_t shift = 0) {
    for (const auto& [begin, end] : other.ranges_) add(begin + shift, end + shift);
  }

  // The first byte of [begin, end) that is not in the set.
  std::optional<std::int64_t> first_gap(std::int64_t begin, std::int64_t end) const {
    if (begin >= end) return std::nullopt;
    const auto it = ranges_.upper_bound(begin);
    if (it == ranges_.begin() || std::prev(it)->second <= begin) return begin;
    const std::int64_t covered_to = std::prev(it)->second;
    return covered_to >= end ? std::nullopt : std::optional(covered_to);
  }
  std::optional<std::int64_t> first_gap(const ByteRanges& wanted) const {
    for (const auto& [begin, end] : wanted.ranges_)
      if (const auto gap = first_gap(begin, end)) return gap;
    return std::nullopt;
  }
  bool intersects(std::int64_t begin, std::int64_t end) const {
    const auto it = ranges_.lower_bound(end);
    return begin < end && it != ranges_.begin() && std::prev(it)->second > begin;
  }

  bool empty() const { return ranges_.empty(); }
  std::int64_t begin() const { return empty() ? 0 : ranges_.begin()->first; }
  std::int64_t end() const { return empty() ? 0 : std::prev(ranges_.end())->second; }
  const std::map<std::int64_t, std::int64_t>& ranges() const { return ranges_; }  // begin to end, ascending

 private:
  std::map<std::int64_t, std::int64_t> ranges_;
};

}  // namespace meshwright
