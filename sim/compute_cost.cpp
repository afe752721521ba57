#include "sim/compute_cost.h"

#include <algorithm>
#include <variant>

#include "model/program/check.h"

namespace meshwright {
namespace {

double useful_share(std::int64_t size, std::int64_t tile) {
  const std::int64_t tiles = (size + tile - 1) / tile;
  return static_cast<double>(size) / static_cast<double>(tiles * tile);
}

}  // namespace

double tile_efficiency(const Tile& tile, std::int64_t m, std::int64_t n, std::int64_t k) {
  if (m == 0 || n == 0 || k == 0) return 1;
  return useful_share(m, tile.rows) * useful_share(n, tile.columns) * useful_share(k, tile.depth);
}

Seconds compute_time(const RooflineCompute& roofline, const Work& work) {
  Seconds math;
  if (work.flops.value > 0) {
    const auto peak = roofline.peak.find(work.dtype);
    check(peak != roofline.peak.end(), "no peak of {} products", name(work.dtype));
    math = work.flops /
           (roofline.matmul_efficiency * tile_efficiency(roofline.tile, work.m, work.n, work.k) * peak->second);
  }
  const Seconds memory = work.bytes / roofline.memory_bandwidth;
  return roofline.op_overhead + std::max(math, memory);
}

Seconds compute_time(const MeasuredCompute& measured, const Work& work) {
  const auto listed = measured.kinds.find(work.kind);
  const MeasuredKind& kind = listed == measured.kinds.end() ? measured.other : listed->second;
  Seconds time = kind.overhead;
  if (work.flops.value > 0) {
    const auto rate = kind.rates.find(work.dtype);
    check(rate != kind.rates.end(), "no rate of {} products of kind {}", name(work.dtype), kind_name(work.kind));
    const bool shaped = work.m > 0 && work.n > 0 && work.k > 0;
    const double size =
        shaped ? static_cast<double>(std::min({work.m, work.n, work.k})) : rate->second.points().back().size;
    time += work.flops / FlopsPerSecond{rate->second.at(size)};
  }
  if (kind.bandwidth) time += work.bytes / *kind.bandwidth;
  return time;
}

Seconds compute_time(const System& system, const Work& work) {
  if (work.flops.value > 0) require_dtype(system, work.dtype);
  return std::visit([&](const auto& compute) { return compute_time(compute, work); }, system.compute);
}

}  // namespace meshwright
