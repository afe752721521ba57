// Whatever is wrong with what the user gives: exit code 2, nothing on stdout, and on stderr where it is wrong, what stands
// there, and what to do.
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "planner/sqlite.h"
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

// What another program does to the database of this folder.
void change(const TemporaryFolder& folder, const std::string& sql) {
  sqlite::Database((folder.path() / "meshwright.db").string(), sqlite::Access::kWrite).run(sql);
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
                    plan("FsdpWithoutDp", "1x8x4,fsdp=3", {"fsdp=3", "hint:"}),
                    plan("UnknownId", "00000000", {"\"00000000\"", "`meshwright search` shows the ids"}),
                    plan("TooFewDigitsOfAnId", "a3f", {"\"a3f\"", "4 to 8 digits"}),
                    plan("TooManyDigitsOfAnId", "123456789", {"123456789", "4 to 8 digits"}),
                    plan("MisspelledBest", "bset", {"\"bset\"", "did you mean best?"}),
                    plan("MisspelledPublished", "publishd", {"did you mean published?"}),
                    plan("AWord", "fastest", {"best, published, a mesh as 8x2x2", "such as 8x2x2,"}),
                    plan("AMeshOfAnotherSize", "4x2x2", {"mesh", "4x2x2", "32"}),
                    plan("TwoFaultsAtOnce", "8x2x2,schedule=x,fsdp=9", {"schedule", "fsdp"}),
                    plan("Empty", "", {"mesh"})),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    Systems, BadInput,
    testing::Values(
        Case{"UnknownName", {"search", kPublished, "--system", "h100"}, {"h100", "v4, local", "a file of your own"}},
        Case{"MisspelledName", {"search", kPublished, "--system", "v44:2x2x1"}, {"did you mean v4:2x2x1?"}},
        Case{"NameOfTheFile", {"search", kPublished, "--system", "tpu-v4:2x4x4"}, {"did you mean v4:2x4x4?"}},
        Case{"MisspelledLocal", {"search", kPublished, "--system", "locla"}, {"did you mean local?"}},
        Case{"ImpossibleSlice", {"search", kPublished, "--system", "v4:3x5x7"}, {"3x5x7"}},
        Case{"SliceThatIsNone", {"search", kPublished, "--system", "v4:lots"}, {"lots"}},
        Case{"NoSuchFile", {"search", kPublished, "--system", "no/such.json"}, {"no/such.json"}},
        Case{"NoSlice", {"simulate", kPublished, "--system", "v4"}, {"v4"}}),
    [](const auto& info) { return info.param.name; });

