#include "reports/params_report.h"
#include "model/families/jaxformer.h"
#include "tests/models.h"

#include <gtest/gtest.h>

namespace meshwright {
namespace {

TEST(ParamsJson, PublishedConfigurationHasItsCountsUnderTheirDocumentedNames) {
  const OrderedJson out = params_json(jaxformer("moe1B", {}, 1e-4), 1024, 256);
  EXPECT_EQ(out.at("total_parameters"), 949'248'384);
  EXPECT_EQ(out.at("active_parameters"), 343'321'728);
  EXPECT_EQ(out.at("tokens_per_step"), 262'144);
}

TEST(ParamsJson, ModulesAddUpToTheirLayerAndLayersToTheModel) {
  const OrderedJson out = params_json(jaxformer("moe1B", {}, 1e-4), 1024, 256);
  std::int64_t layers = 0;
  for (const auto& kind : out.at("layers")) {
    std::int64_t modules = 0;
    for (const auto& [name, module] : kind.at("modules").items())
      modules += module.at("parameters").get<std::int64_t>();
    EXPECT_EQ(modules, kind.at("parameters"));
    layers += kind.at("count").get<std::int64_t>() * modules;
  }
  EXPECT_EQ(layers, out.at("parameters").at("layers"));
  std::int64_t all = 0;
  for (const auto& [name, count] : out.at("parameters").items()) all += count.get<std::int64_t>();
  EXPECT_EQ(all, out.at("total_parameters"));
}

TEST(ParamsReport, SmallModelReadsLikeThis) {
  const JaxformerDimensions d{.model_dimension = 8,
                              .vocab_size = 100,
                              .n_head = 2,
                              .blocks = 1,
                              .layers_per_block = 2,
                              .latent_dim = 4,
                              .dhR = 2,
                              .k = 1,
                              .n_experts = 2,
                              .n_shared = 1};
  EXPECT_EQ(params_report(jaxformer("toy", d, 0), 16, 4, 120),
            R"(toy: 3,208 parameters, 1,840 of them active for a token
width 8, 2 layers, 100 tokens in the vocabulary, sequences of 16 tokens

                                                            parameters          forward GFLOP          parameters
                                                                of one  active     a sequence  layers      of all
─────────────────────────────────────────────────────────────────────────────────────────────────────────────────
dense; latent attention, rotary                                    902     902          0.000       1         902
  norms                                                             32      32          0.000                  32
  attention                                                        318     318          0.000                 318
  feed-forward                                                     552     552          0.000                 552
mixture of 2 experts, 1 chosen, 1 shared; latent attention       1,490     938          0.000       1       1,490
  norms                                                             32      32          0.000                  32
  attention                                                        264     264          0.000                 264
  shared experts                                                    72      72          0.000                  72
  router                                                            18      18          0.000                  18
  routed experts                                                 1,104     552          0.000               1,104
─────────────────────────────────────────────────────────────────────────────────────────────────────────────────
embedding, also the logits'                                        800                  0.000                 800
final norm                                                          16                                         16
─────────────────────────────────────────────────────────────────────────────────────────────────────────────────
all                                                                      1,840          0.000       2       3,208

A step of 4 sequences, 64 tokens: 1.03 MFLOP (3 x forward; causal attention at half, no recomputation).
GFLOP: of a forward pass over one sequence. Active: layers only, the chosen and the shared experts.
FLOPs: matrix multiply-adds, 2 each.
)");
}

TEST(ParamsReport, Gpt2HasPositionsAndNoMixture) {
  const std::string text = params_report(gpt2_small(), 1024, 8, 80);
  EXPECT_NE(text.find("124,439,808"), std::string::npos) << text;  // as released
  EXPECT_NE(text.find("positions"), std::string::npos);
  EXPECT_EQ(text.find("mixture"), std::string::npos);
}

}  // namespace
}  // namespace meshwright
