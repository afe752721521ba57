// Whatever is wrong with what the user gives: exit code 2, nothing on stdout, and on stderr where it is wrong, what stands
// there, and what to do.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "tests/cli/binary.h"

namespace meshwright {
namespace {

struct Case {
  std::string name;
  std::vector<std::string> arguments;
  std::vector<std::string> on_stderr;  // path, value, hint, ...
};

void PrintTo(const Case& c, std::ostream* out) { *out << c.name; }

void expect_refused(const Outcome& outcome, const std::vector<std::string>& on_stderr) {
  EXPECT_EQ(outcome.code, 2) << outcome.err;
  EXPECT_EQ(outcome.out, "");
  for (const std::string& text : on_stderr)
    EXPECT_NE(outcome.err.find(text), std::string::npos) << "no '" << text << "' in:\n" << outcome.err;
}

class BadInput : public testing::TestWithParam<Case> {};

TEST_P(BadInput, EndsWithCode2AndSaysWhereAndWhat) {
  expect_refused(meshwright(GetParam().arguments), GetParam().on_stderr);
}

// One wrong value of the published configuration, set from the command line.
Case value(const std::string& assignment, const std::string& hint) {
  const std::size_t equals = assignment.find('=');
  std::string name = assignment;
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  return {name,
          {"params", kPublished, "--set", assignment},
          {"--set", assignment.substr(0, equals), assignment.substr(equals + 1), hint}};
}

INSTANTIATE_TEST_SUITE_P(
    Configurations, BadInput,
    testing::Values(
        value("model_config.n_head=7", "hint: the nearest one is"), value("model_config.dhR=127", "take 126 or 128"),
        value("model_config.k=17", "raise n_experts"), value("model_config.dropout_rate=1", "probability"),
        value("model_config.model_dtype=\"int8\"", "bfloat16"), value("model_config.blocks=0", "allowed:"),
        value("model_config.blocks=2.5", "allowed:"), value("model_config.vocab_size=\"many\"", "allowed:"),
        value("model_config.capacity_factor=0", "allowed:"), value("data_config.T=512", "model_config.T"),
        value("data_config.micro_batch_size=5", "the number of microbatches, not their size"),
        value("data_config.train_batch_size=-1", "allowed:"), value("lr.min_lr=1", "warm-up"),
        value("lr.end_steps=10", "warmup_steps"), value("device_config.n_device_axis=[8,2]", "dp, pp and tp"),
        value("device_config.n_device_axis=[8,0,2]", "allowed:"), value("name=\"../x\"", "the run's folder"),
        value("output_dir=\"ftp://x\"", "gs://"), value("seed=-1", "allowed:"), value("wandb=\"yes\"", "allowed:"),
        value("no_such_key=1", "allowed"), value("model_config.n_heads=8", "n_head")),
    [](const auto& info) { return info.param.name; });

Case plan(const std::string& name, const std::string& text, std::vector<std::string> on_stderr) {
  on_stderr.push_back("--plan");
  return {name, {"simulate", kPublished, "--system", "v4:2x4x4", "--plan", text}, std::move(on_stderr)};
}

INSTANTIATE_TEST_SUITE_P(
    Plans, BadInput,
    testing::Values(plan("TwoAxes", "8x4", {"mesh", "8x4", "8x2x2"}),
                    plan("NoNumber", "8xAx2", {"mesh", "8xAx2", "hint:"}),
                    plan("UnknownSchedule", "8x2x2,schedule=2f2b", {"schedule", "2f2b", "gpipe or 1f1b"}),
                    plan("UnknownChoice", "8x2x2,ep=4", {"ep", "4", "hint:"}),
                    plan("FsdpStage4", "8x2x2,fsdp=4", {"fsdp", "4", "0, 1, 2 or 3"}),
                    plan("NoMicrobatches", "8x2x2,microbatches=0", {"microbatches", "0", "hint:"}),
                    plan("TwiceTheSame", "8x2x2,fsdp=1,fsdp=2", {"fsdp", "each choice once"}),
                    plan("OtherNumberOfRanks", "4x2x2", {"mesh", "4x2x2", "32"}),
                    plan("HeadsNotDivisible", "4x1x8", {"12 heads", "tp"}),
                    plan("MicrobatchesDoNotDivide", "8x2x2,microbatches=5", {"microbatches=5", "hint:"}),
                    plan("FsdpWithoutDp", "1x8x4,fsdp=3", {"fsdp=3", "hint:"}), plan("UnknownId", "12345", {"12345"}),
                    plan("TwoFaultsAtOnce", "8x2x2,schedule=x,fsdp=9", {"schedule", "fsdp"}),
                    plan("Empty", "", {"mesh"})),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Systems, BadInput,
    testing::Values(Case{"UnknownName", {"search", kPublished, "--system", "v9:2x2x1"}, {"v9", "v4"}},
                    Case{"ImpossibleSlice", {"search", kPublished, "--system", "v4:3x5x7"}, {"3x5x7"}},
                    Case{"SliceThatIsNone", {"search", kPublished, "--system", "v4:lots"}, {"lots"}},
                    Case{"NoSuchFile", {"search", kPublished, "--system", "no/such.json"}, {"no/such.json"}},
                    Case{"NoSlice", {"simulate", kPublished, "--system", "v4"}, {"v4"}}),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    CommandLines, BadInput,
    testing::Values(
        Case{"NoCommand", {}, {"hint: meshwright --help"}},
        Case{"UnknownCommand", {"serch", kPublished}, {"serch", "did you mean search?", "--help"}},
        Case{"NoConfiguration", {"params"}, {"CONFIG", "--help"}},
        Case{"NoSuchConfiguration", {"params", "nowhere.json"}, {"nowhere.json"}},
        Case{"AFolder", {"params", "/"}, {"/"}}, Case{"NoSystem", {"search", kPublished}, {"--system"}},
        Case{"UnknownOption", {"params", kPublished, "--verbos"}, {"--verbos"}},
        Case{"TopOfZero", {"search", kPublished, "--system", "v4:2x4x4", "--top", "0"}, {"--top"}},
        Case{"SetWithoutValue", {"params", kPublished, "--set", "seed"}, {"--set", "seed"}},
        Case{"StepsThatAreNoNumber", {"run", kSmall, "--system", "v4:2x4x4", "--steps", "few"}, {"--steps", "few"}},
        Case{"NegativeSteps", {"run", kSmall, "--system", "v4:2x4x4", "--steps", "-3"}, {"--steps"}},
        Case{"NegativeSeed", {"run", kSmall, "--system", "v4:2x4x4", "--seed", "-3"}, {"seed", "-3"}},
        Case{"HalfPrecisionOnATpu",
             {"search", kPublished, "--system", "v4:2x4x4", "--set", "model_config.model_dtype=float16"},
             {"model_config.model_dtype = \"float16\"", "bfloat16 or float32 on v4:2x4x4", "model_dtype=bfloat16"}},
        Case{"MisspeltWordOfAPlan",
             {"simulate", kPublished, "--system", "v4:2x4x4", "--plan", "8x4x1,schedul=gpipe,microbatch=8"},
             {"did you mean schedule?", "did you mean microbatches?"}},
        Case{"LayersThatDoNotAddUp",
             {"simulate", kPublished, "--system", "v4:2x4x4", "--plan", "8x4x1,layers=13-12-12-10"},
             {"47 layers, the model has 48"}},
        Case{"DatabaseInNoFolder",
             {"search", kSmall, "--system", "v4:2x2x1", "--db", "no/such/folder/x.db"},
             {"no/such/folder/x.db"}},
        Case{"TraceInNoFolder",
             {"simulate", kPublished, "--system", "v4:2x4x4", "--trace", "no/such/t.json"},
             {"--trace", "no/such/t.json"}}),
    [](const auto& info) { return info.param.name; });

TEST(BadFiles, ABrokenConfigurationIsRefusedWithThePlaceOfTheFault) {
  const TemporaryFolder folder;
  const std::string published = text_of(kPublished);
  expect_refused(meshwright({"params", folder.write("empty.json", "")}), {"empty.json"});
  expect_refused(meshwright({"params", folder.write("cut.json", published.substr(0, 300))}), {"cut.json", "line"});
  expect_refused(meshwright({"params", folder.write("array.json", "[1, 2]")}), {"array.json"});
  expect_refused(meshwright({"params", folder.write("bytes.json", std::string("\xff\xfe\0{", 4))}), {"bytes.json"});
  expect_refused(meshwright({"params", folder.write("twice.json", R"({"name": "a", "name": "b"})")}),
                 {"twice.json", "name"});
  expect_refused(meshwright({"params", folder.write("deep.json", std::string(100'000, '['))}), {"deep.json"});
}

TEST(BadFiles, EveryFaultOfAConfigurationIsSaidAtOnce) {
  const Outcome outcome =
      meshwright({"params", kPublished, "--set", "model_config.k=17", "--set", "seed=-1", "--set", "lr.min_lr=1"});
  expect_refused(outcome, {"model_config.k = 17", "seed = -1", "lr.min_lr = 1"});
}

TEST(BadFiles, ABrokenSystemIsRefusedWithThePathOfTheFault) {
  const TemporaryFolder folder;
  const auto v4 = nlohmann::json::parse(text_of(std::string(REPOSITORY) + "/configs/systems/tpu-v4.json"));
  const auto refused = [&](nlohmann::json system, const std::vector<std::string>& on_stderr) {
    expect_refused(meshwright({"search", kPublished, "--system", folder.write("s.json", system.dump()) + ":2x4x4"}),
                   on_stderr);
  };
  auto system = v4;
  system["memory"]["bytes"]["value"] = -1;
  refused(system, {"s.json", "memory.bytes", "-1"});
  // Units that slipped: all of them at once, each with what was probably meant.
  system = v4;
  system["network"]["link_bytes_per_s"]["value"] = 45;
  system["compute"]["peak_flops_per_s"]["bf16"]["value"] = 275;
  system["memory"]["bytes"]["value"] = 32;
  refused(system, {"network.link_bytes_per_s", "45 GB/s is 4.5e10", "compute.peak_flops_per_s.bf16",
                   "275 TFLOP/s is 2.75e14", "memory.bytes", "32 GiB is 34359738368"});
  system = v4;
  system.erase("network");
  refused(system, {"network"});
  system = v4;
  system["compute"]["model"] = "magic";
  refused(system, {"compute.model", "magic"});
  system = v4;
  system["compute"]["peak_flops_per_s"]["bf16"].erase("source");
  refused(system, {"compute.peak_flops_per_s.bf16", "source"});
  system = v4;
  system["nonsense"] = 1;
  refused(system, {"nonsense"});
}

TEST(BadFiles, ADatabaseThatIsNoneIsRefused) {
  const TemporaryFolder folder;
  expect_refused(meshwright({"search", kSmall, "--system", "v4:2x2x1", "--db",
                             folder.write("x.db", "this is a text, and a long enough one\n")}),
                 {"x.db"});
}

TEST(BadFiles, DataThatAreNotThereAreRefusedBeforeAnyRankStarts) {
  expect_refused(meshwright({"run", kSmall, "--system", "v4:2x2x1", "--plan", "4x1x1", "--data", "no-such.txt"}),
                 {"--data", "no-such.txt"});
}

}  // namespace
}  // namespace meshwright
