#include "model/accounting.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "model/config.h"
#include "model/families/jaxformer.h"
#include "tests/cases.h"
#include "tests/models.h"

namespace meshwright {
namespace {

TrainingConfig published() { return read_config(std::filesystem::path(REPOSITORY "/configs/jaxformer-moe1b.json")); }

// The checked entry of seed_numbers.json with this id.
nlohmann::json seed(const std::string& id) {
  for (const auto& entry : read_case_file("seed_numbers.json")) {
    if (entry.at("id") == id && entry.at("check") == true) return entry.at("computed");
  }
  ADD_FAILURE() << "seed_numbers.json has no checked entry " << id;
  return {};
}

TEST(Parameters, PublishedConfigurationHas949248384And343321728Active) {
  const ParameterCount count = count_parameters(published().model);
  EXPECT_EQ(count.total(), 949'248'384);
  EXPECT_EQ(count.active(), 343'321'728);
  EXPECT_EQ(count.total(), seed("jaxformer.total_params"));
  EXPECT_EQ(count.active(), seed("jaxformer.active_params"));
  const nlohmann::json rounded = seed("jaxformer.readme_rounding");
  EXPECT_EQ(count.total(), rounded.at(0));
  EXPECT_EQ(count.active(), rounded.at(1));
}

TEST(Parameters, PublishedBreakdownByModule) {
  const ParameterCount count = count_parameters(published().model);
  const nlohmann::json want = seed("jaxformer.breakdown");
  const LayerParameters& dense = count.layers.at(0);
  const LayerParameters& moe = count.layers.at(5);
  EXPECT_EQ(dense.attention, want.at("mla_rope"));
  EXPECT_EQ(moe.attention, want.at("mla_nope"));
  EXPECT_EQ(dense.norms, want.at("norms_per_layer"));
  EXPECT_EQ(moe.norms, want.at("norms_per_layer"));
  EXPECT_EQ(dense.ffn, want.at("ffn"));
  EXPECT_EQ(moe.shared, want.at("shared"));
  EXPECT_EQ(moe.router, want.at("router"));
  EXPECT_EQ(moe.experts, want.at("experts"));
  EXPECT_EQ(dense.total(), want.at("dense_layer"));
  EXPECT_EQ(moe.total(), want.at("moe_layer"));
  EXPECT_EQ(5 * dense.total() + moe.total(), want.at("block"));
  EXPECT_EQ(5 * dense.active() + moe.active(), want.at("block_active"));
  EXPECT_EQ(count.embedding, want.at("embedding"));
  EXPECT_EQ(count.final_norm, want.at("final_norm"));
  EXPECT_EQ(count.total(), want.at("total"));
  EXPECT_EQ(count.active(), want.at("active_seed"));
  EXPECT_EQ(count.layers.size(), 48u);
}

TEST(Parameters, ActiveCountsOfOtherKindsFollowFromTheBreakdown) {
  const ParameterCount count = count_parameters(published().model);
  EXPECT_EQ(count.active() + count.embedding + count.final_norm, seed("jaxformer.active_plus_embedding"));
  std::int64_t shared = 0;
  for (const LayerParameters& layer : count.layers) shared += layer.shared;
  EXPECT_EQ(count.active() - shared, seed("jaxformer.active_effective"));
}

TEST(Parameters, Gpt2SmallHas124439808) {
  // 50257*768 + 1024*768 + 12 * (2*1536 + 768*2304+2304 + 768*768+768 + 768*3072+3072 + 3072*768+768) + 1536
  const ParameterCount count = count_parameters(gpt2_small());
  EXPECT_EQ(count.total(), 124'439'808);
  EXPECT_EQ(count.active(), 12 * 7'087'872);
}

TEST(Parameters, UntiedGatedGroupedQueryLayersAreCountedToo) {
  // C=8, V=10, 4 heads of 2 with 2 kv heads, no bias, gated F=6: qkv 8*(4+4)*2 = 128, out 64, ffn 3*8*6 =
  // 144, norms 32.
  const ModelSpec model{
      .name = "tiny",
      .width = 8,
      .embedding = {.vocab = 10},
      .layers = {{.attention = MultiHeadAttention{.heads = 4, .kv_heads = 2, .head_dim = 2},
                  .ffn = FeedForward{.hidden = 6, .activation = ActivationKind::kSilu, .gated = true, .bias = false}}},
      .head = {.tied = false}};
  EXPECT_EQ(count_parameters(model).active(), 128 + 64 + 144 + 32);
  EXPECT_EQ(count_parameters(model).total(), 128 + 64 + 144 + 32 + 2 * 10 * 8 + 2 * 8);
  EXPECT_EQ(parameters(model).back().name, "head.kernel");
  EXPECT_EQ(kv_heads(model.layers[0].attention), 2);
}

TEST(Parameters, TensorsSumToTheCountAndNamesAreUnique) {
  for (const ModelSpec& model : {published().model, gpt2_small()}) {
    std::int64_t total = 0;
    std::set<std::string> names;
    for (const ParameterSpec& tensor : parameters(model)) {
      total += elements(tensor.shape);
      EXPECT_TRUE(names.insert(tensor.name).second) << tensor.name;
    }
    EXPECT_EQ(total, count_parameters(model).total());
  }
}

TEST(Parameters, AreListedInOrderWithShapeAndInitialisation) {
  const ModelSpec model = jaxformer("tiny",
                                    {.model_dimension = 16,
                                     .vocab_size = 32,
                                     .n_head = 4,
                                     .blocks = 1,
                                     .layers_per_block = 2,
                                     .latent_dim = 8,
                                     .dhR = 4,
                                     .k = 2,
                                     .n_experts = 4,
                                     .n_shared = 2},
                                    0.01);
  const std::map<Init::Kind, std::string> init{
      {Init::Kind::kConstant, ""}, {Init::Kind::kNormal, "normal/"}, {Init::Kind::kTruncatedNormal, "truncated/"}};
  std::string text;
  for (const ParameterSpec& p : parameters(model)) {  // a deviation as what it is the inverse square root of
    const double scale = p.init.kind == Init::Kind::kConstant ? p.init.scale : 1 / (p.init.scale * p.init.scale);
    text += fmt::format("{} {} {}{:.6g}\n", p.name, to_string(p.shape), init.at(p.init.kind), scale);
  }
  EXPECT_EQ(text,
            "embedding.embedding (32, 16) normal/16\n"
            "layers.0.norm0.gamma (16) 1\n"
            "layers.0.norm0.beta (16) 0\n"
            "layers.0.norm1.gamma (16) 1\n"
            "layers.0.norm1.beta (16) 0\n"
            "layers.0.mla.down.kernel (16, 16) truncated/16\n"
            "layers.0.mla.down.bias (16) 0\n"
            "layers.0.mla.kr.kernel (16, 4) truncated/16\n"
            "layers.0.mla.kr.bias (4) 0\n"
            "layers.0.mla.qr.kernel (16, 16) truncated/16\n"
            "layers.0.mla.qr.bias (16) 0\n"
            "layers.0.mla.kvup.kernel (8, 32) truncated/8\n"
            "layers.0.mla.kvup.bias (32) 0\n"
            "layers.0.mla.qup.kernel (8, 16) truncated/8\n"
            "layers.0.mla.qup.bias (16) 0\n"
            "layers.0.mla.out.kernel (16, 16) truncated/16\n"
            "layers.0.mla.out.bias (16) 0\n"
            "layers.0.ffn.0.kernel (16, 64) truncated/16\n"
            "layers.0.ffn.0.bias (64) 0\n"
            "layers.0.ffn.1.kernel (64, 16) truncated/64\n"
            "layers.0.ffn.1.bias (16) 0\n"
            "layers.1.norm0.gamma (16) 1\n"
            "layers.1.norm0.beta (16) 0\n"
            "layers.1.norm1.gamma (16) 1\n"
            "layers.1.norm1.beta (16) 0\n"
            "layers.1.mla.down.kernel (16, 16) truncated/16\n"
            "layers.1.mla.down.bias (16) 0\n"
            "layers.1.mla.kvup.kernel (8, 32) truncated/8\n"
            "layers.1.mla.kvup.bias (32) 0\n"
            "layers.1.mla.qup.kernel (8, 16) truncated/8\n"
            "layers.1.mla.qup.bias (16) 0\n"
            "layers.1.mla.out.kernel (16, 16) truncated/16\n"
            "layers.1.mla.out.bias (16) 0\n"
            "layers.1.moe.shared.kernel (16, 32) truncated/16\n"
            "layers.1.moe.shared.bias (32) 0\n"
            "layers.1.moe.router.kernel (16, 4) truncated/16\n"
            "layers.1.moe.router.bias (4) 0\n"
            "layers.1.moe.expert.0.kernel (4, 16, 64) truncated/16\n"
            "layers.1.moe.expert.0.bias (4, 64) 0\n"
            "layers.1.moe.expert.1.kernel (4, 64, 16) truncated/64\n"
            "layers.1.moe.expert.1.bias (4, 16) 0\n"
            "embedding.norm.gamma (16) 1\n"
            "embedding.norm.beta (16) 0\n");
}

TEST(Parameters, AreThoseOfTheGoldenFileWithItsStackedBlocksTakenApart) {
  const nlohmann::json golden = read_case_file("jaxformer_golden.json");
  const nlohmann::json& c = golden.at("config");
  const std::int64_t blocks = c.at("blocks"), depth = c.at("layers_per_block");
  const ModelSpec model = jaxformer("golden",
                                    {.model_dimension = c.at("C"),
                                     .vocab_size = c.at("V"),
                                     .n_head = c.at("n_head"),
                                     .blocks = blocks,
                                     .layers_per_block = depth,
                                     .latent_dim = c.at("latent_dim"),
                                     .dhR = c.at("dhR"),
                                     .k = c.at("k"),
                                     .n_experts = c.at("n_experts"),
                                     .n_shared = c.at("n_shared")},
                                    c.at("alpha"));
  std::map<std::string, Shape> ours, theirs;
  for (const ParameterSpec& p : parameters(model)) ours[p.name] = p.shape;
  for (const nlohmann::json& p : golden.at("params")) {
    const std::string name = p.at("name");
    Shape shape = p.at("shape");
    if (!name.starts_with("layer")) {  // the final norm is (1, 1, C)
      while (shape.front() == 1) shape.erase(shape.begin());
      theirs[name] = shape;
      continue;
    }
    shape.erase(shape.begin());  // the axis of blocks
    if (name.find(".norm") != std::string::npos) shape.erase(shape.begin(), shape.begin() + 2);
    const std::size_t dot = name.find('.');
    const std::int64_t j = std::stoll(name.substr(5, dot - 5));
    for (std::int64_t b = 0; b < blocks; ++b) {
      theirs[fmt::format("layers.{}{}", b * depth + j, name.substr(dot))] = shape;
    }
  }
  EXPECT_EQ(ours, theirs);
}

TEST(Flops, KernelsOfThePublishedModelPerTokenMatchTheSeedsMultiplyAdds) {
  // Its own figures: multiply-adds of a token in a block, attention over all T x T (ours: causal at half), 2
  // FLOPs each.
  const TrainingConfig config = published();
  const nlohmann::json want = seed("jaxformer.macs_per_token");
  const nlohmann::json& block = want.at("per_block");
  const std::int64_t T = config.sequence_length;
  const LayerFlops dense = layer_forward_flops(config.model, config.model.layers.at(0), T);
  const LayerFlops moe = layer_forward_flops(config.model, config.model.layers.at(5), T);
  EXPECT_EQ(5 * (dense.projections + dense.ffn).value, 2 * T * block.at("dense_layers").get<std::int64_t>());
  EXPECT_EQ((5 * dense.scores.value + moe.scores.value) * 2, 2 * T * block.at("attention").get<std::int64_t>());
  EXPECT_EQ((moe.projections + moe.router).value, 2 * T * block.at("moe_layer_mla_router").get<std::int64_t>());
  EXPECT_EQ(moe.shared.value, 2 * T * block.at("shared_dead").get<std::int64_t>());
  EXPECT_EQ(logits_forward_flops(config.model, T).value, 2 * T * want.at("logits").get<std::int64_t>());
}

TEST(Flops, ExpertsCountTheChoicesOfATokenNotTheSlots) {
  // k=2 choices of 768 -> 3072 -> 768: 2 * 2 * (2 * 768 * 3072) a token
  const TrainingConfig config = published();
  EXPECT_EQ(layer_forward_flops(config.model, config.model.layers.at(5), 1024).experts.value,
            1024LL * 2 * 2 * 2 * 768 * 3072);
}

TEST(Flops, StepIsThreeTimesTheForwardOfAllItsSequences) {
  const TrainingConfig config = published();
  // A block a token: kernels 31,129,600 + 1,093,632 + 1,179,648 + experts 2*4,718,592, scores 17,301,504 / 2;
  // eight of them and the logits 77,012,736: 488,841,216 multiply-adds.
  const std::int64_t block = 31'129'600 + 1'093'632 + 1'179'648 + 2 * 4'718'592 + 17'301'504 / 2;
  const std::int64_t token = 8 * block + 77'012'736;
  EXPECT_EQ(forward_flops(config.model, 1024).value, 2 * 1024 * token);
  EXPECT_EQ(model_flops(config.model, 1024, 256), 6.0 * 262'144 * static_cast<double>(token));
}

TEST(Flops, Gpt2FollowsTheTextbookFormula) {
  // A token forward: 2 * 12 C^2 a layer, scores 2 * 2 * T * C / 2, logits 2 * C * V.
  const double token = 12 * (2.0 * 12 * 768 * 768 + 2.0 * 1024 * 768) + 2.0 * 768 * 50257;
  EXPECT_EQ(static_cast<double>(forward_flops(gpt2_small(), 1024).value), 1024 * token);
}

TEST(InitialLoss, IsLnVPlusOneHalf) {
  const nlohmann::json want = seed("jaxformer.initial_loss");
  EXPECT_DOUBLE_EQ(expected_initial_loss(published().model), want.at("lnV_plus_half").get<double>());
  EXPECT_DOUBLE_EQ(std::log(static_cast<double>(published().model.vocab())), want.at("lnV").get<double>());
}

TEST(ExpertCapacity, IsTruncatedAndNeverMoreThanTheTokens) {
  EXPECT_EQ((Experts{.experts = 16, .choices = 2, .capacity_factor = 1.5}.capacity(1024)), 192);
  EXPECT_EQ((Experts{.experts = 4, .choices = 2, .capacity_factor = 1.5}.capacity(8)), 6);
  EXPECT_EQ((Experts{.experts = 8, .choices = 3, .capacity_factor = 1.1}.capacity(7)), 2);  // 2.8875
  EXPECT_EQ((Experts{.experts = 2, .choices = 2, .capacity_factor = 1.5}.capacity(8)), 8);  // 12 asked
}

}  // namespace
}  // namespace meshwright
