// The optimizer's hyperparameters, from the shape of a training to the update.
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "executor/executor.h"
#include "model/families/jaxformer.h"
#include "tests/executor_mpi/training_case.h"

namespace meshwright {
namespace {

const ModelSpec kModel = jaxformer("small",
                                   {.model_dimension = 8,
                                    .vocab_size = 11,
                                    .n_head = 2,
                                    .blocks = 1,
                                    .layers_per_block = 1,
                                    .latent_dim = 4,
                                    .dhR = 0,
                                    .dropout_rate = 0,
                                    .k = 1,
                                    .n_experts = 2,
                                    .n_shared = 1,
                                    .capacity_factor = 2},
                                   0.01);

TEST(Optimizer, TakesItsHyperparametersFromTheShapeOfTheTraining) {
  const FirstRanks ranks(1);
  if (!ranks) return;
  const std::vector<AdamSpec> specs{{},
                                    {.epsilon = 1, .weight_decay = 0, .clip_norm = 0},
                                    {.epsilon = 1, .weight_decay = 0.1, .clip_norm = 1e-3},
                                    {.beta1 = 0.5, .beta2 = 0.7, .epsilon = 0.01, .weight_decay = 0, .clip_norm = 2}};
  for (const AdamSpec& spec : specs) {
    SCOPED_TRACE(spec.clip_norm);
    const TrainingShape shape{.sequences = 2, .tokens = 4, .compute = DType::kF64, .adam = spec};
    const ProgramSet set = lower(kModel, shape, Plan{});
    Executor executor(set, ranks.get(), {.seed = 1});
    const std::vector<ParameterSpec> parameter_specs = parameters(kModel);
    executor.load_parameters(initial_weights(parameter_specs, 1));
    std::vector<std::vector<double>> theta = executor.gather(Executor::State::kParameters), m = theta, v = theta;
    for (auto* moments : {&m, &v})
      for (auto& tensor : *moments) tensor.assign(tensor.size(), 0.0);
    for (std::int64_t step = 0; step < 3; ++step) {
      const StepResult r =
          executor.run_step({.step = step, .learning_rate = 0.01, .fill = [&](int, auto* in, auto* out) {
                               for (int i = 0; i < 8; ++i) in[i] = i % 11, out[i] = (3 * i + 1) % 11;
                             }});
      const auto g = executor.gather(Executor::State::kGradients);
      const double t = static_cast<double>(step + 1);
      const double factor =
          spec.clip_norm > 0 && r.gradient_norm > spec.clip_norm ? spec.clip_norm / r.gradient_norm : 1;
      for (std::size_t p = 0; p < theta.size(); ++p)
        for (std::size_t i = 0; i < theta[p].size(); ++i) {
          m[p][i] = spec.beta1 * m[p][i] + (1 - spec.beta1) * factor * g[p][i];
          v[p][i] = spec.beta2 * v[p][i] + (1 - spec.beta2) * std::pow(factor * g[p][i], 2);
          theta[p][i] -= 0.01 * (m[p][i] / (1 - std::pow(spec.beta1, t)) /
                                     (std::sqrt(v[p][i] / (1 - std::pow(spec.beta2, t))) + spec.epsilon) +
                                 spec.weight_decay * theta[p][i]);
        }
      const auto updated = executor.gather(Executor::State::kParameters);
      for (std::size_t p = 0; p < theta.size(); ++p)
        for (std::size_t i = 0; i < theta[p].size(); ++i)
          ASSERT_NEAR(updated[p][i], theta[p][i], 1e-11) << set.parameters()[p].name << " element " << i;
    }
  }
}

}  // namespace
}  // namespace meshwright
