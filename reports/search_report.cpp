#include "reports/search_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "reports/figures.h"
#include "reports/json_report.h"
#include "reports/table.h"
#include "reports/text.h"

namespace meshwright {
namespace {

// Of illegal parts with one reason: what was counted, and the first of them.
struct IllegalReason {
  bool with_fsdp = false;
  std::string example;
};

std::map<std::string, IllegalReason> illegal_reasons(const SearchResult& result) {
  std::map<std::string, IllegalReason> reasons;
  for (const IllegalPart& part : result.illegal) {
    const auto [it, is_new] = reasons.try_emplace(part.why.reason);
    if (is_new) it->second.example = fmt::format("{}: {}", to_string(part.mesh), part.why.detail);
    it->second.with_fsdp |= part.fsdp.has_value();
  }
  return reasons;
}

std::string rejections(const SearchResult& result, int columns) {
  const auto rejected = result.rejected();
  if (rejected.empty()) return "No plan was rejected.\n";
  const auto reasons = illegal_reasons(result);
  Table table({{"rejected because", Align::kLeft, "", 16},
               {"count"},
               {"of", Align::kLeft, "", 8},
               {"", Align::kLeft, "", 16, 1}});
  for (const auto& [reason, r] : rejected) {
    const auto illegal = reasons.find(reason);
    std::string detail;
    if (r.smallest_excess)
      detail = fmt::format("the nearest by {} GiB", gib(*r.smallest_excess));
    else if (illegal != reasons.end())
      detail = "such as " + illegal->second.example;
    const bool mesh = illegal != reasons.end();
    table.add_row({reason, with_commas(r.count),
                   !mesh                       ? "plans"
                   : illegal->second.with_fsdp ? "meshes with an FSDP stage"
                                               : "meshes",
                   std::move(detail)});
  }
  return table.render_within(columns);
}

bool same_but_for_schedule(const PlanResult& a, const PlanResult& b) {
  PlanResult renamed = a;
  renamed.plan.schedule = b.plan.schedule;
  return a.plan.schedule != b.plan.schedule && renamed == b;
}

// A line of the table: a plan, and the one whose schedule's name alone differs. With one stage and one microbatch all
// schedules are the same program.
struct Row {
  const PlanResult* plan = nullptr;
  const PlanResult* twin = nullptr;

