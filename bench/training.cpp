// The small model of the demo, trained for real on 1 and on 2 ranks by the plans 1x1x1 and 2x1x1: tokens per second; the
// rate of its matrix products as a share of what multiply-adds in registers reach, and of its other operations as a share of
// what a copy in memory reaches, both peaks measured in the same run, on all ranks at once. It starts itself under mpirun.
#include <fmt/format.h>

#include <string>
#include <vector>

#include "executor/calibrate.h"
#include "executor/executor.h"
#include "executor/launch/launcher.h"
#include "executor/launch/mpi_session.h"
#include "executor/median.h"
#include "model/config.h"
#include "model/lowering/lower.h"
#include "model/program/op_work.h"

namespace meshwright {
namespace {

void bench(const std::string& file) {
  constexpr int kWarmUp = 3, kSteps = 15;
  int rank = 0, ranks = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &ranks);
  const TrainingConfig config = read_config(file);
  const TrainingShape shape{config.sequences, config.sequence_length};
  const Plan plan{.mesh = {ranks, 1, 1}, .microbatches = 1};
  const ProgramSet set = lower(config.model, shape, plan);
  const std::vector<ParameterSpec> specs = parameters(config.model);
  const MachineRates peak = measure_machine(MPI_COMM_WORLD);
  std::vector<Bytes> touched;  // by the operations of the timeline
  for_each_op(set, set.stages.front(), [&](const Slot&, const Call&, const Piece& piece, const Op& op) {
    if (!std::holds_alternative<Free>(op)) touched.push_back(work_of(op, piece).bytes);
  });
  std::vector<double> wall, products, rate, light, bandwidth;
  for (const bool timeline : {false, true}) {  // the whole step undisturbed; then operation by operation
    Executor executor(set, MPI_COMM_WORLD, {.seed = 1, .timeline = timeline});
    executor.load_parameters(initial_weights(specs, 1));
    for (int step = 0; step < kWarmUp + kSteps; ++step) {
      std::uint32_t id = 1;
      const StepResult r = executor.run_step(
          {.step = step, .learning_rate = 1e-3, .fill = [&](int, std::int32_t* in, std::int32_t* out) {
             for (std::int64_t i = 0; i < set.step.microbatch * set.step.tokens; ++i) {
               in[i] = static_cast<std::int32_t>((id >> 8) % static_cast<std::uint32_t>(config.model.vocab()));
               id = id * 1664525 + 1013904223;
               out[i] = static_cast<std::int32_t>((id >> 8) % static_cast<std::uint32_t>(config.model.vocab()));
             }
           }});
      if (step < kWarmUp) continue;
      if (!timeline) {
        wall.push_back(r.report.end.value);
        continue;
      }
      double seconds = 0, flops = 0, other_seconds = 0, bytes = 0;
      for (std::size_t i = 0; i < r.report.timeline.size(); ++i) {
        const Interval& interval = r.report.timeline[i];
        const double s = interval.end.value - interval.begin.value;
        if (interval.flops.value > 0) {
          seconds += s;
          flops += static_cast<double>(interval.flops.value);
        } else if (interval.stream == Stream::kCompute) {
          other_seconds += s;
          bytes += static_cast<double>(touched[i].value);
        }
      }
      products.push_back(seconds / r.report.end.value);
      rate.push_back(flops / seconds);
      light.push_back(other_seconds / r.report.end.value);
      bandwidth.push_back(bytes / other_seconds);
    }
  }
  // Means over the ranks of each rank's median.
  double all[] = {median(products), median(rate), median(light), median(bandwidth)};
  MPI_Allreduce(MPI_IN_PLACE, all, 4, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
  for (double& mean : all) mean /= ranks;
  if (rank == 0)
    fmt::print(
        "{} rank(s), plan {}: {:.0f} tokens/s (median of {} steps, {:.1f} ms)\n"
        "  products: {:.0f} % of the step at {:.1f} GFLOP/s a rank, {:.0f} % of the multiply-add peak of {:.1f}\n"
        "  other operations: {:.0f} % of the step at {:.1f} GB/s a rank, read plus written, caches included; a copy in "
        "memory reaches {:.1f}: {:.0f} %\n",
        ranks, to_text(plan), static_cast<double>(config.tokens_per_step()) / median(wall), kSteps, 1e3 * median(wall),
        100 * all[0], all[1] / 1e9, 100 * all[1] / peak.flops_per_s, peak.flops_per_s / 1e9, 100 * all[2], all[3] / 1e9,
        peak.bytes_per_s / 1e9, 100 * all[3] / peak.bytes_per_s);
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
  const MpiSession mpi;
  bench(config);
}
