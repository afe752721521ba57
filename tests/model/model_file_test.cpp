// A model's own file and what is trained with it: defaults, the object "training", flags, and what is wrong with them.
#include "model/families/model_file.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>

#include "model/accounting.h"
#include "model/config.h"

namespace meshwright {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

const std::filesystem::path kModels = REPOSITORY "/configs/models";
const std::filesystem::path kPublished = REPOSITORY "/configs/jaxformer-moe1b.json";

std::vector<Diagnostic> faults_of(const std::function<void()>& read) {
  try {
    read();
  } catch (const InputError& error) {
    return error.diagnostics();
  }
  ADD_FAILURE() << "nothing is refused";
  return {};
}

TEST(ModelFile, NeedsNothingBesideTheModel) {
  const TrainingConfig config = read_config(kModels / "llama-3-8b.json");
  EXPECT_EQ(config.name, "llama-3-8b");
  EXPECT_EQ(config.model.name, "llama-3-8b");
  EXPECT_EQ(count_parameters(config.model).total(), 8'030'261'248);
  EXPECT_FALSE(config.has_plan);
  EXPECT_EQ(config.sequences, 8);
  EXPECT_EQ(config.sequence_length, 1024);
  EXPECT_EQ(config.training_steps, 1000);
  EXPECT_EQ(config.model_dtype, "bfloat16");  // as published
  EXPECT_EQ(config.lr, (LrSchedule{3e-4, 0, 3e-5, 100, 1000}));
  EXPECT_EQ(config.adam, (AdamSpec{.beta1 = 0.9, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1}));
}

TEST(ModelFile, FlagsSayBatchTokensTypeAndSeed) {
  const TrainingConfig config =
      read_config(kModels / "llama-3-8b.json", {}, {.batch = 512, .tokens = 4096, .seed = 3, .dtype = "float32"});
  EXPECT_EQ(config.sequences, 512);
  EXPECT_EQ(config.sequence_length, 4096);
  EXPECT_EQ(config.tokens_per_step(), 512 * 4096);
  EXPECT_EQ(config.seed, 3);
  EXPECT_EQ(config.model_dtype, "float32");
}

TEST(ModelFile, TheObjectTrainingSaysTheRestAndSetOverridesIt) {
  const TrainingConfig config =
      read_config(kModels / "llama-tiny.json",
                  {"training.steps=50", "training.lr={\"max_lr\": 0.01, \"warmup_steps\": 5}",
                   "training.adam={\"beta2\": 0.99}", "training.name=mine", "training.grad_clip_norm=0"});
  EXPECT_EQ(config.name, "mine");
  EXPECT_EQ(config.training_steps, 50);
  EXPECT_EQ(config.lr, (LrSchedule{0.01, 0, 0.001, 5, 50}));
  EXPECT_EQ(config.adam.beta2, 0.99);
  EXPECT_EQ(config.grad_clip_norm, 0);
}

TEST(ModelFile, ResolvedItReadsBackTheSame) {
  for (const char* file : {"llama-tiny.json", "deepseek-v3-tiny.json", "minigpt-tiny.json", "gpt2-124m.json"}) {
    const TrainingConfig config = read_config(kModels / file, {}, {.batch = 24});
    const TrainingConfig again = read_config(parse_json(to_json(config).dump(), "resolved"));
    EXPECT_EQ(to_json(again), to_json(config)) << file;
    EXPECT_EQ(again.model, config.model) << file;
    EXPECT_EQ(again.sequences, 24) << file;
    EXPECT_EQ(again.adam, config.adam) << file;
  }
}

TEST(ModelFile, TheTokensOfTheBalanceLossAreASwitchOfTheTraining) {
  const auto balance = [](std::vector<std::string> overrides) {
    return read_config(kModels / "mixtral-tiny.json", overrides).model.balance;
  };
  EXPECT_EQ(balance({}), Balance::kSequence);
  EXPECT_EQ(balance({"training.balance=layer"}), Balance::kLayer);
  EXPECT_EQ(balance({"training.balance=pooled"}), Balance::kPooled);
  const auto faults = faults_of([&] { balance({"training.balance=batch"}); });
  ASSERT_EQ(faults.size(), 1u);
  EXPECT_EQ(faults[0].path, "training.balance");
  EXPECT_THAT(faults[0].allowed, HasSubstr("pooled"));
}

TEST(ModelFile, MiniGptHasTheTutorialsRecipe) {
  const TrainingConfig config = read_config(kModels / "minigpt.json");
  EXPECT_EQ(learning_rate(config.lr, 0), 1e-3);
  EXPECT_EQ(learning_rate(config.lr, 900), 1e-3);
  EXPECT_EQ(config.adam, (AdamSpec{.weight_decay = 0}));
  EXPECT_EQ(config.grad_clip_norm, 0);
}

TEST(ModelFile, MiniGptsRateStaysConstantUnlessThatIsSaid) {
  const auto rates = [](std::vector<std::string> overrides) {
    overrides.emplace_back("training.steps=200");
    return read_config(kModels / "minigpt.json", overrides).lr;
  };
  for (const std::int64_t step : {0, 1, 19, 20, 100, 199}) {
    EXPECT_EQ(learning_rate(rates({}), step), 1e-3) << step;
    EXPECT_EQ(learning_rate(rates({"training.lr.max_lr=0.25"}), step), 0.25) << step;
  }
  EXPECT_EQ(rates({"training.lr.max_lr=0.25", "training.lr.min_lr=0", "training.lr.warmup_steps=10"}),
            (LrSchedule{0.25, 0, 0.25, 10, 200}));
  EXPECT_EQ(rates({"training.lr.end_lr=1e-4"}), (LrSchedule{1e-3, 1e-3, 1e-4, 0, 200}));
}

TEST(ModelFile, PartsOfTheRateAndOfAdamAreSetWithoutAnObjectTraining) {
  const TrainingConfig config =
      read_config(kModels / "llama-3-8b.json",
                  {"training.lr.max_lr=1e-2", "training.lr.warmup_steps=7", "training.adam.beta1=0.5"});
  EXPECT_EQ(config.lr, (LrSchedule{1e-2, 0, 1e-3, 7, 1000}));
  EXPECT_EQ(config.adam, (AdamSpec{.beta1 = 0.5, .beta2 = 0.95, .epsilon = 1e-8, .weight_decay = 0.1}));
  // Beside parts that are there, too.
  EXPECT_EQ(read_config(kModels / "llama-3-8b.json", {"training.steps=50", "training.lr.max_lr=1e-2"}).lr,
            (LrSchedule{1e-2, 0, 1e-3, 5, 50}));
  const auto faults = faults_of([] { read_config(kModels / "llama-3-8b.json", {"training.lr.maxlr=1"}); });
  ASSERT_EQ(faults.size(), 1u);
  EXPECT_EQ(faults[0].path, "training.lr.maxlr");
}

TEST(ModelFile, AllFaultsOfModelAndTrainingAreSaidInOnePass) {
  const auto faults = faults_of([] {
    read_config(kModels / "gpt2-124m.json", {"n_head=7", "training.batch=0", "training.dtype=int8",
                                             "training.lr={\"max_lr\": -1}", "training.stepps=3"});
  });
  std::string all;
  for (const Diagnostic& fault : faults) all += fault.path + " " + fault.allowed + " " + fault.hint + "\n";
  for (const char* path : {"n_head", "training.batch", "training.dtype", "training.lr.max_lr", "training.stepps"})
    EXPECT_THAT(all, HasSubstr(path));
  EXPECT_THAT(all, HasSubstr("did you mean steps?"));
}

TEST(ModelFile, LearnedPositionsLimitTheTokens) {
  const auto faults = faults_of([] { read_config(kModels / "gpt2-124m.json", {}, {.tokens = 2048}); });
  ASSERT_EQ(faults.size(), 1u);
  EXPECT_EQ(faults[0].source, "--tokens");
  EXPECT_EQ(faults[0].path, "training.tokens");
  EXPECT_THAT(faults[0].allowed, HasSubstr("1024 positions"));
}

TEST(ModelFile, ExpertsThatWouldAcceptNoTokenAreRefused) {
  const Json decoder = Json::parse(R"({"kind": "decoder", "width": 32, "vocabulary": 64, "layers": 1,
      "attention": {"kind": "multi_head", "heads": 4, "rope": {}},
      "experts": {"count": 16, "choices": 2, "hidden": 32, "capacity_factor": 0.5}})");
  EXPECT_EQ(read_config(parse_json(decoder.dump(), "few.json"), {}, {.tokens = 16}).sequence_length, 16);
  const auto faults = faults_of([&] { read_config(parse_json(decoder.dump(), "few.json"), {}, {.tokens = 8}); });
  ASSERT_EQ(faults.size(), 1u);
  EXPECT_EQ(faults[0].path, "training.tokens");
  EXPECT_THAT(faults[0].allowed, HasSubstr("at least 16"));
}

TEST(Shortcuts, OfJaxformersSchemaCountTheStepsSequencesWhateverTheMesh) {
  const TrainingConfig config = read_config(kPublished, {}, {.batch = 512, .tokens = 2048, .dtype = "float32"});
  EXPECT_EQ(config.sequences, 512);
  EXPECT_EQ(config.train_batch_size, 64);
  EXPECT_EQ(config.sequence_length, 2048);
  EXPECT_EQ(config.model_dtype, "float32");
  const auto faults = faults_of([] { read_config(kPublished, {}, {.batch = 100}); });
  ASSERT_EQ(faults.size(), 1u);
  EXPECT_EQ(faults[0].source, "--batch");
  EXPECT_THAT(faults[0].allowed, HasSubstr("multiple of 8"));
  EXPECT_THAT(faults[0].hint, HasSubstr("104"));
  // What the batch is counted by may be wrong itself: its reader says so.
  for (const char* broken : {"grad_step=1152921504606846976", "device_config=[1]", "data_config=3"})
    EXPECT_FALSE(faults_of([&] { read_config(kPublished, {broken}, {.batch = 64}); }).empty()) << broken;
}

}  // namespace
}  // namespace meshwright
