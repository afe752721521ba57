#include "planner/search.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <limits>
#include <mutex>
#include <thread>
#include <tuple>
#include <variant>

#include "model/program/check.h"

namespace meshwright {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kProgressInterval = std::chrono::milliseconds(100);

using Outcome = std::variant<std::monostate, PlanResult, TooLarge, std::exception_ptr>;

// Step time, then text. The text differs between any two plans, so no two tie.
bool better(const PlanResult& a, const PlanResult& b) {
  if (a.step_time_s != b.step_time_s) return a.step_time_s < b.step_time_s;
  return to_text(a.plan) < to_text(b.plan);
}

// Works through the plans of a space with a pool of threads. An outcome has its plan's place, whoever worked
// it out, so that the result does not depend on the number of threads.
class Search {
 public:
  Search(const Problem& problem, const Machine& machine, std::vector<Plan> plans)
      : problem_(problem), machine_(machine), plans_(std::move(plans)), outcomes_(plans_.size()) {}

  std::vector<Outcome> run(int workers, const SearchOptions& options) {
    so_far_.total = static_cast<std::int64_t>(plans_.size());
    running_ = workers;
    {
      std::vector<std::jthread> pool;
      for (int i = 0; i < workers; ++i) pool.emplace_back([&] { work(options.stop); });
      watch(options.progress);
    }
    return std::move(outcomes_);
  }

 private:
  void work(const std::function<bool()>& stop) {
    while (!failed_ &&
           !(stop &&
             stop())) {  // a plan that was taken is finished, so the first failure in the space's order is always found
      const std::size_t i = next_++;
      if (i >= plans_.size()) break;
      try {
        outcomes_[i] = look_at(plans_[i]);
      } catch (...) {
        outcomes_[i] = std::current_exception();
        failed_ = true;
      }
      note(outcomes_[i]);
    }
    const std::lock_guard lock(mutex_);
    if (--running_ == 0) finished_.notify_one();
  }

  Outcome look_at(Plan plan) {
    Lowering lowering(problem_.model, problem_.shape, plan);
    if (plan.mesh.pp > 1) plan.layers = layers_of(plan, lowering);
    const ProgramSet& programs = lowering.cut(plan.mesh.pp > 1 ? plan.layers : lowering.even());
    if (const Bytes needed = memory_needed(programs); needed > machine_.usable_memory)
      return TooLarge{plan, needed, needed - machine_.usable_memory};
    return evaluate_plan(problem_, plan, programs, machine_);
  }

  // Plans that differ only in their schedule have the same pieces, so their stages are cut once (or twice, if two
  // threads come to them at the same time: the same cut).
  std::vector<int> layers_of(Plan plan, Lowering& lowering) {
    plan.schedule = {};
    const std::string key = to_text(plan);
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = layers_.find(key); found != layers_.end()) return found->second;
    }
    std::vector<int> layers = balanced_stages(lowering, machine_);
    const std::lock_guard lock(mutex_);
    layers_[key] = layers;
    return layers;
  }

  void note(const Outcome& outcome) {
    const std::lock_guard lock(mutex_);
    ++so_far_.evaluated;
    if (std::holds_alternative<TooLarge>(outcome)) ++so_far_.too_large;
    if (const auto* result = std::get_if<PlanResult>(&outcome);
        result && (!so_far_.best || better(*result, *so_far_.best)))
      so_far_.best = *result;
  }

  void watch(const std::function<void(const SearchProgress&)>& progress) {
    std::unique_lock lock(mutex_);
    while (!finished_.wait_for(lock, kProgressInterval, [this] { return running_ == 0; })) report(progress, lock);
    report(progress, lock);
  }
  // Workers go on while the callback runs.
  void report(const std::function<void(const SearchProgress&)>& progress, std::unique_lock<std::mutex>& lock) const {
    if (!progress) return;
    const SearchProgress copy = so_far_;
    lock.unlock();
    progress(copy);
    lock.lock();
  }

  const Problem& problem_;
  const Machine& machine_;
  const std::vector<Plan> plans_;
  std::vector<Outcome> outcomes_;  // of plans_, each written by one thread
  std::atomic<std::size_t> next_ = 0;
  std::atomic<bool> failed_ = false;

  std::mutex mutex_;  // guards what follows
  std::condition_variable finished_;
  int running_ = 0;
  SearchProgress so_far_;
  std::map<std::string, std::vector<int>> layers_;  // of each stage, by the plan's text with one schedule for all
};

}  // namespace

