// The JSON in which any decoder can be said.
#include "model/families/decoder.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "model/families/hugging_face.h"

namespace meshwright {
namespace {

using testing::HasSubstr;

ModelSpec read(const std::string& text) { return read_decoder(parse_json(text, "m.json"), "m"); }
std::vector<Diagnostic> faults(const std::string& text) {
  try {
    read(text);
  } catch (const InputError& error) {
    return error.diagnostics();
  }
  return {};
}
ModelSpec tiny(const std::string& name) {
  ModelSpec model =
      read_hugging_face(read_json_file(std::string(REPOSITORY) + "/configs/models/" + name + ".json"), "m").model;
  return model;
}

TEST(Decoder, TheSmallestIsAPlainPreNormModel) {
  const ModelSpec model = read(R"({"kind": "decoder", "width": 32, "vocabulary": 64, "layers": 2,
      "attention": {"kind": "multi_head", "heads": 4, "rope": {}}, "feed_forward": {"hidden": 128}})");
  EXPECT_EQ(model.name, "m");
  EXPECT_EQ(model.width, 32);
  ASSERT_EQ(model.layers.size(), 2u);
  EXPECT_EQ(model.layers[0], (Layer{.norm = {.shift = false},
                                    .attention = MultiHeadAttention{.heads = 4,
                                                                    .kv_heads = 4,
                                                                    .head_dim = 8,
                                                                    .rope_width = 8,
                                                                    .rope = {.pairing = RopePairing::kHalf}},
                                    .ffn = FeedForward{.hidden = 128, .bias = false}}));
  EXPECT_EQ(model.head, (Head{.norm = Norm{.shift = false}}));
  EXPECT_EQ(model.init, (InitScheme{.kind = InitScheme::Kind::kNormal}));
}

TEST(Decoder, SaysLlama) {
  EXPECT_EQ(read(R"({"kind": "decoder", "width": 128, "vocabulary": 2048, "layers": 4,
      "norm": {"epsilon": 1e-5},
      "attention": {"kind": "grouped", "heads": 4, "key_value_heads": 2, "query_key_norm_epsilon": 1e-5,
                    "rope": {"base": 500000, "scaling": {"kind": "llama3", "factor": 8, "original_positions": 256}}},
      "feed_forward": {"hidden": 344, "gated": true},
      "head": {"tied": false}})"),
            tiny("llama-tiny"));
}

TEST(Decoder, SaysGpt2) {
  EXPECT_EQ(read(R"({"kind": "decoder", "width": 128, "vocabulary": 2048, "layers": 4, "dropout": 0.1,
      "embedding": {"learned_positions": 512, "dropout": 0.1},
      "norm": {"kind": "layer"},
      "attention": {"kind": "multi_head", "heads": 4, "bias": true, "dropout": 0.1},
      "feed_forward": {"hidden": 512, "bias": true},
      "initialisation": {"smaller_by_depth": true}})"),
            tiny("gpt2-tiny"));
}

TEST(Decoder, SaysGemmaPhiOlmoAndMiniGpt) {
  EXPECT_EQ(read(R"({"kind": "decoder", "width": 128, "vocabulary": 2048, "layers": 4,
      "embedding": {"scale": 11.313708498984761}, "norm": {"around_one": true},
      "attention": {"kind": "grouped", "heads": 4, "key_value_heads": 2, "head_dim": 32, "rope": {}},
      "feed_forward": {"hidden": 512, "gated": true, "activation": "gelu_tanh"}})"),
            tiny("gemma-tiny"));
  EXPECT_EQ(read(R"({"kind": "decoder", "width": 128, "vocabulary": 2048, "layers": 4, "dropout": 0.1,
      "norm": {"kind": "layer", "place": "parallel"},
      "attention": {"kind": "multi_head", "heads": 4, "bias": true, "rope": {"width": 16},
                    "query_key_norm_epsilon": 1e-5},
      "feed_forward": {"hidden": 512, "bias": true}, "head": {"tied": false, "bias": true}})"),
            tiny("phi-tiny"));
  EXPECT_EQ(read(R"({"kind": "decoder", "width": 128, "vocabulary": 2048, "layers": 4,
      "norm": {"place": "behind"},
      "attention": {"kind": "multi_head", "heads": 4, "query_key_norm": "whole_projection", "rope": {"base": 500000}},
      "feed_forward": {"hidden": 344, "gated": true}, "head": {"tied": false}})"),
            tiny("olmo2-tiny"));
  EXPECT_EQ(read(R"({"kind": "decoder", "width": 128, "vocabulary": 2048, "layers": 4,
      "embedding": {"learned_positions": 256},
      "norm": {"kind": "layer", "place": "after", "epsilon": 1e-6},
      "attention": {"kind": "multi_head", "heads": 4, "bias": true},
      "feed_forward": {"hidden": 256, "activation": "relu", "bias": true}, "head": {"tied": false, "bias": true},
      "initialisation": {"kind": "xavier_uniform"}})"),
            tiny("minigpt-tiny"));
}

