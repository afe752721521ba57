// Files of weights: what the safetensors reader takes and refuses, and weights through a model's map.
#include "executor/checkpoint/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>

#include "executor/checkpoint/safetensors.h"
#include "model/families/hugging_face.h"
#include "tests/cli/binary.h"

namespace meshwright {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::UnorderedElementsAre;
namespace fs = std::filesystem;

std::string with_length(const std::string& header, const std::string& data) {
  std::string bytes(8, '\0');
  const auto length = static_cast<std::uint64_t>(header.size());
  std::memcpy(bytes.data(), &length, 8);
  return bytes + header + data;
}
std::vector<Diagnostic> faults_of(const TemporaryFolder& folder, const std::string& bytes) {
  try {
    SafetensorsFile(folder.write("t.safetensors", bytes));
  } catch (const InputError& error) {
    return error.diagnostics();
  }
  return {};
}
std::string words_of(const std::vector<Diagnostic>& diagnostics) {
  std::string all;
  for (const Diagnostic& d : diagnostics) all += to_string(d) + "\n";
  return all;
}

TEST(Safetensors, ReadsTheFourTypesOfNumbers) {
  const TemporaryFolder folder;
  std::string data;
  const auto append = [&](auto value) { data.append(reinterpret_cast<const char*>(&value), sizeof(value)); };
  append(0.1);
  append(0.1F);
  for (const std::uint16_t bf16 : {0x3F80, 0xC0A0, 0xFF80}) append(bf16);  // 1, -5, -infinity
  for (const std::uint16_t f16 : {0x3C00, 0xC500, 0x0001, 0x7BFF, 0x7C00})
    append(f16);  // 1, -5, 2^-24, 65504, infinity
  const SafetensorsFile file(folder.write("t.safetensors", with_length(R"({
      "__metadata__": {"format": "pt"},
      "a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]},
      "b": {"dtype": "F32", "shape": [], "data_offsets": [8, 12]},
      "c": {"dtype": "BF16", "shape": [1, 3], "data_offsets": [12, 18]},
      "d": {"dtype": "F16", "shape": [5], "data_offsets": [18, 28]},
      "none": {"dtype": "F32", "shape": [0, 4], "data_offsets": [28, 28]}})",
                                                                       data)));
  const auto values = [&](const char* name) {
    const SafetensorsEntry& entry = file.tensors().at(name);
    std::vector<double> all(static_cast<std::size_t>(elements(entry.shape)));
    file.read(entry, 0, static_cast<std::int64_t>(all.size()), all.data());
    return all;
  };
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  EXPECT_THAT(values("a"), ElementsAre(0.1));
  EXPECT_THAT(values("b"), ElementsAre(0.1F));
  EXPECT_THAT(values("c"), ElementsAre(1, -5, -kInfinity));
  EXPECT_THAT(values("d"), ElementsAre(1, -5, 0x1p-24, 65504, kInfinity));
  EXPECT_TRUE(values("none").empty());
  float second = 0;
  file.read(file.tensors().at("c"), 1, 1, &second);
  EXPECT_EQ(second, -5);
}

TEST(Safetensors, RefusesDamagedFiles) {
  const TemporaryFolder folder;
  const auto words = [&](const std::string& bytes) { return words_of(faults_of(folder, bytes)); };
  const std::string a = R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})";
  EXPECT_EQ(words(with_length(a, "12345678")), "");
  EXPECT_THAT(words("short"), HasSubstr("5 bytes"));
  EXPECT_THAT(words(with_length(a, "1234")), HasSubstr("the file was cut"));
  EXPECT_THAT(words(with_length(a, "1234567890")), HasSubstr("2 bytes behind the last tensor"));
  EXPECT_THAT(words(with_length(a, "12345678").substr(0, 30)), HasSubstr("a header that the file holds"));
  EXPECT_THAT(words(with_length("{\"a\": }", "")), HasSubstr("syntax error"));
  EXPECT_THAT(words(with_length("[]", "")), HasSubstr("an object"));
  EXPECT_THAT(words(with_length(R"({"a": {"dtype": "F31", "shape": [2], "data_offsets": [0, 8]}})", "12345678")),
              HasSubstr("a.dtype"));
  EXPECT_THAT(words(with_length(R"({"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}})", "12345678")),
              HasSubstr("as many bytes as (3) of F32"));
  EXPECT_THAT(words(with_length(R"({"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 8]}})",
                                "12345678")),
              HasSubstr("as many bytes as"));
  EXPECT_THAT(words(with_length(R"({"a": {"dtype": "F32", "shape": [-2], "data_offsets": [8, 0]}})", "12345678")),
              HasSubstr("a.shape"));
  EXPECT_THAT(words(with_length(R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                                    "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}})",
                                "123456")),
              HasSubstr("it lies over another tensor"));
  EXPECT_THAT(words(with_length(R"({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
                                    "b": {"dtype": "F32", "shape": [1], "data_offsets": [5, 9]}})",
                                "123456789")),
              HasSubstr("there is a gap before it"));
  EXPECT_THAT(words(with_length(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
                                    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})",
                                "12345678")),
              HasSubstr("given twice"));
}

