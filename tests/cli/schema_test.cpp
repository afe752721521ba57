// configs/schema/ says exactly what is read and written: keys that a reader accepts are in its schema, and the other way
// round.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <regex>
#include <set>
#include <sstream>

#include "model/families/decoder.h"
#include "model/input/diagnostics.h"
#include "reports/json_report.h"
#include "sim/system.h"
#include "tests/cli/binary.h"
#include "tests/json_schema.h"

namespace meshwright {
namespace {

using PlainJson = nlohmann::json;
using testing::IsEmpty;

JsonSchema schema(const std::string& name) {
  return JsonSchema(PlainJson::parse(text_of(std::string(REPOSITORY) + "/configs/schema/" + name + ".schema.json")));
}

// Systems that between them have every key.
std::vector<PlainJson> systems() {
  const PlainJson v4 = PlainJson::parse(text_of(std::string(REPOSITORY) + "/configs/systems/tpu-v4.json"));
  PlainJson torus = v4;
  torus["slice"] = "2x2x2";
  torus["topology"]["wraps"] = "always";
  torus["topology"].erase("block");
  torus["topology"].erase("slices_below_a_block");
  PlainJson measured = PlainJson::parse(text_of(std::string(TEST_DATA) + "/two_cores.json"));
  auto& compute = measured["compute"];
  for (const char* type : {"bf16", "f64"}) compute["peak_flops_per_s"][type] = compute["peak_flops_per_s"]["f32"];
  for (auto& [kind, costs] : compute["kinds"].items())
    if (costs.contains("flops_per_s"))
      for (const char* type : {"bf16", "f64"}) costs["flops_per_s"][type] = costs["flops_per_s"]["f32"];
  return {v4, torus, measured};
}

std::vector<Diagnostic> faults_of_system(const TemporaryFolder& folder, const PlainJson& system) {
  try {
    load_system_file(folder.write("s.json", system.dump()), system.at("topology").contains("host") ? "2x2x2" : "");
  } catch (const InputError& error) {
    return error.diagnostics();
  }
  return {};
}

// "known keys in memory: bytes, usable_bytes"
std::set<std::string> known_keys(const Diagnostic& unknown) {
  std::set<std::string> keys;
  std::istringstream words(unknown.allowed.substr(unknown.allowed.find(": ") + 2));
  for (std::string key; std::getline(words, key, ',');) keys.insert(key.substr(key.find_first_not_of(' ')));
  return keys;
}

// Puts a key that nobody knows into every object, one at a time, and compares what the reader would have known with what
// the schema has.
using Reader = std::function<std::vector<Diagnostic>(const PlainJson&)>;
void compare_keys(const Reader& faults_of, const JsonSchema& all, const PlainJson& system,
                  const PlainJson::json_pointer& at, const PlainJson& rule, int& compared) {
  const PlainJson& value = system.at(at);
  const PlainJson& own = all.for_value(rule, value);
  if (value.is_array()) {
    if (!value.empty() && value[0].is_object())
      compare_keys(faults_of, all, system, at / std::size_t{0}, own.at("items"), compared);
    return;
  }
  if (!value.is_object()) return;
  for (const auto& [key, inner] : value.items())
    compare_keys(faults_of, all, system, at / key,
                 own.contains("properties") ? own.at("properties").at(key) : own.at("additionalProperties"), compared);
  if (!own.contains("properties")) return;  // keys are names of operations, see below, or another reader's
  PlainJson odd = system;
  odd.at(at)["no_such_key"] = 1;
  const auto wrong = faults_of(odd);
  ASSERT_EQ(wrong.size(), 1u) << at.to_string();
  std::set<std::string> in_schema;
  for (const auto& [key, ignored] : own.at("properties").items()) in_schema.insert(key);
  EXPECT_EQ(known_keys(wrong.front()), in_schema) << at.to_string();
  ++compared;
}

TEST(SystemSchema, KnowsExactlyTheKeysThatAreRead) {
  const TemporaryFolder folder;
  const JsonSchema all = schema("system");
  for (const PlainJson& system : systems()) {
    ASSERT_THAT(faults_of_system(folder, system), IsEmpty());
    int compared = 0;
    compare_keys([&](const PlainJson& odd) { return faults_of_system(folder, odd); }, all, system,
                 PlainJson::json_pointer(), all.root(), compared);
    EXPECT_GT(compared, 15);
  }
}

TEST(SystemSchema, RequiresExactlyWhatTheReaderRequires) {
  const TemporaryFolder folder;
  const JsonSchema all = schema("system");
  for (const PlainJson& system : systems()) {
    EXPECT_THAT(all.faults(system), IsEmpty());
    const PlainJson leaves = system.flatten();
    for (const auto& [pointer, ignored] : leaves.items()) {
      if (pointer.find("/points/") != std::string::npos || pointer.find("/collectives/") != std::string::npos) continue;
      // The value, and the object that holds it.
      for (PlainJson::json_pointer at(pointer); !at.empty(); at = at.parent_pointer()) {
        PlainJson without = system;
        without.at(at.parent_pointer()).erase(at.back());
        const PlainJson::json_pointer parent = at.parent_pointer();
        // Which types are needed follows from each other: peaks, and a table for each of them.
        if (!parent.empty() && (parent.back() == "peak_flops_per_s" || parent.back() == "flops_per_s")) break;
        EXPECT_EQ(all.faults(without).empty(), faults_of_system(folder, without).empty()) << at.to_string();
        if (at.back() == "value" || at.back() == "source") continue;
        break;
      }
    }
  }
}

TEST(SystemSchema, NamesEveryKindOfOperation) {
  std::set<std::string> kinds{"other"}, in_schema;
  for (int kind = 0; kind < kOpKinds; ++kind) kinds.insert(std::string(kind_name(static_cast<OpKind>(kind))));
  const JsonSchema all = schema("system");
  for (const auto& kind :
       all.root().at("$defs").at("measured_compute").at("properties").at("kinds").at("propertyNames").at("enum"))
    in_schema.insert(kind.get<std::string>());
  EXPECT_EQ(kinds, in_schema);
}

TEST(SystemSchema, RefusesWhatTheReaderRefuses) {
  const JsonSchema all = schema("system");
  PlainJson system = systems().front();
  system["memory"]["bytes"]["value"] = "32 GiB";
  EXPECT_FALSE(all.faults(system).empty());
  system = systems().front();
  system["network"]["link_efficiency"]["value"] = 1.5;
  EXPECT_FALSE(all.faults(system).empty());
  system = systems().front();
  system["compute"]["model"] = "magic";
  EXPECT_FALSE(all.faults(system).empty());
}

// Decoders that between them have every key.
std::vector<PlainJson> decoders() {
  PlainJson grouped = PlainJson::parse(R"({
    "kind": "decoder", "width": 32, "vocabulary": 64, "layers": 2, "dropout": 0.1, "training": {},
    "embedding": {"learned_positions": 16, "scale": 2, "dropout": 0.1, "padding": 3},
    "norm": {"kind": "rms", "place": "behind", "epsilon": 1e-5, "bias": true, "around_one": true, "final": true},
    "attention": {"kind": "grouped", "heads": 4, "key_value_heads": 2, "head_dim": 8, "bias": true,
                  "output_bias": false, "query_key_norm": "per_head", "query_key_norm_epsilon": 1e-5, "window": 8,
                  "dropout": 0.1,
                  "rope": {"base": 500000, "pairing": "half", "width": 4,
                           "scaling": {"kind": "llama3", "factor": 8, "original_positions": 64, "low_freq_factor": 1,
                                       "high_freq_factor": 4}}},
    "feed_forward": {"hidden": 64, "gated": true, "activation": "silu", "bias": true},
    "experts": {"count": 8, "choices": 2, "hidden": 16, "gated": true, "activation": "relu", "bias": true,
                "dropout": 0.1, "capacity_factor": 1.5, "balance_weight": 0.01, "dense_layers": [0],
                "router": {"score": "sigmoid", "correction": true, "normalise": true, "epsilon": 1e-20, "scale": 2.5,
                           "groups": 4, "kept_groups": 2, "group_score": "two_largest"},
                "shared": {"kind": "gated", "hidden": 16}},
    "head": {"tied": false, "bias": true},
    "initialisation": {"kind": "normal", "deviation": 0.02, "smaller_by_depth": true}})");
  PlainJson multi = grouped, latent = grouped;
  multi["attention"]["kind"] = "multi_head";
  multi["attention"].erase("key_value_heads");
  multi["attention"]["rope"]["scaling"] = PlainJson::parse(R"({"kind": "yarn", "factor": 8, "original_positions": 64,
      "beta_fast": 32, "beta_slow": 1, "truncate": false, "attention_factor": 1.1})");
  multi["experts"]["shared"] = PlainJson::parse(R"({"kind": "linear", "count": 2})");
  latent["attention"] = PlainJson::parse(R"({"kind": "latent", "heads": 4, "key_dim": 8, "value_dim": 6,
      "kv_latent": 12, "q_latent": 10, "bias": true, "latent_norm_epsilon": 1e-5, "scale_factor": 1.5,
      "rope": {"width": 4}})");
  return {grouped, multi, latent};
}

