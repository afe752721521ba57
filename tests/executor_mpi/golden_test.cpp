// JAXformer's golden vectors (tests/data/jaxformer_golden.json, mode `default`): computed by JAXformer's own program
// under JAX in float64 with the corrected switches; see jaxformer_semantics.md section 12 for the file and tolerances.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "executor/kernels/adamw.h"
#include "model/config.h"
#include "model/families/jaxformer.h"
#include "tests/cases.h"
#include "tests/executor_mpi/training_case.h"

namespace meshwright {
namespace {

using nlohmann::json;

std::uint64_t splitmix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}
double fill_value(const json& p, std::uint64_t i) {
  const double u = static_cast<double>(splitmix((p["tid"].get<std::uint64_t>() << 32) | i) >> 11) * 0x1p-53;
  return p["shift"].get<double>() + p["scale"].get<double>() * (2 * u - 1);
}

struct Golden {
  json file = read_case_file("jaxformer_golden.json");
  json config = file["config"];
  std::int64_t blocks = config["blocks"], layers_per_block = config["layers_per_block"], tokens = config["T"];

  // The golden file stacks the blocks: entry and element of our parameter's element i.
  struct Place {
    const json* entry;
    std::uint64_t first;
  };
  Place place(const std::string& name, std::int64_t size) const {
    std::string golden = name;
    std::uint64_t first = 0;
    if (name.starts_with("layers.")) {
      const std::size_t dot = name.find('.', 7);
      const std::int64_t layer = std::stoll(name.substr(7, dot - 7));
      golden = "layer" + std::to_string(layer % layers_per_block) + name.substr(dot);
      first = static_cast<std::uint64_t>(layer / layers_per_block * size);
    }
    for (const json& p : file["params"])
      if (p["name"] == golden) return {&p, first};
    throw std::runtime_error("no parameter " + golden);
  }

