// How fast plans are lowered and simulated, and how long the whole search of the published configuration
// takes. Prints medians of several runs. Arguments: configuration and system, otherwise those published.
#include "planner/search.h"

#include <fmt/format.h>

#include <algorithm>
#include <ctime>
#include <vector>

#include "model/config.h"
#include "planner/system_evaluator.h"

namespace meshwright {
namespace {

constexpr int kRuns = 5;

// Processor time of this thread's work, which other work on the machine doesn't lengthen.
double core_seconds(auto&& work) {
  const std::clock_t begin = std::clock();
  work();
  return static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC;
}

double median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

void bench(const std::string& config_file, const std::string& system_name) {
  const TrainingConfig config = read_config(std::filesystem::path(config_file));
  const System system = load_system(system_name, REPOSITORY "/configs");
  const DType compute = config.model_dtype == "bfloat16" ? DType::kBF16 : DType::kF32;
  const Problem problem{
      config.model,
      {.sequences = config.sequences, .tokens = config.sequence_length, .compute = compute},
      system.devices()};
  const Machine target = machine(system, compute);
  const std::vector<Plan> plans = all_plans(problem);
  const auto count = static_cast<double>(plans.size());
  fmt::print("{} on {}: {} plans; medians of {} runs\n", config.name, system.name, plans.size(), kRuns);

  std::vector<double> lowering, simulation, both;
  for (int run = 0; run < kRuns; ++run) {
    double lowered = 0, simulated = 0;
    for (const Plan& plan : plans) {
      ProgramSet programs;
      lowered += core_seconds([&] { programs = lower(problem.model, problem.shape, plan); });
      simulated += core_seconds([&] { evaluate_plan(problem, plan, programs, target); });
    }
    lowering.push_back(lowered);
    simulation.push_back(simulated);
    both.push_back(lowered + simulated);
  }
  fmt::print("  one core, processor time: lowered {:.0f} plans/s, simulated {:.0f} plans/s, both {:.0f} plans/s\n",
             count / median(lowering), count / median(simulation), count / median(both));

  for (const int workers : {1, 2}) {
    std::vector<double> elapsed;
    SearchResult result;
    for (int run = 0; run < kRuns; ++run) {
      result = search(problem, target, {.workers = workers});
      elapsed.push_back(result.elapsed_s);
    }
    fmt::print("  whole search, {} worker(s), wall time: {:.3f} s, {:.0f} plans/s, best {}\n", workers, median(elapsed),
               count / median(elapsed), result.best() ? to_text(result.best()->plan) : "none");
  }
}

}  // namespace
}  // namespace meshwright

int main(int argc, char** argv) {
  meshwright::bench(argc > 1 ? argv[1] : REPOSITORY "/configs/jaxformer-moe1b.json", argc > 2 ? argv[2] : "v4:2x4x4");
}
