#include "model/program/step_report.h"

#include <cmath>

#include "model/program/check.h"

namespace meshwright {

double placement_loss(const RankReport& rank) {
  return rank.live.bytes > 0 ? static_cast<double>(rank.arena_bytes.value) / static_cast<double>(rank.live.bytes) - 1
                             : 0;
}

void check_figures(const StepReport& report) {
  const double step = report.step_time.value;
  check(std::isfinite(step) && step >= 0, "a step of {} s: a time is finite and at least 0", step);
  constexpr double kRounding = 1e-9;
  for (const RankReport& rank : report.ranks) {
    for (const auto& [name, seconds] : {std::pair{"end", rank.end},
                                        {"compute", rank.compute},
                                        {"exposed communication", rank.exposed_comm},
                                        {"bubble", rank.bubble}})
      check(seconds.value >= 0 && seconds.value <= step * (1 + kRounding), "stage {}: {} of {} s: 0 to the step's {} s",
            rank.rank.pp, name, seconds.value, step);
    check(rank.executed_flops.value >= 0, "stage {}: {} FLOPs: at least 0", rank.rank.pp, rank.executed_flops.value);
    check(rank.live.bytes >= 0, "stage {}: a peak of {} bytes: at least 0", rank.rank.pp, rank.live.bytes);
    check(rank.arena_bytes.value >= 0, "stage {}: an arena of {} bytes: at least 0", rank.rank.pp,
          rank.arena_bytes.value);
    for (const auto& classes : {rank.live.at_peak, rank.live.of_class})
      for (const std::int64_t bytes : classes)
        check(bytes >= 0, "stage {}: {} bytes of a class of memory: at least 0", rank.rank.pp, bytes);
    for (const auto& [key, bytes] : rank.traffic)
      check(bytes.value >= 0, "stage {}: {} bytes of {} over {}: at least 0", rank.rank.pp, bytes.value, key.first,
            key.second);
  }
}

}  // namespace meshwright
