#include "reports/search_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <set>
#include <utility>

#include "reports/figures.h"
#include "reports/json_report.h"
#include "reports/table.h"

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

std::string rejections(const SearchResult& result) {
  const auto rejected = result.rejected();
  if (rejected.empty()) return "No plan was rejected.\n";
  const auto reasons = illegal_reasons(result);
  Table table({{"rejected because", Align::kLeft}, {"count"}, {"of", Align::kLeft}, {"", Align::kLeft}});
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
  return table.render();
}

std::string published_sentence(const std::optional<Standing>& standing, const SearchHeading& heading) {
  const std::string text = to_text(heading.published);
  if (!standing) {
    return heading.published.mesh.ranks() == heading.devices
               ? fmt::format("The plan {} ({}) is not legal in our layout.\n", kPublishedLabel, text)
               : fmt::format("The plan {} ({}) is for {} devices; {} has {}.\n", kPublishedLabel, text,
                             heading.published.mesh.ranks(), heading.system, heading.devices);
  }
  if (standing->rank) {
    return fmt::format("▶ {}: rank {}, {:.2f} x the best plan's step time.\n", kPublishedLabel, *standing->rank,
                       standing->ratio_to_best);
  }
  return fmt::format("The plan {} ({}) does not fit: {} GiB needed, {} GiB too many.\n", kPublishedLabel, text,
                     gib(standing->too_large->needed), gib(standing->too_large->excess));
}

bool same_but_for_schedule(const PlanResult& a, const PlanResult& b) {
  PlanResult renamed = a;
  renamed.plan.schedule = b.plan.schedule;
  return a.plan.schedule != b.plan.schedule && renamed == b;
}

}  // namespace

std::string search_report(const SearchResult& result, const SearchHeading& heading, std::size_t top) {
  std::string text =
      fmt::format("{} on {}: {} of {} legal plans fit in {} GiB, found in {}\n\n", heading.config, heading.system,
                  with_commas(static_cast<std::int64_t>(result.plans.size())), with_commas(result.evaluated),
                  gib(heading.usable_memory), seconds_text(result.elapsed_s));
  const std::optional<Standing> published = standing(result, heading.published);
  if (!result.plans.empty()) {
    Table table({{"", Align::kLeft},
                 {"rank"},
                 {"mesh\ndp x pp x tp", Align::kLeft},
                 {"FSDP"},
                 {"schedule", Align::kLeft},
                 {"micro-\nbatches"},
                 {"recom-\npute", Align::kLeft},
                 {"step\nms"},
                 {"tokens/s"},
                 {"MFU\n%"},
                 {"peak GiB\nper chip"},
                 {"exposed\ncomm ms"},
                 {"bubble\n%"},
                 {"time\n/ best"},
                 {"", Align::kLeft}});
    bool passed_over = false;
    // Shows the plan of this rank, and with it the next one if only its schedule's name differs: with one stage and one
    // microbatch all schedules are the same program. Returns the next rank to show.
    const auto add = [&](std::size_t rank) {
      const PlanResult& p = result.plans[rank - 1];
      const bool either = rank < result.plans.size() && same_but_for_schedule(p, result.plans[rank]);
      const bool is_published = published && (published->rank == rank || (either && published->rank == rank + 1));
      passed_over |= !p.runnable;
      table.add_row({is_published ? "▶" : "", fmt::format("{}", rank), to_string(p.plan.mesh),
                     fmt::format("{}", p.plan.fsdp), either ? "either" : std::string(name(p.plan.schedule)),
                     fmt::format("{}", p.plan.microbatches), std::string(name(p.plan.recompute)),
                     milliseconds({p.step_time_s}), with_commas(static_cast<std::int64_t>(p.tokens_per_s + 0.5)),
                     percent(p.mfu), gib({p.peak_memory_bytes}), milliseconds({p.exposed_comm_s}),
                     percent(p.bubble_fraction),
                     fmt::format("{:.2f}", p.step_time_s / result.plans.front().step_time_s),
                     fmt::format("{}{}{}", is_published ? kPublishedLabel : "", is_published && !p.runnable ? "; " : "",
                                 p.runnable ? "" : "not runnable yet")});
      return rank + (either ? 2 : 1);
    };
    std::size_t next = 1;
    for (std::size_t row = 0; row < top && next <= result.plans.size(); ++row) next = add(next);
    if (published && published->rank && *published->rank >= next) {
      table.add_rule();
      add(*published->rank);
    }
    text += table.render();
    text += '\n';
    text += published_sentence(published, heading);
    if (passed_over) {
      std::set<std::string> why;
      for (const PlanResult& p : result.plans)
        if (!p.runnable) why.insert(p.not_runnable);
      for (const std::string& reason : why) text += fmt::format("Not runnable yet: {}\n", reason);
    }
  } else {
    text += "No plan fits.\n" + published_sentence(published, heading);
  }
  return text + '\n' + rejections(result);
}

OrderedJson to_json(const SearchResult& result, const SearchHeading& heading) {
  OrderedJson out{{"config", heading.config},         {"system", heading.system},
                  {"devices", heading.devices},       {"plans", OrderedJson::array()},
                  {"evaluated", result.evaluated},    {"rejected", OrderedJson::object()},
                  {"smallest_excess_bytes", nullptr}, {"published", nullptr},
                  {"elapsed_s", result.elapsed_s},    {"complete", result.complete}};
  for (const PlanResult& plan : result.plans) out["plans"].push_back(to_json(plan));
  for (const auto& [reason, r] : result.rejected()) {
    out["rejected"][reason] = r.count;
    if (r.smallest_excess) out["smallest_excess_bytes"] = r.smallest_excess->value;
  }
  if (const auto published = standing(result, heading.published)) {
    out["published"] = {
        {"label", kPublishedLabel}, {"plan", to_text(published->plan)}, {"rank", nullptr}, {"ratio_to_best", nullptr}};
    if (published->rank) {
      out["published"]["rank"] = *published->rank;
      out["published"]["ratio_to_best"] = published->ratio_to_best;
    }
  }
  return out;
}

}  // namespace meshwright
