// Sums over a stage that both the full and the fast simulation report.
#pragma once

#include <string>

#include "model/program/op.h"
#include "model/program/program.h"
#include "model/program/step_report.h"
#include "sim/wait.h"

namespace meshwright {

struct StageTotals {
  Time compute = 0, exposed = 0, bubble = 0;
  Flops flops;

  void add_wait(Time free, Moment until) {
    const Time waits_for_stage = bubble_of(free, until);
    bubble += waits_for_stage;
    exposed += std::max<Time>(0, until.time - free) - waits_for_stage;
  }
  void write(RankReport& rank, Time end) const {
    rank.end = to_seconds(end);
    rank.compute = to_seconds(compute);
    rank.exposed_comm = to_seconds(exposed);
    rank.bubble = to_seconds(bubble);
    rank.executed_flops = flops;
  }
};

// The rank with dp 0 and tp 0 of a stage, with the size of its arena.
inline RankReport stage_report(const Program& program) {
  RankReport rank;
  rank.rank = {.dp = 0, .pp = program.stage, .tp = 0};
  rank.arena_bytes = {program.arena_bytes};
  return rank;
}

// Where the bytes that an operation sends are counted.
inline TrafficKey traffic_key(const Op& op) {
  const auto* collective = std::get_if<Collective>(&op);
  return {std::string(op_name(op)), std::string(name(collective ? collective->group : Group::kPp))};
}

}  // namespace meshwright
