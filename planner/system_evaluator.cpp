#include "planner/system_evaluator.h"

#include <fmt/format.h>

#include <memory>

#include "model/program/op_work.h"
#include "sim/compute_cost.h"
#include "sim/simulate.h"

namespace meshwright {

Time SystemCostModel::compute(const Op& op, const Piece& piece, const ProgramSet&) const {
  return to_time(compute_time(system_, work_of(op, piece)));
}

Time SystemCostModel::collective(const Collective& op, const Piece& piece, const ProgramSet& set) const {
  return to_time(
      collective_time(system_, mapping_, op.kind, op.algorithm, op.group, buffer_bytes(op, piece, set.mesh)));
}

Time SystemCostModel::point_to_point(const View& message, const Piece& piece, const ProgramSet&) const {
  const std::int64_t size = size_of(piece.tensors[static_cast<std::size_t>(message.tensor)].dtype);
  return to_time(message_time(system_, mapping_, Bytes{message.rows * message.cols * size}));
}

AxisTraffic axis_traffic(const ProgramSet& programs) {
  // Per piece, then per chunk, then per slot: nothing is counted twice.
  std::vector<AxisTraffic> of_piece(programs.pieces.size());
  for (std::size_t p = 0; p < programs.pieces.size(); ++p)
    for (const Op& op : programs.pieces[p].ops) {
      if (const auto* c = std::get_if<Collective>(&op)) {
        const std::int64_t passes = c->kind == CollectiveKind::kAllReduce ? 2 : 1;
        const Bytes moved = passes * buffer_bytes(*c, programs.pieces[p], programs.mesh);
        if (c->group == Group::kTp) of_piece[p].tp += moved;
        if (c->group == Group::kDp) of_piece[p].dp += moved;
      } else if (std::holds_alternative<Send>(op)) {
        of_piece[p].pp += bytes_sent(op, programs.pieces[p], programs.mesh);
      }
    }
  AxisTraffic sum;
  for (const Program& stage : programs.stages) {
    std::vector<std::int64_t> uses(stage.chunks.size());
    for (const Slot& slot : stage.slots) ++uses[static_cast<std::size_t>(slot.chunk)];
    for (std::size_t c = 0; c < stage.chunks.size(); ++c)
      for (const Call& call : stage.chunks[c].calls) {
        const AxisTraffic& piece = of_piece[static_cast<std::size_t>(call.piece)];
        sum.tp += uses[c] * piece.tp;
        sum.dp += uses[c] * piece.dp;
        sum.pp += uses[c] * piece.pp;
      }
  }
  const auto stages = static_cast<std::int64_t>(programs.stages.size());
  return {{sum.tp.value / stages}, {sum.dp.value / stages}, {sum.pp.value / stages}};
}

SystemCostModel cost_model(const System& system, const ProgramSet& programs) {
  return {system, choose_mapping(system, programs.mesh, axis_traffic(programs))};
}

Machine machine(const System& system, DType compute, Refuse refuse) {
  require_dtype(system, compute);
  const auto kept = std::make_shared<const System>(system);
  return {.peak = system.peak(compute),
          .usable_memory = system.usable_memory,
          .evaluate =
              [kept](const ProgramSet& programs) {
                const SystemCostModel cost = cost_model(*kept, programs);
                return Prediction{simulate(programs, cost), cost.mapping().describe()};
              },
          .refuse = std::move(refuse)};
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