std::map<std::string, Rejected> SearchResult::rejected() const {
  std::map<std::string, Rejected> all;
  for (const IllegalPart& part : illegal) ++all[part.why.reason].count;
  if (too_large.empty()) return all;
  Rejected& memory = all[std::string(kDoesNotFit)];
  memory.count = static_cast<std::int64_t>(too_large.size());
  memory.smallest_excess = std::ranges::min_element(too_large, {}, &TooLarge::excess)->excess;
  return all;
}

SearchResult search(const Problem& problem, const Machine& machine, const SearchOptions& options) {
  const auto begin = Clock::now();
  SearchResult result;
  result.illegal = PlanSpace(problem).illegal();
  const int workers =
      options.workers > 0 ? options.workers : std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  std::vector<Plan> plans = all_plans(problem);
  // Before anything that takes long, such as cutting thousands of layers into stages.
  if (options.progress) options.progress({.total = static_cast<std::int64_t>(plans.size())});
  std::vector<Outcome> outcomes = Search(problem, machine, std::move(plans)).run(workers, options);
  for (const Outcome& outcome : outcomes)
    if (const auto* error = std::get_if<std::exception_ptr>(&outcome)) std::rethrow_exception(*error);
  for (Outcome& outcome : outcomes) {
    if (auto* fits = std::get_if<PlanResult>(&outcome))
      result.plans.push_back(std::move(*fits));
    else if (auto* too_large = std::get_if<TooLarge>(&outcome))
      result.too_large.push_back(*too_large);
    else
      result.complete = false;
  }
  std::ranges::sort(result.plans, better);
  result.evaluated = static_cast<std::int64_t>(result.plans.size() + result.too_large.size());
  result.legal = static_cast<std::int64_t>(outcomes.size());
  result.elapsed_s = std::chrono::duration<double>(Clock::now() - begin).count();
  return result;
}

bool is_tight(const PlanResult& plan, Bytes usable, double headroom) {
  return static_cast<double>(plan.peak_memory_bytes) > headroom * static_cast<double>(usable.value);
}

const PlanResult* preferred(const SearchResult& result, Bytes usable, double headroom, bool runnable_only,
                            const std::optional<MeshShape>& mesh) {
  check(headroom > 0 && headroom <= 1, "a headroom of {}", headroom);
  const PlanResult *fastest = nullptr, *least = nullptr;
  for (const PlanResult& plan : result.plans) {  // by step time
    if ((runnable_only && !plan.runnable) || (mesh && plan.plan.mesh != *mesh)) continue;
    if (!fastest) fastest = &plan;
    if (plan.step_time_s > fastest->step_time_s * (1 + kSameTime)) break;
    if (!is_tight(plan, usable, headroom)) return &plan;
    if (!least || plan.peak_memory_bytes < least->peak_memory_bytes) least = &plan;
  }
  return least;
}

Plan published_plan(const TrainingConfig& config) {
  return {.mesh = config.mesh,
          .fsdp = config.mesh.dp > 1 ? 3 : 0,
          .microbatches = static_cast<int>(
              std::min<std::int64_t>(config.microbatches * config.grad_step, std::numeric_limits<int>::max())),
          .schedule = Schedule::kGPipe,
          .recompute = Recompute::kFull};
}

std::optional<Standing> standing(const SearchResult& result, const Plan& plan) {
  const auto is = [&](Plan searched) {
    if (plan.layers.empty()) searched.layers.clear();
    return searched == plan;
  };
  if (const auto found = std::ranges::find_if(result.plans, is, &PlanResult::plan); found != result.plans.end())
    return Standing{.plan = found->plan,
                    .rank = static_cast<std::size_t>(found - result.plans.begin()) + 1,
                    .ratio_to_best = found->step_time_s / result.plans.front().step_time_s};
  if (const auto found = std::ranges::find_if(result.too_large, is, &TooLarge::plan); found != result.too_large.end())
    return Standing{.plan = found->plan, .too_large = *found};
  return std::nullopt;
}

bool may_be_legal(const SearchResult& result, const Plan& plan) {
  return !result.complete && std::ranges::none_of(result.illegal, [&](const IllegalPart& part) {
    return part.mesh == plan.mesh && (!part.fsdp || *part.fsdp == plan.fsdp);
  });
}

}  // namespace meshwright
