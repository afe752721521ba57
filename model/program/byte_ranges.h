// A set of bytes, as disjoint ranges.
#pragma once

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <utility>

namespace meshwright {

class ByteRanges {
 public:
  // Adds [begin, end), and returns how many of its bytes are new. Ranges that touch become one.
  std::int64_t add(std::int64_t begin, std::int64_t end) {
    if (begin >= end) return 0;
    std::int64_t added = end - begin;
    const auto overlap = [wanted = std::pair(begin, end)](const auto& range) {
      return std::max<std::int64_t>(0, std::min(range.second, wanted.second) - std::max(range.first, wanted.first));
    };
    auto it = ranges_.upper_bound(begin);
    if (it != ranges_.begin() && std::prev(it)->second >= begin) it = std::prev(it);
    while (it != ranges_.end() && it->first <= end) {
      added -= overlap(*it);
      begin = std::min(begin, it->first);
      end = std::max(end, it->second);
      it = ranges_.erase(it);
    }
    ranges_.emplace(begin, end);
    return added;
  }
  // Takes [begin, end) out, and returns how many of its bytes were there.
  std::int64_t remove(std::int64_t begin, std::int64_t end) {
    std::int64_t removed = 0;
    auto it = ranges_.upper_bound(begin);
    if (it != ranges_.begin() && std::prev(it)->second > begin) it = std::prev(it);
    while (begin < end && it != ranges_.end() && it->first < end) {
      const auto [first, last] = *it;
      it = ranges_.erase(it);
      if (first < begin) ranges_.emplace(first, begin);
      if (last > end) it = ranges_.emplace(end, last).first;
      removed += std::min(last, end) - std::max(first, begin);
    }
    return removed;
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
