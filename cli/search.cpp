// meshwright search: every legal plan, simulated and ranked.
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "cli/command_line.h"
#include "cli/inputs.h"
#include "cli/interrupt.h"
#include "cli/terminal.h"
#include "executor/launch/output.h"
#include "reports/search_report.h"

namespace meshwright {

void add_search(CLI::App& app, Invocation& invocation) {
  struct Options {
    ConfigOptions config;
    SystemOptions system;
    std::optional<std::size_t> top;
    bool all = false;
    std::vector<std::string> where;
  };
  CLI::App* command = app.add_subcommand("search", "Simulate every legal plan on a machine and rank them");
  const auto options = std::make_shared<Options>();
  add_config_options(*command, invocation, options->config);
  add_system_options(*command, invocation, options->system);
  add_integer_option(
      *command, invocation, "--top", {1, 1'000'000},
      [=](std::int64_t n) { options->top = static_cast<std::size_t>(n); },
      "Rows at most: without it 10, or with --all as many as there are");
  command->add_flag("--all", options->all, "Every plan, instead of the best one of each mesh");
  command->add_option("--where", options->where, "Only plans that match, such as tp=2,pp<=4; repeatable, all must hold")
      ->type_name("CONDITIONS")
      ->take_all()
      ->expected(1);
  command->footer(
      "Every plan and its prediction go into the database. Exit code 3: no plan fits\n"
      "in memory, or none that fits matches --where.\n"
      "--where compares by = != < <= > >= the fields dp, pp, tp, fsdp, microbatches,\n"
      "schedule, recompute, and every number of a plan in --json, by its name there.\n"
      "It chooses what the table shows, and what --json has as plans (else all that\n"
      "fit, by step time); whether a plan fits, what is published and the database\n"
      "stay as they are. The table's first plan is what --plan best takes: within 1 %\n"
      "of the fastest, one that needs at most --headroom of the usable memory.\n"
      "Ctrl-C ends it with the plans that were looked at: they are printed and stored,\n"
      "and it exits with 130.\n"
      "Examples:\n"
      "  meshwright search configs/jaxformer-moe1b.json --system v4:2x4x4\n"
      "  meshwright search configs/jaxformer-moe1b.json --system v4:2x4x4 --where 'tp=2,pp<=4'\n"
      "  meshwright search configs/moe-small.json --system local --all --top 5\n"
      "  meshwright search configs/jaxformer-moe1b.json --system v4:2x4x4 --json | jq '.plans[0]'");
  command->callback([=, &invocation] {
    invocation.run = [=, &invocation]() -> int {
      SearchView view{.all = options->all, .top = options->top, .headroom = options->system.headroom};
      if (!options->where.empty()) view.where = Where(fmt::format("{}", fmt::join(options->where, ",")));
      const TrainingConfig config = load_config(options->config);
      if (print_config(options->config, config)) return kDone;
      const System system = load_any_system(options->system.system, invocation);
      Store store(options->system.database);
      const SearchResult result = search_plans(config, system);
      const SearchHeading heading{config.name,
                                  system.name,
                                  system.devices(),
                                  system.usable_memory,
                                  config.has_plan ? std::optional(published_plan(config)) : std::nullopt,
                                  config.sequences,
                                  config.sequence_length};
      print(options->config.json ? to_json(result, heading, view).dump(2) + '\n'
                                 : search_report(result, heading, view, columns(STDOUT_FILENO)));
      store.save(search_key(config, system), result);  // if it can't be: it has been printed
      const PlanResult* best = preferred(result, system.usable_memory, view.headroom);
      log_info(fmt::format(
          "stored in {}{}", options->system.database,
          best ? fmt::format("; the best plan{} is --plan {}", result.complete ? "" : " looked at", plan_id(best->plan))
               : ""));
      if (!result.complete) return 128 + interrupting_signal();
      return matching(result, view.where).plans.empty() ? kNothingFeasible : kDone;
    };
  });
}

}  // namespace meshwright
