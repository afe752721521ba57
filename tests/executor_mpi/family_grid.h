// Plans of every family, for tests of what holds on every mesh: a covering array, in which every pair of values of (family,
// mesh, FSDP stage, schedule, microbatches, stash policy) that stands in some legal plan stands in one of these.
#pragma once

#include <algorithm>
#include <array>
#include <cstddef>
#include <set>
#include <string>
#include <vector>

#include "executor/kernels/philox.h"
#include "model/config.h"
#include "model/families/jaxformer.h"
#include "tests/executor_mpi/training_case.h"

namespace meshwright {

struct GridFamily {
  std::string name;
  ModelSpec model;
  AdamSpec adam{};
};

// 8 layers and 8 heads, so that every mesh of up to 8 ranks is legal.
inline ModelSpec grid_jaxformer() {
  return jaxformer("small",
                   {.model_dimension = 32,
                    .vocab_size = 40,
                    .n_head = 8,
                    .blocks = 4,
                    .layers_per_block = 2,
                    .latent_dim = 8,
                    .dhR = 4,
                    .dropout_rate = 0.2,
                    .k = 2,
                    .n_experts = 4,
                    .n_shared = 2,
                    .capacity_factor = 1.25},
                   0.01);
}

// JAXformer and the tiny models of configs/models, smaller still; dropout where the family has it. Of the MoE families two
// stand there again with a balance loss over the step's tokens.
inline const std::vector<GridFamily>& grid_families() {
  static const std::vector<GridFamily> all = [] {
    std::vector<GridFamily> families{{"jaxformer", grid_jaxformer()}};
    const auto add = [&](std::string name, const std::string& file, std::vector<std::string> overrides) {
      overrides.emplace_back("vocab_size=40");
      const TrainingConfig config = read_config(REPOSITORY "/configs/models/" + file + "-tiny.json", overrides);
      families.push_back({std::move(name), reduced(config.model), config.adam});
      families.back().adam.clip_norm = config.grad_clip_norm;
    };
    const std::vector<std::string> of_groups{"num_attention_heads=8", "num_key_value_heads=4"};
    const auto with = [](std::vector<std::string> list, const std::vector<std::string>& more) {
      list.insert(list.end(), more.begin(), more.end());
      return list;
    };
    add("gpt2", "gpt2", {"n_layer=8", "n_head=8", "n_positions=16"});
    add("minigpt", "minigpt", {"num_transformer_blocks=8", "num_heads=8", "maxlen=16"});
    add("llama", "llama", with(of_groups, {"attention_dropout=0.1"}));
    add("qwen3", "qwen3", with(of_groups, {"attention_dropout=0.1"}));
    add("olmo2", "olmo2", with(of_groups, {"attention_dropout=0.1"}));
    add("gemma", "gemma", with(of_groups, {"attention_dropout=0.1"}));
    add("phi", "phi", {"num_attention_heads=8", "resid_pdrop=0.1", "embd_pdrop=0.1", "attention_dropout=0.1"});
    add("mixtral", "mixtral", with(of_groups, {"attention_dropout=0.1"}));
    add("qwen3_moe", "qwen3-moe", with(of_groups, {"attention_dropout=0.1"}));
    add("deepseek_v2", "deepseek-v2", {"num_attention_heads=8"});
    add("deepseek_v3", "deepseek-v3", {"num_attention_heads=8"});
    add("mixtral_balanced_by_layer", "mixtral", with(of_groups, {"training.balance=layer"}));
    add("qwen3_moe_balanced_over_all_layers", "qwen3-moe", with(of_groups, {"training.balance=pooled"}));
    return families;
  }();
  return all;
}

// 16 sequences of 16 tokens; several blocks of attention, the last one shorter, and several chunks of logits.
inline TrainingCase grid_case(const GridFamily& family, DType dtype) {
  TrainingCase c;
  c.model = family.model;
  const std::int64_t vocab = family.model.vocab();
  c.shape = {.sequences = 16,
             .tokens = 16,
             .compute = dtype,
             .attention_block = 6,
             .logit_elements = 48 * vocab,
             .adam = family.adam};
  const auto id = [vocab](std::int64_t step, std::int64_t q, std::int64_t t) {
    return static_cast<std::int32_t>(kernels::mix64(static_cast<std::uint64_t>((step * 16 + q) * 16 + t)) %
                                     static_cast<std::uint64_t>(vocab));
  };
  c.input = id;
  c.target = [id](std::int64_t s, std::int64_t q, std::int64_t t) { return id(s, q, t + 1); };
  return c;
}

inline std::vector<MeshShape> grid_meshes() {
  std::vector<MeshShape> all;
  for (const int ranks : {1, 2, 4, 8})
    for (int dp = 1; dp <= ranks; dp *= 2)
      for (int pp = 1; dp * pp <= ranks; pp *= 2) all.push_back({dp, pp, ranks / dp / pp});
  return all;
}

class FamilyGrid {
 public:
  // Values of the factors, by their indices: family, mesh, FSDP stage, schedule, microbatches, stash policy.
  static constexpr std::size_t kFactors = 6;
  using Row = std::array<int, kFactors>;
  // Two factors and their values.
  using Pair = std::array<int, 4>;

  static const FamilyGrid& get() {
    static const FamilyGrid grid;
    return grid;
  }

