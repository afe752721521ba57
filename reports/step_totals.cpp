#include "reports/step_totals.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "model/program/check.h"
#include "reports/figures.h"
#include "reports/table.h"

namespace meshwright {
namespace {

std::string traffic_name(const TrafficKey& key) { return fmt::format("{} over {}", key.first, key.second); }

// Messages go to a neighbouring stage, collectives span a group: zero bytes and no entry are the same.
std::int64_t sent(const Traffic& traffic, const TrafficKey& key) {
  const auto it = traffic.find(key);
  return it == traffic.end() ? 0 : it->second.value;
}

std::set<TrafficKey> keys(const StepTotals& a, const StepTotals& b) {
  std::set<TrafficKey> all;
  for (const Traffic* traffic : {&a.traffic, &b.traffic})
    for (const auto& [key, bytes] : *traffic)
      if (bytes.value != 0) all.insert(key);
  return all;
}

}  // namespace

StepTotals totals(const StepReport& report, const MeshShape& mesh) {
  const int reported = static_cast<int>(report.ranks.size());
  check(reported == mesh.ranks() || reported == mesh.pp, "a report of {} ranks for a mesh of {}", reported,
        to_string(mesh));
  const int each = mesh.ranks() / reported;
  StepTotals sum{.step_time = report.step_time};
  for (const RankReport& rank : report.ranks) {
    sum.flops += static_cast<double>(rank.executed_flops.value) * each;
    sum.peak_bytes = std::max(sum.peak_bytes, Bytes{rank.live.bytes});
    sum.arena_bytes = std::max(sum.arena_bytes, rank.arena_bytes);
    sum.outside_bytes = std::max(sum.outside_bytes, rank.outside_bytes);
    sum.compute += Seconds{rank.compute.value / reported};
    sum.exposed_comm += Seconds{rank.exposed_comm.value / reported};
    sum.bubble += Seconds{rank.bubble.value / reported};
    for (const auto& [key, bytes] : rank.traffic) sum.traffic[key] += bytes * each;
  }
  return sum;
}

OrderedJson to_json(const StepTotals& totals) {
  OrderedJson out{{"step_time_s", totals.step_time.value},
                  {"compute_s", totals.compute.value},
                  {"exposed_comm_s", totals.exposed_comm.value},
                  {"bubble_s", totals.bubble.value},
                  {"flops", totals.flops},
                  {"peak_bytes", totals.peak_bytes.value},
                  {"arena_bytes", totals.arena_bytes.value},
                  {"bytes", OrderedJson::object()}};
  for (const auto& [key, bytes] : totals.traffic) out["bytes"][traffic_name(key)] = bytes.value;
  return out;
}

bool counts_equal(const StepTotals& a, const StepTotals& b) {
  const auto all = keys(a, b);
  return a.flops == b.flops && a.peak_bytes == b.peak_bytes && a.arena_bytes == b.arena_bytes &&
         std::all_of(all.begin(), all.end(),
                     [&](const TrafficKey& key) { return sent(a.traffic, key) == sent(b.traffic, key); });
}

std::string comparison_report(const StepTotals& predicted, const StepTotals& counted, int columns, Times times) {
  Table table({{"of a step", Align::kLeft, "", 16}, {"predicted"}, {"counted"}, {"", Align::kLeft, "", 8}});
  const auto add = [&](std::string label, std::int64_t a, std::int64_t b) {
    table.add_row(
        {std::move(label), with_commas(a), with_commas(b), a == b ? "equal" : fmt::format("{:+} counted", b - a)});
  };
  add("FLOPs, all ranks", static_cast<std::int64_t>(predicted.flops), static_cast<std::int64_t>(counted.flops));
  add("live bytes of a rank", predicted.peak_bytes.value, counted.peak_bytes.value);
  add("arena bytes of a rank", predicted.arena_bytes.value, counted.arena_bytes.value);
  if (counted.outside_bytes.value > 0)
    table.add_row({"bytes beside the arena", "", with_commas(counted.outside_bytes.value), ""});
  for (const TrafficKey& key : keys(predicted, counted))
    add(fmt::format("bytes sent, {}", traffic_name(key)), sent(predicted.traffic, key), sent(counted.traffic, key));
  if (times == Times::kCompare) {
    const TimeScale scale = time_scale({predicted.step_time.value, counted.step_time.value});
    const auto add_time = [&](const char* label, Seconds a, Seconds b) {
      table.add_row({scale.heading(label, ", "), scale.text(a.value), scale.text(b.value),
                     a.value > 0 ? fmt::format("{:.2f} x predicted", b.value / a.value) : std::string()});
    };
    add_time("step time", predicted.step_time, counted.step_time);
    add_time("of it compute", predicted.compute, counted.compute);
    add_time("exposed communication", predicted.exposed_comm, counted.exposed_comm);
    add_time("bubble", predicted.bubble, counted.bubble);
  }
  return table.render_within(columns);
}

}  // namespace meshwright
