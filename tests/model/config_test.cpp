#include "model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <iterator>
#include <random>
#include <set>

#include "model/families/jaxformer.h"
#include "tests/cases.h"

namespace meshwright {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;

const std::filesystem::path kPublished = REPOSITORY "/configs/jaxformer-moe1b.json";

std::string text_of(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

nlohmann::json seed(const std::string& id) {
  for (const auto& entry : read_case_file("seed_numbers.json")) {
    if (entry.at("id") == id && entry.at("check") == true) return entry.at("computed");
  }
  ADD_FAILURE() << "seed_numbers.json has no checked entry " << id;
  return {};
}

std::vector<Diagnostic> faults_of(const std::function<void()>& read) {
  try {
    read();
  } catch (const InputError& error) {
    return error.diagnostics();
  }
  return {};
}

std::vector<Diagnostic> faults_of_text(const std::string& text) {
  return faults_of([&] { read_config(parse_json(text, "broken.json")); });
}

std::vector<Diagnostic> faults_with(const std::vector<std::string>& overrides) {
  return faults_of([&] { read_config(kPublished, overrides); });
}

TEST(Config, PublishedFileIsReadInFull) {
  const TrainingConfig config = read_config(kPublished);
  EXPECT_EQ(config.name, "moe1B");
  EXPECT_EQ(config.model, jaxformer("moe1B", JaxformerDimensions{}, 1e-4));
  EXPECT_EQ(config.model.layers.size(), 48u);
  EXPECT_EQ(config.sequence_length, 1024);
  EXPECT_EQ(config.mesh, (MeshShape{8, 2, 2}));
  EXPECT_EQ(config.mesh.ranks(), 32);
  EXPECT_EQ(config.mesh.ranks(), seed("jaxformer.devices"));
  EXPECT_EQ(config.sequences, 256);
  EXPECT_EQ(config.tokens_per_step(), seed("jaxformer.tokens_per_step"));
  EXPECT_EQ(config.microbatches, 4);
  EXPECT_EQ(config.lr, (LrSchedule{6e-4, 0, 6e-5, 5000, 75000}));
  EXPECT_EQ(config.grad_clip_norm, 1.0);
  EXPECT_EQ(config.inference.prompt, "hello world");
  EXPECT_TRUE(config.inference.use_cache);
  EXPECT_TRUE(config.wandb);
  EXPECT_EQ(config.training_steps, 100000);
}

TEST(Config, MoeSmallIsASmallModelOfTheSameKind) {
  const TrainingConfig config = read_config(std::filesystem::path(REPOSITORY "/configs/moe-small.json"));
  EXPECT_EQ(config.tokens_per_step(), 2048);
  EXPECT_TRUE(std::holds_alternative<Experts>(config.model.layers.at(2).ffn));
  EXPECT_THAT(config.notes, ::testing::SizeIs(1));  // the bucket's name only
}

TEST(Config, LearningRatesAreThoseOfTheSeed) {
  const TrainingConfig config = read_config(kPublished);
  const nlohmann::json rates = seed("jaxformer.lr_schedule");
  for (const auto& [step, rate] : rates.items()) {
    EXPECT_NEAR(learning_rate(config.lr, std::stoll(step)), rate.get<double>(), 1e-15) << step;
  }
}

TEST(Config, LearningRatesAreThoseOfTheGoldenOptimizerTrace) {
  const nlohmann::json trace = read_case_file("jaxformer_golden.json").at("optimizer");
  const nlohmann::json& rule = trace.at("schedule");
  const LrSchedule schedule{.max_lr = rule.at("peak"),
                            .min_lr = rule.at("init"),
                            .end_lr = rule.at("end"),
                            .warmup_steps = rule.at("warmup_steps"),
                            .end_steps = rule.at("decay_steps")};
  for (const nlohmann::json& step : trace.at("steps")) {
    EXPECT_NEAR(learning_rate(schedule, step.at("step")), step.at("lr").get<double>(), 1e-15) << step.at("step");
  }
}

TEST(Config, AShardFeeds381StepsAndDropsTheRest) {
  const TrainingConfig config = read_config(kPublished);
  const nlohmann::json want = seed("jaxformer.steps_per_shard");
  constexpr std::int64_t kShard = 100'000'000;
  EXPECT_EQ(config.steps_in_shard(kShard), want.at("steps"));
  EXPECT_EQ(kShard - 1 - config.steps_in_shard(kShard) * config.tokens_per_step(), want.at("dropped_tokens"));
  EXPECT_DOUBLE_EQ(26100.0 / static_cast<double>(config.steps_in_shard(kShard)),
                   want.at("shards_for_26100_steps").get<double>());
  EXPECT_EQ(config.steps_in_shard(262'144), 0);  // the last target is missing
  EXPECT_EQ(config.steps_in_shard(262'145), 1);
  EXPECT_EQ(config.steps_in_shard(0), 0);
}

TEST(Config, EvaluatesEvery75StepsAndSavesEvery750) {
  const TrainingConfig config = read_config(kPublished);
  const nlohmann::json want = seed("jaxformer.cadence");
  std::int64_t evaluations = 0;
  std::vector<std::int64_t> saved;
  for (std::int64_t step = 0; step <= 26100; ++step) {
    evaluations += config.evaluates_after(step);
    if (config.checkpoints_after(step)) saved.push_back(step);
  }
  EXPECT_EQ(evaluations, want.at("evals_in_26100"));
  EXPECT_EQ(config.checkpoint_steps, want.at("eval_every"));
  EXPECT_EQ(saved.at(1) - saved.at(0), want.at("ckpt_and_generate_every").get<std::int64_t>());
  EXPECT_EQ(config.evaluation_tokens(), want.at("eval_tokens"));
}

TEST(Config, ResolvedConfigurationIsTheFileKeyForKey) {
  const OrderedJson resolved = to_json(read_config(kPublished));
  EXPECT_EQ(resolved.dump(2), OrderedJson::parse(text_of(kPublished)).dump(2));
}

TEST(Config, ResolvedConfigurationWithOverridesReadsBackTheSame) {
  const TrainingConfig config = read_config(kPublished, {"lr.max_lr=1e-3", "name=other", "seed=7"});
  const TrainingConfig again = read_config(parse_json(to_json(config).dump(), "resolved"));
  EXPECT_EQ(to_json(again), to_json(config));
  EXPECT_EQ(again.model, config.model);
  EXPECT_EQ(again.lr, config.lr);
  EXPECT_EQ(again.seed, 7);
}

TEST(Config, EveryValueKnowsWhereItCameFrom) {
  const TrainingConfig config =
      read_config(kPublished, {"lr.max_lr=1e-3", "device_config={\"n_device_axis\":[4,2,2]}"});
  std::vector<std::string> set;
  for (const ConfigValue& value : config.values) {
    if (value.source == "--set") {
      set.push_back(value.path + "=" + value.value.dump());
    } else {
      EXPECT_EQ(value.source, kPublished.string());
    }
  }
  EXPECT_THAT(set, ::testing::ElementsAre("lr.max_lr=0.001", "device_config.n_device_axis=[4,2,2]"));
  EXPECT_EQ(config.values.size(), 45u);
}

TEST(Config, SetTakesJsonOrElseAString) {
  const TrainingConfig config =
      read_config(kPublished, {"name=small", "inference_config.prompt=Once = upon", "wandb=false",
                               "device_config.n_device_axis=[4, 1, 2]", "inference_config.prompt=\"7\""});
  EXPECT_EQ(config.name, "small");
  EXPECT_EQ(config.inference.prompt, "7");  // the last of two holds
  EXPECT_FALSE(config.wandb);
  EXPECT_EQ(config.mesh, (MeshShape{4, 1, 2}));
}

TEST(Config, NotesNameWhatPointsElsewhereOnce) {
  const TrainingConfig config = read_config(kPublished);
  EXPECT_THAT(config.notes,
              ::testing::ElementsAre(
                  AllOf(HasSubstr("data_config.bucket_name"), HasSubstr("350bt_gpt4"), HasSubstr("--data")),
                  AllOf(HasSubstr("output_dir"), HasSubstr("gs://results_jaxformer/"), HasSubstr("runs/moe1B")),
                  HasSubstr("wandb = true")));
}

TEST(Config, SchemaFileKnowsExactlyTheKeysThatAreRead) {
  const Json schema = Json::parse(text_of(REPOSITORY "/configs/schema/jaxformer.schema.json"));
  std::set<std::string> in_schema, read;
  for (const auto& [name, entry] : schema.at("properties").items()) {
    if (!entry.contains("properties")) {
      in_schema.insert(name);
      continue;
    }
    for (const auto& [inner, ignored] : entry.at("properties").items()) in_schema.insert(name + "." + inner);
    EXPECT_EQ(entry.at("required").size(), entry.at("properties").size());
  }
  const TrainingConfig config = read_config(kPublished);
  for (const ConfigValue& value : config.values) read.insert(value.path);
  EXPECT_EQ(in_schema, read);
}

TEST(Config, EveryKeyIsRequired) {
  const Json whole = Json::parse(text_of(kPublished));
  const TrainingConfig config = read_config(kPublished);
  for (const ConfigValue& value : config.values) {
    Json without = whole;
    const auto dot = value.path.find('.');
    if (dot == std::string::npos) {
      without.erase(value.path);
    } else {
      without[value.path.substr(0, dot)].erase(value.path.substr(dot + 1));
    }
    const auto faults = faults_of_text(without.dump());
    ASSERT_EQ(faults.size(), 1u) << value.path;
    EXPECT_EQ(faults[0].path, value.path);
    EXPECT_EQ(faults[0].value, "(missing)");
    EXPECT_THAT(faults[0].hint, HasSubstr("add it"));
  }
}

// One broken value: what is set, and the one diagnostic that must come of it.
struct Broken {
  std::string name;
  std::vector<std::string> set;
  std::string path, value, allowed, hint;  // allowed, hint: a part of them
};
void PrintTo(const Broken& broken, std::ostream* out) { *out << broken.name; }

class BrokenConfig : public ::testing::TestWithParam<Broken> {};

TEST_P(BrokenConfig, IsReportedWithPathValueAllowedAndHint) {
  const Broken& broken = GetParam();
  const auto faults = faults_with(broken.set);
  ASSERT_EQ(faults.size(), 1u) << (faults.empty() ? "nothing reported" : InputError(faults).what());
  EXPECT_EQ(faults[0].source, "--set");
  EXPECT_EQ(faults[0].path, broken.path);
  EXPECT_EQ(faults[0].value, broken.value);
  EXPECT_THAT(faults[0].allowed, HasSubstr(broken.allowed));
  EXPECT_THAT(faults[0].hint, HasSubstr(broken.hint));
}

INSTANTIATE_TEST_SUITE_P(
    Config, BrokenConfig,
    ::testing::Values(
        Broken{"UnknownKey",
               {"model_config.n_heads=12"},
               "model_config.n_heads",
               "12",
               "known keys in model_config",
               "did you mean n_head?"},
        Broken{"UnknownTopKey", {"learning_rates=1"}, "learning_rates", "1", "known keys here", "remove it"},
        Broken{"UnknownSection",
               {"modle_config.T=1"},
               "modle_config.T",
               "1",
               "there is no modle_config",
               "did you mean model_config?"},
        Broken{"PathThroughANumber",
               {"lr.max_lr.x=1"},
               "lr.max_lr.x",
               "1",
               "lr.max_lr is a number",
               "set the whole of it"},
        Broken{"SectionIsANumber", {"lr=5"}, "lr", "5", "an object", "this is an integer"},
        Broken{"HeadsDoNotDivide",
               {"model_config.n_head=7"},
               "model_config.n_head",
               "7",
               "a divisor of model_dimension, which is 768",
               "the nearest one is 6"},
        Broken{"HeadsAreAString",
               {"model_config.n_head=twelve"},
               "model_config.n_head",
               "\"twelve\"",
               "an integer from 1 to 1024",
               "this is a string"},
        Broken{"HeadsHaveAFraction",
               {"model_config.n_head=12.5"},
               "model_config.n_head",
               "12.5",
               "an integer from 1 to 1024",
               "no integer"},
        Broken{"WidthIsZero",
               {"model_config.model_dimension=0"},
               "model_config.model_dimension",
               "0",
               "an integer from 1 to 65536",
               "in this range"},
        Broken{"WidthIsHuge",
               {"model_config.model_dimension=99999999999999999999"},
               "model_config.model_dimension",
               "1e+20",
               "an integer from 1 to 65536",
               "no integer of 64 bits"},
        Broken{"WidthIsBeyondInt64",
               {"model_config.model_dimension=18446744073709551615"},
               "model_config.model_dimension",
               "18446744073709551615",
               "an integer from 1 to 65536",
               "in this range"},
        Broken{"VocabIsNegative",
               {"model_config.vocab_size=-5"},
               "model_config.vocab_size",
               "-5",
               "an integer from 2",
               "in this range"},
        Broken{"RopeIsOdd", {"model_config.dhR=63"}, "model_config.dhR", "63", "an even integer", "62 or 64"},
        Broken{"DropoutIsOne",
               {"model_config.dropout_rate=1.0"},
               "model_config.dropout_rate",
               "1.0",
               "a number of at least 0 and below 1",
               "probability"},
        Broken{"DropoutIsNegative",
               {"model_config.dropout_rate=-0.1"},
               "model_config.dropout_rate",
               "-0.1",
               "a number of at least 0 and below 1",
               "probability"},
        Broken{"DtypeIsMisspelt",
               {"model_config.model_dtype=bfloat"},
               "model_config.model_dtype",
               "\"bfloat\"",
               "one of bfloat16, float16, float32",
               "did you mean bfloat16?"},
        Broken{"DtypeIsUnknown",
               {"model_config.model_dtype=int4"},
               "model_config.model_dtype",
               "\"int4\"",
               "one of bfloat16, float16, float32",
               "choose one of these"},
        Broken{"MoreChoicesThanExperts",
               {"model_config.k=17"},
               "model_config.k",
               "17",
               "at most n_experts, which is 16",
               "lower k or raise n_experts"},
        Broken{"CapacityIsZero",
               {"model_config.capacity_factor=0"},
               "model_config.capacity_factor",
               "0",
               "above 0",
               "in this range"},
        Broken{"CapacityLeavesNoRow",
               {"model_config.capacity_factor=0.001"},
               "model_config.capacity_factor",
               "0.001",
               "of at least 1; it is 0.128",
               "raise capacity_factor"},
        Broken{"TooManyLayers",
               {"model_config.layers_per_block=1000"},
               "model_config.layers_per_block",
               "1000",
               "blocks * layers_per_block of at most 4096",
               "at most 512 with 8 blocks"},
        Broken{"LengthsDisagree",
               {"data_config.T=512"},
               "data_config.T",
               "512",
               "the value of model_config.T, which is 1024",
               "set model_config.T and data_config.T alike"},
        Broken{"MicrobatchesDoNotDivide",
               {"data_config.micro_batch_size=5"},
               "data_config.micro_batch_size",
               "5",
               "a divisor of train_batch_size, which is 32",
               "number of microbatches, not their size"},
        Broken{"BatchIsAString",
               {"data_config.train_batch_size=\"32\""},
               "data_config.train_batch_size",
               "\"32\"",
               "an integer from 1",
               "this is a string"},
        Broken{"BucketIsANumber",
               {"data_config.bucket_name=7"},
               "data_config.bucket_name",
               "7",
               "a string",
               "put it in double quotes"},
        Broken{"StepIsTooLarge",
               {"data_config.train_batch_size=1048576", "grad_step=1024"},
               "data_config.train_batch_size",
               "1048576",
               "tokens a step",
               "sequences of one dp shard"},
        Broken{"PeakIsZero", {"lr.max_lr=0"}, "lr.max_lr", "0", "a number above 0 and at most 10", "in this range"},
        Broken{"WarmUpDescends",
               {"lr.min_lr=0.01"},
               "lr.min_lr",
               "0.01",
               "at most max_lr, which is 0.0006",
               "the warm-up climbs"},
        Broken{"CosineAscends", {"lr.end_lr=0.1"}, "lr.end_lr", "0.1", "at most max_lr", "the cosine falls"},
        Broken{"CosineEndsBeforeItBegins",
               {"lr.end_steps=5000"},
               "lr.end_steps",
               "5000",
               "more than warmup_steps, which is 5000",
               "between warmup_steps and end_steps"},
        Broken{"MeshHasTwoAxes",
               {"device_config.n_device_axis=[8,4]"},
               "device_config.n_device_axis",
               "[8,4]",
               "an array of 3 elements",
               "[8, 2, 2]"},
        Broken{"MeshHasAZero",
               {"device_config.n_device_axis=[8,0,4]"},
               "device_config.n_device_axis",
               "[8,0,4]",
               "each an integer from 1",
               "dp, pp and tp"},
        Broken{"MeshIsText",
               {"device_config.n_device_axis=8x2x2"},
               "device_config.n_device_axis",
               "\"8x2x2\"",
               "an array of 3 elements",
               "dp, pp and tp"},
        Broken{"MeshIsHuge",
               {"device_config.n_device_axis=[1000000,1000000,1000000]"},
               "device_config.n_device_axis",
               "[1000000,1000000,1000000]",
               "at most 1000000 devices",
               "product"},
        Broken{"TemperatureIsZero",
               {"inference_config.temperature=0"},
               "inference_config.temperature",
               "0",
               "above 0",
               "in this range"},
        Broken{"CacheIsAString",
               {"inference_config.use_cache=\"true\""},
               "inference_config.use_cache",
               "\"true\"",
               "true or false",
               "without quotes"},
        Broken{"OutputIsElsewhere",
               {"output_dir=s3://bucket/"},
               "output_dir",
               "\"s3://bucket/\"",
               "gs://NAME/",
               "for example runs/"},
        Broken{"OutputBucketHasNoName",
               {"output_dir=gs://"},
               "output_dir",
               "\"gs://\"",
               "gs://NAME/",
               "for example runs/"},
        Broken{"NameClimbs", {"name=../other"}, "name", "\"../other\"", "letters, digits", "folder"},
        Broken{"NameIsNull", {"name=null"}, "name", "null", "a string", "this is null"},
        Broken{"SeedIsNegative", {"seed=-1"}, "seed", "-1", "at least 0", "in this range"},
        Broken{"ClipIsNegative", {"grad_clip_norm=-1"}, "grad_clip_norm", "-1", "above 0", "in this range"},
        Broken{"NoSteps", {"training_steps=0"}, "training_steps", "0", "an integer from 1", "in this range"},
        Broken{"SetHasNoValue", {"lr.max_lr"}, "", "\"lr.max_lr\"", "key=value", "for example"},
        Broken{"SetHasNoKey", {"=3"}, "", "\"=3\"", "key=value", "for example"},
        Broken{"SetHasAnEmptyKey", {"lr..max_lr=3"}, "", "\"lr..max_lr=3\"", "key=value", "for example"},
        Broken{"SetIsNotUtf8", {"name=\xff\xfe"}, "name", "\"\xEF\xBF\xBD\xEF\xBF\xBD\"", "UTF-8", "retype"},
        Broken{"SetNamesAKeyTwice",
               {"device_config={\"n_device_axis\":[1,1,1],\"n_device_axis\":[2,1,1]}"},
               "device_config.n_device_axis",
               "given twice",
               "every key once",
               "remove one"},
        Broken{"MoreMicrobatchesThanAPlanCanHave",
               {"data_config.train_batch_size=1048576", "data_config.micro_batch_size=1048576", "grad_step=8",
                "model_config.T=64", "data_config.T=64", "device_config.n_device_axis=[1,1,1]"},
               "data_config.micro_batch_size",
               "1048576",
               "at most 1000000 microbatches a step",
               "it is 8388608"},
        Broken{"MoreDevicesThanAPlanCanHave",
               {"device_config.n_device_axis=[1048576,1,1]"},
               "device_config.n_device_axis",
               "[1048576,1,1]",
               "from 1 to 1000000",
               "ranks along dp, pp and tp"},
        Broken{"EvaluationIsTooLarge",
               {"eval_steps=1048576", "data_config.val_batch_size=1048576"},
               "eval_steps",
               "1048576",
               "tokens",
               "lower eval_steps or val_batch_size"},
        Broken{"SequenceIsTooLong",
               {"model_config.T=1048576", "data_config.T=1048576", "model_config.n_head=768", "model_config.dhR=1024"},
               "model_config.T",
               "1048576",
               "1e+18 FLOPs for one sequence",
               "lower T"},
        Broken{"ModelIsTooLarge",
               {"model_config.model_dimension=65536", "model_config.n_head=64", "model_config.n_experts=4096",
                "model_config.capacity_factor=8"},
               "model_config.model_dimension",
               "65536",
               "1e+13 parameters",
               "lower model_dimension"}),
    [](const auto& info) { return info.param.name; });

TEST(Config, AllFaultsAreReportedAtOnce) {
  const auto faults = faults_with({"model_config.n_head=7", "lr.max_lr=-1", "device_config.n_device_axis=[8,2]",
                                   "data_config.T=12", "colour=red", "nowhere.x=1", "wandb=yes"});
  std::vector<std::string> paths;
  for (const Diagnostic& fault : faults) paths.push_back(fault.path);
  EXPECT_THAT(paths, ::testing::UnorderedElementsAre("model_config.n_head", "lr.max_lr", "device_config.n_device_axis",
                                                     "data_config.T", "colour", "nowhere.x", "wandb"));
}

TEST(Config, FaultsInTheFileNameTheFile) {
  Json config = Json::parse(text_of(kPublished));
  config["model_config"]["n_head"] = 11;
  const auto faults = faults_of_text(config.dump());
  ASSERT_EQ(faults.size(), 1u);
  EXPECT_EQ(to_string(faults[0]),
            "broken.json: model_config.n_head = 11: allowed: a divisor of model_dimension, which is 768; "
            "hint: the nearest one is 12");
}

TEST(Config, RandomMutationsOfThePublishedBytesNeverCrash) {
  const std::string whole = text_of(kPublished);
  std::mt19937 random(20250905);
  const std::string alphabet = "{}[]\",:.-+0123456789eEtruefalsn \n\\u\xff\xc3\0\x01";
  auto below = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); };
  int read = 0, refused = 0;
  for (int round = 0; round < 10'000; ++round) {
    std::string text = whole;
    const std::size_t changes = 1 + below(4);
    for (std::size_t i = 0; i < changes; ++i) {
      const std::size_t at = below(text.size());
      switch (below(5)) {
        case 0:
          text[at] = alphabet[below(alphabet.size())];
          break;
        case 1:
          text[at] = static_cast<char>(below(256));
          break;
        case 2:
          text.erase(at, 1 + below(20));
          break;
        case 3:
          text.insert(at, text.substr(below(text.size()), below(40)));
          break;
        case 4:
          text.insert(at, 1, alphabet[below(alphabet.size())]);
          break;
      }
      if (text.empty()) break;
    }
    try {
      read_config(parse_json(text, "mutated.json"));
      ++read;
    } catch (const InputError& error) {
      ASSERT_FALSE(error.diagnostics().empty());
      ASSERT_STRNE(error.what(), "");
      ++refused;
    }
  }
  EXPECT_GT(read, 100);  // both outcomes happen, or the mutations test nothing
  EXPECT_GT(refused, 100);
}

TEST(Config, RandomValuesInRandomPlacesNeverCrash) {
  const Json whole = Json::parse(text_of(kPublished));
  const std::vector<ConfigValue> values = read_config(kPublished).values;
  const std::vector<Json> odd{nullptr,
                              true,
                              0,
                              1,
                              2,
                              3,
                              -1,
                              7,
                              1e-300,
                              1e300,
                              0.5,
                              64,
                              1024,
                              65536,
                              1048576,
                              1 << 30,
                              INT64_MAX,
                              INT64_MIN,
                              UINT64_MAX,
                              "",
                              "x",
                              "gs://",
                              Json::array(),
                              Json::object(),
                              Json{1, 1, 1},
                              Json{1048576, 1, 1}};
  std::mt19937 random(1);
  auto below = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); };
  for (int round = 0; round < 3'000; ++round) {
    std::vector<std::string> overrides;
    for (std::size_t i = 0, n = 1 + below(3); i < n; ++i) {
      overrides.push_back(values[below(values.size())].path + "=" + odd[below(odd.size())].dump());
    }
    const std::vector<Diagnostic> faults = faults_of([&] { read_config({"whole.json", whole, {}}, overrides); });
    for (const Diagnostic& fault : faults) {
      EXPECT_FALSE(fault.path.empty() || fault.allowed.empty() || fault.hint.empty()) << to_string(fault);
    }
  }
}

TEST(Config, NotesSayWhenMoreCandidatesAreAskedForThanThereAreTokens) {
  const TrainingConfig config = read_config(kPublished, {"model_config.vocab_size=2048"});
  EXPECT_THAT(config.notes, ::testing::Contains(HasSubstr("inference_config.top_k = 10000")));
}

}  // namespace
}  // namespace meshwright
