// meshwright search: every legal plan, simulated and ranked.
#include <fmt/format.h>

#include <iostream>
#include <memory>

#include "cli/command_line.h"
#include "cli/inputs.h"
#include "reports/search_report.h"

namespace meshwright {

void add_search(CLI::App& app, Invocation& invocation) {
  struct Options {
    ConfigOptions config;
    SystemOptions system;
    std::size_t top = 10;
  };
  CLI::App* command = app.add_subcommand("search", "Simulate every legal plan on a machine and rank them");
  const auto options = std::make_shared<Options>();
  add_config_options(*command, options->config);
  add_system_options(*command, options->system);
  add_integer_option(
      *command, invocation, "--top", {1, 1'000'000},
      [=](std::int64_t n) { options->top = static_cast<std::size_t>(n); }, "Plans to print (--json has all)")
      ->default_str(fmt::format("{}", options->top));
  command->footer(
      "Every plan and its prediction go into the database. Exit code 3: no plan fits in memory.\n"
      "Examples:\n"
      "  meshwright search configs/jaxformer-moe1b.json --system v4:2x4x4\n"
      "  meshwright search configs/moe-small.json --system local --top 5\n"
      "  meshwright search configs/jaxformer-moe1b.json --system v4:2x4x4 --json | jq '.plans[0]'");
  command->callback([=, &invocation] {
    invocation.run = [=, &invocation]() -> int {
      const TrainingConfig config = load_config(options->config);
      if (print_config(options->config, config)) return kDone;
      const System system = load_any_system(options->system.system, invocation);
      Store store(options->system.database);
      SearchResult result;
      const auto not_stored = search_and_store(config, system, store, result);
      const SearchHeading heading{config.name, system.name, system.devices(), system.usable_memory,
                                  published_plan(config)};
      if (options->config.json)
        std::cout << to_json(result, heading).dump(2) << '\n';
      else
        std::cout << search_report(result, heading, options->top);
      if (not_stored) throw *not_stored;
      log_info(fmt::format(
          "stored in {}{}", options->system.database,
          result.plans.empty() ? "" : fmt::format("; the best plan is --plan {}", plan_id(result.plans[0].plan))));
      return result.plans.empty() ? kNothingFeasible : kDone;
    };
  });
}

}  // namespace meshwright
