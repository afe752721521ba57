#include "planner/space.h"

#include <tuple>

#include "model/program/check.h"

namespace meshwright {
namespace {

constexpr int kLargestFsdp = 3;
constexpr int kSchedules = kScheduleNames.size();
constexpr std::int64_t kRecomputes = kRecomputePolicies.size();

std::vector<std::int64_t> divisors(std::int64_t n) {
  std::vector<std::int64_t> low, high;
  for (std::int64_t d = 1; d * d <= n; ++d) {
    if (n % d) continue;
    low.push_back(d);
    if (d * d != n) high.push_back(n / d);
  }
  low.insert(low.end(), high.rbegin(), high.rend());
  return low;
}

}  // namespace

std::int64_t PlanSpace::Choices::size() const {
  return static_cast<std::int64_t>(fsdp.size() * passes.size()) * kRecomputes;
}

PlanSpace::PlanSpace(const Problem& problem) {
  check(problem.devices >= 1, "a plan space of {} devices", problem.devices);
  for (const std::int64_t tp : divisors(problem.devices))
    for (const std::int64_t pp : divisors(problem.devices / tp)) {
      const Plan simplest{
          .mesh = {static_cast<int>(problem.devices / tp / pp), static_cast<int>(pp), static_cast<int>(tp)},
          .fsdp = 0,
          .microbatches = 1};
      if (auto faults = illegalities(problem.model, problem.shape, simplest); !faults.empty()) {
        for (Illegality& why : faults) illegal_.push_back({simplest.mesh, std::nullopt, std::move(why)});
        continue;
      }
      Choices choices{simplest.mesh, {}, {}};
      std::optional<Illegality> unscheduled, unbalanced;
      for (const std::int64_t microbatches : divisors(problem.shape.sequences / simplest.mesh.dp)) {
        if (auto why = unschedulable(simplest.mesh.pp, microbatches)) {
          unscheduled = std::move(why);
          continue;
        }
        for (int s = 0; s < kSchedules; ++s)
          if (auto why = meshwright::unbalanced(problem.model, static_cast<Schedule>(s), microbatches))
            unbalanced = std::move(why);
          else
            choices.passes.emplace_back(static_cast<int>(microbatches), static_cast<Schedule>(s));
      }
      for (auto* why : {&unscheduled, &unbalanced})
        if (*why) illegal_.push_back({simplest.mesh, std::nullopt, **std::move(why)});
      for (int fsdp = 0; fsdp <= kLargestFsdp; ++fsdp) {
        Plan plan = simplest;
        plan.fsdp = fsdp;
        auto faults = illegalities(problem.model, problem.shape, plan);
        for (Illegality& why : faults) illegal_.push_back({plan.mesh, fsdp, std::move(why)});
        if (faults.empty()) choices.fsdp.push_back(fsdp);
      }
      choices_.push_back(std::move(choices));
    }
}

std::optional<Plan> PlanSpace::next() {
  while (mesh_ < choices_.size() && plan_ == choices_[mesh_].size()) {
    ++mesh_;
    plan_ = 0;
  }
  if (mesh_ == choices_.size()) return std::nullopt;
  const Choices& c = choices_[mesh_];
  std::int64_t rest = plan_++;
  const auto digit = [&rest](std::int64_t base) {
    const std::int64_t value = rest % base;
    rest /= base;
    return value;
  };
  Plan plan{.mesh = c.mesh};
  plan.recompute = kRecomputePolicies[static_cast<std::size_t>(digit(kRecomputes))];
  std::tie(plan.microbatches, plan.schedule) = c.passes[digit(static_cast<std::int64_t>(c.passes.size()))];
  plan.fsdp = c.fsdp[rest];
  return plan;
}

std::int64_t PlanSpace::size() const {
  std::int64_t size = 0;
  for (const Choices& c : choices_) size += c.size();
  return size;
}

std::vector<Plan> all_plans(const Problem& problem) {
  PlanSpace space(problem);
  std::vector<Plan> plans;
  plans.reserve(static_cast<std::size_t>(space.size()));
  while (auto plan = space.next()) plans.push_back(*plan);
  return plans;
}

}  // namespace meshwright
