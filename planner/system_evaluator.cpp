#include "planner/system_evaluator.h"

#include <fmt/format.h>

#include <memory>

#include "sim/piece_time.h"
#include "sim/simulate.h"
#include "sim/system_cost_model.h"

namespace meshwright {

Machine machine(const System& system, DType compute, Refuse refuse) {
  require_dtype(system, compute);
  const auto kept = std::make_shared<const System>(system);
  return {.peak = system.peak(compute),
          .usable_memory = system.usable_memory,
          .evaluate =
              [kept](const ProgramSet& programs) {
                const SystemCostModel cost(*kept, programs);
                return Prediction{simulate(programs, cost, {.live = SimOptions::Live::kLargestArena}),
                                  cost.mapping().describe()};
              },
          .refuse = std::move(refuse),
          .cost_pieces =
              [kept](const ProgramSet& programs, std::span<const int> pieces) {
                std::vector<PieceCost> costs;
                for (const PieceTime& t : piece_times(programs, pieces, SystemCostModel(*kept, programs)))
                  costs.push_back({static_cast<double>(t.busy), static_cast<double>(t.beside)});
                return costs;
              }};
}

// ---- describe
// --------------------------------------------------------------------------------------------------------

namespace {

std::string text(const Curve& curve) {
  std::string all;
  for (const auto& [x, y] : curve.points()) all += fmt::format(" {}:{}", x, y);
  return all;
}

std::string text(const PeakRates& peaks) {
  std::string all = "peak";
  for (const auto& [dtype, rate] : peaks) all += fmt::format(" {}:{}", name(dtype), rate.value);
  return all + "\n";
}

std::string text(const RooflineCompute& c) {
  return text(c.peak) + fmt::format("roofline efficiency {} tile {} {} {} bandwidth {} overhead {}\n",
                                    c.matmul_efficiency, c.tile.rows, c.tile.columns, c.tile.depth,
                                    c.memory_bandwidth.value, c.op_overhead.value);
}

std::string text(std::string_view kind, const MeasuredKind& measured) {
  std::string all = fmt::format("{} overhead {}", kind, measured.overhead.value);
  for (const auto& [dtype, rates] : measured.rates) all += fmt::format(" {}{}", name(dtype), text(rates));
  if (measured.bandwidth) all += fmt::format(" bandwidth {}", measured.bandwidth->value);
  return all + "\n";
}

std::string text(const MeasuredCompute& c) {
  std::string all = text(c.peak);
  for (const auto& [kind, measured] : c.kinds) all += text(kind_name(kind), measured);
  return all + text("other", c.other);
}

std::string text(const LinkNetwork& n) {
  return fmt::format("link {} efficiency {} hop {} collective {} message {}\n", n.link.value, n.link_efficiency,
                     n.hop_latency.value, n.collective_overhead.value, n.message_overhead.value);
}

std::string text(const MeasuredNetwork& n) {
  std::string all;
  for (const auto& [key, seconds] : n.collectives)
    all += fmt::format("{} {} of {}{}\n", name(key.kind), key.algorithm == Algorithm::kRing ? "ring" : "direct",
                       key.members, text(seconds));
  return all + "message" + text(n.message) + "\n";
}

}  // namespace

std::string describe(const System& system) {
  const auto written = [](const auto& part) { return text(part); };
  return fmt::format("{}, {}\nmemory {} usable {}\n", system.name, system.device, system.memory.value,
                     system.usable_memory.value) +
         std::visit(written, system.compute) + std::visit(written, system.network) +
         fmt::format("overlaps {}\n{}\nwraps", system.overlaps_compute, system.topology.describe()) + [&] {
           std::string wraps;
           for (int d = 0; d < system.topology.dimensions(); ++d) wraps += system.topology.wraps(d) ? " 1" : " 0";
           return wraps + "\n";
         }();
}

}  // namespace meshwright
