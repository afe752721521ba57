#include "reports/plan_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <utility>
#include <vector>

#include "reports/figures.h"
#include "reports/json_report.h"
#include "reports/step_totals.h"
#include "reports/table.h"
#include "reports/text.h"

namespace meshwright {
namespace {

std::string layers_text(const PlanResult& result, int stage) {
  int first = 0;
  for (int s = 0; s < stage; ++s) first += result.stage_layers[s];
  return fmt::format("{}-{}", first, first + result.stage_layers[stage] - 1);
}

std::string figures_table(const PlanResult& r, const PlanHeading& heading, int columns) {
  const int devices = r.plan.mesh.ranks();
  // Each of its rows is another figure: each has its own unit.
  const TimeScale step = time_scale({r.step_time_s}), exposed = time_scale({r.exposed_comm_s});
  Table table({{"figure", Align::kLeft}, {"value"}, {"", Align::kLeft, "", 16}});
  table.add_row({"step time", step.text(r.step_time_s), std::string(step.unit)});
  table.add_row({"tokens/s", with_commas(static_cast<std::int64_t>(r.tokens_per_s + 0.5)),
                 fmt::format("whole job, {} devices", devices)});
  table.add_row({"MFU", percent(r.mfu), "%, model FLOPs (no recomputation) over the devices' peak"});
  table.add_row({"HFU", percent(r.hfu), "%, executed FLOPs over the same"});
  table.add_row(
      {"peak memory", gib({r.peak_memory_bytes}),
       fmt::format("GiB on stage {}, of {} usable: {}", r.largest_stage, gib(heading.usable_memory),
                   r.peak_memory_bytes <= heading.usable_memory.value
                       ? "it fits"
                       : fmt::format("{} too many", gib({r.peak_memory_bytes - heading.usable_memory.value})))});
  table.add_row({"exposed communication", exposed.text(r.exposed_comm_s),
                 exposed.heading("", "") +
                     fmt::format(", {} % of the step, mean over devices", percent(r.exposed_comm_s / r.step_time_s))});
  table.add_row({"bubble", percent(r.bubble_fraction), "% of the step, mean over devices"});
  table.add_row({"model FLOPs", fmt::format("{:.4g}", r.model_flops), "of a step"});
  table.add_row({"executed FLOPs", fmt::format("{:.4g}", r.executed_flops), "of a step, experts at capacity"});
  return table.render_within(columns);
}

std::string stages_table(const PlanResult& result, const StepReport& report, int columns) {
  std::vector<double> times;
  for (const RankReport& r : report.ranks)
    times.insert(times.end(), {r.compute.value, r.exposed_comm.value, r.bubble.value});
  const TimeScale scale = time_scale(std::move(times), report.step_time.value);
  Table table({{"stage"},
               {"layers"},
               {scale.heading("compute", "\n")},
               {scale.heading("exposed\ncomm", " ")},
               {scale.heading("bubble", "\n")}});
  for (std::size_t s = 0; s < report.ranks.size(); ++s) {
    const RankReport& r = report.ranks[s];
    table.add_row({fmt::format("{}", s), layers_text(result, static_cast<int>(s)), scale.text(r.compute.value),
                   scale.text(r.exposed_comm.value), scale.text(r.bubble.value)});
  }
  return table.render_within(columns);
}

std::string memory_table(const StepReport& report, int columns) {
  std::vector<Column> classes{{"stage"}};
  for (const std::string_view c : kMemoryClassNames) {
    const std::size_t half = c.size() > 9 ? c.size() / 2 : 0;  // long names in two lines: "param-" above "eters"
    classes.push_back(
        {std::string(c), Align::kRight, half ? fmt::format("{}-\n{}", c.substr(0, half), c.substr(half)) : ""});
  }
  classes.push_back({"live"});
  classes.push_back({"arena"});
  classes.push_back({"lost\n%"});
  Table table(std::move(classes));
  for (std::size_t s = 0; s < report.ranks.size(); ++s) {
    std::vector<std::string> cells{fmt::format("{}", s)};
    const RankReport& r = report.ranks[s];
    for (const std::int64_t bytes : r.live.at_peak) cells.push_back(gib({bytes}));
    cells.insert(cells.end(), {gib({r.live.bytes}), gib(r.arena_bytes), percent(placement_loss(r))});
    table.add_row(std::move(cells));
  }
  return table.render_within(columns);
}

std::string traffic_table(const StepReport& report, const MeshShape& mesh, int columns) {
  const StepTotals all = totals(report, mesh);
  if (all.traffic.empty()) return "  nothing: one device\n";
  Table table({{"operation", Align::kLeft},
               {"group", Align::kLeft},
               {"members"},
               {"most of a device\nbytes"},
               {"all devices\nbytes"}});
  for (const auto& [key, bytes] : all.traffic) {
    Bytes most;
    for (const RankReport& rank : report.ranks)
      if (const auto it = rank.traffic.find(key); it != rank.traffic.end()) most = std::max(most, it->second);
    std::string members;
    for (int g = 0; g < kGroups; ++g)
      if (kGroupNames[g] == key.second) members = fmt::format("{}", group_size(mesh, static_cast<Group>(g)));
    table.add_row({key.first, key.second, std::move(members), with_commas(most.value), with_commas(bytes.value)});
  }
  return table.render_within(columns);
}

// Kinds of operation on the compute stream, by their time on a device, mean over stages; then what waits.
std::string time_table(const StepReport& report, int columns) {
  struct Kind {
    double seconds = 0, flops = 0;
    std::int64_t count = 0;
  };
  std::map<std::string_view, Kind> kinds;
  double exposed = 0, bubble = 0;
  for (const RankReport& rank : report.ranks) {
    for (const Interval& i : rank.timeline) {
      if (i.stream != Stream::kCompute || i.bytes.value > 0) continue;  // sent on the compute stream: exposed, below
      Kind& kind = kinds[i.name];
      kind.seconds += i.end.value - i.begin.value;
      kind.flops += static_cast<double>(i.flops.value);
      ++kind.count;
    }
    exposed += rank.exposed_comm.value;
    bubble += rank.bubble.value;
  }
  std::vector<std::pair<std::string_view, Kind>> sorted(kinds.begin(), kinds.end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const auto& a, const auto& b) { return a.second.seconds > b.second.seconds; });
  const double stages = static_cast<double>(report.ranks.size()), step = report.step_time.value;
  // The unit is that of the largest, as the others matter by their share of it.
  std::vector<double> times{exposed / stages, bubble / stages};
  for (const auto& [name, kind] : sorted) times.push_back(kind.seconds / stages);
  const double largest = std::ranges::max(times);
  TimeScale scale = time_scale(std::move(times), largest);
  scale.digits = std::max(scale.digits, 2);
  Table table({{"operation", Align::kLeft, "", 16},
               {"times"},
               {scale.unit.empty() ? "time" : std::string(scale.unit)},
               {"% of step"},
               {"FLOP/s"}});
  for (const auto& [name, kind] : sorted)
    table.add_row({std::string(name),
                   with_commas(static_cast<std::int64_t>(static_cast<double>(kind.count) / stages + 0.5)),
                   scale.text(kind.seconds / stages), percent(kind.seconds / stages / step),
                   kind.flops > 0 ? rate_text(kind.flops / kind.seconds) : ""});
  table.add_rule();
  table.add_row({"exposed communication", "", scale.text(exposed / stages), percent(exposed / stages / step), ""});
  table.add_row({"bubble", "", scale.text(bubble / stages), percent(bubble / stages / step), ""});
  return table.render_within(columns);
}

}  // namespace