std::vector<Diagnostic> faults_of_decoder(const PlainJson& decoder) {
  try {
    read_decoder({"d.json", decoder, {}}, "d");
  } catch (const InputError& error) {
    return error.diagnostics();
  }
  return {};
}

TEST(DecoderSchema, KnowsExactlyTheKeysThatAreRead) {
  const JsonSchema all = schema("decoder");
  for (const PlainJson& decoder : decoders()) {
    ASSERT_THAT(faults_of_decoder(decoder), IsEmpty());
    int compared = 0;
    compare_keys(faults_of_decoder, all, decoder, PlainJson::json_pointer(), all.root(), compared);
    EXPECT_GE(compared, 10);
  }
}

TEST(DecoderSchema, RequiresExactlyWhatTheReaderRequires) {
  const JsonSchema all = schema("decoder");
  for (const PlainJson& decoder : decoders()) {
    EXPECT_THAT(all.faults(decoder), IsEmpty());
    const PlainJson leaves = decoder.flatten();
    for (const auto& [pointer, ignored] : leaves.items())
      for (PlainJson::json_pointer at(pointer); !at.empty(); at = at.parent_pointer()) {
        PlainJson without = decoder;
        if (without.at(at.parent_pointer()).is_array()) continue;
        without.at(at.parent_pointer()).erase(at.back());
        // Relations: the decoder has a layer without experts, and keeps two groups of more.
        if (at.back() == "feed_forward" || at.back() == "groups") continue;
        EXPECT_EQ(all.faults(without).empty(), faults_of_decoder(without).empty()) << at.to_string();
      }
  }
}

