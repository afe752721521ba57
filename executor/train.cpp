#include "executor/train.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <ctime>
#include <nlohmann/json.hpp>

#include "executor/launch/heartbeat.h"
#include "executor/median.h"

namespace meshwright {
namespace {

using Json = nlohmann::json;

Json to_json(const RankCount& count) {
  Json traffic = Json::array();
  for (const auto& [key, bytes] : count.report.traffic) traffic.push_back({key.first, key.second, bytes.value});
  Json timeline = Json::array();
  for (const Interval& i : count.report.timeline)
    timeline.push_back({static_cast<int>(i.stream), i.begin.value, i.end.value, i.place.slot, i.place.call, i.place.op,
                        i.bytes.value, i.flops.value});
  const MeshCoordinates& at = count.report.rank;
  return {{"rank", {at.dp, at.pp, at.tp}},
          {"end", count.report.end.value},
          {"compute", count.report.compute.value},
          {"exposed", count.report.exposed_comm.value},
          {"bubble", count.report.bubble.value},
          {"flops", count.report.executed_flops.value},
          {"live", {count.report.live.bytes, count.report.live.at_peak, count.report.live.of_class}},
          {"arena", count.report.arena_bytes.value},
          {"outside", count.report.outside_bytes.value},
          {"traffic", std::move(traffic)},
          {"timeline", std::move(timeline)},
          {"rows", count.routed_rows}};
}

RankCount from_json(const Json& j, const ProgramSet& set) {
  RankCount count;
  RankReport& r = count.report;
  r.rank = {j["rank"][0], j["rank"][1], j["rank"][2]};
  r.end = {j["end"].get<double>()};
  r.compute = {j["compute"].get<double>()};
  r.exposed_comm = {j["exposed"].get<double>()};
  r.bubble = {j["bubble"].get<double>()};
  r.executed_flops = {j["flops"].get<std::int64_t>()};
  r.live = {j["live"][0].get<std::int64_t>(), j["live"][1], j["live"][2]};
  r.arena_bytes = {j["arena"].get<std::int64_t>()};
  r.outside_bytes = {j["outside"].get<std::int64_t>()};
  for (const Json& t : j["traffic"]) r.traffic[{t[0], t[1]}] = Bytes{t[2].get<std::int64_t>()};
  const Program& program = set.stages[static_cast<std::size_t>(r.rank.pp)];
  for (const Json& i : j["timeline"]) {
    const OpPlace place{i[3], i[4], i[5]};
    r.timeline.push_back({static_cast<Stream>(i[0].get<int>()),
                          {i[1].get<double>()},
                          {i[2].get<double>()},
                          op_name(op_at(set, program, place).op),
                          place,
                          {i[6].get<std::int64_t>()},
                          {i[7].get<std::int64_t>()}});
  }
  count.routed_rows = j["rows"].get<std::vector<std::int64_t>>();
  return count;
}

double processor_seconds() {
  timespec t{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return static_cast<double>(t.tv_sec) + 1e-9 * static_cast<double>(t.tv_nsec);
}

// Of each step: its time, and what this rank did with it.
struct StepTimes {
  std::vector<double> step, compute, exposed, bubble;

  void add(double seconds, const RankReport& r) {
    step.push_back(seconds);
    compute.push_back(r.compute.value);
    exposed.push_back(r.exposed_comm.value);
    bubble.push_back(r.bubble.value);
  }
  // Without the first two, which warm up, where there are more than four.
  void write_medians(double& step_s, RankReport& r) const {
    if (step.empty()) return;
    const auto of = [](std::vector<double> all) {
      if (all.size() > 4) all.erase(all.begin(), all.begin() + 2);
      return median(std::move(all));
    };
    step_s = of(step);
    r.compute = {of(compute)};
    r.exposed_comm = {of(exposed)};
    r.bubble = {of(bubble)};
  }
};

// Every rank's count, in rank order, on rank 0.
std::vector<RankCount> gather_counts(const RankCount& mine, const ProgramSet& set, MPI_Comm comm) {
  int rank = 0, ranks = 0;
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &ranks);
  const std::vector<std::uint8_t> text = Json::to_cbor(to_json(mine));
  const int size = static_cast<int>(text.size());
  std::vector<int> sizes(static_cast<std::size_t>(ranks)), begins(sizes);
  MPI_Gather(&size, 1, MPI_INT, sizes.data(), 1, MPI_INT, 0, comm);
  for (int r = 1; r < ranks; ++r)
    begins[static_cast<std::size_t>(r)] =
        begins[static_cast<std::size_t>(r - 1)] + sizes[static_cast<std::size_t>(r - 1)];
  std::vector<std::uint8_t> all(rank == 0 ? static_cast<std::size_t>(begins.back() + sizes.back()) : 0);
  MPI_Gatherv(text.data(), size, MPI_BYTE, all.data(), sizes.data(), begins.data(), MPI_BYTE, 0, comm);
  std::vector<RankCount> counts;
  if (rank == 0)
    for (int r = 0; r < ranks; ++r) {
      const auto first = all.begin() + begins[static_cast<std::size_t>(r)];
      counts.push_back(from_json(Json::from_cbor(first, first + sizes[static_cast<std::size_t>(r)]), set));
    }
  return counts;
}

// This rank's part of the data of one step, or of one batch of an evaluation: of each microbatch inputs, then targets. Read
// before it is run.
class Feed {
 public:
  Feed(const ProgramSet& set, const MeshCoordinates& at, Batches& data)
      : step_(set.step),
        at_(at),
        data_(data),
        own_(set.step.tokens / set.mesh.tp),
        held_(static_cast<std::size_t>(own_ * set.step.microbatch)),
        has_data_(at.pp == 0 || at.pp == set.mesh.pp - 1),
        ids_(has_data_ ? 2 * held_ * static_cast<std::size_t>(set.step.microbatches) : 0) {}

