// The answer of a search: the best plans, the published one beside them, and why the others are not there.
#pragma once

#include <cstddef>
#include <string>

#include "model/input/json_reader.h"
#include "planner/search.h"

namespace meshwright {

struct SearchHeading {
  std::string config, system;  // names
  int devices = 1;
  Bytes usable_memory;  // of one device
  Plan published;       // published_plan() of the configuration
};

// The `top` best plans as a table. The published plan is always in it, marked, with its rank and its ratio to the best,
// unless it does not fit or is not in the space: then a sentence says so. Then how many plans were rejected, by reason.
std::string search_report(const SearchResult& result, const SearchHeading& heading, std::size_t top = 10);

// plans (all that fit, best first), evaluated, rejected (reason to count), elapsed_s; beside them smallest_excess_bytes
// (of the plans that do not fit; null: all fit) and published (plan, rank, ratio_to_best, label; null: not in the space).
OrderedJson to_json(const SearchResult& result, const SearchHeading& heading);

}  // namespace meshwright
