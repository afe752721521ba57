// Models from Hugging Face's config.json: counts of the published ones, what missing keys mean, what is refused.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <map>
#include <set>

#include "model/accounting.h"
#include "model/families/hugging_face.h"
#include "tests/cases.h"

namespace meshwright {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

HuggingFaceModel published(const std::string& name) {
  return read_hugging_face(read_json_file(std::string(REPOSITORY) + "/configs/models/" + name + ".json"), name);
}
HuggingFaceModel of(const Json& config) { return read_hugging_face({"config.json", config, {}}, "m"); }
std::vector<Diagnostic> faults(const Json& config) {
  try {
    of(config);
  } catch (const InputError& error) {
    return error.diagnostics();
  }
  return {};
}
std::vector<std::string> paths(const std::vector<Diagnostic>& diagnostics) {
  std::vector<std::string> all;
  for (const Diagnostic& d : diagnostics) all.push_back(d.path);
  return all;
}

// The keys that have no default, at a size at which every default fits.
Json sizes(const std::string& type) {
  if (type == "gpt2")
    return {{"model_type", type}, {"vocab_size", 96}, {"n_embd", 32},
            {"n_layer", 2},       {"n_head", 4},      {"n_positions", 64}};
  Json config{{"model_type", type},     {"vocab_size", 96},          {"hidden_size", 64},
              {"num_hidden_layers", 5}, {"num_attention_heads", 32}, {"intermediate_size", 128}};
  if (type == "qwen3_moe" || type.starts_with("deepseek")) config["moe_intermediate_size"] = 16;
  if (type == "deepseek_v2") config["num_experts_per_tok"] = 6;
  return config;
}
Json with(Json config, const std::string& key, const Json& value) {
  config[key] = value;
  return config;
}
ModelSpec model_of(const Json& config) { return of(config).model; }
MultiHeadAttention attention_of(const Json& config) {
  return std::get<MultiHeadAttention>(of(config).model.layers.back().attention);
}
LatentAttention latent_of(const Json& config) {
  return std::get<LatentAttention>(of(config).model.layers.back().attention);
}
std::map<std::string, Init> inits(const ModelSpec& model) {
  std::map<std::string, Init> all;
  for (const ParameterSpec& p : parameters(model)) all[p.name] = p.init;
  return all;
}
Experts experts_of(const Json& config) { return std::get<Experts>(of(config).model.layers.back().ffn); }

const std::vector<std::string> kFrames{"llama",   "qwen3",     "olmo2",       "gemma",      "phi",
                                       "mixtral", "qwen3_moe", "deepseek_v2", "deepseek_v3"};

// ---- counts --------------------------------------------------------------------------------------------------------

struct Count {
  const char* name;
  std::int64_t total, layers, active, active_with_outside;
};
// model_families.md section 5: what Hugging Face's own modules have.
constexpr Count kCounts[] = {
    {"gpt2-124m", 124'439'808, 85'054'464, 85'054'464, 124'439'808},
    {"llama-3-8b", 8'030'261'248, 6'979'584'000, 6'979'584'000, 8'030'261'248},
    {"llama-3-70b", 70'553'706'496, 68'452'352'000, 68'452'352'000, 70'553'706'496},
    {"qwen3-8b", 8'190'735'360, 6'946'071'552, 6'946'071'552, 8'190'735'360},
    {"olmo-2-7b", 7'298'617'344, 6'476'529'664, 6'476'529'664, 7'298'617'344},
    {"mixtral-8x7b", 46'702'792'704, 46'440'644'608, 12'617'777'152, 12'879'925'248},
    {"qwen3-30b-a3b", 30'532'122'624, 29'909'790'720, 2'730'700'800, 3'353'032'704},
    {"deepseek-v2-lite", 15'706'484'224, 15'287'051'776, 2'241'717'760, 2'661'150'208},
    {"deepseek-v3", 671'026'404'352, 669'173'039'104, 35'698'917'376, 37'552'282'624},
    {"minigpt", 29'013'585, 3'166'208, 3'166'208, 29'013'585},
};

TEST(PublishedModels, HaveTheParametersOfTheirOwnImplementations) {
  for (const Count& expected : kCounts) {
    SCOPED_TRACE(expected.name);
    const ParameterCount count = count_parameters(published(expected.name).model);
    std::int64_t layers = 0;
    for (const LayerParameters& layer : count.layers) layers += layer.total();
    EXPECT_EQ(count.total(), expected.total);
    EXPECT_EQ(layers, expected.layers);
    EXPECT_EQ(count.active(), expected.active);
    EXPECT_EQ(count.active() + count.total() - layers, expected.active_with_outside);
  }
}

TEST(PublishedModels, MiniGptOfFourBlocks) {
  JsonDocument document = read_json_file(std::string(REPOSITORY) + "/configs/models/minigpt.json");
  document.root["num_transformer_blocks"] = 4;
  const ParameterCount count = count_parameters(read_hugging_face(document, "m").model);
  EXPECT_EQ(count.total(), 27'430'481);
  EXPECT_EQ(count.active(), 1'583'104);
}

TEST(PublishedModels, CorrectionBuffersAreInNoColumn) {
  std::int64_t buffers = 0;
  for (const ParameterSpec& p : parameters(published("deepseek-v3").model))
    if (!p.trained) buffers += elements(p.shape);
  EXPECT_EQ(buffers, 14'848);  // 58 layers x 256 experts
}

TEST(PublishedModels, EveryFileIsReadAndHasATinyOneOfItsFamily) {
  std::set<std::string> families, tiny;
  for (const auto& file : std::filesystem::directory_iterator(std::string(REPOSITORY) + "/configs/models")) {
    const std::string name = file.path().stem().string();
    SCOPED_TRACE(name);
    const HuggingFaceModel model = published(name);
    families.insert(model.family);
    EXPECT_EQ(model.model.name, name);
    for (const std::string& note : model.notes) EXPECT_THAT(note, testing::Not(HasSubstr("no family here")));
    if (!name.ends_with("-tiny")) continue;
    tiny.insert(model.family);
    EXPECT_EQ(model.model.layers.size(), 4u);
    EXPECT_EQ(heads(model.model.layers[0].attention), 4);
    EXPECT_EQ(model.model.vocab(), 2048);
    EXPECT_LE(model.model.width, 128);
  }
  EXPECT_EQ(tiny.size(), 11u);
  EXPECT_EQ(families, tiny);
}

TEST(PublishedModels, SayTheirTypeAndLength) {
  EXPECT_EQ(published("llama-3-8b").dtype, "bfloat16");
  EXPECT_EQ(published("olmo-2-7b").dtype, "float32");
  EXPECT_EQ(published("gpt2-124m").dtype, "float32");  // which it doesn't say
  EXPECT_EQ(published("llama-3-8b").positions, 8192);
  EXPECT_EQ(published("gpt2-124m").positions, 1024);
  EXPECT_EQ(published("minigpt").positions, 256);
}

// ---- what a missing key means: model_families.md section 4 ---------------------------------------------------------

TEST(MissingKeys, KeyValueHeads) {
  for (const char* type : {"llama", "olmo2", "phi"}) {
    const Json config = with(sizes(type), "head_dim", 16);
    EXPECT_EQ(attention_of(config).kv_heads, 32) << type;
    EXPECT_EQ(attention_of(with(config, "num_key_value_heads", nullptr)).kv_heads, 32) << type;
  }
  EXPECT_EQ(attention_of(sizes("qwen3")).kv_heads, 32);
  EXPECT_EQ(attention_of(with(sizes("qwen3"), "num_attention_heads", 64)).kv_heads, 32);
  EXPECT_EQ(attention_of(sizes("mixtral")).kv_heads, 8);
  EXPECT_EQ(attention_of(sizes("qwen3_moe")).kv_heads, 4);
  EXPECT_EQ(attention_of(sizes("gemma")).kv_heads, 16);
  EXPECT_EQ(attention_of(with(sizes("gemma"), "num_key_value_heads", 2)).kv_heads, 2);
}

TEST(MissingKeys, HeadWidth) {
  for (const char* type : {"llama", "mixtral", "olmo2", "qwen3_moe"}) {
    EXPECT_EQ(attention_of(sizes(type)).head_dim, 2) << type;
    EXPECT_EQ(attention_of(with(sizes(type), "head_dim", nullptr)).head_dim, 2) << type;
    EXPECT_EQ(attention_of(with(sizes(type), "head_dim", 8)).head_dim, 8) << type;
  }
  EXPECT_EQ(attention_of(sizes("qwen3")).head_dim, 128);
  EXPECT_EQ(attention_of(sizes("gemma")).head_dim, 256);
}

TEST(MissingKeys, RotaryPositions) {
  for (const std::string& type : kFrames) {
    const double base = type == "mixtral" ? 1e6 : 10000;
    const RopeSpec rope = type.starts_with("deepseek") ? latent_of(sizes(type)).rope
                                                       : attention_of(with(sizes(type), "head_dim", 16)).rope;
    EXPECT_EQ(rope.theta, base) << type;
    EXPECT_EQ(rope.scaling, RopeScaling::kNone) << type;
    EXPECT_EQ(rope.pairing, type.starts_with("deepseek") ? RopePairing::kAdjacent : RopePairing::kHalf) << type;
  }
  EXPECT_EQ(attention_of(with(sizes("phi"), "head_dim", 12)).rope_width, 6);
  EXPECT_EQ(attention_of(with(sizes("llama"), "head_dim", 12)).rope_width, 12);
  EXPECT_EQ(attention_of(with(with(sizes("phi"), "head_dim", 10), "partial_rotary_factor", 0.45)).rope_width, 4);
}

TEST(MissingKeys, NormsAndActivation) {
  for (const std::string& type : kFrames) {
    const Json config = type.starts_with("deepseek") ? sizes(type) : with(sizes(type), "head_dim", 16);
    const ModelSpec model = model_of(config);
    const bool larger = type == "mixtral" || type == "olmo2" || type == "phi";
    EXPECT_EQ(model.layers[0].norm.epsilon, larger ? 1e-5 : 1e-6) << type;
    EXPECT_EQ(model.head.norm->epsilon, model.layers[0].norm.epsilon) << type;
    EXPECT_EQ(model.layers[0].norm.kind, type == "phi" ? Norm::Kind::kLayer : Norm::Kind::kRms) << type;
    EXPECT_EQ(model.head.tied, type == "gemma") << type;
    EXPECT_EQ(model.embedding.padding, type == "olmo2" ? 1 : type == "gemma" ? 0 : -1) << type;
    EXPECT_EQ(model_of(with(config, "pad_token_id", nullptr)).embedding.padding, -1) << type;
    EXPECT_EQ(model_of(with(config, "pad_token_id", 7)).embedding.padding, 7) << type;
    EXPECT_EQ(model_of(with(config, "pad_token_id", -1)).embedding.padding, 95) << type;
    EXPECT_EQ(model.init.kind, InitScheme::Kind::kNormal);
    EXPECT_EQ(model.init.deviation, 0.02);
    EXPECT_EQ(model.init.residual, 1);
    const ActivationKind activation =
        type == "phi" || type == "gemma" ? ActivationKind::kGeluTanh : ActivationKind::kSilu;
    EXPECT_EQ(std::visit([](const auto& m) { return m.activation; }, model.layers[0].ffn), activation) << type;
    EXPECT_EQ(model.layers[0].dropout, 0) << type;
  }
  // The norms of the latents do not follow.
  EXPECT_EQ(latent_of(with(sizes("deepseek_v2"), "rms_norm_eps", 1e-5)).latent_norm.epsilon, 1e-6);
}

TEST(MissingKeys, Gemma) {
  const Json gemma = sizes("gemma");
  EXPECT_DOUBLE_EQ(model_of(gemma).embedding.scale, 8);  // the root of 64
  EXPECT_TRUE(model_of(gemma).layers[0].norm.around_one);
  const auto activation = [](const Json& config) {
    return std::get<FeedForward>(model_of(config).layers[0].ffn).activation;
  };
  EXPECT_EQ(activation(with(gemma, "hidden_act", "gelu")), ActivationKind::kGeluTanh);
  EXPECT_EQ(activation(with(with(gemma, "hidden_act", "gelu"), "hidden_activation", "gelu")), ActivationKind::kGeluErf);
  EXPECT_EQ(activation(with(gemma, "hidden_activation", nullptr)), ActivationKind::kGeluTanh);
}

TEST(MissingKeys, Biases) {
  EXPECT_FALSE(attention_of(sizes("llama")).bias);
  for (const char* type : {"llama", "qwen3", "olmo2", "gemma", "qwen3_moe"}) {
    const MultiHeadAttention a = attention_of(with(sizes(type), "attention_bias", true));
    EXPECT_TRUE(a.bias && a.out_bias) << type;
  }
  EXPECT_FALSE(attention_of(with(sizes("mixtral"), "attention_bias", true)).bias);  // has no such key
  EXPECT_TRUE(std::get<FeedForward>(model_of(with(sizes("llama"), "mlp_bias", true)).layers[0].ffn).bias);
  EXPECT_FALSE(std::get<FeedForward>(model_of(with(sizes("qwen3"), "mlp_bias", true)).layers[0].ffn).bias);
  EXPECT_TRUE(latent_of(with(sizes("deepseek_v3"), "attention_bias", true)).bias);
  const ModelSpec phi = model_of(with(sizes("phi"), "head_dim", 16));
  EXPECT_TRUE(std::get<MultiHeadAttention>(phi.layers[0].attention).bias && phi.head.bias);
  EXPECT_TRUE(std::get<FeedForward>(phi.layers[0].ffn).bias);
}

TEST(MissingKeys, MixtralAndQwen3Moe) {
  const Experts mixtral = experts_of(sizes("mixtral"));
  EXPECT_EQ(mixtral.experts, 8);
  EXPECT_EQ(mixtral.choices, 2);
  EXPECT_EQ(mixtral.hidden, 128);
  EXPECT_EQ(mixtral.score, Experts::Score::kSoftmax);
  EXPECT_TRUE(mixtral.rule.normalise);
  EXPECT_EQ(mixtral.capacity_factor, 0);
  const Experts qwen = experts_of(sizes("qwen3_moe"));
  EXPECT_EQ(qwen.experts, 128);
  EXPECT_EQ(qwen.choices, 8);
  EXPECT_EQ(qwen.hidden, 16);
  EXPECT_FALSE(qwen.rule.normalise);
  EXPECT_TRUE(experts_of(with(sizes("qwen3_moe"), "norm_topk_prob", true)).rule.normalise);
  Json sparse = with(with(sizes("qwen3_moe"), "decoder_sparse_step", 2), "mlp_only_layers", {3});
  std::vector<bool> moe;
  for (const Layer& layer : model_of(sparse).layers) moe.push_back(std::holds_alternative<Experts>(layer.ffn));
  EXPECT_THAT(moe, ElementsAre(false, true, false, false, false));
}

TEST(MissingKeys, BalanceIsAddedOnlyWhereHuggingFaceAddsIt) {
  for (const char* type : {"mixtral", "qwen3_moe"}) {
    EXPECT_EQ(model_of(sizes(type)).balance_weight, 0) << type;
    EXPECT_EQ(model_of(with(sizes(type), "output_router_logits", true)).balance_weight, 0.001) << type;
  }
  EXPECT_EQ(published("mixtral-8x7b").model.balance_weight, 0);
  EXPECT_EQ(published("mixtral-tiny").model.balance_weight, 0.02);
  EXPECT_EQ(model_of(with(sizes("deepseek_v2"), "aux_loss_alpha", 0.003)).balance_weight, 0.003);
}

TEST(MissingKeys, DeepSeek) {
  const ModelSpec v2 = model_of(sizes("deepseek_v2")), v3 = model_of(sizes("deepseek_v3"));
  for (const ModelSpec* model : {&v2, &v3}) {
    const auto& a = std::get<LatentAttention>(model->layers[0].attention);
    EXPECT_EQ(a.q_latent, 1536);
    EXPECT_EQ(a.kv_latent, 512);
    EXPECT_EQ(a.key_dim, 128);
    EXPECT_EQ(a.rope_width, 64);
    EXPECT_EQ(a.value_dim, 128);
    EXPECT_DOUBLE_EQ(a.scale, 1 / std::sqrt(192.0));
    EXPECT_EQ(a.rope.pairing, RopePairing::kAdjacent);
  }
  EXPECT_EQ(latent_of(with(sizes("deepseek_v2"), "q_lora_rank", nullptr)).q_latent, 0);
  EXPECT_EQ(latent_of(with(sizes("deepseek_v3"), "rope_interleave", false)).rope.pairing, RopePairing::kHalf);

  const Experts e2 = std::get<Experts>(v2.layers[0].ffn);  // from the first layer on
  EXPECT_EQ(e2.experts, 64);
  EXPECT_EQ(e2.choices, 6);
  EXPECT_EQ(e2.shared, (std::variant<LinearShared, GatedShared>(GatedShared{32})));
  EXPECT_EQ(e2.score, Experts::Score::kSoftmax);
  EXPECT_EQ(e2.rule, (RoutingRule{.normalise = false}));
  EXPECT_FALSE(e2.correction);
  EXPECT_EQ(experts_of(with(with(with(sizes("deepseek_v2"), "topk_method", "group_limited_greedy"), "n_group", 8),
                            "topk_group", 3))
                .rule,
            (RoutingRule{.normalise = false, .groups = 8, .kept_groups = 3}));

  EXPECT_TRUE(std::holds_alternative<FeedForward>(v3.layers[2].ffn));  // three dense layers first
  const Experts e3 = std::get<Experts>(v3.layers[3].ffn);
  EXPECT_EQ(e3.experts, 256);
  EXPECT_EQ(e3.choices, 8);
  EXPECT_EQ(e3.shared, (std::variant<LinearShared, GatedShared>(GatedShared{16})));
  EXPECT_EQ(e3.score, Experts::Score::kSigmoid);
  EXPECT_TRUE(e3.correction);
  EXPECT_EQ(
      e3.rule,
      (RoutingRule{
          .normalise = true, .epsilon = 1e-20, .scale = 2.5, .groups = 8, .kept_groups = 4, .group_by_two = true}));
  EXPECT_EQ(experts_of(with(sizes("deepseek_v3"), "n_shared_experts", nullptr)).shared,
            (std::variant<LinearShared, GatedShared>(LinearShared{})));
}

TEST(MissingKeys, Gpt2) {
  const ModelSpec model = model_of(sizes("gpt2"));
  const auto& a = std::get<MultiHeadAttention>(model.layers[0].attention);
  const auto& ffn = std::get<FeedForward>(model.layers[0].ffn);
  EXPECT_EQ(ffn.hidden, 128);
  EXPECT_EQ(std::get<FeedForward>(model_of(with(sizes("gpt2"), "n_inner", nullptr)).layers[0].ffn).hidden, 128);
  EXPECT_EQ(std::get<FeedForward>(model_of(with(sizes("gpt2"), "n_inner", 40)).layers[0].ffn).hidden, 40);
  EXPECT_EQ(ffn.activation, ActivationKind::kGeluTanh);
  EXPECT_TRUE(model.head.tied);
  EXPECT_EQ(model.layers[0].norm.epsilon, 1e-5);
  EXPECT_EQ(a.dropout, 0.1);
  EXPECT_EQ(model.layers[0].dropout, 0.1);
  EXPECT_EQ(model.embedding.dropout, 0.1);
  EXPECT_EQ(model.embedding.positions, 64);
  EXPECT_EQ(model.embedding.padding, -1);
  EXPECT_DOUBLE_EQ(model.init.residual, 2);  // the root of 2 x 2 layers
  const auto init = inits(model);
  for (const char* name : {"attention.out.kernel", "ffn.1.kernel"})
    EXPECT_EQ(init.at(std::string("layers.1.") + name), (Init{Init::Kind::kNormal, 0.01})) << name;
  for (const char* name : {"attention.q.kernel", "ffn.0.kernel"})
    EXPECT_EQ(init.at(std::string("layers.1.") + name), (Init{Init::Kind::kNormal, 0.02})) << name;
}

TEST(MiniGpt, IsDrawnAsFlaxDrawsIt) {
  const Json config{{"maxlen", 16},   {"vocab_size", 50},       {"embed_dim", 24},
                    {"num_heads", 4}, {"feed_forward_dim", 30}, {"num_transformer_blocks", 2}};
  ASSERT_TRUE(is_hugging_face(config));
  const auto init = inits(model_of(config));
  for (const char* table : {"embedding.embedding", "embedding.positions"})
    EXPECT_EQ(init.at(table), (Init{Init::Kind::kNormal, 1 / std::sqrt(24.0)})) << table;
  EXPECT_EQ(init.at("layers.0.attention.q.kernel"), (Init{Init::Kind::kUniform, std::sqrt(6.0 / 48)}));
  EXPECT_EQ(init.at("layers.1.ffn.0.kernel"), (Init{Init::Kind::kUniform, std::sqrt(6.0 / 54)}));
  EXPECT_EQ(init.at("head.kernel"), (Init{Init::Kind::kUniform, std::sqrt(6.0 / 74)}));
  for (const char* zero : {"layers.0.attention.q.bias", "layers.1.norm1.beta", "head.bias"})
    EXPECT_EQ(init.at(zero), (Init{Init::Kind::kConstant, 0})) << zero;
}

// ---- rope's two forms ----------------------------------------------------------------------------------------------

TEST(RopeKeys, BothFormsSayTheSame) {
  const Json scaling{
      {"factor", 8.0}, {"low_freq_factor", 1.0}, {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 128}};
  Json old_form = with(with(sizes("llama"), "rope_theta", 5e5), "rope_scaling", with(scaling, "type", "llama3"));
  Json new_form =
      with(sizes("llama"), "rope_parameters", with(with(scaling, "rope_type", "llama3"), "rope_theta", 5e5));
  const RopeSpec rope = attention_of(old_form).rope;
  EXPECT_EQ(rope, attention_of(new_form).rope);
  EXPECT_EQ(rope, (RopeSpec{.pairing = RopePairing::kHalf,
                            .theta = 5e5,
                            .scaling = RopeScaling::kLlama3,
                            .factor = 8,
                            .low_freq_factor = 1,
                            .high_freq_factor = 4,
                            .original_positions = 128}));
  old_form["rope_scaling"].erase("original_max_position_embeddings");
  old_form["max_position_embeddings"] = 4096;
  EXPECT_EQ(attention_of(old_form).rope.original_positions, 4096);
  EXPECT_EQ(attention_of(with(with(sizes("llama"), "rope_scaling", nullptr), "rope_theta", 7)).rope.theta, 7);
  EXPECT_EQ(attention_of(with(sizes("llama"), "rope_parameters", {{"rope_type", "default"}, {"rope_theta", 9}})).rope,
            (RopeSpec{.pairing = RopePairing::kHalf, .theta = 9}));
  EXPECT_EQ(attention_of(with(with(sizes("phi"), "head_dim", 16), "rope_parameters",
                              {{"rope_type", "default"}, {"partial_rotary_factor", 0.25}}))
                .rope_width,
            4);
}

TEST(RopeKeys, YarnsFactors) {
  const auto m = [](double s) { return 0.1 * s * std::log(40.0) + 1; };
  Json yarn{{"type", "yarn"}, {"factor", 40}, {"original_max_position_embeddings", 4096}};
  const auto read = [&] { return latent_of(with(sizes("deepseek_v3"), "rope_scaling", yarn)); };
  EXPECT_DOUBLE_EQ(read().rope.attention_factor, m(1));
  EXPECT_EQ(read().rope.beta_fast, 32);
  EXPECT_EQ(read().rope.beta_slow, 1);
  EXPECT_TRUE(read().rope.truncate);
  EXPECT_DOUBLE_EQ(read().scale, 1 / std::sqrt(192.0));
  yarn["mscale"] = 1.0;
  EXPECT_DOUBLE_EQ(read().rope.attention_factor, m(1));
  yarn["mscale_all_dim"] = 0.8;
  EXPECT_DOUBLE_EQ(read().rope.attention_factor, m(1) / m(0.8));
  EXPECT_DOUBLE_EQ(read().scale, m(0.8) * m(0.8) / std::sqrt(192.0));
  yarn["attention_factor"] = 1.5;
  EXPECT_DOUBLE_EQ(read().rope.attention_factor, 1.5);
  yarn["truncate"] = false;
  EXPECT_FALSE(read().rope.truncate);
  EXPECT_DOUBLE_EQ(latent_of(with(sizes("deepseek_v2"), "rope_scaling", yarn)).scale,
                   m(0.8) * m(0.8) / std::sqrt(192.0));
}

// ---- notes and errors ----------------------------------------------------------------------------------------------

TEST(Notes, UnknownKeysAreNotedAndUsualOnesSkipped) {
  Json config = with(with(with(sizes("llama"), "rope_theta", 7), "no_such_key", 3), "architectures", {"L"});
  config["torch_dtype"] = "bfloat16";
  config["training"] = {{"steps", 3}};
  EXPECT_THAT(of(config).notes, ElementsAre(HasSubstr("no_such_key = 3")));
  config["torch_dtype"] = "float8";
  EXPECT_THAT(of(config).notes, testing::Contains(HasSubstr("float8")));
  EXPECT_THAT(of(with(sizes("llama"), "\x1b[2J", "\x7f")).notes,
              ElementsAre(testing::Not(testing::ContainsRegex("[\x1b\x7f]"))));
  EXPECT_THAT(of(with(sizes("deepseek_v3"), "num_nextn_predict_layers", 1)).notes, ElementsAre(HasSubstr("not built")));
  EXPECT_THAT(of(with(sizes("deepseek_v3"), "scoring_func", "softmax")).notes, ElementsAre(HasSubstr("scoring_func")));
  EXPECT_THAT(of(with(sizes("deepseek_v2"), "norm_topk_prob", true)).notes, ElementsAre(HasSubstr("never normalises")));
}

TEST(Errors, WhatOurModulesCannotExpress) {
  const std::vector<std::pair<Json, std::string>> cases{
      {with(sizes("llama"), "hidden_act", "mish"), "hidden_act"},
      {with(sizes("llama"), "quantization_config", {{"bits", 4}}), "quantization_config"},
      {with(sizes("llama"), "rope_scaling", {{"type", "linear"}, {"factor", 2}}), "rope_scaling.type"},
      {with(sizes("llama"), "rope_parameters", {{"rope_type", "longrope"}}), "rope_parameters.rope_type"},
      {with(sizes("qwen3"), "use_sliding_window", true), "use_sliding_window"},
      {with(sizes("qwen3"), "layer_types", {"full_attention", "sliding_attention"}), "layer_types"},
      {with(with(sizes("phi"), "head_dim", 16), "qk_layernorm", true), "qk_layernorm"},
      {with(sizes("gpt2"), "scale_attn_weights", false), "scale_attn_weights"},
      {with(sizes("gpt2"), "add_cross_attention", true), "add_cross_attention"},
      {with(sizes("deepseek_v2"), "mlp_bias", true), "mlp_bias"},
      {with(sizes("deepseek_v2"), "topk_method", "noaux_tc"), "topk_method"},
      {with(sizes("deepseek_v3"), "attention_dropout", 0.1), "attention_dropout"},
      {with(sizes("mixtral"), "router_jitter_noise", 0.1), "router_jitter_noise"},
      {with(sizes("llama"), "model_type", "gemma2"), "model_type"},
  };
  for (const auto& [config, path] : cases) {
    const auto wrong = faults(config);
    EXPECT_THAT(paths(wrong), ElementsAre(path));
    for (const Diagnostic& d : wrong) {
      EXPECT_FALSE(d.value.empty() || d.allowed.empty() || d.hint.empty()) << to_string(d);
      EXPECT_EQ(d.source, "config.json");
    }
  }
  EXPECT_EQ(attention_of(with(sizes("mixtral"), "sliding_window", 4096)).window, 4096);
  EXPECT_THAT(faults(with(sizes("qwen3"), "layer_types", {"full_attention"})), IsEmpty());
}

TEST(Errors, RelationsAndSizes) {
  const std::vector<std::pair<Json, std::string>> cases{
      {with(sizes("llama"), "num_attention_heads", 7), "num_attention_heads"},
      {with(sizes("llama"), "num_key_value_heads", 5), "num_key_value_heads"},
      {with(sizes("mixtral"), "num_attention_heads", 4),
       "num_attention_heads"},  // 8 key-value heads where it is missing
      {with(sizes("llama"), "head_dim", 7), "head_dim"},
      {with(sizes("llama"), "vocab_size", "many"), "vocab_size"},
      {with(sizes("llama"), "hidden_size", nullptr), "hidden_size"},
      {with(sizes("llama"), "pad_token_id", 96), "pad_token_id"},
      {with(sizes("mixtral"), "num_experts_per_tok", 9), "num_experts_per_tok"},
      {with(sizes("mixtral"), "num_local_experts", 1), "num_local_experts"},
      {with(sizes("qwen3_moe"), "mlp_only_layers", {5}), "mlp_only_layers"},
      {with(sizes("deepseek_v3"), "n_group", 7), "n_group"},
      {with(sizes("deepseek_v3"), "n_routed_experts", 8), "n_routed_experts"},  // 8 groups of one
      {with(sizes("deepseek_v3"), "topk_group", 9), "topk_group"},
      {with(with(sizes("deepseek_v3"), "num_experts_per_tok", 40), "topk_group", 1), "topk_group"},
      {with(sizes("deepseek_v3"), "qk_rope_head_dim", 7), "qk_rope_head_dim"},
      {with(with(sizes("deepseek_v3"), "n_shared_experts", 200), "moe_intermediate_size", 2000),
       "moe_intermediate_size"},
      {with(sizes("gpt2"), "n_head", 5), "n_head"},
      {with(sizes("llama"), "rope_scaling", {{"type", "yarn"}, {"factor", 4}}), "rope_scaling"},
      {with(sizes("llama"), "rope_scaling",
            {{"type", "llama3"},
             {"factor", 4},
             {"low_freq_factor", 4},
             {"high_freq_factor", 4},
             {"original_max_position_embeddings", 64}}),
       "rope_scaling.high_freq_factor"},
      {with(with(sizes("llama"), "rope_scaling", {{"type", "default"}}), "rope_parameters", {{"rope_type", "default"}}),
       "rope_parameters"},
  };
  for (const auto& [config, path] : cases) EXPECT_THAT(paths(faults(config)), ElementsAre(path)) << config.dump();
}

TEST(Errors, AllInOnePass) {
  Json config = sizes("deepseek_v2");
  config.erase("hidden_size");
  config.erase("num_experts_per_tok");
  config["rms_norm_eps"] = -1;
  config["hidden_act"] = "silo";
  config["kv_lora_rank"] = 0.5;
  EXPECT_THAT(paths(faults(config)), testing::UnorderedElementsAre("hidden_size", "num_experts_per_tok", "rms_norm_eps",
                                                                   "hidden_act", "kv_lora_rank"));
  EXPECT_THAT(faults(with(sizes("llama"), "model_type", "lama"))[0].hint, HasSubstr("did you mean llama"));
}

TEST(Errors, WhatIsNoConfigurationOfThisKindIsSaidToBeNone) {
  EXPECT_FALSE(is_hugging_face(Json::array()));
  EXPECT_FALSE(is_hugging_face(Json{{"model_config", Json::object()}}));
  EXPECT_TRUE(is_hugging_face(Json{{"model_type", "llama"}}));
}

}  // namespace
}  // namespace meshwright
