// configs/schema/ says exactly what is read and written: keys that a reader accepts are in its schema, and the other way
// round.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <sstream>

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
void compare_keys(const TemporaryFolder& folder, const JsonSchema& all, const PlainJson& system,
                  const PlainJson::json_pointer& at, const PlainJson& rule, int& compared) {
  const PlainJson& value = system.at(at);
  const PlainJson& own = all.for_value(rule, value);
  if (value.is_array()) {
    if (!value.empty() && value[0].is_object())
      compare_keys(folder, all, system, at / std::size_t{0}, own.at("items"), compared);
    return;
  }
  if (!value.is_object()) return;
  for (const auto& [key, inner] : value.items())
    compare_keys(folder, all, system, at / key,
                 own.contains("properties") ? own.at("properties").at(key) : own.at("additionalProperties"), compared);
  if (!own.contains("properties")) return;  // keys are names of operations, see below
  PlainJson odd = system;
  odd.at(at)["no_such_key"] = 1;
  const auto wrong = faults_of_system(folder, odd);
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
    compare_keys(folder, all, system, PlainJson::json_pointer(), all.root(), compared);
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
        "8x2x2,recompute", "", "8x2x2 ,fsdp=1"})
    EXPECT_EQ(all.faults(PlainJson(text)).empty(), is_read(text)) << text;
}

TEST(PlanSchema, NamesEverySchedule) {
  const PlainJson properties = schema("plan").root().at("$defs").at("object").at("properties");
  EXPECT_EQ(properties.at("schedule").at("enum"),
            PlainJson(std::vector<std::string_view>(kScheduleNames.begin(), kScheduleNames.end())));
  EXPECT_EQ(properties.at("recompute").at("enum"),
            PlainJson(std::vector<std::string_view>(kRecomputeNames.begin(), kRecomputeNames.end())));
}

}  // namespace
}  // namespace meshwright