TEST(Safetensors, EveryPrefixOfAFileIsRefused) {
  const TemporaryFolder folder;
  const std::string whole = with_length(R"({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}})", "12345678");
  for (std::size_t n = 0; n < whole.size(); ++n) EXPECT_FALSE(faults_of(folder, whole.substr(0, n)).empty()) << n;
}

TEST(Safetensors, RoundsToBFloat16TiesToEven) {
  const TemporaryFolder folder;
  const std::vector<float> values{1.0F, 1.00390625F, 1.01171875F, 3.3895314e38F, -0.0F, 1e-40F};
  const fs::path path = folder.path() / "t.safetensors";
  write_safetensors<float>(path, DType::kBF16, {{"a", {6}}},
                           [&](int, float* out) { std::copy(values.begin(), values.end(), out); });
  const SafetensorsFile file(path);
  std::vector<float> read(6);
  file.read(file.tensors().at("a"), 0, 6, read.data());
  // Halfway between 1 and 1 + 2^-7, and between 1 + 2^-7 and 1 + 2^-6: to the even one.
  EXPECT_EQ(read[0], 1.0F);
  EXPECT_EQ(read[1], 1.0F);
  EXPECT_EQ(read[2], 1.015625F);
  EXPECT_EQ(read[3], 3.3895314e38F);  // the largest there is
  EXPECT_TRUE(std::signbit(read[4]));
  EXPECT_NEAR(read[5], 1e-40F, 5e-41F);  // subnormal
}

TEST(Safetensors, AFileThatCannotBeWrittenIsSaidToBe) {
  const TemporaryFolder folder;
  EXPECT_THROW(write_safetensors<float>(folder.path() / "no" / "t.safetensors", DType::kF32, {{"a", {1}}},
                                        [](int, float* out) { *out = 0; }),
               InputError);
}

// ---- through a model's map -----------------------------------------------------------------------------------------

struct Tiny {
  HuggingFaceModel model;
  WeightMap map;
  explicit Tiny(const std::string& name)
      : model(read_hugging_face(read_json_file(std::string(REPOSITORY) + "/configs/models/" + name + ".json"), name)),
        map(weight_map(model.family, model.model)) {}
};

// Different everywhere, and not whole in a few bits.
template <class Real>
std::vector<std::vector<Real>> some_values(const WeightMap& map) {
  std::vector<std::vector<Real>> all;
  std::uint64_t x = 1;
  for (const ParameterSpec& p : map.parameters) {
    all.emplace_back(static_cast<std::size_t>(elements(p.shape)));
    for (Real& v : all.back())
      v = static_cast<Real>(static_cast<std::int64_t>(x = x * 6364136223846793005 + 1442695040888963407)) *
          static_cast<Real>(0x1p-63);
  }
  return all;
}

template <class Real>
std::vector<std::vector<Real>> read_all(WeightsFile& file, const WeightMap& map) {
  std::vector<std::vector<Real>> all;
  for (std::size_t p = 0; p < map.parameters.size(); ++p) {
    const std::int64_t n = elements(map.parameters[p].shape);
    all.emplace_back(static_cast<std::size_t>(n));
    const std::int64_t first_part = n / 3;  // as ranks ask: a part of it at a time
    file.read(static_cast<int>(p), 0, first_part, all.back().data());
    file.read(static_cast<int>(p), first_part, n - first_part, all.back().data() + first_part);
  }
  return all;
}

TEST(Weights, ARoundTripIsBitExactForEveryFamily) {
  const TemporaryFolder folder;
  for (const char* name : {"gpt2-tiny", "llama-tiny", "qwen3-tiny", "olmo2-tiny", "gemma-tiny", "phi-tiny",
                           "mixtral-tiny", "qwen3-moe-tiny", "deepseek-v2-tiny", "deepseek-v3-tiny", "minigpt-tiny"}) {
    SCOPED_TRACE(name);
    const Tiny tiny(name);
    const auto values = some_values<float>(tiny.map);
    const fs::path path = folder.path() / (std::string(name) + ".safetensors");
    save_weights(path, tiny.map, DType::kF32, values);
    WeightsFile file(path, tiny.map);
    EXPECT_EQ(read_all<float>(file, tiny.map), values);
  }
}

TEST(Weights, ARoundTripInF64AndInBFloat16) {
  const TemporaryFolder folder;
  const Tiny tiny("deepseek-v2-tiny");
  const auto values = some_values<double>(tiny.map);
  save_weights(folder.path() / "a.safetensors", tiny.map, DType::kF64, values);
  WeightsFile whole(folder.path() / "a.safetensors", tiny.map);
  EXPECT_EQ(read_all<double>(whole, tiny.map), values);
  save_weights(folder.path() / "b.safetensors", tiny.map, DType::kBF16, values);
  WeightsFile rounded(folder.path() / "b.safetensors", tiny.map);
  const auto once = read_all<double>(rounded, tiny.map);
  save_weights(folder.path() / "c.safetensors", tiny.map, DType::kBF16, once);
  WeightsFile again(folder.path() / "c.safetensors", tiny.map);
  EXPECT_EQ(read_all<double>(again, tiny.map), once);
  for (std::size_t i = 0; i < values[0].size(); ++i) ASSERT_NEAR(once[0][i], values[0][i], 0x1p-9);
}

