#include "model/families/decoder.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "model/families/limits.h"

namespace meshwright {
namespace {

constexpr NumberRange kRate{.min = 0, .max = 1, .max_open = true};
constexpr NumberRange kEpsilon{.min = 0, .max = 1, .min_open = true};
constexpr NumberRange kPositive{.min = 0, .max = 1e12, .min_open = true};
constexpr NumberRange kWeight{.min = 0, .max = 1e6};

const std::vector<std::string> kNormPlaces{"before", "behind", "after", "parallel"};  // NormPlace's order
const std::vector<std::string> kQkNorms{"none", "per_head", "whole_projection"};      // QkNorm's

template <class Enum>
Enum value_of(const std::vector<std::string>& names, const std::string& name) {
  return static_cast<Enum>(std::find(names.begin(), names.end(), name) - names.begin());
}

class Reader {
 public:
  Reader(const JsonDocument& document, const std::string& name) : reader_(document), root_(reader_.root()) {
    model_.name = name;
  }

  ModelSpec read() {
    root_.one_of("kind", {"decoder"});
    root_.has("training");
    model_.width = size(root_, "width", kMaxWidth);
    const std::int64_t layers = size(root_, "layers", kMaxLayers);
    read_embedding();
    Layer layer{.dropout = root_.number_or("dropout", 0, kRate)};
    read_norm(layer);
    if (auto section = root_.object("attention")) layer.attention = read_attention(*section);
    std::vector<bool> has_experts(static_cast<std::size_t>(layers), false);
    std::optional<Experts> experts;
    if (root_.given("experts"))
      if (auto section = root_.object("experts")) experts = read_experts(*section, has_experts);
    std::optional<FeedForward> dense;
    if (root_.given("feed_forward") || std::count(has_experts.begin(), has_experts.end(), false) > 0)
      if (auto section = root_.object("feed_forward", "some layers have no experts"))
        dense = read_feed_forward(*section);
    read_head();
    read_initialisation(layers);
    reader_.finish();

    for (const bool of_experts : has_experts) {
      if (of_experts)
        layer.ffn = *experts;
      else
        layer.ffn = *dense;
      model_.layers.push_back(layer);
    }
    return std::move(model_);
  }

 private:
  // 0: it was refused.
  static std::int64_t size(ObjectReader& object, std::string_view key, std::int64_t most) {
    return object.integer(key, {1, most}).value_or(0);
  }
  static ActivationKind read_activation(ObjectReader& object, bool gated) {
    const std::vector<std::string> names(kActivationNames.begin(), kActivationNames.end());
    const std::string missing(name(gated ? ActivationKind::kSilu : ActivationKind::kGeluTanh));
    return value_of<ActivationKind>(names, object.one_of_or("activation", missing, names));
  }

  void read_embedding() {
    model_.embedding.vocab = root_.integer("vocabulary", {2, kMaxVocab}).value_or(0);
    if (!root_.given("embedding")) return;
    auto section = root_.object("embedding");
    if (!section) return;
    Embedding& e = model_.embedding;
    e.positions = section->integer_or("learned_positions", 0, {1, kMaxPositions});
    e.scale = section->number_or("scale", 1, kPositive);
    e.dropout = section->number_or("dropout", 0, kRate);
    e.padding = section->integer_or("padding", -1, {0, std::max<std::int64_t>(e.vocab, 1) - 1},
                                    "it is a row of the embedding: the token that fills up sequences");
  }

  void read_norm(Layer& layer) {
    Norm norm{.shift = false};
    bool final_norm = true;
    if (root_.given("norm")) {
      auto section = root_.object("norm");
      if (!section) return;
      if (section->one_of_or("kind", "rms", {"rms", "layer"}) == "layer") norm.kind = Norm::Kind::kLayer;
      const bool is_layer = norm.kind == Norm::Kind::kLayer;
      layer.place = value_of<NormPlace>(kNormPlaces, section->one_of_or("place", "before", kNormPlaces));
      norm.epsilon = section->number_or("epsilon", is_layer ? 1e-5 : 1e-6, kEpsilon);
      norm.shift = section->boolean_or("bias", is_layer);
      norm.around_one = section->boolean_or("around_one", false);
      final_norm = section->boolean_or("final", layer.place != NormPlace::kAfter);
      if (is_layer && !norm.shift)
        reader_.report(section->path("bias"), "only true of a layer norm", "an rms norm may have none");
      if (is_layer && norm.around_one)
        reader_.report(section->path("around_one"), "only false of a layer norm", "an rms norm may be around one");
    }
    layer.norm = norm;
    model_.head.norm = final_norm ? std::optional(norm) : std::nullopt;
  }

