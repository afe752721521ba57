// Golden vectors of the model families, tests/data/hf_golden: computed by Hugging Face's own modules (miniGPT: by JAX) in f64.
// Files that only MESHWRIGHT_CASES has are run, too. Tolerances are the files' own.
#include <gtest/gtest.h>

#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "executor/checkpoint/weights.h"
#include "model/families/hugging_face.h"
#include "model/families/weights.h"
#include "tests/cli/binary.h"
#include "tests/executor_mpi/training_case.h"
#include "tests/golden.h"

namespace meshwright {
namespace {

using nlohmann::json;

class FamilyGolden : public testing::TestWithParam<std::string> {
 protected:
  json file_ = read_case_file("hf_golden/" + GetParam() + ".json");
};

// One case of a file, as what our executor is given.
struct GoldenCase {
  const json& c;
  HuggingFaceModel model;
  WeightMap map;
  std::map<std::string, const json*> tensors;  // parameters and buffers, by name

  explicit GoldenCase(const json& golden_case)
      : c(golden_case),
        model(read_hugging_face({c["name"], c["config"], {}}, c["name"])),
        map(weight_map(model.family, model.model)) {
    for (const char* list : {"params", "buffers"})
      if (c.contains(list))
        for (const json& p : c[list]) tensors[p["name"]] = &p;
  }

  TrainingCase training_case(const ModelSpec& spec, DType dtype) const {
    const std::int64_t B = c["B"], T = c["T"];
    const std::uint64_t seed = c["data_seed"], vocab = static_cast<std::uint64_t>(spec.vocab());
    const auto stream = [seed, vocab](std::int64_t i) {
      return static_cast<std::int32_t>(splitmix((seed << 32) | static_cast<std::uint64_t>(i)) % vocab);
    };
    TrainingCase t{.model = spec, .shape = {.sequences = B, .tokens = T, .compute = dtype}};
    t.input = [stream, B, T](std::int64_t s, std::int64_t q, std::int64_t i) { return stream((s * B + q) * T + i); };
    const bool ends_in_0 = c.value("targets", "stream") == "shift_append_0";
    t.target = [stream, B, T, ends_in_0](std::int64_t s, std::int64_t q, std::int64_t i) {
      return ends_in_0 && i == T - 1 ? 0 : stream((s * B + q) * T + i + 1);
    };
    return t;
  }

  // Whole parameters, as the file fills its tensors.
  std::vector<std::vector<double>> parameters() const {
    std::vector<std::vector<double>> all;
    for (const ParameterSpec& p : map.parameters) all.emplace_back(static_cast<std::size_t>(elements(p.shape)));
    for (const WeightPiece& piece : map.pieces) {
      const json& tensor = *tensors.at(map.tensors[static_cast<std::size_t>(piece.theirs.tensor)].name);
      auto& values = all[static_cast<std::size_t>(piece.ours.tensor)];
      for_each_element(piece, [&](std::int64_t ours, std::int64_t theirs) {
        values[static_cast<std::size_t>(ours)] = fill_value(tensor, static_cast<std::uint64_t>(theirs));
      });
    }
    return all;
  }