  const std::vector<Row>& rows() const { return rows_; }
  std::vector<Plan> plans(int family) const {
    std::vector<Plan> all;
    for (const Row& row : rows_)
      if (row[0] == family) all.push_back(plan(row));
    return all;
  }
  Plan plan(const Row& row) const {
    Plan p{.mesh = meshes_[index(row[1])], .fsdp = row[2]};
    p.schedule = static_cast<Schedule>(row[3]);
    p.microbatches = kMicrobatches[index(row[4])];
    p.recompute = policies_[index(row[5])];
    return p;
  }
  bool is_legal(const Row& row) const {
    return on_mesh_[index(row[0])][index(row[1])] && sharded_[index(row[1])][index(row[2])][index(row[4])] &&
           scheduled_[index(row[0])][index(row[3])][index(row[4])];
  }
  const Row& sizes() const { return sizes_; }
  const std::set<Pair>& legal_pairs() const { return legal_pairs_; }
  static std::set<Pair> pairs(const std::vector<Row>& rows) {
    std::set<Pair> all;
    for (const Row& row : rows) for_each_pair(row, [&](const Pair& p) { all.insert(p); });
    return all;
  }
  template <class F>
  void for_each_row(F&& f) const {
    Row row{};
    while (true) {
      f(row);
      std::size_t i = kFactors;
      while (i > 0 && ++row[i - 1] == sizes_[i - 1]) row[--i] = 0;
      if (i == 0) return;
    }
  }

 private:
  static constexpr std::array<int, 4> kMicrobatches{1, 2, 4, 8};

  static std::size_t index(int i) { return static_cast<std::size_t>(i); }
  template <class F>
  static void for_each_pair(const Row& row, F&& f) {
    for (int i = 0; i < static_cast<int>(kFactors); ++i)
      for (int j = i + 1; j < static_cast<int>(kFactors); ++j) f(Pair{i, j, row[index(i)], row[index(j)]});
  }

  FamilyGrid() : meshes_(grid_meshes()) {
    for (std::size_t kind = 0; kind < kRecomputeKindNames.size(); ++kind)
      policies_.push_back(Recompute::of(static_cast<RecomputeKind>(kind)));
    const std::vector<GridFamily>& families = grid_families();
    sizes_ = {static_cast<int>(families.size()),
              static_cast<int>(meshes_.size()),
              4,
              static_cast<int>(kScheduleNames.size()),
              static_cast<int>(kMicrobatches.size()),
              static_cast<int>(policies_.size())};
    find_legal(families);
    for_each_row([&](const Row& row) {
      if (is_legal(row)) for_each_pair(row, [&](const Pair& p) { legal_pairs_.insert(p); });
    });
    cover();
  }

  // What is legal falls apart into families on meshes, FSDP and microbatches on meshes, and microbatches under schedules.
  void find_legal(const std::vector<GridFamily>& families) {
    const auto legal = [](const GridFamily& family, const Plan& plan) {
      const TrainingCase c = grid_case(family, DType::kF32);
      return illegalities(c.model, c.shape, plan).empty();
    };
    for (const MeshShape& mesh : meshes_) {
      auto& of_mesh = sharded_.emplace_back();
      for (int fsdp = 0; fsdp < 4; ++fsdp) {
        auto& of_stage = of_mesh.emplace_back();
        for (const int m : kMicrobatches)
          of_stage.push_back(legal(families.front(), {.mesh = mesh, .fsdp = fsdp, .microbatches = m}));
      }
    }
    for (const GridFamily& family : families) {
      auto& meshes = on_mesh_.emplace_back();
      for (const MeshShape& mesh : meshes_) meshes.push_back(legal(family, {.mesh = mesh}));
      auto& schedules = scheduled_.emplace_back();
      for (std::size_t s = 0; s < kScheduleNames.size(); ++s) {
        auto& of_schedule = schedules.emplace_back();
        for (const int m : kMicrobatches)
          of_schedule.push_back(legal(family, {.microbatches = m, .schedule = static_cast<Schedule>(s)}));
      }
    }
  }

  // A plan for every family on every mesh, each the one that covers most pairs that no earlier one has; then, while there are
  // such pairs, the plan that covers most of them. Of equals the first, counted from a place that moves on.
  void cover() {
    std::set<Pair> missing = legal_pairs_;
    const auto gain = [&](const Row& row) {
      int pairs = 0;
      for_each_pair(row, [&](const Pair& p) { pairs += static_cast<int>(missing.contains(p)); });
      return pairs;
    };
    const auto add_best_of = [&](const std::vector<Row>& some) {
      const std::size_t from = rows_.size() * 31 % some.size();
      std::size_t best = from;
      int most = -1;
      for (std::size_t k = 0; k < some.size(); ++k) {
        const std::size_t i = (from + k) % some.size();
        if (const int pairs = gain(some[i]); pairs > most) most = pairs, best = i;
      }
      rows_.push_back(some[best]);
      for_each_pair(some[best], [&](const Pair& p) { missing.erase(p); });
    };
    std::vector<std::vector<Row>> of_family_and_mesh(index(sizes_[0] * sizes_[1]));
    std::vector<Row> legal;
    for_each_row([&](const Row& row) {
      if (!is_legal(row)) return;
      legal.push_back(row);
      of_family_and_mesh[index(row[0] * sizes_[1] + row[1])].push_back(row);
    });
    for (const std::vector<Row>& some : of_family_and_mesh)
      if (!some.empty()) add_best_of(some);
    while (!missing.empty()) add_best_of(legal);
  }

  std::vector<MeshShape> meshes_;
  std::vector<Recompute> policies_{Recompute::kNone, Recompute::kFull, Recompute::kSelective};
  Row sizes_{};
  std::vector<std::vector<bool>> on_mesh_;                           // [family][mesh]
  std::vector<std::vector<std::vector<bool>>> sharded_, scheduled_;  // [mesh][fsdp][m], [family][schedule][m]
  std::set<Pair> legal_pairs_;
  std::vector<Row> rows_;
};

}  // namespace meshwright
