// Events per second of the engine, and plans per second of the fast path beside it, on one core.
//   bench_engine [RUNS]    medians over RUNS (default 7) runs
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <random>
#include <vector>

#include "sim/expansion.h"
#include "sim/simulate.h"
#include "tests/sim/handmade.h"

namespace {

using namespace meshwright;

double median_seconds(int runs, const std::function<void()>& f) {
  std::vector<double> seconds;
  for (int i = 0; i < runs; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    f();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  }
  std::nth_element(seconds.begin(), seconds.begin() + runs / 2, seconds.end());
  return seconds[static_cast<std::size_t>(runs) / 2];
}

}  // namespace

int main(int argc, char** argv) {
  const int runs = argc > 1 ? std::max(1, std::atoi(argv[1])) : 7;
  std::mt19937_64 random(1);
  // Buffers for every microbatch, so that nothing waits for itself.
  ProgramSet set;
  std::optional<StepReport> fast;
  const handmade::RandomCost cost(1, 1'000'000);
  do set = handmade::random_program(random, Schedule::k1F1B, 16, 256, 48);
  while (!(fast = simulate_fast(set, cost)));

  const Expansion expansion = expand(set, cost);
  Engine engine(expansion.graph);
  const double engine_s = median_seconds(runs, [&] { engine.run(); });
  const auto events = static_cast<double>(engine.run().events);
  const double full_s = median_seconds(1, [&] { simulate_full(set, cost); });
  const double fast_s = median_seconds(runs, [&] { fast = simulate_fast(set, cost); });
  if (fast->step_time != simulate_full(set, cost).step_time) {
    std::fprintf(stderr, "bench_engine: the fast path and the engine disagree\n");
    return 1;
  }
  std::printf("random program: 16 stages, 256 microbatches, %.0f operations\n", events);
  std::printf("engine            %12.0f events/s   %10.3f ms a run\n", events / engine_s, engine_s * 1e3);
  std::printf("full simulation   %12.0f events/s   %10.3f ms, with expansion and attribution\n", events / full_s,
              full_s * 1e3);
  std::printf("fast path         %12.0f operations/s   %7.3f ms a plan\n", events / fast_s, fast_s * 1e3);
}