TEST(Decoder, SaysDeepSeekV3) {
  EXPECT_EQ(read(R"({"kind": "decoder", "width": 64, "vocabulary": 2048, "layers": 4,
      "attention": {"kind": "latent", "heads": 4, "key_dim": 16, "kv_latent": 32, "q_latent": 48,
                    "rope": {"width": 8, "pairing": "adjacent"}},
      "feed_forward": {"hidden": 192, "gated": true},
      "experts": {"count": 8, "choices": 2, "hidden": 48, "dense_layers": [0], "balance_weight": 0.001,
                  "shared": {"kind": "gated", "hidden": 48},
                  "router": {"score": "sigmoid", "correction": true, "epsilon": 1e-20, "scale": 2.5, "groups": 4,
                             "kept_groups": 2, "group_score": "two_largest"}},
      "head": {"tied": false}})"),
            tiny("deepseek-v3-tiny"));
}

TEST(Decoder, ExpertsWithCapacityAndLinearSharedOnes) {
  const ModelSpec model = read(R"({"kind": "decoder", "width": 32, "vocabulary": 64, "layers": 2,
      "attention": {"kind": "multi_head", "heads": 4},
      "experts": {"count": 4, "choices": 2, "hidden": 16, "gated": false, "bias": true, "capacity_factor": 1.5,
                  "shared": {"kind": "linear", "count": 2}}})");
  const auto& e = std::get<Experts>(model.layers[1].ffn);
  EXPECT_EQ(e.capacity(16), 12);  // 16 x 2 x 1.5 / 4
  EXPECT_EQ(e.activation, ActivationKind::kGeluTanh);
  EXPECT_TRUE(e.bias && e.rule.normalise);
  EXPECT_EQ(e.shared, (std::variant<LinearShared, GatedShared>(LinearShared{2})));
  EXPECT_EQ(model.balance_weight, 0.01);
}

TEST(Decoder, AllThatIsWrongIsSaidAtOnce) {
  const auto wrong = faults(R"({"kind": "decoder", "width": 30, "vocabulary": 64, "layers": 2, "with": 1,
      "attention": {"kind": "grouped", "heads": 4, "key_value_heads": 3, "rop": {}, "bias": 1},
      "norm": {"kind": "layer", "bias": false, "around_one": true},
      "experts": {"count": 4, "choices": 5, "hidden": 16, "dense_layers": [2], "router": {"groups": 3}}})");
  std::vector<std::string> paths;
  std::map<std::string, std::string> hints;
  for (const Diagnostic& d : wrong) {
    paths.push_back(d.path);
    EXPECT_FALSE(d.allowed.empty() || d.hint.empty()) << to_string(d);
    hints[d.path] = d.hint;
  }
  EXPECT_THAT(paths, testing::UnorderedElementsAre("with", "attention.heads", "attention.key_value_heads",
                                                   "attention.rop", "attention.bias", "norm.bias", "norm.around_one",
                                                   "experts.choices", "experts.dense_layers", "experts.router.groups"));
  EXPECT_THAT(hints["with"], HasSubstr("did you mean width"));
  EXPECT_THAT(hints["attention.rop"], HasSubstr("did you mean rope"));
}

TEST(Decoder, LayersWithoutExpertsNeedAFeedForward) {
  const auto wrong = faults(R"({"kind": "decoder", "width": 32, "vocabulary": 64, "layers": 2,
      "attention": {"kind": "multi_head", "heads": 4},
      "experts": {"count": 4, "choices": 2, "hidden": 16, "dense_layers": [0]}})");
  ASSERT_EQ(wrong.size(), 1u);
  EXPECT_EQ(wrong[0].path, "feed_forward");
  EXPECT_EQ(wrong[0].value, "(missing)");
}

TEST(Decoder, IsKnownByItsKind) {
  EXPECT_TRUE(is_decoder(Json{{"kind", "decoder"}}));
  EXPECT_FALSE(is_decoder(Json{{"kind", "encoder"}}));
  EXPECT_FALSE(is_decoder(Json{{"model_type", "llama"}}));
  EXPECT_FALSE(is_decoder(Json::array()));
}

}  // namespace
}  // namespace meshwright