  // What is kept by parameter (weights, gradients) by tensor of the file.
  template <class Real>
  std::map<std::string, std::vector<double>> by_tensor(const std::vector<std::vector<Real>>& parameters) const {
    std::map<std::string, std::vector<double>> all;
    for (const CheckpointTensor& t : map.tensors) all[t.name].resize(static_cast<std::size_t>(elements(t.shape)));
    for (const WeightPiece& piece : map.pieces) {
      const auto& values = parameters[static_cast<std::size_t>(piece.ours.tensor)];
      if (values.empty()) continue;  // gradients of a buffer
      auto& tensor = all[map.tensors[static_cast<std::size_t>(piece.theirs.tensor)].name];
      for_each_element(piece, [&](std::int64_t ours, std::int64_t theirs) {
        tensor[static_cast<std::size_t>(theirs)] = static_cast<double>(values[static_cast<std::size_t>(ours)]);
      });
    }
    return all;
  }
};

// Every legal mesh of up to 8 ranks, with the other choices varied from one to the next.
std::vector<Plan> plans(const TrainingCase& c) {
  std::vector<Plan> all;
  for (int ranks = 1; ranks <= 8; ++ranks)
    for (int dp = 1; dp <= ranks; ++dp)
      for (int pp = 1; dp * pp <= ranks; ++pp) {
        if (ranks % (dp * pp) != 0) continue;
        const int turn = static_cast<int>(all.size());
        Plan plan{.mesh = {dp, pp, ranks / (dp * pp)}, .fsdp = dp > 1 ? turn % 4 : 0};
        plan.microbatches = std::array{1, 2, 4}[turn % 3];
        while (plan.microbatches > 1 && c.shape.sequences / dp % plan.microbatches != 0) plan.microbatches /= 2;
        if (c.model.balance == Balance::kPooled) plan.microbatches = 1;
        plan.schedule = turn / 2 % 2 != 0 || unbalanced(c.model, Schedule::k1F1B, plan.microbatches) ? Schedule::kGPipe
                                                                                                     : Schedule::k1F1B;
        plan.recompute = std::array{Recompute::kNone, Recompute::kFull, Recompute::kSelective}[turn / 2 % 3];
        if (illegalities(c.model, c.shape, plan).empty()) all.push_back(plan);
      }
  return all;
}

// Of a tensor against {norm, sum, mid}: errors over `norm`, the tensor's by default.
void expect_tensor(const std::vector<double>& tensor, const json& expected, double tolerance, const std::string& name) {
  double sum = 0, squares = 0;
  for (const double x : tensor) {
    sum += x;
    squares += x * x;
  }
  const double norm = expected["norm"];
  EXPECT_NEAR(std::sqrt(squares), norm, tolerance * norm) << name << " norm";
  EXPECT_NEAR(sum, expected["sum"], tolerance * norm * std::sqrt(static_cast<double>(tensor.size()))) << name << " sum";
  EXPECT_NEAR(tensor[tensor.size() / 2], expected["mid"], tolerance * norm) << name << " middle element";
}

bool first_rank(MPI_Comm comm) {
  int rank = 0;
  MPI_Comm_rank(comm, &rank);
  return rank == 0;
}

struct Logits {
  double sum = 0, squares = 0;
  std::array<double, 4> first{}, last{};  // of the first and of the last token of the step
};

// Runs a step under a plan on the first ranks, and compares what it gives on the first of them.
template <class Real>
void expect_step(const GoldenCase& golden, const TrainingCase& c, const Plan& plan, const json& objective,
                 const std::vector<std::vector<double>>& weights, double tolerance) {
  const FirstRanks ranks(plan.mesh.ranks());
  if (!ranks) return;
  const std::int64_t vocab = c.model.vocab();
  const ProgramSet set = lower(c.model, c.shape, plan);
  const ProgramSet evaluation = lower_evaluation(c.model, c.shape, plan, set);
  Executor executor({&set, &evaluation}, ranks.get(), {});
  executor.load_parameters([&](int parameter, std::int64_t first, std::int64_t n, Real* out) {
    const auto& values = weights[static_cast<std::size_t>(parameter)];
    for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<Real>(values[static_cast<std::size_t>(first + i)]);
  });

  const StepResult evaluated = executor.evaluate({.fill = token_filler(c, executor.mesh(), set.step, 0)});
  Logits logits;
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
        logits.sum += value;
        logits.squares += value * value;
        if (q == 0 && t == 0 && v < 4) logits.first[static_cast<std::size_t>(v)] = value;
        if (q == c.shape.sequences - 1 && t == c.shape.tokens - 1 && v >= vocab - 4)
          logits.last[static_cast<std::size_t>(v - (vocab - 4))] = value;
      }
    }
  };
  RoutingRecord routing;
  const StepResult r = executor.run_step({.fill = token_filler(c, executor.mesh(), set.step, 0), .record = &routing});
  MPI_Allreduce(MPI_IN_PLACE, &logits, sizeof(logits) / sizeof(double), MPI_DOUBLE, MPI_SUM, ranks.get());

  std::vector<std::size_t> moe_layers;
  std::int64_t experts = 0;
  for (std::size_t l = 0; l < c.model.layers.size(); ++l)
    if (const auto* e = std::get_if<Experts>(&c.model.layers[l].ffn)) {
      moe_layers.push_back(l);
      experts = e->experts;
    }
  std::vector<std::int64_t> chosen(moe_layers.size() * static_cast<std::size_t>(experts));
  if (at.tp == 0)  // all tp ranks route alike
    for (const auto& [key, sequence] : routing) {
      const auto layer = std::find(moe_layers.begin(), moe_layers.end(), static_cast<std::size_t>(key.first));
      ASSERT_NE(layer, moe_layers.end());
      for (const std::int32_t e : sequence.choice)
        ++chosen[static_cast<std::size_t>((layer - moe_layers.begin()) * experts + e)];
    }
  MPI_Allreduce(MPI_IN_PLACE, chosen.data(), static_cast<int>(chosen.size()), MPI_INT64_T, MPI_SUM, ranks.get());
  const auto gradients = executor.gather(Executor::State::kGradients);
  if (!first_rank(ranks.get())) return;

  const auto near = [&](double value, double expected, double scale, const std::string& what) {
    EXPECT_NEAR(value, expected, tolerance * scale) << what;
  };
  near(r.loss, objective["loss"], objective["loss"], "loss");
  if (set.balance == Balance::kSequence)
    near(evaluated.loss, objective["loss"], objective["loss"], "evaluation's loss");
  else  // its balance is of each sequence
    near(evaluated.cross_entropy, r.cross_entropy, r.cross_entropy, "evaluation's cross-entropy");
  if (objective.contains("aux") && !objective["aux"].is_null())
    near(r.balance, objective["aux"], objective["aux"], "balance");
  near(r.gradient_norm, objective["grad_global_norm"], objective["grad_global_norm"], "global norm");
  EXPECT_EQ(std::llround(r.dropped), 0);
  if (golden.c.contains("tokens_per_expert")) {
    for (std::size_t i = 0; i < chosen.size(); ++i)
      EXPECT_EQ(
          chosen[i],
          golden.c["tokens_per_expert"][i / static_cast<std::size_t>(experts)][i % static_cast<std::size_t>(experts)]
              .get<std::int64_t>())
          << "choices of expert " << i;
  }
  const json& l = golden.c["logits"];
  const double count = static_cast<double>(c.shape.sequences * c.shape.tokens * vocab), square = l["sumsq"];
  near(logits.sum, l["sum"], std::sqrt(square * count), "sum of logits");
  near(logits.squares, square, square, "sum of squared logits");
  for (std::size_t i = 0; i < 4; ++i) {
    near(logits.first[i], l["first"][i], std::sqrt(square / count), "first logits");
    near(logits.last[i], l["last"][i], std::sqrt(square / count), "last logits");
  }
  const auto by_tensor = golden.by_tensor(gradients);
  for (const auto& [name, expected] : objective["grads"].items()) {
    const std::vector<double>& gradient = by_tensor.at(name);
    if (!expected.value("exact_zero", false)) {
      expect_tensor(gradient, expected, tolerance, "gradient of " + name);
      continue;
    }
    const double scale = objective["grad_global_norm"];
    for (const double x : gradient) near(x, 0, scale, "gradient of " + name);
  }
}