  AttentionModule read_attention(ObjectReader& section) {
    const std::string kind = section.one_of("kind", {"multi_head", "grouped", "latent"}).value_or("multi_head");
    const std::int64_t heads = size(section, "heads", kMaxHeads);
    if (kind == "latent") return read_latent(section, heads);
    MultiHeadAttention a{.heads = heads, .kv_heads = heads};
    if (section.given("head_dim") || model_.width == 0 || heads == 0) {
      a.head_dim = section.integer_or("head_dim", 2, {1, kMaxHeadDim});
    } else {
      a.head_dim = model_.width / heads;
      if (model_.width % heads != 0)
        reader_.report(section.path("heads"), fmt::format("a divisor of width, which is {}", model_.width),
                       "or say head_dim");
    }
    if (kind == "grouped") {
      a.kv_heads = size(section, "key_value_heads", kMaxHeads);
      if (heads > 0 && a.kv_heads > 0 && heads % a.kv_heads != 0)
        reader_.report(section.path("key_value_heads"), fmt::format("a divisor of heads, which is {}", heads),
                       "every key-value head serves as many heads");
    }
    a.bias = section.boolean_or("bias", false);
    a.out_bias = section.boolean_or("output_bias", a.bias);
    a.qk_norm = value_of<MultiHeadAttention::QkNorm>(kQkNorms, section.one_of_or("query_key_norm", "none", kQkNorms));
    a.qk_norm_epsilon = section.number_or("query_key_norm_epsilon", 1e-6, kEpsilon);
    a.window = section.integer_or("window", 0, {1, kMaxPositions});
    a.dropout = section.number_or("dropout", 0, kRate);
    if (section.given("rope"))
      if (auto rope = section.object("rope")) a.rope = read_rope(*rope, a.head_dim, a.head_dim, a.rope_width);
    return a;
  }

  LatentAttention read_latent(ObjectReader& section, std::int64_t heads) {
    LatentAttention a{.heads = heads};
    a.key_dim = size(section, "key_dim", kMaxHeadDim);
    a.value_dim = section.integer_or("value_dim", a.key_dim, {1, kMaxHeadDim});
    a.kv_latent = size(section, "kv_latent", kMaxWidth);
    a.q_latent = section.integer_or("q_latent", 0, {1, kMaxWidth});
    a.bias = section.boolean_or("bias", false);
    a.latent_norm.epsilon = section.number_or("latent_norm_epsilon", 1e-6, kEpsilon);
    if (auto rope = section.object("rope", "latent attention has a rotary part of its own"))
      a.rope = read_rope(*rope, 64, kMaxHeadDim, a.rope_width);
    a.scale = section.number_or("scale_factor", 1, kPositive) /
              std::sqrt(static_cast<double>(std::max<std::int64_t>(a.key_dim + a.rope_width, 1)));
    return a;
  }

  RopeSpec read_rope(ObjectReader& section, std::int64_t missing_width, std::int64_t most, std::int64_t& width) {
    RopeSpec rope;
    rope.theta = section.number_or("base", 10000, {.min = 1, .max = 1e12, .min_open = true});
    const std::vector<std::string> pairings(kRopePairingNames.begin(), kRopePairingNames.end());
    rope.pairing = value_of<RopePairing>(pairings, section.one_of_or("pairing", "half", pairings));
    width = section.integer_or("width", missing_width, {2, most}, "of a head's channels");
    if (width % 2 != 0)
      reader_.report(section.given("width") ? section.path("width") : section.path(),
                     fmt::format("an even width; it is {}", width), "rotary positions turn pairs of channels");
    if (!section.given("scaling")) return rope;
    auto scaling = section.object("scaling");
    if (!scaling) return rope;
    const std::string kind = scaling->one_of("kind", {"llama3", "yarn"}).value_or("");
    rope.factor = scaling->number("factor", {.min = 1, .max = 1e6}).value_or(1);
    rope.original_positions = size(*scaling, "original_positions", kMaxPositions);
    if (kind == "llama3") {
      rope.scaling = RopeScaling::kLlama3;
      rope.low_freq_factor = scaling->number_or("low_freq_factor", 1, kPositive);
      rope.high_freq_factor = scaling->number_or("high_freq_factor", 4, kPositive);
      if (rope.high_freq_factor <= rope.low_freq_factor)
        reader_.report(scaling->path(), "high_freq_factor above low_freq_factor",
                       "between the two the scaling sets in");
    } else if (kind == "yarn") {
      rope.scaling = RopeScaling::kYarn;
      rope.beta_fast = scaling->number_or("beta_fast", 32, kPositive);
      rope.beta_slow = scaling->number_or("beta_slow", 1, kPositive);
      rope.truncate = scaling->boolean_or("truncate", true);
      rope.attention_factor = scaling->number_or("attention_factor", 0.1 * std::log(rope.factor) + 1, kPositive);
    }
    return rope;
  }

  FeedForward read_feed_forward(ObjectReader& section) {
    FeedForward ffn{.hidden = size(section, "hidden", kMaxHidden)};
    ffn.gated = section.boolean_or("gated", false);
    ffn.activation = read_activation(section, ffn.gated);
    ffn.bias = section.boolean_or("bias", false);
    return ffn;
  }

