// The maps between our parameters and the tensors of published checkpoints.
#include "model/families/weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <map>

#include "model/families/hugging_face.h"
#include "tests/golden.h"

namespace meshwright {
namespace {

HuggingFaceModel read(const Json& config) { return read_hugging_face({"config.json", config, {}}, "m"); }

// Elements of a tensor that are in no piece, or in more than one.
std::int64_t not_once(const std::vector<int>& times) {
  return std::count_if(times.begin(), times.end(), [](int n) { return n != 1; });
}

void expect_bijection(const WeightMap& map) {
  std::vector<std::vector<int>> ours, theirs;
  for (const ParameterSpec& p : map.parameters) ours.emplace_back(elements(p.shape), 0);
  for (const CheckpointTensor& t : map.tensors) theirs.emplace_back(elements(t.shape), 0);
  for (const WeightPiece& piece : map.pieces)
    for_each_element(piece, [&](std::int64_t i, std::int64_t j) {
      ++ours.at(static_cast<std::size_t>(piece.ours.tensor)).at(static_cast<std::size_t>(i));
      ++theirs.at(static_cast<std::size_t>(piece.theirs.tensor)).at(static_cast<std::size_t>(j));
    });
  for (std::size_t p = 0; p < ours.size(); ++p) EXPECT_EQ(not_once(ours[p]), 0) << map.parameters[p].name;
  for (std::size_t t = 0; t < theirs.size(); ++t) EXPECT_EQ(not_once(theirs[t]), 0) << map.tensors[t].name;
}

TEST(WeightMap, HasTheNamesAndShapesThatSavePretrainedWrites) {
  for (const std::string& family : golden_families()) {
    const Json file = read_case_file("hf_golden/" + family + ".json");
    for (const Json& c : file["cases"]) {
      SCOPED_TRACE(family + ", " + c["name"].get<std::string>());
      const HuggingFaceModel model = read(c["config"]);
      const WeightMap map = weight_map(model.family, model.model);
      std::map<std::string, Shape> ours, theirs;
      for (const CheckpointTensor& t : map.tensors) EXPECT_TRUE(ours.emplace(t.name, t.shape).second) << t.name;
      for (const Json& p : c["params"]) theirs[p["name"]] = p["shape"].get<Shape>();
      for (const Json& p : c.value("buffers", Json::array())) theirs[p["name"]] = p["shape"].get<Shape>();
      EXPECT_EQ(ours, theirs);
    }
  }
}

TEST(WeightMap, EveryElementOnEitherSideIsInOnePiece) {
  for (const std::string& family : golden_families()) {
    const Json file = read_case_file("hf_golden/" + family + ".json");
    for (const Json& c : file["cases"]) {
      SCOPED_TRACE(family + ", " + c["name"].get<std::string>());
      const HuggingFaceModel model = read(c["config"]);
      expect_bijection(weight_map(model.family, model.model));
    }
  }
}

TEST(WeightMap, ThatOfLatentAttentionWithBiasesIsWholeToo) {
  JsonDocument document = read_json_file(std::string(REPOSITORY) + "/configs/models/deepseek-v3-tiny.json");
  document.root["attention_bias"] = true;
  const HuggingFaceModel model = read_hugging_face(document, "m");
  expect_bijection(weight_map(model.family, model.model));
}

// Where an element of ours lies: "tensor[row, column]" of the tensor as a matrix.
std::string place(const WeightMap& map, const std::string& parameter, std::int64_t row, std::int64_t column) {
  for (const WeightPiece& piece : map.pieces) {
    const ParameterSpec& p = map.parameters[static_cast<std::size_t>(piece.ours.tensor)];
    if (p.name != parameter) continue;
    std::string found;
    for_each_element(piece, [&](std::int64_t i, std::int64_t j) {
      if (i == row * p.shape.back() + column)
        found = map.tensors[static_cast<std::size_t>(piece.theirs.tensor)].name + "[" +
                std::to_string(j / piece.theirs.pitch) + ", " + std::to_string(j % piece.theirs.pitch) + "]";
    });
    if (!found.empty()) return found;
  }
  return "nowhere";
}

TEST(WeightMap, ExamplesByHand) {
  const auto map_of = [](const std::string& name) {
    const HuggingFaceModel m =
        read_hugging_face(read_json_file(std::string(REPOSITORY) + "/configs/models/" + name + ".json"), name);
    return weight_map(m.family, m.model);
  };
  const WeightMap llama = map_of("llama-tiny");  // width 128, feed-forward 344
  EXPECT_EQ(place(llama, "layers.1.attention.q.kernel", 5, 40), "model.layers.1.self_attn.q_proj.weight[40, 5]");
  EXPECT_EQ(place(llama, "layers.1.ffn.0.kernel", 5, 343), "model.layers.1.mlp.gate_proj.weight[343, 5]");
  EXPECT_EQ(place(llama, "layers.1.ffn.0.kernel", 5, 344), "model.layers.1.mlp.up_proj.weight[0, 5]");
  EXPECT_EQ(place(llama, "head.kernel", 7, 3), "lm_head.weight[7, 3]");
  const WeightMap gpt2 = map_of("gpt2-tiny");  // width 128
  EXPECT_EQ(place(gpt2, "layers.0.attention.k.kernel", 5, 2), "transformer.h.0.attn.c_attn.weight[5, 130]");
  EXPECT_EQ(place(gpt2, "layers.0.attention.v.bias", 0, 2), "transformer.h.0.attn.c_attn.bias[0, 258]");
  const WeightMap mixtral = map_of("mixtral-tiny");  // width 64, experts of 128; seen as (4 x 64, 2 x 128)
  EXPECT_EQ(place(mixtral, "layers.2.moe.expert.0.kernel", 3 * 64 + 5, 128 + 9),
            "model.layers.2.block_sparse_moe.experts.3.w3.weight[9, 5]");
  const WeightMap v2 = map_of("deepseek-v2-tiny");  // heads of 16 + 8, values of 16, latent 32
  EXPECT_EQ(place(v2, "layers.0.mla.qr.kernel", 5, 8 + 3), "model.layers.0.self_attn.q_proj.weight[43, 5]");
  EXPECT_EQ(place(v2, "layers.0.mla.vup.kernel", 5, 16 + 3), "model.layers.0.self_attn.kv_b_proj.weight[51, 5]");
  EXPECT_EQ(place(v2, "layers.0.mla.kr.kernel", 5, 3), "model.layers.0.self_attn.kv_a_proj_with_mqa.weight[35, 5]");
}

TEST(WeightMap, KnowsWhatFilesHaveBesides) {
  const auto map_of = [](const Json& config) {
    const HuggingFaceModel m = read(config);
    return weight_map(m.family, m.model);
  };
  const Json gpt2{{"model_type", "gpt2"}, {"vocab_size", 8}, {"n_embd", 4},
                  {"n_layer", 1},         {"n_head", 2},     {"n_positions", 4}};
  EXPECT_TRUE(map_of(gpt2).skips("h.0.attn.bias"));
  EXPECT_TRUE(map_of(gpt2).skips("lm_head.weight"));
  EXPECT_FALSE(map_of(gpt2).skips("h.0.attn.c_attn.bias"));
  const Json v3 = read_json_file(std::string(REPOSITORY) + "/configs/models/deepseek-v3-tiny.json").root;
  EXPECT_TRUE(map_of(v3).skips("model.layers.4.mlp.gate.weight"));
  EXPECT_FALSE(map_of(v3).skips("model.layers.3.mlp.gate.weight"));
  EXPECT_FALSE(map_of(v3).skips("model.layers.40.mlp.gate.weight"));
}

}  // namespace
}  // namespace meshwright
