#include "model/lowering/stash_policy.h"

#include <algorithm>
#include <cstdint>

#include "model/program/op_work.h"

namespace meshwright {
namespace {

// What computing a value takes: of all operations that write it.
struct Cost {
  bool communicates = false;
  double flops_per_byte = 0;
};

Cost cost_of(std::size_t tensor, const Piece& computation) {
  Cost cost;
  std::int64_t flops = 0, bytes = 0;
  for (const Op& op : computation.ops) {
    bool writes_it = false;
    std::int64_t written = 0;
    for_each_operand(op, [&](std::string_view field, const View& v, Access access) {
      if (access == Access::kRead || field == "scratch") return;
      writes_it |= static_cast<std::size_t>(v.tensor) == tensor;
      written += computation.tensors[static_cast<std::size_t>(v.tensor)].bytes();
    });
    if (!writes_it) continue;
    cost.communicates |= std::holds_alternative<Collective>(op);
    flops += work_of(op, computation).flops.value;
    bytes = std::max(bytes, written);
  }
  cost.flops_per_byte = static_cast<double>(flops) / static_cast<double>(std::max<std::int64_t>(bytes, 1));
  return cost;
}

std::vector<bool> all_but_the_costliest(const Piece& computation, const std::vector<bool>& needed) {
  struct Candidate {
    std::size_t tensor;
    std::int64_t bytes;
    double flops_per_byte;
  };
  std::vector<Candidate> candidates;
  std::int64_t whole = 0, kept = 0;
  for (std::size_t t = 0; t < needed.size(); ++t) {
    if (!needed[t]) continue;
    const std::int64_t bytes = computation.tensors[t].bytes();
    const Cost cost = cost_of(t, computation);
    whole += bytes;
    if (cost.communicates)
      kept += bytes;
    else
      candidates.push_back({t, bytes, cost.flops_per_byte});
  }
  std::ranges::stable_sort(candidates, std::ranges::greater{}, &Candidate::flops_per_byte);
  std::vector<bool> again(needed.size(), false);
  for (const Candidate& c : candidates) {
    again[c.tensor] = 2 * (kept + c.bytes) > whole;
    if (!again[c.tensor]) kept += c.bytes;
  }
  return again;
}

}  // namespace

std::vector<bool> computed_again(const Piece& computation, const std::vector<bool>& needed, const StashPolicy& policy) {
  if (policy.recompute == Recompute::kFull) return needed;
  if (policy.recompute == Recompute::kSelective) return all_but_the_costliest(computation, needed);
  std::vector<bool> again(needed.size(), false);
  for (std::size_t t = 0; t < needed.size(); ++t)
    if (needed[t] && policy.parts && (*policy.parts)[t]) again[t] = policy.recompute.has(*(*policy.parts)[t]);
  return again;
}

}  // namespace meshwright