template <class Real>
void expect_golden(const json& file, double tolerance) {
  for (const json& c : file["cases"]) {
    const GoldenCase golden(c);
    const std::vector<std::vector<double>> weights = golden.parameters();
    for (const json& objective : c["objectives"]) {
      const std::string objective_name = objective["name"];
      ModelSpec spec = golden.model.model;
      if (objective_name == "ce") {
        spec.balance_weight = 0;
      } else {
        EXPECT_EQ(spec.balance_weight, objective["coef"].get<double>());
        const auto balance = std::ranges::find(kBalanceNames, objective_name);
        ASSERT_NE(balance, kBalanceNames.end()) << objective_name;
        spec.balance = static_cast<Balance>(balance - kBalanceNames.begin());
      }
      const TrainingCase training = golden.training_case(spec, sizeof(Real) == 8 ? DType::kF64 : DType::kF32);
      const std::vector<Plan> all = plans(training);
      ASSERT_GT(all.size(), 8u);
      for (const Plan& plan : all) {
        SCOPED_TRACE(c["name"].get<std::string>() + ", " + objective_name + ", " + to_text(plan));
        if (failed_anywhere()) return;  // one plan's faults are enough to read
        expect_step<Real>(golden, training, plan, objective, weights, tolerance);
      }
    }
  }
}

// What save_pretrained would write, named and shaped by the golden file, read through our map.
TEST_P(FamilyGolden, WeightsFromASafetensorsFileGiveItsLogitsAndAreSavedAsTheyWere) {
  for (const json& c : file_["cases"]) {
    if (failed_anywhere()) return;
    const GoldenCase golden(c);
    SCOPED_TRACE(c["name"].get<std::string>());
    std::vector<SafetensorsShape> tensors;
    for (const auto& [name, tensor] : golden.tensors) tensors.push_back({name, (*tensor)["shape"].get<Shape>()});
    const TemporaryFolder folder;
    const auto written = folder.path() / "model.safetensors", saved = folder.path() / "saved.safetensors";
    write_safetensors<double>(written, DType::kF64, tensors, [&](int t, double* out) {
      const SafetensorsShape& tensor = tensors[static_cast<std::size_t>(t)];
      for (std::int64_t i = 0; i < elements(tensor.shape); ++i)
        out[i] = fill_value(*golden.tensors.at(tensor.name), static_cast<std::uint64_t>(i));
    });
    WeightsFile file(written, golden.map);
    std::vector<std::vector<double>> weights;
    for (std::size_t p = 0; p < golden.map.parameters.size(); ++p) {
      weights.emplace_back(static_cast<std::size_t>(elements(golden.map.parameters[p].shape)));
      file.read(static_cast<int>(p), 0, static_cast<std::int64_t>(weights.back().size()), weights.back().data());
    }
    ModelSpec spec = golden.model.model;
    spec.balance_weight = 0;
    for (const json& objective : c["objectives"])
      if (objective["name"] == "ce")
        expect_step<double>(golden, golden.training_case(spec, DType::kF64), Plan{}, objective, weights, 1e-9);

    save_weights(saved, golden.map, DType::kF64, weights);
    const SafetensorsFile before(written), after(saved);
    ASSERT_EQ(before.tensors().size(), after.tensors().size());
    for (const auto& [name, entry] : before.tensors()) {
      const SafetensorsEntry& again = after.tensors().at(name);
      ASSERT_EQ(again.shape, entry.shape);
      std::vector<double> x(static_cast<std::size_t>(elements(entry.shape))), y(x.size());
      before.read(entry, 0, static_cast<std::int64_t>(x.size()), x.data());
      after.read(again, 0, static_cast<std::int64_t>(y.size()), y.data());
      EXPECT_EQ(x, y) << name;
    }
  }
}