  bool shows(const std::optional<Standing>& of) const {
    return of && (plan->plan == of->plan || (twin && twin->plan == of->plan));
  }
};

// Precondition: `plan` is one of the result's.
Row row_of(const SearchResult& result, const PlanResult& plan) {
  const auto [begin, end] = std::ranges::equal_range(result.plans, plan.step_time_s, {}, &PlanResult::step_time_s);
  const auto twin = std::find_if(begin, end, [&](const PlanResult& p) { return same_but_for_schedule(plan, p); });
  return {&plan, twin == end ? nullptr : &*twin};
}

// The preferred plan first, the others by step time.
std::vector<Row> all_rows(const SearchResult& result, const PlanResult& first) {
  std::vector<Row> rows{row_of(result, first)};
  std::set<const PlanResult*> seen{rows[0].plan, rows[0].twin};
  for (const PlanResult& plan : result.plans) {
    if (seen.contains(&plan)) continue;
    rows.push_back(row_of(result, plan));
    if (rows.back().twin) seen.insert(rows.back().twin);
  }
  return rows;
}

std::vector<Row> rows_of_meshes(const SearchResult& result, const PlanResult& first, const SearchHeading& heading,
                                double headroom) {
  std::vector<MeshShape> meshes{first.plan.mesh};
  std::vector<Row> rows{row_of(result, first)};
  for (const PlanResult& plan : result.plans) {
    if (std::ranges::find(meshes, plan.plan.mesh) != meshes.end()) continue;
    meshes.push_back(plan.plan.mesh);
    rows.push_back(row_of(result, *preferred(result, heading.usable_memory, headroom, false, plan.plan.mesh)));
  }
  std::stable_sort(rows.begin() + 1, rows.end(),
                   [](const Row& a, const Row& b) { return a.plan->step_time_s < b.plan->step_time_s; });
  return rows;
}

// The rows as a table; the one of the published plan below a rule, if it is given.
std::string plans_table(const SearchResult& result, const std::vector<Row>& rows,
                        const std::optional<Row>& published_row, const std::optional<Standing>& published,
                        const SearchHeading& heading, double headroom, int columns) {
  std::vector<Row> all = rows;
  if (published_row) all.push_back(*published_row);
  std::vector<double> times;
  bool any_tight = false, any_marked = false;
  for (const Row& row : all) {
    times.push_back(row.plan->step_time_s);
    any_tight |= is_tight(*row.plan, heading.usable_memory, headroom);
    any_marked |= row.shows(published) || !row.plan->runnable;
  }
  const TimeScale scale = time_scale(times);
  Table table({{any_marked ? "  id" : "id", Align::kLeft},
               {"mesh\ndp x pp x tp", Align::kLeft, "mesh"},
               {"ZeRO\nstage", Align::kRight, "ZeRO"},
               {"micro-\nbatches", Align::kRight, "mb"},
               {"schedule", Align::kLeft, "sched"},
               {"recompute", Align::kLeft, "recomp"},
               {scale.heading("step", "\n")},
               {"time\n/ best", Align::kRight, "", 0, 3},
               {"tokens/s", Align::kRight, "", 0, 4},
               {"MFU\n%"},
               {any_tight ? "peak GiB \nper device " : "peak GiB\nper device", Align::kRight,
                any_tight ? "mem \nGiB " : "mem\nGiB"},
               {"exposed\ncomm %", Align::kRight, "comm\n%", 0, 1},
               {"bubble\n%", Align::kRight, "bubl\n%", 0, 2},
               {"", Align::kLeft, "", 16, 5}});
  const auto add = [&](const Row& row) {
    const PlanResult& p = *row.plan;
    const bool is_published = row.shows(published);
    const bool tight = is_tight(p, heading.usable_memory, headroom);
    const std::string marks = !any_marked ? "" : fmt::format("{}{}", is_published ? "▶" : " ", p.runnable ? " " : "×");
    table.add_row({marks + plan_id(p.plan), to_string(p.plan.mesh), fmt::format("{}", p.plan.fsdp),
                   fmt::format("{}", p.plan.microbatches), row.twin ? "either" : std::string(name(p.plan.schedule)),
                   std::string(name(p.plan.recompute)), scale.text(p.step_time_s),
                   fmt::format("{:.2f}", p.step_time_s / result.best()->step_time_s),
                   with_commas(static_cast<std::int64_t>(p.tokens_per_s + 0.5)), percent(p.mfu),
                   gib({p.peak_memory_bytes}) + (tight       ? "!"
                                                 : any_tight ? " "
                                                             : ""),
                   percent(p.exposed_comm_s / p.step_time_s), percent(p.bubble_fraction),
                   fmt::format("{}{}{}", is_published ? kPublishedLabel : "", is_published && !p.runnable ? "; " : "",
                               p.runnable ? "" : "not runnable yet")});
  };
  for (const Row& row : rows) add(row);
  if (published_row) {
    table.add_rule();
    add(*published_row);
  }
  return table.render_within(columns);
}

std::string percent_of(Bytes part, Bytes whole) {
  return percent(static_cast<double>(part.value) / static_cast<double>(whole.value));
}

std::string ratio(double time, double to) { return fmt::format("{:.2f} x", time / to); }

// Whether the published plan is one that the search, as it was interrupted, did not come to.
bool published_was_not_looked_at(const SearchResult& result, const std::optional<Standing>& at,
                                 const SearchHeading& heading) {
  const std::optional<Plan>& published = heading.published;
  return published && !at && published->mesh.ranks() == heading.devices && may_be_legal(result, *published);
}

// What the published plan takes, and what its mesh could do. Precondition: there is one.
std::string published_sentence(const SearchResult& result, const std::optional<Standing>& at,
                               const SearchHeading& heading, double headroom) {
  const Plan& plan = *heading.published;
  const std::string text = to_text(plan);
  const bool not_looked_at = published_was_not_looked_at(result, at, heading);
  if (!at && !not_looked_at) {
    return plan.mesh.ranks() == heading.devices
               ? fmt::format("The plan {} ({}) is not legal in our layout.", kPublishedLabel, text)
               : fmt::format("The plan {} ({}) is for {} devices; {} has {}.", kPublishedLabel, text, plan.mesh.ranks(),
                             heading.system, heading.devices);
  }
  std::string sentence;
  if (not_looked_at) {
    sentence = fmt::format("The plan {} ({}) was not looked at.", kPublishedLabel, text);
  } else if (at->rank) {
    const double time = result.plans[*at->rank - 1].step_time_s;
    sentence = fmt::format("▶ {}: {} a step, {} the fastest {}.", kPublishedLabel, seconds_text(time),
                           ratio(time, result.best()->step_time_s), result.complete ? "plan's" : "looked at");
  } else {
    sentence = fmt::format("The plan {} ({}) does not fit: {} GiB needed, {} GiB too many.", kPublishedLabel, text,
                           gib(at->too_large->needed), gib(at->too_large->excess));
  }
  const PlanResult* best = preferred(result, heading.usable_memory, headroom, false, plan.mesh);
  if (!best) return sentence;
  if (at && at->rank && row_of(result, *best).shows(at))
    return fmt::format("{} It is the best{} of its mesh.", sentence, result.complete ? "" : " looked at");
  return fmt::format(
      "{} Its mesh {} can do {}{}: {}, {}.", sentence, to_string(best->plan.mesh), seconds_text(best->step_time_s),
      at && at->rank ? fmt::format(" ({})", ratio(best->step_time_s, result.plans[*at->rank - 1].step_time_s)) : "",
      plan_id(best->plan), to_text(best->plan));
}

}  // namespace

std::string search_report(const SearchResult& result, const SearchHeading& heading, const SearchView& view,
                          int columns) {
  const auto count = [](std::size_t n) { return with_commas(static_cast<std::int64_t>(n)); };
  const auto line = [&](const std::string& sentence) { return paragraph(sentence, columns, 2); };
  std::string text = line(fmt::format("{} on {}, {} {}: batch {} x {} = {} tokens", heading.config, heading.system,
                                      with_commas(heading.devices), heading.devices == 1 ? "device" : "devices",
                                      with_commas(heading.sequences), with_commas(heading.sequence_length),
                                      with_commas(heading.sequences * heading.sequence_length)));
  const std::string fitting = count(result.plans.size()), legal = with_commas(result.legal);
  text += line(fmt::format("{} fit in {} GiB, found in {}",
                           result.complete ? fmt::format("{} of {} legal plans", fitting, legal)
                                           : fmt::format("{} looked at of {} legal plans (interrupted): {}",
                                                         with_commas(result.evaluated), legal, fitting),
                           gib(heading.usable_memory), seconds_text(result.elapsed_s)));
  const SearchResult shown = view.where.empty() ? result : matching(result, view.where);
  const PlanResult* first = preferred(shown, heading.usable_memory, view.headroom);
  const std::optional<Standing> published = heading.published ? standing(result, *heading.published) : std::nullopt;
  const std::string about_published =
      heading.published ? line(published_sentence(result, published, heading, view.headroom)) : "";
  if (result.plans.empty()) {
    text += fmt::format("\nNo plan {}fits.\n", result.complete ? "" : "looked at ") + about_published;
  } else if (!first) {
    text += '\n' + line(fmt::format("No plan {} matches {}.", result.complete ? "that fits" : "looked at that fits",
                                    view.where.text()));
  } else {
    std::vector<Row> rows = view.all ? all_rows(shown, *first) : rows_of_meshes(shown, *first, heading, view.headroom);
    constexpr std::size_t kUsualRows = 10;
    const std::size_t found = rows.size(), most = std::min(found, view.top.value_or(view.all ? found : kUsualRows));
    rows.resize(most);
    std::optional<Row> published_row;
    if (published && std::ranges::none_of(rows, [&](const Row& row) { return row.shows(published); })) {
      const auto at = std::ranges::find(shown.plans, published->plan, &PlanResult::plan);
      if (at != shown.plans.end()) published_row = row_of(shown, *at);
    }

    std::string title = fmt::format("{}{}{}", view.all ? "Plans" : "The best plan", result.complete ? "" : " looked at",
                                    view.all ? "" : " of each mesh");
    if (!view.where.empty()) title += fmt::format(" with {}", view.where.text());
    if (most < found) title += fmt::format(", {} of {} (--top)", count(most), count(found));
    text += line(title + (view.all ? ":" : "; --all for every plan:"));
    text += '\n' + plans_table(result, rows, published_row, published, heading, view.headroom, columns) + '\n';
    text += about_published;

    const PlanResult& fastest = shown.plans.front();
    if (first != &fastest)
      text += line(fmt::format("{} is listed first: {} takes {:.1f} % less time, but {} % of the usable memory.",
                               plan_id(first->plan), plan_id(fastest.plan),
                               (1 - fastest.step_time_s / first->step_time_s) * 100,
                               percent_of({fastest.peak_memory_bytes}, heading.usable_memory)));
    if (published_row) rows.push_back(*published_row);
    if (std::ranges::any_of(rows,
                            [&](const Row& row) { return is_tight(*row.plan, heading.usable_memory, view.headroom); }))
      text += line(fmt::format("! takes more than {:g} % of the usable memory (--headroom).", view.headroom * 100));
    std::set<std::string> why;
    for (const Row& row : rows)
      if (!row.plan->runnable) why.insert(row.plan->not_runnable);
    for (const std::string& reason : why) text += line(fmt::format("× not runnable yet: {}", reason));
  }
  return text + '\n' + rejections(result, columns);
}

OrderedJson to_json(const SearchResult& result, const SearchHeading& heading, const SearchView& view) {
  const SearchResult shown = view.where.empty() ? result : matching(result, view.where);
  OrderedJson out{{"config", heading.config},
                  {"system", heading.system},
                  {"devices", heading.devices},
                  {"sequences_per_step", heading.sequences},
                  {"tokens_per_step", heading.sequences * heading.sequence_length},
                  {"where", nullptr},
                  {"headroom", view.headroom},
                  {"preferred", nullptr},
                  {"plans", OrderedJson::array()},
                  {"evaluated", result.evaluated},
                  {"legal", result.legal},
                  {"rejected", OrderedJson::object()},
                  {"smallest_excess_bytes", nullptr},
                  {"published", nullptr},
                  {"elapsed_s", result.elapsed_s},
                  {"complete", result.complete}};
  if (!view.where.empty()) out["where"] = view.where.text();
  const auto called = [](const Plan& plan) { return OrderedJson{{"id", plan_id(plan)}, {"plan", to_text(plan)}}; };
  if (const PlanResult* first = preferred(shown, heading.usable_memory, view.headroom))
    out["preferred"] = called(first->plan);
  for (const PlanResult& plan : shown.plans) out["plans"].push_back(to_json(plan));
  for (const auto& [reason, r] : result.rejected()) {
    out["rejected"][reason] = r.count;
    if (r.smallest_excess) out["smallest_excess_bytes"] = r.smallest_excess->value;
  }
  const auto published = heading.published ? standing(result, *heading.published) : std::nullopt;
  if (published || published_was_not_looked_at(result, published, heading)) {
    const bool has_rank = published && published->rank;
    OrderedJson& entry = out["published"] = called(published ? published->plan : *heading.published);
    entry["label"] = kPublishedLabel;
    entry["looked_at"] = published.has_value();
    entry["rank"] = has_rank ? OrderedJson(*published->rank) : OrderedJson(nullptr);
    entry["ratio_to_best"] = has_rank ? OrderedJson(published->ratio_to_best) : OrderedJson(nullptr);
    entry["best_of_mesh"] = nullptr;
    if (const PlanResult* best =
            preferred(result, heading.usable_memory, view.headroom, false, heading.published->mesh)) {
      entry["best_of_mesh"] = called(best->plan);
      entry["best_of_mesh"]["step_time_s"] = best->step_time_s;
    }
  }
  return out;
}

}  // namespace meshwright