TEST(Weights, AnIndexAndItsShardsAreOneFile) {
  const TemporaryFolder folder;
  const Tiny tiny("llama-tiny");
  const auto values = some_values<float>(tiny.map);
  save_weights(folder.path() / "model.safetensors", tiny.map, DType::kF32, values);
  const SafetensorsFile whole(folder.path() / "model.safetensors");
  // Every other tensor into a second shard.
  Json index{{"metadata", {{"total_size", 1}}}, {"weight_map", Json::object()}};
  std::vector<SafetensorsShape> shards[2];
  int turn = 0;
  for (const auto& [name, entry] : whole.tensors()) {
    shards[turn].push_back({name, entry.shape});
    index["weight_map"][name] = "shard-" + std::to_string(turn) + ".safetensors";
    turn = 1 - turn;
  }
  for (int s : {0, 1})
    write_safetensors<float>(folder.path() / ("shard-" + std::to_string(s) + ".safetensors"), DType::kF32, shards[s],
                             [&](int t, float* out) {
                               const SafetensorsEntry& entry =
                                   whole.tensors().at(shards[s][static_cast<std::size_t>(t)].name);
                               whole.read(entry, 0, elements(entry.shape), out);
                             });
  const fs::path index_file = folder.write("model.safetensors.index.json", index.dump());
  WeightsFile by_index(index_file, tiny.map);
  EXPECT_EQ(read_all<float>(by_index, tiny.map), values);
  fs::remove(folder.path() / "model.safetensors");
  WeightsFile by_folder(folder.path(), tiny.map);
  EXPECT_EQ(read_all<float>(by_folder, tiny.map), values);

  const auto words = [&](Json wrong) {
    try {
      WeightsFile(folder.write("wrong.index.json", wrong.dump()), tiny.map);
    } catch (const InputError& error) {
      return words_of(error.diagnostics());
    }
    return std::string();
  };
  Json wrong = index;
  wrong["weight_map"]["model.norm.weight"] = "../elsewhere.safetensors";
  EXPECT_THAT(words(wrong), HasSubstr("the name of a file beside the index"));
  wrong = index;
  wrong["weight_map"].erase("model.norm.weight");
  EXPECT_THAT(words(wrong), HasSubstr("model.norm.weight"));
  wrong = index;
  wrong["weight_map"]["no.such.tensor"] = "shard-0.safetensors";
  EXPECT_THAT(words(wrong), HasSubstr("no.such.tensor = (missing)"));
}

TEST(Weights, FilesOfGpt2WithoutThePrefixAndWithMasksAreRead) {
  const TemporaryFolder folder;
  const Tiny tiny("gpt2-tiny");
  WeightMap as_on_the_hub = tiny.map;
  for (CheckpointTensor& t : as_on_the_hub.tensors) t.name = t.name.substr(std::string("transformer.").size());
  as_on_the_hub.tensors.push_back({"h.0.attn.bias", {1, 1, 4, 4}});
  const auto values = some_values<float>(tiny.map);
  save_weights(folder.path() / "m.safetensors", as_on_the_hub, DType::kF32, values);
  WeightsFile file(folder.path() / "m.safetensors", tiny.map);
  EXPECT_EQ(read_all<float>(file, tiny.map), values);
}

TEST(Weights, WhatDoesNotFitIsNamedAllAtOnce) {
  const TemporaryFolder folder;
  const Tiny tiny("llama-tiny");
  WeightMap other = tiny.map;
  other.tensors[0].name = "model.embed_token.weight";
  for (CheckpointTensor& t : other.tensors)
    if (t.name == "model.norm.weight") t.shape = {128, 1};
  other.tensors.push_back({"model.layers.4.input_layernorm.weight", {128}});
  save_weights(folder.path() / "m.safetensors", other, DType::kF32, some_values<float>(tiny.map));
  try {
    WeightsFile(folder.path() / "m.safetensors", tiny.map);
    ADD_FAILURE() << "was read";
  } catch (const InputError& error) {
    std::vector<std::string> paths;
    for (const Diagnostic& d : error.diagnostics()) {
      paths.push_back(d.path);
      EXPECT_FALSE(d.allowed.empty() || d.hint.empty());
    }
    EXPECT_THAT(paths, UnorderedElementsAre("model.embed_token.weight", "model.embed_tokens.weight",
                                            "model.norm.weight", "model.layers.4.input_layernorm.weight"));
  }
  EXPECT_THROW(WeightsFile(folder.path() / "none.safetensors", tiny.map), InputError);
  fs::create_directory(folder.path() / "empty");
  EXPECT_THROW(WeightsFile(folder.path() / "empty", tiny.map), InputError);
}

}  // namespace
}  // namespace meshwright
