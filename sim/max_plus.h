// Linear maps over (max, +): what becomes of moments when every new one is the latest of (old one +
// constant).
#pragma once

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "model/program/units.h"

namespace meshwright {

// "Does not depend on it", in a map being built: below 0 with whatever is added, as that is at most kLongestTime.
constexpr Time kUnreachable = std::numeric_limits<Time>::min() / 2;
static_assert(kUnreachable + kLongestTime < 0);

// to[i] = max over entries of (from[entry.variable] + entry.delay). Variables that have no row stay as they
// are.
struct MaxPlusMap {
  struct Entry {
    std::int32_t variable;
    Time delay;
  };
  struct Row {
    std::int32_t variable, first, end;
  };
  struct Gate {
    Row free, start;
  };
  std::vector<Entry> entries;
  std::vector<Row> rows;
  std::vector<Gate> gates;
  std::vector<std::int32_t>
      gate_of;  // per variable: the first operation of the compute stream that depends on it; -1: none

  // Adds a row with the entries of `row` that are reachable.
  Row make_row(std::int32_t variable, std::span<const Time> row) {
    const auto first = static_cast<std::int32_t>(entries.size());
    for (std::size_t v = 0; v < row.size(); ++v)
      if (row[v] >= 0) entries.push_back({static_cast<std::int32_t>(v), row[v]});
    return {variable, first, static_cast<std::int32_t>(entries.size())};
  }
  // An operation of the compute stream that starts at `start`, after the stream was free at `free`.
  void pass(std::span<const Time> free, std::span<const Time> start) {
    bool fresh = false;
    for (std::size_t v = 0; v < start.size(); ++v)
      if (start[v] >= 0 && free[v] < 0 && gate_of[v] < 0) {
        gate_of[v] = static_cast<std::int32_t>(gates.size());
        fresh = true;
      }
    if (!fresh) return;
    const Row before = make_row(0, free);
    gates.push_back({before, make_row(0, start)});
  }
};

}  // namespace meshwright