std::string plan_report(const PlanResult& result, const Prediction& prediction, const PlanHeading& heading,
                        int columns) {
  const StepReport& report = prediction.report;
  const auto line = [&](const std::string& sentence) { return paragraph(sentence, columns, 2); };
  std::string text = line(fmt::format("{} on {}: {}", heading.config, heading.system, to_text(result.plan)));
  text += line(fmt::format("Mesh on the machine: {}", prediction.mapping));
  if (!result.runnable) text += line(fmt::format("Not runnable yet: {}", result.not_runnable));
  text += '\n' + figures_table(result, heading, columns);
  text += '\n' + line("Stages, of one device each") + stages_table(result, report, columns);
  text += '\n' + line("Memory of one device, GiB") + memory_table(report, columns);
  text += '\n' + line("Sent in a step") + traffic_table(report, result.plan.mesh, columns);
  const bool has_timeline =
      std::any_of(report.ranks.begin(), report.ranks.end(), [](const auto& r) { return !r.timeline.empty(); });
  if (has_timeline)
    text += '\n' + line("Where the time of a device goes, mean over stages") + time_table(report, columns);
  return text;
}

OrderedJson plan_json(const PlanResult& result, const Prediction& prediction, const PlanHeading& heading) {
  OrderedJson out = to_json(result);
  out["config"] = heading.config;
  out["system"] = heading.system;
  out["usable_memory_bytes"] = heading.usable_memory.value;
  out["fits"] = result.peak_memory_bytes <= heading.usable_memory.value;
  out["stages"] = OrderedJson::array();
  int first = 0;
  for (std::size_t s = 0; s < prediction.report.ranks.size(); ++s) {
    const RankReport& r = prediction.report.ranks[s];
    OrderedJson stage{{"first_layer", first},
                      {"layers", result.stage_layers[s]},
                      {"compute_s", r.compute.value},
                      {"exposed_comm_s", r.exposed_comm.value},
                      {"bubble_s", r.bubble.value},
                      {"executed_flops", r.executed_flops.value},
                      {"peak_bytes", r.live.bytes},
                      {"arena_bytes", r.arena_bytes.value},
                      {"placement_loss", placement_loss(r)},
                      {"memory_bytes", OrderedJson::object()},
                      {"sent_bytes", OrderedJson::object()}};
    for (int c = 0; c < kMemoryClasses; ++c)
      stage["memory_bytes"][std::string(kMemoryClassNames[c])] = r.live.at_peak[c];
    for (const auto& [key, bytes] : r.traffic)
      stage["sent_bytes"][fmt::format("{} over {}", key.first, key.second)] = bytes.value;
    out["stages"].push_back(std::move(stage));
    first += result.stage_layers[s];
  }
  out["predicted"] = to_json(totals(prediction.report, result.plan.mesh));
  return out;
}

}  // namespace meshwright