INSTANTIATE_TEST_SUITE_P(
    CommandLines, BadInput,
    testing::Values(
        Case{"NoCommand", {}, {"COMMAND", "search, simulate", "meshwright --help"}},
        Case{"UnknownCommand", {"serch", kPublished}, {"serch", "did you mean search?", "--help"}},
        Case{"NoConfiguration", {"params"}, {"CONFIG", "--help"}},
        Case{"NoSuchConfiguration", {"params", "nowhere.json"}, {"nowhere.json"}},
        Case{"AFolder", {"params", "/"}, {"/"}}, Case{"NoSystem", {"search", kPublished}, {"--system"}},
        Case{"UnknownOption", {"params", kPublished, "--verbos"}, {"--verbos", "--print-config"}},
        Case{
            "MisspelledOption", {"search", kPublished, "--systme", "v4:2x4x4"}, {"--systme", "did you mean --system?"}},
        Case{"MisspelledOptionBeforeTheConfiguration",
             {"search", "--systme=v4:2x4x4", kPublished, "--dbb=x"},
             {"--systme", "did you mean --system?", "--dbb", "did you mean --db?"}},
        Case{"OptionsThatAreMissing", {"run"}, {"CONFIG = (missing)", "--system = (missing)", "meshwright run --help"}},
        Case{"AWordTooMany", {"params", kPublished, "more"}, {"\"more\"", "params --help"}},
        Case{"AnOptionTwice",
             {"run", kSmall, "--system", "v4:2x2x1", "--seed", "1", "--seed", "2"},
             {"--seed = 1 and 2"}},
        Case{"AnOptionWithoutItsValue", {"run", kSmall, "--system", "v4:2x2x1", "--seed"}, {"--seed = (missing)"}},
        Case{"TopOfZero", {"search", kPublished, "--system", "v4:2x4x4", "--top", "0"}, {"--top"}},
        Case{"SetWithoutValue", {"params", kPublished, "--set", "seed"}, {"--set", "seed"}},
        Case{"StepsThatAreNoNumber", {"run", kSmall, "--system", "v4:2x4x4", "--steps", "few"}, {"--steps", "few"}},
        Case{"NegativeSteps", {"run", kSmall, "--system", "v4:2x4x4", "--steps", "-3"}, {"--steps"}},
        Case{"StepsBeyond64Bits",
             {"run", kSmall, "--system", "v4:2x2x1", "--steps", "99999999999999999999"},
             {"--steps = \"99999999999999999999\"", "from 1 to 1099511627776"}},
        Case{"SeedBeyond64Bits",
             {"run", kSmall, "--system", "v4:2x2x1", "--seed", "99999999999999999999"},
             {"--seed = \"99999999999999999999\"", "an integer of at least 0"}},
        Case{"EmptySeed", {"run", kSmall, "--system", "v4:2x2x1", "--seed", ""}, {"--seed = \"\"", "an integer"}},
        Case{"SeedInHexadecimal", {"run", kSmall, "--system", "v4:2x2x1", "--seed", "0x10"}, {"--seed = \"0x10\""}},
        Case{"HangTimeoutBelowZero",
             {"run", kSmall, "--system", "v4:2x2x1", "--hang-timeout", "-1"},
             {"--hang-timeout = \"-1\"", "a number of at least 0 and at most 1000000000", "decimal digits"}},
        Case{"HangTimeoutThatIsNoNumber",
             {"run", kSmall, "--system", "v4:2x2x1", "--hang-timeout", "nan"},
             {"--hang-timeout = \"nan\"", "a number of at least 0"}},
        Case{"NumbersAndIntegersAtOnce",
             {"run", kSmall, "--system", "v4:2x2x1", "--hang-timeout", "", "--headroom", "inf", "--steps", "x"},
             {"--hang-timeout = \"\"", "--headroom = \"inf\"", "--steps = \"x\""}},
        Case{"WhereWithNothing", {"search", kSmall, "--system", "v4:2x2x1", "--where", ""}, {"leave --where out"}},
        Case{"WhereWithAPercentage",
             {"search", kSmall, "--system", "v4:2x2x1", "--where", "mfu>40"},
             {"--where: mfu = 40", "a fraction: 0.4 for 40 %"}},
        Case{"TopWithBlanks", {"search", kSmall, "--system", "v4:2x2x1", "--top", " 3"}, {"--top = \" 3\""}},
        Case{"EveryFaultOfACommandLineAtOnce",
             {"run", kSmall, "--sytem", "v4:2x2x1", "--seed", "", "--steps", "0", "--tarce=t.json"},
             {"--seed = \"\"", "--steps = \"0\"", "did you mean --system?", "did you mean --trace?"}},
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
  expect_refused(meshwright({"params", folder.write("null.json", published + std::string("\0garbage", 8))}),
                 {"null.json", "line 58, column 1", "null byte"});
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
  system["network"]["link_bytes_per_s"] = 4.5e10;
  refused(system, {"network.link_bytes_per_s = 45000000000.0: allowed: an object; hint: this is a number: write "
                   R"({"value": 45000000000.0, "source": "where it is from"})"});
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
  system = v4;
  system["network"]["link_byte_per_s"] = system["network"]["link_bytes_per_s"];
  system["network"].erase("link_bytes_per_s");
  refused(system,
          {"network.link_byte_per_s", "did you mean link_bytes_per_s?", "network.link_bytes_per_s = (missing)"});
  expect_refused(meshwright({"search", kPublished, "--system",
                             folder.write("null.json", v4.dump() + std::string("\0garbage", 8)) + ":2x4x4"}),
                 {"null.json", "null byte"});
}

// Of anything that a terminal would obey: C0 and C1 control characters, overrides of the direction of writing.
bool has_control_characters(const std::string& text) {
  for (const char* sequence : {"\x1b", "\x07", "\xc2\x9b", "\xe2\x80\xae"})
    if (text.find(sequence) != std::string::npos) return true;
  return false;
}

TEST(BadFiles, NoTextOfAFileReachesTheTerminalWithWhatATerminalObeys) {
  const TemporaryFolder folder;
  auto system = nlohmann::json::parse(text_of(std::string(REPOSITORY) + "/configs/systems/tpu-v4.json"));
  const std::string hostile =
      "v4\x1b[31m\x07\xc2\x9b"
      "2J\xe2\x80\xae";
  system["name"] = hostile;
  system["device"] = hostile;
  const std::string name = folder.write("s.json", system.dump()) + ":2x2x1";
  for (const std::vector<std::string>& command : std::vector<std::vector<std::string>>{
           {"search", kSmall, "--system", name},
           {"search", kSmall, "--system", name, "--json"},
           {"simulate", kSmall, "--system", name, "--plan", "best"},
           {"simulate", kSmall, "--system", name, "--plan", "4x1x1,microbatches=1", "--set",
            "data_config.bucket_name=" + hostile, "--set", "data_config.process_path=gs://" + hostile}}) {
    const Outcome outcome = meshwright(command, &folder);
    EXPECT_EQ(outcome.code, 0) << outcome.err;
    EXPECT_FALSE(has_control_characters(outcome.out)) << outcome.out;
    EXPECT_FALSE(has_control_characters(outcome.err)) << outcome.err;
    EXPECT_NE(outcome.out.find("v4\\"), std::string::npos) << outcome.out;  // it is seen
  }
  expect_refused(meshwright({"params", kSmall, "--set", hostile + "=1"}), {"\\u001b[31m"});
  for (const std::string& word : {hostile, std::string("--") + hostile, std::string("\xff")}) {
    const Outcome outcome = meshwright({"params", kSmall, word});
    expect_refused(outcome, {"command line"});
    EXPECT_FALSE(has_control_characters(outcome.err)) << outcome.err;
    EXPECT_EQ(outcome.err.find('\xff'), std::string::npos);
  }
}

TEST(BadFiles, ADatabaseThatIsNoneIsRefused) {
  const TemporaryFolder folder;
  expect_refused(meshwright({"search", kSmall, "--system", "v4:2x2x1", "--db",
                             folder.write("x.db", "this is a text, and a long enough one\n")}),
                 {"x.db"});
}

TEST(BadFiles, ADatabaseOfAnEarlierReleaseIsRefusedWithWhatToDo) {
  const TemporaryFolder folder;
  ASSERT_EQ(meshwright({"search", kSmall, "--system", "v4:2x2x1"}, &folder).code, 0);
  change(folder, "PRAGMA user_version = 1");
  expect_refused(meshwright({"search", kSmall, "--system", "v4:2x2x1"}, &folder),
                 {"meshwright.db", "schema version 1", "schema version 2", "move it away and search again"});
}

TEST(BadFiles, RowsThatSomethingElseChangedAreRefusedWithFileTableColumnAndValue) {
  for (const auto& [sql, column] : std::vector<std::pair<std::string, std::string>>{
           {"UPDATE plans SET microbatches = 0 WHERE rank = 1", "plans[1].microbatches"},
           {"UPDATE plans SET fsdp = -1 WHERE rank = 1", "plans[1].fsdp = -1"},
           {"UPDATE plans SET stage_layers = 'x' WHERE rank = 1", "plans[1].stage_layers = \"x\""}}) {
    const TemporaryFolder folder;
    ASSERT_EQ(meshwright({"search", kSmall, "--system", "v4:2x2x1"}, &folder).code, 0);
    change(folder, sql);
    expect_refused(meshwright({"simulate", kSmall, "--system", "v4:2x2x1", "--plan", "best"}, &folder),
                   {"meshwright.db", column, "allowed:", "hint:"});
  }
}

TEST(BadFiles, DataThatAreNotThereAreRefusedBeforeAnyRankStarts) {
  expect_refused(meshwright({"run", kSmall, "--system", "v4:2x2x1", "--plan", "4x1x1", "--data", "no-such.txt"}),
                 {"--data", "no-such.txt"});
}

}  // namespace
}  // namespace meshwright