  void read(std::int64_t step) {
    own_beat().now(Activity::kReadingData);
    for (int m = 0; has_data_ && m < step_.microbatches; ++m)
      data_.read(step, m, at_.dp, at_.tp * own_, own_, part(m, false), part(m, true));
  }
  auto fill() {
    return [this](int m, std::int32_t* inputs, std::int32_t* targets) {
      std::ranges::copy(part(m, false), inputs);
      std::ranges::copy(part(m, true), targets);
    };
  }

 private:
  std::span<std::int32_t> part(int m, bool targets) {
    return std::span(ids_).subspan((2 * static_cast<std::size_t>(m) + targets) * held_, held_);
  }

  const StepShape step_;
  const MeshCoordinates at_;
  Batches& data_;
  const std::int64_t own_;  // tokens of a sequence
  const std::size_t held_;  // ids of a microbatch
  const bool has_data_;
  std::vector<std::int32_t> ids_;
};

// Collective. Of the weights that `step` has left.
Evaluation evaluate(Executor& executor, Feed& feed, std::int64_t batches, std::int64_t step) {
  const auto begin = std::chrono::steady_clock::now();
  Evaluation e;
  for (std::int64_t batch = 0; batch < batches; ++batch) {
    feed.read(batch);
    const StepResult r = executor.evaluate({.step = step, .fill = feed.fill()});
    e.loss += r.loss / static_cast<double>(batches);
    e.cross_entropy += r.cross_entropy / static_cast<double>(batches);
    e.balance += r.balance / static_cast<double>(batches);
  }
  own_beat().now(Activity::kReporting);
  MPI_Barrier(executor.mesh().all());
  e.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
  return e;
}

}  // namespace

bool loss_has_grown(double loss, double first_loss, std::int64_t vocabulary) {
  return loss > 2 * std::max(first_loss, std::log(static_cast<double>(vocabulary)));
}

TrainSummary train(const ProgramSet& set, const ModelSpec& model, const TrainingConfig& config, MPI_Comm comm,
                   Batches& data, const TrainOptions& options, const std::function<void(const TrainedStep&)>& on_step) {
  const auto seed = static_cast<std::uint64_t>(config.seed);
  std::vector<const ProgramSet*> sets{&set};
  if (options.evaluation) sets.push_back(options.evaluation->set);
  Executor executor(sets, comm, {seed, options.timeline, &own_beat()});
  const std::vector<ParameterSpec> specs = parameters(model);
  executor.load_parameters(options.weights ? *options.weights : initial_weights(specs, seed));

  const MeshCoordinates at = executor.mesh().coordinates();
  Feed feed(set, at, data);
  std::optional<Feed> evaluation_feed;
  if (options.evaluation) evaluation_feed.emplace(*options.evaluation->set, at, *options.evaluation->data);
  TrainSummary summary;
  StepTimes times;
  RankCount count;
  bool warned = false;
  using Clock = std::chrono::steady_clock;
  MPI_Barrier(executor.mesh().all());
  const auto first_begin = Clock::now();
  const double processor_before = processor_seconds();
  double processor_apart = 0, seconds_apart = 0;  // of evaluations
  for (std::int64_t step = 0; step < options.steps; ++step) {
    own_beat().step = step;
    feed.read(step);
    own_beat().now(Activity::kBeginOfStep);
    MPI_Barrier(executor.mesh().all());  // so that nobody waits in the step for another's data
    const double lr = learning_rate(config.lr, step);
    StepResult result;
    try {
      result = executor.run_step({.step = step, .learning_rate = lr, .fill = feed.fill()});
    } catch (const Diverged& e) {
      const std::string before =
          step > 0 ? fmt::format("the loss of step {} was {:.6g}; ", step, summary.last_loss) : "";
      const std::string balance = config.alpha > 0 ? fmt::format(", or lower alpha (now {})", config.alpha) : "";
      throw Diverged(e.facts(),
                     fmt::format("{}hint: lower lr.max_lr (now {}), warm up longer (lr.warmup_steps, now {}), "
                                 "clip more (grad_clip_norm, now {}){}",
                                 before, config.lr.max_lr, config.lr.warmup_steps, config.grad_clip_norm, balance));
    }
    // The slowest rank's step, and the largest arena.
    double worst[2] = {result.report.end.value, static_cast<double>(result.report.arena_bytes.value)};
    MPI_Allreduce(MPI_IN_PLACE, worst, 2, MPI_DOUBLE, MPI_MAX, executor.mesh().all());
    result.report.bubble += Seconds{worst[0] - result.report.end.value};  // it waits for the slowest to end the step
    times.add(worst[0], result.report);
    if (step == 0) summary.first_loss = result.loss;
    summary.last_loss = result.loss;
    if (!warned && loss_has_grown(result.loss, summary.first_loss, model.vocab())) {
      warned = true;
      if (executor.mesh().rank() == 0 && options.warn)
        options.warn(fmt::format(
            "step {}: the loss is {:.6g}; the first step's was {:.4g}, and guessing costs ln({}) = {:.4g}. "
            "Training may be diverging: lower lr.max_lr (now {}) or warm up longer (lr.warmup_steps, now {})",
            step + 1, result.loss, summary.first_loss, model.vocab(), std::log(static_cast<double>(model.vocab())),
            config.lr.max_lr, config.lr.warmup_steps));
    }
    count = {result.report, result.routed_rows};
    std::optional<Evaluation> evaluation;
    if (options.evaluation && ((step + 1) % options.evaluation->every == 0 || step + 1 == options.steps)) {
      const double processor = processor_seconds();
      evaluation = evaluate(executor, *evaluation_feed, options.evaluation->batches, step);
      summary.last_evaluation = evaluation;
      processor_apart += processor_seconds() - processor;
      seconds_apart += evaluation->seconds;
    }
    own_beat().now(Activity::kReporting);
    if (executor.mesh().rank() == 0 && on_step)
      on_step({step, lr, worst[0], static_cast<std::int64_t>(worst[1]), std::move(result), evaluation});
  }
  // Ranks wait busily: one that has a core of its own runs all the time.
  const double seconds = std::chrono::duration<double>(Clock::now() - first_begin).count() - seconds_apart;
  summary.processor_share = std::min(1.0, (processor_seconds() - processor_before - processor_apart) / seconds);
  MPI_Allreduce(MPI_IN_PLACE, &summary.processor_share, 1, MPI_DOUBLE, MPI_MIN, executor.mesh().all());
  times.write_medians(summary.median_step_s, count.report);
  summary.ranks = gather_counts(count, set, executor.mesh().all());
  if (options.keep_weights) {
    auto weights = executor.gather(Executor::State::kParameters);
    if (executor.mesh().rank() == 0) summary.weights = std::move(weights);
  }
  return summary;
}

}  // namespace meshwright
