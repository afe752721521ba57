#include "reports/shardings.h"
#include "model/families/jaxformer.h"

#include <gtest/gtest.h>

#include <set>

namespace meshwright {
namespace {

const JaxformerDimensions kTiny{.model_dimension = 16,
                                .vocab_size = 64,
                                .n_head = 4,
                                .blocks = 2,
                                .layers_per_block = 2,
                                .latent_dim = 8,
                                .dhR = 4,
                                .k = 2,
                                .n_experts = 4,
                                .n_shared = 1};

Shardings of(const std::string& plan_text, const ModelSpec& model = jaxformer("tiny", kTiny, 1e-2)) {
  const Plan plan = parse_plan(plan_text);
  const TrainingShape shape{.sequences = 16, .tokens = 32};
  return shardings(model, shape, plan, mappings(Topology::shared(plan.mesh.ranks()), plan.mesh).front());
}

const TensorSharding& row(const Shardings& s, const std::string& name, TensorRole role = TensorRole::kParameter) {
  for (const TensorSharding& t : s.tensors)
    if (t.name == name && t.role == role) return t;
  throw std::runtime_error("no tensor " + name);
}

TEST(Shardings, AColumnParallelKernelIsCutByOutputAndARowParallelOneByInput) {
  const Shardings s = of("2x2x2,microbatches=2");
  const TensorSharding& up = row(s, "layers.0.mla.qup.kernel");
  EXPECT_EQ(up.global, (Shape{8, 16}));
  EXPECT_EQ(up.tp_dim, 1);
  EXPECT_EQ(up.local, (Shape{8, 8}));
  const TensorSharding& out = row(s, "layers.0.mla.out.kernel");
  EXPECT_EQ(out.tp_dim, 0);
  EXPECT_EQ(row(s, "layers.0.norm0.gamma").tp_dim, kNotCut);
  EXPECT_EQ(out.bytes.value, 8 * 16 * 4);
}

TEST(Shardings, EachLayerIsOnOneStageAndTheTiedTableOnBothEnds) {
  const Shardings s = of("1x4x1,microbatches=4");
  EXPECT_EQ(row(s, "layers.0.ffn.0.kernel").stages, (std::vector<int>{0}));
  EXPECT_EQ(row(s, "layers.3.moe.router.kernel").stages, (std::vector<int>{3}));
  EXPECT_EQ(row(s, "embedding.embedding").stages, (std::vector<int>{0, 3}));
  EXPECT_EQ(row(s, "embedding.norm.gamma").stages, (std::vector<int>{3}));
}

TEST(Shardings, FsdpStagesCutOptimizerThenGradientsThenParameters) {
  const auto roles = [](int fsdp) {
    std::map<std::string, bool> sharded;
    for (const TensorSharding& t : of("4x1x1,fsdp=" + std::to_string(fsdp)).tensors)
      if (t.name == "layers.0" && t.role != TensorRole::kParameter) sharded[std::string(name(t.role))] = t.dp_dim == 0;
    return sharded;
  };
  using Roles = std::map<std::string, bool>;
  EXPECT_EQ(roles(0),
            (Roles{{"master weights", false}, {"gradients", false}, {"moment 1", false}, {"moment 2", false}}));
  EXPECT_EQ(roles(1), (Roles{{"master weights", true},
                             {"weights", false},
                             {"gradients", false},
                             {"gradient shard", true},
                             {"moment 1", true},
                             {"moment 2", true}}));
  EXPECT_EQ(roles(2), (Roles{{"master weights", true},
                             {"weights", false},
                             {"gradient shard", true},
                             {"moment 1", true},
                             {"moment 2", true}}));
  EXPECT_EQ(roles(3),
            (Roles{{"master weights", true}, {"gradient shard", true}, {"moment 1", true}, {"moment 2", true}}));
}

TEST(Shardings, OfEveryTensorTheLocalPartsMakeUpTheWhole) {
  for (const std::string plan :
       {"1x1x1", "2x2x2,microbatches=2,fsdp=3,recompute=full", "4x1x4,fsdp=1", "1x2x4,microbatches=8"}) {
    const Shardings s = of(plan);
    EXPECT_FALSE(s.tensors.empty());
    for (const TensorSharding& t : s.tensors) {
      Shape whole = t.local;
      if (t.dp_dim != kNotCut) whole[t.dp_dim] *= s.plan.mesh.dp;
      if (t.tp_dim != kNotCut) whole[t.tp_dim] *= s.plan.mesh.tp;
      EXPECT_EQ(whole, t.global) << plan << ": " << t.name;
      EXPECT_EQ(t.bytes.value, elements(t.local) * size_of(t.dtype)) << t.name;
      EXPECT_FALSE(t.stages.empty()) << t.name;
    }
  }
}

TEST(Shardings, WhatARankKeepsOfUnitsIsWhatItsProgramHasRegionsFor) {
  for (const std::string text : {"4x1x1,fsdp=0", "4x1x1,fsdp=1", "4x1x1,fsdp=2", "2x1x2,fsdp=1"}) {
    const Plan plan = parse_plan(text);
    const ModelSpec model = jaxformer("tiny", kTiny, 1e-2);
    const ProgramSet set = lower(model, {.sequences = 16, .tokens = 32}, plan);
    std::int64_t listed = 0, laid_out = 0;
    for (const TensorSharding& t : of(text).tensors)
      if (t.role >= TensorRole::kMaster && t.role <= TensorRole::kMoment2) listed += t.bytes.value;
    for (const Region& region : set.stages[0].regions)
      if (region.memory_class <= MemoryClass::kOptimizer) laid_out += region.bytes;
    EXPECT_EQ(listed, laid_out) << text;
  }
}

TEST(Shardings, ActivationsAreCutBySequencesOverDpAndByTokensHeadsOrHiddenChannelsOverTp) {
  const Shardings s = of("2x1x2,microbatches=2");  // 4 sequences of 32 tokens in a rank's microbatch
  const TensorSharding& x = row(s, "dense.forward/x", TensorRole::kActivation);
  EXPECT_EQ(x.global, (Shape{8 * 32, 16}));
  EXPECT_EQ(x.dp_dim, 0);
  EXPECT_EQ(x.tp_dim, 0);
  EXPECT_EQ(x.local, (Shape{64, 16}));
  const TensorSharding& hidden = row(s, "dense.forward/hidden", TensorRole::kActivation);
  EXPECT_EQ(hidden.tp_dim, 1);
  EXPECT_EQ(hidden.local, (Shape{4 * 32, 32}));
  EXPECT_EQ(row(s, "dense.forward/zk", TensorRole::kActivation).tp_dim, kNotCut);  // gathered
}

TEST(Shardings, EveryRankHasItsChip) {
  const Plan plan = parse_plan("2x2x2");
  const MeshMapping mapping = mappings(Topology::grid({2, 2, 2}, {false, false, false}), plan.mesh).front();
  const Shardings s = shardings(jaxformer("tiny", kTiny, 1e-2), {.sequences = 16, .tokens = 32}, plan, mapping);
  ASSERT_EQ(s.ranks.size(), 8u);
  std::set<std::vector<int>> chips;
  for (const RankPlace& place : s.ranks) {
    EXPECT_EQ(place.rank, (place.mesh.dp * 2 + place.mesh.pp) * 2 + place.mesh.tp);
    chips.insert(place.coordinates);
  }
  EXPECT_EQ(chips.size(), 8u);
}

TEST(ShardingsReport, NamesEqualLayersTogether) {
  const std::string text = shardings_report(of("1x1x1"), 120);
  EXPECT_NE(text.find("layers.{0,2}.ffn.0.kernel"), std::string::npos) << text;
  EXPECT_NE(text.find("layers.{0-3}.norm0.gamma"), std::string::npos);
}

TEST(ShardingsJson, HasEveryTensorByItself) {
  const OrderedJson out = to_json(of("2x1x1"));
  std::set<std::string> names;
  for (const auto& t : out.at("tensors")) names.insert(t.at("name"));
  EXPECT_TRUE(names.contains("layers.0.ffn.0.kernel"));
  EXPECT_TRUE(names.contains("layers.2.ffn.0.kernel"));
  EXPECT_EQ(out.at("ranks").size(), 2u);
}

}  // namespace
}  // namespace meshwright