TEST(DecoderSchema, RefusesWhatTheReaderRefuses) {
  const JsonSchema all = schema("decoder");
  const std::vector<std::pair<const char*, PlainJson>> wrong{{"/width", 0},
                                                             {"/width", "wide"},
                                                             {"/layers", 1 << 20},
                                                             {"/attention/kind", "none"},
                                                             {"/norm/place", "up"},
                                                             {"/norm/epsilon", 0},
                                                             {"/experts/count", 0.5},
                                                             {"/experts/router/score", "max"},
                                                             {"/head/tied", nullptr},
                                                             {"/experts/shared", PlainJson::object()},
                                                             {"/attention/rope/base", 1},
                                                             {"/kind", "encoder"},
                                                             {"/embedding/scale", 0},
                                                             {"/experts/dense_layers", 0},
                                                             {"/initialisation/kind", "zero"}};
  for (const auto& [at, value] : wrong) {
    PlainJson decoder = decoders().front();
    decoder.at(PlainJson::json_pointer(at)) = value;
    EXPECT_FALSE(all.faults(decoder).empty()) << at;
    EXPECT_FALSE(faults_of_decoder(decoder).empty()) << at;
  }
}

TEST(PlanSchema, HasEveryKeyThatAPlanIsPrintedWith) {
  const JsonSchema all = schema("plan");
  PlanResult result{.plan = parse_plan("8x2x2,schedule=gpipe,microbatches=4,fsdp=3,recompute=full")};
  result.stage_layers = {14, 14};
  PlainJson printed = PlainJson::parse(to_json(result).dump());
  EXPECT_THAT(all.faults(printed), IsEmpty());
  // Beside those: the machine, in the record of a run; and what only some plans have.
  const std::set<std::string> elsewhere{"id", "system", "layers"};
  for (const auto& [key, ignored] : all.root().at("$defs").at("object").at("properties").items())
    EXPECT_TRUE(printed.contains(key) || elsewhere.contains(key)) << key;
  printed["no_such_key"] = 1;
  EXPECT_FALSE(all.faults(printed).empty());
}

TEST(PlanSchema, TakesTheTextsThatPlanTakes) {
  const JsonSchema all = schema("plan");
  const auto is_read = [](const std::string& text) {
    try {
      parse_plan(text);
      return true;
    } catch (const InputError&) {
      return false;
    }
  };
  for (const char* text :
       {"8x2x2", "1x1x1,fsdp=0", "8x2x2,recompute=full,schedule=gpipe", "32x1x1,microbatches=16,fsdp=3", "8x2",
        "8x2x2x2", "0x2x2", "8x2x2,", "8x2x2,fsdp=4", "8x2x2,schedule=2f2b", "8x2x2,ep=2", "8x2x2,microbatches=0",
        "8x2x2,recompute", "", "8x2x2 ,fsdp=1", "8x2x2,recompute=selective", "8x2x2,recompute=attention-core+experts",
        "8x2x2,recompute=attention"})
    EXPECT_EQ(all.faults(PlainJson(text)).empty(), is_read(text)) << text;
}

TEST(PlanSchema, NamesEveryScheduleAndWhatIsRecomputed) {
  const PlainJson properties = schema("plan").root().at("$defs").at("object").at("properties");
  EXPECT_EQ(properties.at("schedule").at("enum"),
            PlainJson(std::vector<std::string_view>(kScheduleNames.begin(), kScheduleNames.end())));
  const std::regex recompute(properties.at("recompute").at("pattern").get<std::string>());
  for (const std::string& word : recompute_words()) EXPECT_TRUE(std::regex_match(word, recompute)) << word;
  EXPECT_FALSE(std::regex_match("some", recompute));
}

}  // namespace
}  // namespace meshwright
