// The small model of the demo, trained on its text with the same seed in f32 and in bf16 (state in f32), on 1 rank: the final
// losses, which must be within 1 % of each other, and the median step times. Exit code 1 if the losses are further apart.
//   bench_bf16 [CONFIG [STEPS]]
#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <string>

#include "executor/data/cache.h"
#include "executor/data/token_source.h"
#include "executor/launch/launcher.h"
#include "executor/launch/mpi_session.h"
#include "executor/train.h"
#include "model/config.h"
#include "model/lowering/lower.h"

namespace meshwright {
namespace {

TrainSummary train_in(DType compute, const TrainingConfig& config, std::int64_t steps) {
  const TrainingShape shape{.sequences = config.sequences, .tokens = config.sequence_length, .compute = compute};
  const ProgramSet set = lower(config.model, shape, Plan{});
  Batches data(
      open_tokens("", static_cast<int>(config.model.vocab()), Cache(default_cache_folder())),
      {.microbatches = set.step.microbatches, .dp = 1, .batch = set.step.microbatch, .tokens = set.step.tokens});
  return train(set, config.model, config, MPI_COMM_WORLD, data, {.steps = steps}, {});
}

bool bench(const std::string& file, std::int64_t steps) {
  const TrainingConfig config = read_config(file);
  const TrainSummary f32 = train_in(DType::kF32, config, steps), bf16 = train_in(DType::kBF16, config, steps);
  const double apart = bf16.last_loss / f32.last_loss - 1;
  fmt::print(
      "{} in {} steps on 1 rank: loss {:.4f} in f32, {:.4f} in bf16 ({:+.2f} %), from {:.4f}\n"
      "  a step takes {:.1f} ms in f32, {:.1f} ms in bf16: {:.2f} times as fast\n",
      config.name, steps, f32.last_loss, bf16.last_loss, 100 * apart, f32.first_loss, 1e3 * f32.median_step_s,
      1e3 * bf16.median_step_s, f32.median_step_s / bf16.median_step_s);
  return std::abs(apart) <= 0.01;
}

}  // namespace
}  // namespace meshwright

int main(int argc, char** argv) {
  using namespace meshwright;
  if (!is_started_rank()) return run_ranks(1, own_command(argc, argv));
  const MpiSession mpi;
  return bench(argc > 1 ? argv[1] : REPOSITORY "/configs/moe-small.json", argc > 2 ? std::atoll(argv[2]) : 300) ? 0 : 1;
}