  TrainingCase training_case(bool train, DType dtype) const {
    TrainingCase c;
    const JaxformerDimensions d{.model_dimension = config["C"],
                                .vocab_size = config["V"],
                                .n_head = config["n_head"],
                                .blocks = blocks,
                                .layers_per_block = layers_per_block,
                                .latent_dim = config["latent_dim"],
                                .dhR = config["dhR"],
                                .dropout_rate = config["dropout_rate"],
                                .k = config["k"],
                                .n_experts = config["n_experts"],
                                .n_shared = config["n_shared"],
                                .capacity_factor = config["capacity_factor"]};
    c.model = jaxformer("golden", d, config["alpha"]);
    c.shape = {config["microbatches"].get<std::int64_t>() * config["batch_per_microbatch_global"].get<std::int64_t>(),
               tokens, dtype, train};
    // Several blocks of attention, the last one shorter, and several chunks of logits.
    c.shape.attention_block = std::max<std::int64_t>(1, tokens / 2 - 1);
    c.shape.logit_elements = 16 * c.model.vocab();
    const std::uint64_t vocab = config["V"];
    const auto stream = [vocab](std::int64_t i) {
      return static_cast<std::int32_t>(splitmix((999ULL << 32) | static_cast<std::uint64_t>(i)) % vocab);
    };
    c.input = [stream, t0 = tokens](std::int64_t, std::int64_t q, std::int64_t t) { return stream(q * t0 + t); };
    c.target = [stream, t0 = tokens](std::int64_t, std::int64_t q, std::int64_t t) { return stream(q * t0 + t + 1); };
    return c;
  }
  const json& result(bool train) const {
    for (const json& c : file["cases"])
      if (c["mode"] == "default" && c["train"] == train) return c;
    throw std::runtime_error("no default case");
  }
};

// Every legal mesh of up to 8 ranks, with the other choices varied from one to the next.
std::vector<Plan> plans(const Golden& golden, const TrainingCase& c) {
  std::vector<Plan> all;
  int turn = 0;
  for (int ranks = 1; ranks <= 8; ++ranks)
    for (int dp = 1; dp <= ranks; ++dp)
      for (int pp = 1; dp * pp <= ranks; ++pp) {
        if (ranks % (dp * pp)) continue;
        Plan plan{.mesh = {dp, pp, ranks / (dp * pp)}, .fsdp = dp > 1 ? turn % 4 : 0};
        plan.microbatches = golden.config["microbatches"];
        while (plan.microbatches > 1 && c.shape.sequences / dp % plan.microbatches) --plan.microbatches;
        plan.schedule = turn / 2 % 2 ? Schedule::kGPipe : Schedule::k1F1B;
        plan.recompute = std::array{Recompute::kNone, Recompute::kFull, Recompute::kSelective}[turn / 2 % 3];
        ++turn;
        if (illegalities(c.model, c.shape, plan).empty()) all.push_back(plan);
      }
  return all;
}

template <class Real>
void expect_golden(bool train, double tolerance) {
  const Golden golden;
  const TrainingCase c = golden.training_case(train, sizeof(Real) == 8 ? DType::kF64 : DType::kF32);
  const json& expected = golden.result(train);
  const std::int64_t vocab = c.model.vocab();
  for (const Plan& plan : plans(golden, c)) {
    SCOPED_TRACE(to_text(plan));
    if (failed_anywhere()) return;  // one plan's faults are enough to read
    const FirstRanks ranks(plan.mesh.ranks());
    if (!ranks) continue;
    const ProgramSet set = lower(c.model, c.shape, plan);
    const ProgramSet evaluation = lower_evaluation(c.model, c.shape, plan, set);
    Executor executor({&set, &evaluation}, ranks.get(), {.poison = true});
    std::vector<Golden::Place> places;
    for (const Parameter& p : set.parameters()) places.push_back(golden.place(p.name, elements(p.shape)));
    executor.load_parameters([&](int parameter, std::int64_t first, std::int64_t n, Real* out) {
      const auto& [entry, begin] = places[static_cast<std::size_t>(parameter)];
      for (std::int64_t i = 0; i < n; ++i)
        out[i] = static_cast<Real>(fill_value(*entry, begin + static_cast<std::uint64_t>(first + i)));
    });

    // The evaluation's own program, where that is what the file has.
    const json& evaluated = golden.result(false);
    const StepResult e = executor.evaluate({.fill = token_filler(c, executor.mesh(), set.step, 0)});
    for (const auto& [value, key] :
         {std::pair{e.loss, "loss"}, {e.cross_entropy, "loss_cross"}, {e.balance, "loss_balance"}}) {
      const double reference = evaluated[key];
      EXPECT_NEAR(value, reference, tolerance * reference) << "evaluation's " << key;
    }

    // sum, sum of squares, and the four logits at either end of the step's logits (sequence, token, class).
    std::array<double, 10> logits{};
    const MeshCoordinates at = executor.mesh().coordinates();
    const std::int64_t own = set.step.tokens / plan.mesh.tp;
    int microbatch = -1;
    executor.on_logits = [&](std::int64_t first, std::int64_t rows, std::int64_t, const void* chunk) {
      const Real* x = static_cast<const Real*>(chunk);
      if (first == 0) ++microbatch;
      for (std::int64_t r = 0; r < rows; ++r) {
        const std::int64_t t = at.tp * own + (first + r) / set.step.microbatch;
        const std::int64_t q = (static_cast<std::int64_t>(microbatch) * plan.mesh.dp + at.dp) * set.step.microbatch +
                               (first + r) % set.step.microbatch;
        for (std::int64_t v = 0; v < vocab; ++v) {
          const double value = static_cast<double>(x[r * vocab + v]);
          logits[0] += value;
          logits[1] += value * value;
          if (q == 0 && t == 0 && v < 4) logits[2 + static_cast<std::size_t>(v)] = value;
          if (q == c.shape.sequences - 1 && t == c.shape.tokens - 1 && v >= vocab - 4)
            logits[6 + static_cast<std::size_t>(v - (vocab - 4))] = value;
        }
      }
    };
    const StepResult r = executor.run_step({.fill = token_filler(c, executor.mesh(), set.step, 0)});
    MPI_Allreduce(MPI_IN_PLACE, logits.data(), 10, MPI_DOUBLE, MPI_SUM, ranks.get());
    const auto gradients = executor.gather(Executor::State::kGradients);

    const auto near = [&](double value, double reference, double scale, const std::string& what) {
      EXPECT_NEAR(value, reference, tolerance * scale) << what;
    };
    for (const auto& [value, key] :
         {std::pair{r.loss, "loss"}, {r.cross_entropy, "loss_cross"}, {r.balance, "loss_balance"}})
      near(value, expected[key], expected[key], key);
    EXPECT_EQ(std::llround(r.dropped), expected["dropped_assignments"].get<std::int64_t>());
    ASSERT_EQ(r.load.size(), expected["tokens_per_expert"].size());
    for (std::size_t e = 0; e < r.load.size(); ++e)
      near(r.load[e], expected["tokens_per_expert"][e], 1, "load of expert " + std::to_string(e));
    near(r.gradient_norm, expected["grad_global_norm"], expected["grad_global_norm"], "global norm");
    const double count = static_cast<double>(c.shape.sequences * c.shape.tokens * vocab),
                 square = expected["logits"]["sumsq"];
    near(logits[0], expected["logits"]["sum"], std::sqrt(square * count), "sum of logits");
    near(logits[1], square, square, "sum of squared logits");
    for (std::size_t i = 0; i < 4; ++i) {
      near(logits[2 + i], expected["logits"]["first"][i], std::sqrt(square / count), "first logits");
      near(logits[6 + i], expected["logits"]["last"][i], std::sqrt(square / count), "last logits");
    }
    for (const auto& [name, g] : expected["grad_of_loss"].items()) {  // our layers' gradients stacked as in the file
      std::vector<double> stacked;
      for (std::size_t p = 0; p < set.parameters().size(); ++p)
        if ((*places[p].entry)["name"] == name) {
          stacked.resize(std::max(stacked.size(), places[p].first + gradients[p].size()));
          std::copy(gradients[p].begin(), gradients[p].end(),
                    stacked.begin() + static_cast<std::ptrdiff_t>(places[p].first));
        }
      double sum = 0, squares = 0;
      for (const double x : stacked) {
        sum += x;
        squares += x * x;
      }
      const double norm = g["norm"];
      near(std::sqrt(squares), norm, norm, name + " norm");
      near(sum, g["sum"], norm * std::sqrt(static_cast<double>(stacked.size())), name + " sum");
      near(stacked[stacked.size() / 2], g["mid"], norm, name + " middle element");
    }
  }
}

TEST(Golden, OnEveryLegalMeshOfUpTo8RanksTrainingInF64EqualsJaxformerTo1em9) { expect_golden<double>(true, 1e-9); }
TEST(Golden, OnEveryLegalMeshOfUpTo8RanksEvaluationInF64EqualsJaxformerTo1em9) { expect_golden<double>(false, 1e-9); }
TEST(Golden, OnEveryLegalMeshOfUpTo8RanksTrainingInF32EqualsJaxformerTo1em4) { expect_golden<float>(true, 1e-4); }
TEST(Golden, OnEveryLegalMeshOfUpTo8RanksEvaluationInF32EqualsJaxformerTo1em4) { expect_golden<float>(false, 1e-4); }

TEST(Golden, TheOptimizerFollowsTheTraceTo1em12) {
  const json trace = Golden().file["optimizer"];
  const json& s = trace["schedule"];
  const LrSchedule schedule{.max_lr = s["peak"],
                            .min_lr = s["init"],
                            .end_lr = s["end"],
                            .warmup_steps = s["warmup_steps"],
                            .end_steps = s["decay_steps"]};
  std::vector<double> params = trace["start"], m(params.size()), v(params.size());
  for (const json& step : trace["steps"]) {
    const std::vector<double> g = step["grad"];
    const double norm = std::sqrt(kernels::sum_squares<double>(static_cast<std::int64_t>(g.size()), g.data()));
    const double lr = learning_rate(schedule, step["step"]);
    EXPECT_NEAR(norm, step["norm"].get<double>(), 1e-12 * norm);
    EXPECT_NEAR(lr, step["lr"].get<double>(), 1e-12);
    kernels::adamw<double>({.step = step["step"], .learning_rate = lr, .gradient_factor = norm < 1 ? 1 : 1 / norm},
                           static_cast<std::int64_t>(g.size()), g.data(), params.data(), m.data(), v.data());
    for (std::size_t i = 0; i < params.size(); ++i) EXPECT_NEAR(params[i], step["params"][i].get<double>(), 1e-12);
  }
}

}  // namespace
}  // namespace meshwright
