// The small model of the demo, trained for real on 1 and on 2 ranks by the plans 1x1x1 and 2x1x1: tokens per second, and
// the share of the matrix products' time and rate, measured in the same run. Run it alone for one rank; it starts itself
// under mpirun for two.
#include <fmt/format.h>

#include <string>
#include <vector>

#include "executor/calibrate.h"
#include "executor/executor.h"
#include "executor/launch/launcher.h"
#include "executor/median.h"
#include "model/config.h"
#include "model/lowering/lower.h"

namespace meshwright {
namespace {

void bench(const std::string& file) {
  constexpr int kWarmUp = 3, kSteps = 15;
  int rank = 0, ranks = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  const TrainingConfig config = read_config(file);
  const TrainingShape shape{config.sequences_per_step(), config.sequence_length};
  const Plan plan{.mesh = {ranks, 1, 1}, .microbatches = 1};
  const ProgramSet set = lower(config.model, shape, plan);
  const std::vector<ParameterSpec> specs = parameters(config.model);
  const double peak = peak_product_rate(MPI_COMM_WORLD);
  std::vector<double> wall, products, rate;
  for (const bool timeline : {false, true}) {  // the whole step undisturbed; then operation by operation
    Executor<float> executor(set, MPI_COMM_WORLD, {.seed = 1, .timeline = timeline});
    executor.load_parameters(initial_weights<float>(specs, config.model.width, 1));
    for (int step = 0; step < kWarmUp + kSteps; ++step) {
      std::uint32_t id = 1;
      const StepResult r = executor.run_step(
          {.step = step, .learning_rate = 1e-3, .fill = [&](int, std::int32_t* in, std::int32_t* out) {
             for (std::int64_t i = 0; i < set.step.microbatch * set.step.tokens; ++i) {
               in[i] = static_cast<std::int32_t>((id >> 8) % static_cast<std::uint32_t>(config.model.vocab));
               id = id * 1664525 + 1013904223;
               out[i] = static_cast<std::int32_t>((id >> 8) % static_cast<std::uint32_t>(config.model.vocab));
             }
           }});
      if (step < kWarmUp) continue;
      if (!timeline) {
        wall.push_back(r.report.end.value);
        continue;
      }
      double seconds = 0, flops = 0;
      for (const Interval& i : r.report.timeline)
        if (i.flops.value > 0) {
          seconds += i.end.value - i.begin.value;
          flops += static_cast<double>(i.flops.value);
        }
      products.push_back(seconds / r.report.end.value);
      rate.push_back(flops / seconds);
    }
  }
  if (rank == 0)
    fmt::print(
        "{} rank(s), plan {}: {:.0f} tokens/s (median of {} steps, {:.1f} ms); products take {:.0f} % of the step at "
        "{:.1f} GFLOP/s a "
        "rank, {:.0f} % of the peak of {:.1f} measured in this run\n",
        ranks, to_text(plan), static_cast<double>(config.tokens_per_step()) / median(wall), kSteps, 1e3 * median(wall),
        100 * median(products), median(rate) / 1e9, 100 * median(rate) / peak, peak / 1e9);
}

}  // namespace
}  // namespace meshwright

int main(int argc, char** argv) {
  using namespace meshwright;
  const std::string config = argc > 1 ? argv[1] : REPOSITORY "/configs/moe-small.json";
  if (!is_started_rank()) {
    for (const int ranks : {1, 2})
      if (const int code = run_ranks(ranks, own_command(argc, argv))) return code;
    return 0;
  }
  MPI_Init(&argc, &argv);
  bench(config);
  MPI_Finalize();
}
