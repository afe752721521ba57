// meshwright params: what a model holds and multiplies.
#include <unistd.h>

#include <memory>

#include "cli/inputs.h"
#include "cli/terminal.h"
#include "executor/launch/output.h"
#include "reports/params_report.h"

namespace meshwright {

void add_params(CLI::App& app, Invocation& invocation) {
  CLI::App* command = app.add_subcommand("params", "Parameters and FLOPs of a model, by module and kind of layer");
  const auto options = std::make_shared<ConfigOptions>();
  add_config_options(*command, invocation, *options);
  command->footer(
      "Examples:\n"
      "  meshwright params configs/jaxformer-moe1b.json\n"
      "  meshwright params configs/jaxformer-moe1b.json --set model_config.n_experts=32 --json");
  command->callback([=, &invocation] {
    invocation.run = [=] {
      const TrainingConfig config = load_config(*options);
      if (print_config(*options, config)) return kDone;
      if (options->json)
        print(params_json(config.model, config.sequence_length, config.sequences).dump(2) + '\n');
      else
        print(params_report(config.model, config.sequence_length, config.sequences, columns(STDOUT_FILENO)));
      return kDone;
    };
  });
}

}  // namespace meshwright
