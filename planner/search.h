// Exhaustive search: every legal plan is lowered, with the cut into stages that suits the machine best, those that fit
// in memory are simulated, and all are ranked. Plans with several stages come back with their cut (Plan::layers).
// Not for: pruning by bounds, or search over several machines' processes.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "model/config.h"
#include "planner/evaluate.h"
#include "planner/space.h"

namespace meshwright {

// A legal plan whose programs need more memory than a device has.
struct TooLarge {
  Plan plan;
  Bytes needed;  // on the device that needs the most; exact
  Bytes excess;  // of it over the usable memory
  bool operator==(const TooLarge&) const = default;
};
constexpr std::string_view kDoesNotFit = "does not fit in memory";

struct SearchProgress {
  std::int64_t evaluated = 0, total = 0, too_large = 0;
  std::optional<PlanResult> best;  // so far
};

struct SearchOptions {
  int workers = 0;  // threads; 0: one per hardware thread. The result is the same, bit for bit, for any number
  // Called on the thread that called search(): at once, then about every 0.1 s, and at the end.
  std::function<void(const SearchProgress&)> progress;
  // Asked by every thread before it looks at a plan: true ends the search with those that have been looked at.
  std::function<bool()> stop;
};

struct Rejected {
  std::int64_t count = 0;
  std::optional<Bytes> smallest_excess;  // where the reason is kDoesNotFit
  bool operator==(const Rejected&) const = default;
};

struct SearchResult {
  std::vector<PlanResult> plans;     // all that fit, best first: by step time, then by the text of the plan
  std::vector<TooLarge> too_large;   // in the order of the space
  std::vector<IllegalPart> illegal;  // see IllegalPart for what one of them is
  std::int64_t evaluated = 0;        // legal plans looked at: plans and too_large
  std::int64_t legal = 0;            // legal plans in the space: as many as evaluated, where it is complete
  double elapsed_s = 0;              // wall time of the search
  bool complete = true;              // false: it was stopped, and there are legal plans that nobody looked at

  // Reason to count: plans under kDoesNotFit, IllegalParts under their reasons.
  std::map<std::string, Rejected> rejected() const;
  const PlanResult* best() const { return plans.empty() ? nullptr : &plans.front(); }
};

// What an evaluation throws is thrown here, too: of several, that of the first plan in the space's order.
// Precondition: machine has problem.devices devices.
SearchResult search(const Problem& problem, const Machine& machine, const SearchOptions& options = {});

// Of two plans whose step times differ by less than a prediction can tell, the roomier is the better one: a plan that
// all but fills the memory fails where a framework keeps a little more than we count.
constexpr double kHeadroom = 0.92;  // the share of the usable memory up to which a plan counts as roomy
constexpr double kSameTime = 0.01;  // step times up to so much above the fastest count as equal to it

// Whether a plan needs more than `headroom` of the usable memory of a device.
bool is_tight(const PlanResult& plan, Bytes usable, double headroom = kHeadroom);

// The plan to take, of those that fit, on `mesh` where one is given, and can be run where `runnable_only`. Of these, those
// that take at most (1 + kSameTime) times as long as the fastest of them compete; it is the fastest that is not tight, and
// where all are tight, the one that needs the least memory, of several the fastest. So a faster plan that is not tight
// itself never gives way to a roomier one. nullptr: there is none. Precondition: 0 < headroom <= 1.
const PlanResult* preferred(const SearchResult& result, Bytes usable, double headroom = kHeadroom,
                            bool runnable_only = false, const std::optional<MeshShape>& mesh = std::nullopt);

// The plan that a JAXformer configuration describes, carried over into our layout: its own mesh, GPipe, its
// number of microbatches (times its accumulation steps, which are further microbatches here), FSDP 3 where dp
// is above 1, full recomputation, the cut into stages left open. Shown as "as published, in our layout": the run as it really was had a
// layout and schedule of its own.
Plan published_plan(const TrainingConfig& config);
constexpr std::string_view kPublishedLabel = "as published, in our layout";

// Where a plan came out of a search.
struct Standing {
  Plan plan;                        // as it was searched: with the layers of its stages
  std::optional<std::size_t> rank;  // 1 is the best; none: it is not among those that fit
  double ratio_to_best = 0;         // its step time / the best's, where it has a rank
  std::optional<TooLarge> too_large;
};
// Of a plan without layers: where it came out with those that the search chose. nullopt: the plan is not in the space
// that was searched, or else, where the search is not complete, it was not looked at: may_be_legal() tells.
std::optional<Standing> standing(const SearchResult& result, const Plan& plan);
// Whether a plan without a standing, for as many devices as were searched for, may be among those that an interrupted
// search did not come to: nothing speaks against its mesh and its FSDP stage.
bool may_be_legal(const SearchResult& result, const Plan& plan);

}  // namespace meshwright
