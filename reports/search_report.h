// The answer of a search: the best plans, the published one beside them, and why the others are not there.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "model/input/json_reader.h"
#include "planner/search.h"
#include "planner/where.h"

namespace meshwright {

struct SearchHeading {
  std::string config, system;  // names
  int devices = 1;
  Bytes usable_memory;               // of one device
  std::optional<Plan> published;     // published_plan() of the configuration, if it names one
  std::int64_t sequences = 1;        // of a step, all devices
  std::int64_t sequence_length = 1;  // tokens
};

// What of a search is shown, and how.
struct SearchView {
  bool all = false;                // every plan; else the preferred plan of each mesh
  std::optional<std::size_t> top;  // rows at most; none: 10, or with `all` as many as there are
  Where where;                     // only plans that match
  double headroom = kHeadroom;     // see preferred() of planner/search.h
};

// A table, the preferred plan first and then by step time, in which plans are called by their ids. The published plan is
// in it, marked, unless it does not match, does not fit or is not in the space; a sentence says what it takes, and what the
// preferred plan of its mesh would. Plans that are tight are marked. Then how many plans were rejected, by reason. Of an
// interrupted search all is said of the plans that were looked at, and how many these are.
// No line is wider than `columns`, where that is 40 or more.
std::string search_report(const SearchResult& result, const SearchHeading& heading, const SearchView& view,
                          int columns);

// plans (all that fit and match, by step time), evaluated, legal, complete (false: interrupted, with fewer plans evaluated
// than are legal, and all that follows is of these), rejected (reason to count), elapsed_s; beside them
// sequences_per_step, tokens_per_step, smallest_excess_bytes (of the plans that do not fit; null: all fit), headroom,
// preferred (id, plan; null: no plan), where (the conditions; null: none), and published (id, label, plan, looked_at,
// rank and ratio_to_best among all that fit by step time, null for a plan that does not fit or was not looked at, and
// best_of_mesh with id, plan and step_time_s, null: none; published is null where it is not in the space).
OrderedJson to_json(const SearchResult& result, const SearchHeading& heading, const SearchView& view);

}  // namespace meshwright