  Experts read_experts(ObjectReader& section, std::vector<bool>& has_experts) {
    Experts e{.experts = size(section, "count", kMaxExperts),
              .choices = size(section, "choices", kMaxChoices),
              .hidden = size(section, "hidden", kMaxHidden)};
    e.gated = section.boolean_or("gated", true);
    e.activation = read_activation(section, e.gated);
    e.bias = section.boolean_or("bias", false);
    e.dropout = section.number_or("dropout", 0, kRate);
    e.capacity_factor = section.number_or("capacity_factor", 0, {.min = 0, .max = 1e4, .min_open = true},
                                          "leave it out, and nothing is dropped");
    if (e.experts > 0 && e.choices > e.experts)
      reader_.report(section.path("choices"), fmt::format("at most count, which is {}", e.experts),
                     "a token's choices are distinct experts");
    e.score = Experts::Score::kSoftmax;
    if (section.given("router"))
      if (auto router = section.object("router")) read_router(*router, e);
    if (section.given("shared"))
      if (auto shared = section.object("shared")) {
        if (shared->one_of("kind", {"gated", "linear"}).value_or("gated") == "gated")
          e.shared = GatedShared{size(*shared, "hidden", kMaxHidden)};
        else
          e.shared = LinearShared{size(*shared, "count", kMaxShared)};
      }
    model_.balance_weight = section.number_or("balance_weight", 0.01, kWeight);

    std::fill(has_experts.begin(), has_experts.end(), true);
    if (section.given("dense_layers") && !has_experts.empty())
      for (const std::int64_t i :
           section.integers("dense_layers", {}, {0, static_cast<std::int64_t>(has_experts.size()) - 1})
               .value_or(std::vector<std::int64_t>{}))
        has_experts[static_cast<std::size_t>(i)] = false;
    return e;
  }

  void read_router(ObjectReader& section, Experts& e) {
    if (section.one_of_or("score", "softmax", {"softmax", "sigmoid"}) == "sigmoid") e.score = Experts::Score::kSigmoid;
    e.correction = section.boolean_or("correction", false);
    RoutingRule& rule = e.rule;
    rule.normalise = section.boolean_or("normalise", true);
    rule.epsilon = section.number_or("epsilon", 0, {.min = 0, .max = 1});
    rule.scale = section.number_or("scale", 1, kPositive);
    rule.groups = section.integer_or("groups", 1, {1, kMaxExperts});
    rule.kept_groups = section.integer_or("kept_groups", rule.groups, {1, kMaxExperts});
    rule.group_by_two = section.one_of_or("group_score", "largest", {"largest", "two_largest"}) == "two_largest";
    if (e.experts == 0) return;
    const std::int64_t least = rule.group_by_two && rule.groups > 1 ? 2 : 1;
    const auto report = [&](const std::string& allowed, const char* hint) {
      reader_.report(section.given("groups") ? section.path("groups") : section.path(), allowed, hint);
    };
    if (e.experts % rule.groups != 0 || e.experts / rule.groups < least)
      report(fmt::format("groups of as many experts, of at least {}; {} experts are in {} groups", least, e.experts,
                         rule.groups),
             "groups divide count");
    else if (rule.kept_groups > rule.groups)
      report(fmt::format("at least kept_groups, which is {}", rule.kept_groups), "lower kept_groups");
    else if (e.choices <= e.experts && e.choices > rule.kept_groups * (e.experts / rule.groups))
      report(fmt::format("kept groups that hold at least choices experts, which is {}", e.choices),
             "raise kept_groups, or lower choices");
  }

  void read_head() {
    if (!root_.given("head")) return;
    auto section = root_.object("head");
    if (!section) return;
    model_.head.tied = section->boolean_or("tied", true);
    model_.head.bias = section->boolean_or("bias", false);
  }

  void read_initialisation(std::int64_t layers) {
    model_.init.kind = InitScheme::Kind::kNormal;
    if (!root_.given("initialisation")) return;
    auto section = root_.object("initialisation");
    if (!section) return;
    const std::string kind = section->one_of_or("kind", "normal", {"normal", "fan_in", "xavier_uniform"});
    if (kind == "fan_in") model_.init.kind = InitScheme::Kind::kFanIn;
    if (kind == "xavier_uniform") model_.init.kind = InitScheme::Kind::kXavierUniform;
    model_.init.deviation = section->number_or("deviation", 0.02, {.min = 0, .max = 10, .min_open = true});
    if (section->boolean_or("smaller_by_depth", false) && layers > 0)
      model_.init.residual = std::sqrt(2.0 * static_cast<double>(layers));
  }

  JsonReader reader_;
  ObjectReader root_;
  ModelSpec model_;
};

}  // namespace

bool is_decoder(const Json& root) { return root.is_object() && root.contains("kind") && root.at("kind") == "decoder"; }

ModelSpec read_decoder(const JsonDocument& document, const std::string& name) { return Reader(document, name).read(); }

}  // namespace meshwright
