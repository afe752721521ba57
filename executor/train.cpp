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
          {"flops", count.report.executed_flops.value},
          {"peak", count.report.peak_bytes.value},
          {"classes", count.report.bytes_by_class},
          {"traffic", std::move(traffic)},
          {"timeline", std::move(timeline)},
          {"rows", count.routed_rows}};
}

RankCount from_json(const Json& j, const ProgramSet& set) {
  RankCount count;
  RankReport& r = count.report;
  r.rank = {j["rank"][0], j["rank"][1], j["rank"][2]};
  r.end = {j["end"].get<double>()};
  r.executed_flops = {j["flops"].get<std::int64_t>()};
  r.peak_bytes = {j["peak"].get<std::int64_t>()};
  r.bytes_by_class = j["classes"];
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

}  // namespace

bool loss_has_grown(double loss, double first_loss, std::int64_t vocabulary) {
  return loss > 2 * std::max(first_loss, std::log(static_cast<double>(vocabulary)));
}

TrainSummary train(const ProgramSet& set, const ModelSpec& model, const TrainingConfig& config, MPI_Comm comm,
                   Batches& data, const TrainOptions& options, const std::function<void(const TrainedStep&)>& on_step) {
  const auto seed = static_cast<std::uint64_t>(config.seed);
  Executor<float> executor(set, comm, {seed, options.timeline, &own_beat()});
  const std::vector<ParameterSpec> specs = parameters(model);
  executor.load_parameters(initial_weights<float>(specs, seed));

  const MeshCoordinates at = executor.mesh().coordinates();
  const std::int64_t own = set.step.tokens / set.mesh.tp;
  const auto held = static_cast<std::size_t>(own * set.step.microbatch);
  TrainSummary summary;
  std::vector<double> seconds;
  RankCount count;
  bool warned = false;
  using Clock = std::chrono::steady_clock;
  MPI_Barrier(executor.mesh().all());
  const auto first_begin = Clock::now();
  const double processor_before = processor_seconds();
  for (std::int64_t step = 0; step < options.steps; ++step) {
    const auto begin = Clock::now();
    const double lr = learning_rate(config.lr, step);
    StepResult result;
    try {
      result = executor.run_step(
          {.step = step, .learning_rate = lr, .fill = [&](int m, std::int32_t* in, std::int32_t* out) {
             data.read(step, m, at.dp, at.tp * own, own, {in, held}, {out, held});
           }});
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
    double worst[2] = {std::chrono::duration<double>(Clock::now() - begin).count(),
                       static_cast<double>(result.report.peak_bytes.value)};
    MPI_Allreduce(MPI_IN_PLACE, worst, 2, MPI_DOUBLE, MPI_MAX, executor.mesh().all());
    seconds.push_back(worst[0]);
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
    own_beat().now(Activity::kReporting);
    if (executor.mesh().rank() == 0 && on_step)
      on_step({step, lr, worst[0], static_cast<std::int64_t>(worst[1]), std::move(result)});
  }
  // Ranks wait busily: one that has a core of its own runs all the time.
  summary.processor_share = std::min(1.0, (processor_seconds() - processor_before) /
                                              std::chrono::duration<double>(Clock::now() - first_begin).count());
  MPI_Allreduce(MPI_IN_PLACE, &summary.processor_share, 1, MPI_DOUBLE, MPI_MIN, executor.mesh().all());
  if (seconds.size() > 4) seconds.erase(seconds.begin(), seconds.begin() + 2);  // the first two warm up
  if (!seconds.empty()) summary.median_step_s = median(std::move(seconds));
  summary.ranks = gather_counts(count, set, executor.mesh().all());
  return summary;
}

}  // namespace meshwright
