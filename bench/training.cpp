// The small model of the demo, trained for real on 1 and on 2 ranks by the plans 1x1x1 and 2x1x1: tokens per second, and
// the share of the matrix products' time and rate, measured in the same run. Run it alone for one rank; it starts itself
// under mpirun for two.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <map>
#include <string>
#include <vector>

#include "executor/executor.h"
#include "executor/kernels/gemm.h"
#include "executor/launch/launcher.h"
#include "model/config.h"
#include "model/lowering/lower.h"

namespace meshwright {
namespace {

using Clock = std::chrono::steady_clock;

double median(std::vector<double> v) {
  std::nth_element(v.begin(), v.begin() + static_cast<std::ptrdiff_t>(v.size() / 2), v.end());
  return v[v.size() / 2];
}

// Best FLOP/s of a product of 1024 x 1024 matrices, on all ranks at once.
double peak_rate() {
  constexpr std::int64_t n = 1024;
  std::vector<float> a(n * n, 0.5f), b(n * n, 0.25f), c(n * n);
  double best = 1e9;
  for (int i = 0; i < 10; ++i) {
    MPI_Barrier(MPI_COMM_WORLD);
    const auto begin = Clock::now();
    kernels::gemm<float>(kernels::Transpose::kNo, kernels::Transpose::kNo, n, n, n, 1, a.data(), n, b.data(), n, 0,
                         c.data(), n);
    best = std::min(best, std::chrono::duration<double>(Clock::now() - begin).count());
  }
  return 2.0 * n * n * n / best;
}

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
  const double peak = peak_rate();
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