TEST_P(FamilyGolden, OnEveryLegalMeshOfUpTo8RanksInF64To1em9) { expect_golden<double>(file_, 1e-9); }
TEST_P(FamilyGolden, OnEveryLegalMeshOfUpTo8RanksInF32To1em4) { expect_golden<float>(file_, 1e-4); }

// Where a file has a trace of optimizer steps: Adam at a constant rate, no clipping, no decay.
template <class Real>
void expect_trace(const json& file, double tolerance) {
  for (const json& c : file["cases"]) {
    if (!c.contains("trace")) continue;
    const GoldenCase golden(c);
    const std::vector<std::vector<double>> weights = golden.parameters();
    std::set<std::string> zero;  // tensors whose gradients are 0 in exact arithmetic
    for (const auto& [name, g] : c["objectives"][0]["grads"].items())
      if (g.value("exact_zero", false)) zero.insert(name);
    TrainingCase training = golden.training_case(golden.model.model, sizeof(Real) == 8 ? DType::kF64 : DType::kF32);
    training.shape.adam = {.weight_decay = 0, .clip_norm = 0};
    for (const Plan& plan : plans(training)) {
      SCOPED_TRACE(to_text(plan));
      if (failed_anywhere()) return;
      const FirstRanks ranks(plan.mesh.ranks());
      if (!ranks) continue;
      const ProgramSet set = lower(training.model, training.shape, plan);
      Executor executor(set, ranks.get(), {});
      executor.load_parameters([&](int parameter, std::int64_t first, std::int64_t n, Real* out) {
        const auto& values = weights[static_cast<std::size_t>(parameter)];
        for (std::int64_t i = 0; i < n; ++i) out[i] = static_cast<Real>(values[static_cast<std::size_t>(first + i)]);
      });
      for (const json& step : c["trace"]["steps"]) {
        const std::int64_t s = step["step"];
        const StepResult r = executor.run_step(
            {.step = s, .learning_rate = 1e-3, .fill = token_filler(training, executor.mesh(), set.step, s)});
        EXPECT_NEAR(r.loss, step["loss_before"], tolerance * step["loss_before"].get<double>());
        const auto parameters = executor.gather(Executor::State::kParameters);
        if (!first_rank(ranks.get())) continue;
        const auto tensors = golden.by_tensor(parameters);
        for (const auto& [name, expected] : step["params_after"].items()) {
          const std::vector<double>& tensor = tensors.at(name);
          if (sizeof(Real) == 4 && zero.contains(name))  // rounding of a zero gradient, over epsilon, is a whole step
            EXPECT_NEAR(tensor[tensor.size() / 2], expected["mid"], 1e-3 * static_cast<double>(s + 1)) << name;
          else
            expect_tensor(tensor, expected, tolerance, name + " after step " + std::to_string(s));
        }
      }
    }
  }
}

std::vector<std::string> families_with_a_trace() {
  std::vector<std::string> some;
  for (const std::string& family : golden_families()) {
    const json file = read_case_file("hf_golden/" + family + ".json");
    for (const json& c : file["cases"])
      if (c.contains("trace") && (some.empty() || some.back() != family)) some.push_back(family);
  }
  return some;
}

class FamilyTrace : public FamilyGolden {};
TEST_P(FamilyTrace, OptimizerStepsFollowItInF64To1em9) { expect_trace<double>(file_, 1e-9); }
TEST_P(FamilyTrace, OptimizerStepsFollowItInF32To1em4) { expect_trace<float>(file_, 1e-4); }

const auto kName = [](const testing::TestParamInfo<std::string>& test) { return test.param; };
INSTANTIATE_TEST_SUITE_P(Families, FamilyGolden, testing::ValuesIn(golden_families()), kName);
INSTANTIATE_TEST_SUITE_P(Families, FamilyTrace, testing::ValuesIn(families_with_a_trace()), kName);

}  // namespace
}  // namespace meshwright
