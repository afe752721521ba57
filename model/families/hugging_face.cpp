#include "model/families/hugging_face.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <string_view>

#include "model/families/limits.h"
#include "model/input/printable.h"

namespace meshwright {
namespace {

using QkNorm = MultiHeadAttention::QkNorm;

// What distinguishes the families that share a frame, first of all what their missing keys mean.
struct Family {
  std::string_view type;
  std::int64_t kv_heads = 0;  // 0: as many as heads
  std::int64_t head_dim = 0;  // 0: hidden_size / num_attention_heads
  double theta = 10000;
  double epsilon = 1e-6;
  std::string_view activation = "silu";
  bool tied = false;
  std::int64_t padding = -1;  // -1: none
  QkNorm qk_norm = QkNorm::kNone;
  NormPlace place = NormPlace::kBefore;
  bool attention_bias = true, mlp_bias = false;  // whether it has these keys
};
constexpr std::array kFamilies{
    Family{.type = "llama", .mlp_bias = true},
    Family{.type = "qwen3", .kv_heads = 32, .head_dim = 128, .qk_norm = QkNorm::kPerHead},
    Family{.type = "olmo2",
           .epsilon = 1e-5,
           .padding = 1,
           .qk_norm = QkNorm::kWholeProjection,
           .place = NormPlace::kBehind},
    Family{.type = "gemma",
           .kv_heads = 16,
           .head_dim = 256,
           .activation = "gelu_pytorch_tanh",
           .tied = true,
           .padding = 0},
    Family{.type = "phi",
           .epsilon = 1e-5,
           .activation = "gelu_new",
           .place = NormPlace::kParallel,
           .attention_bias = false},
    Family{.type = "mixtral", .kv_heads = 8, .theta = 1e6, .epsilon = 1e-5, .attention_bias = false},
    Family{.type = "qwen3_moe", .kv_heads = 4, .qk_norm = QkNorm::kPerHead},
    Family{.type = "deepseek_v2"},
    Family{.type = "deepseek_v3"},
    Family{.type = "gpt2", .activation = "gelu_new", .tied = true},
};

// Keys of these files that say nothing about what is trained: where they came from, how text is generated, how the library
// computes. And another reader's: "training".
constexpr std::array kSilentKeys{
    "training", "architectures", "auto_map", "_name_or_path", "transformers_version", "model_type", "name_or_path",
    // tokens and generation
    "bos_token_id", "eos_token_id", "sep_token_id", "decoder_start_token_id", "use_cache", "cache_implementation",
    "max_length", "task_specific_params", "temperature", "top_k", "top_p", "do_sample", "num_beams", "is_decoder",
    "is_encoder_decoder", "id2label", "label2id", "problem_type", "return_dict", "output_attentions",
    "output_hidden_states", "chunk_size_feed_forward", "tokenizer_class", "prefix",
    // how the library computes
    "_attn_implementation", "_attn_implementation_autoset", "attn_implementation", "pretraining_tp", "ep_size",
    "torchscript", "gradient_checkpointing", "reorder_and_upcast_attn", "use_flash_attention_2",
    // heads for other tasks
    "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj",
    "classifier_dropout", "n_ctx"};

const std::vector<std::string> kActivations{"silu", "swish", "gelu_new", "gelu_pytorch_tanh", "gelu", "relu"};
ActivationKind activation_kind(std::string_view word) {
  if (word == "gelu_new" || word == "gelu_pytorch_tanh") return ActivationKind::kGeluTanh;
  if (word == "gelu") return ActivationKind::kGeluErf;
  return word == "relu" ? ActivationKind::kRelu : ActivationKind::kSilu;
}

constexpr NumberRange kRate{.min = 0, .max = 1, .max_open = true};
constexpr NumberRange kEpsilon{.min = 0, .max = 1, .min_open = true};
constexpr NumberRange kPositive{.min = 0, .max = 1e12, .min_open = true};

class Reader {
 public:
  Reader(const JsonDocument& document, const std::string& name)
      : reader_(document, NullIs::kMissing), root_(reader_.root()) {
    model_.name = name;
    for (const char* key : kSilentKeys) root_.has(key);
  }

  HuggingFaceModel read() {
    std::optional<std::string> type = "minigpt";
    if (root_.has("model_type")) {
      std::vector<std::string> types{"minigpt"};
      for (const Family& family : kFamilies) types.emplace_back(family.type);
      type = root_.one_of("model_type", types, "other families can be said in our own form: kind = decoder");
    }
    if (type) {
      out_.family = *type;
      const auto found =
          std::find_if(kFamilies.begin(), kFamilies.end(), [&](const Family& f) { return f.type == *type; });
      if (found != kFamilies.end()) family_ = *found;
      *type == "minigpt" ? read_minigpt() : *type == "gpt2" ? read_gpt2() : read_frame();
      note_rest(root_);
    } else {
      for (const std::string& key : root_.unknown_keys()) root_.has(key);  // whose family isn't known
    }
    reader_.finish();
    out_.model = std::move(model_);
    return std::move(out_);
  }

 private:
  bool is(std::string_view type) const { return family_.type == type; }
  bool deepseek() const { return is("deepseek_v2") || is("deepseek_v3"); }

  // ---- values ----

  // A size that must be there; 0: it was refused, and nothing can be said about its relations.
  std::int64_t size(std::string_view key, std::int64_t most) { return root_.integer(key, {1, most}).value_or(0); }
  // Null means none, 0; a missing key means `missing`.
  std::int64_t size_or_none(std::string_view key, std::int64_t missing, std::int64_t most) {
    return root_.has(key) && !root_.given(key) ? 0 : root_.integer_or(key, missing, {0, most});
  }
  double rate(std::string_view key, double missing) { return root_.number_or(key, missing, kRate); }
  void only(std::string_view key, bool value, std::string_view why) {
    if (root_.boolean_or(key, value) != value)
      reader_.report(root_.path(key), fmt::format("only {}", value), std::string(why));
  }
  void note(std::string_view text) { out_.notes.push_back(printable(text)); }
  void note_rest(ObjectReader& object) {
    for (const std::string& key : object.unknown_keys()) {
      note(fmt::format("{} = {}: not read, as no family here has this key", object.path(key), object.value_text(key)));
      object.has(key);
    }
  }
  // A key that Hugging Face doesn't read either.
  void note_unless(std::string_view key, std::string_view value, std::string_view text) {
    if (root_.given(key) && root_.value_text(key) != value)
      note(fmt::format("{} = {}: {}", key, root_.value_text(key), text));
  }

  // ---- what families share ----

  void read_common(std::int64_t positions) {
    out_.positions = positions;
    for (const char* key : {"torch_dtype", "dtype"})
      if (root_.given(key)) {
        const std::vector<std::string> known{"float32", "bfloat16", "float16"};
        const std::string text = root_.text(key).value_or(out_.dtype);
        if (std::find(known.begin(), known.end(), text) != known.end())
          out_.dtype = text;
        else
          note(fmt::format("{} = {}: not known here, taken for {}", key, root_.value_text(key), out_.dtype));
      }
    model_.init.kind = InitScheme::Kind::kNormal;
    model_.init.deviation = root_.number_or("initializer_range", 0.02, {.min = 0, .max = 10, .min_open = true});
    if (root_.given("quantization_config"))
      if (auto section = root_.object("quantization_config")) {
        for (const std::string& key : section->keys()) section->has(key);
        reader_.report("quantization_config", "nothing", "weights are trained as they are computed with: remove it");
      }
  }
  void read_embedding(std::int64_t width) {
    model_.width = std::max<std::int64_t>(width, 1);
    model_.embedding.vocab = root_.integer("vocab_size", {2, kMaxVocab}).value_or(0);
    model_.head.tied = root_.boolean_or("tie_word_embeddings", family_.tied);
    if (is("gpt2")) {  // the only one whose table has no padding row
      root_.has("pad_token_id");
      return;
    }
    const std::int64_t vocab = model_.vocab();
    if (!root_.has("pad_token_id")) {
      if (vocab > family_.padding) model_.embedding.padding = family_.padding;
    } else if (root_.given("pad_token_id") && vocab > 0) {  // counted from the end where it is negative
      const auto row = root_.integer("pad_token_id", {-vocab, vocab - 1}, "it is a row of the embedding; null: none");
      if (row) model_.embedding.padding = *row < 0 ? vocab + *row : *row;
    }
  }
  ActivationKind read_activation(std::string_view key) {
    return activation_kind(root_.one_of_or(key, family_.activation, kActivations));
  }
  // 0 where the sizes can't be.
  std::int64_t channels_of_a_head(std::string_view width_key, std::int64_t width, std::string_view heads_key,
                                  std::int64_t heads) {
    if (width == 0 || heads == 0) return 0;
    if (width % heads == 0) return width / heads;
    reader_.report(root_.path(heads_key), fmt::format("a divisor of {}, which is {}", width_key, width),
                   "every head takes as many channels");
    return 0;
  }

  // ---- rotary positions ----

  struct Rope {
    RopeSpec spec;
    double score_factor = 1;  // DeepSeek's: the square of m(mscale_all_dim)
    double fraction = 1;      // of a head's channels that are rotated; below 1 in Phi alone
  };
  // Under rope_parameters (transformers 5, with the base), or rope_scaling (4, with the base beside it).
  Rope read_rope(std::int64_t positions) {
    Rope rope;
    rope.spec.pairing = RopePairing::kHalf;
    constexpr NumberRange kBase{.min = 1, .max = 1e12, .min_open = true};
    constexpr NumberRange kFraction{.min = 0, .max = 1, .min_open = true};
    rope.spec.theta = root_.number_or("rope_theta", family_.theta, kBase);
    if (is("phi")) rope.fraction = root_.number_or("partial_rotary_factor", 0.5, kFraction);
    const bool old_form = root_.given("rope_scaling"), new_form = root_.given("rope_parameters");
    const std::string key = new_form ? "rope_parameters" : "rope_scaling";
    if (!old_form && !new_form) return rope;
    auto section = root_.object(key);
    if (!section) return rope;
    if (old_form && new_form) {
      reader_.report(key, "one of rope_parameters and rope_scaling", "they are two forms of the same: remove one");
      root_.has("rope_scaling");
    }
    rope.spec.theta = section->number_or("rope_theta", rope.spec.theta, kBase);
    if (is("phi")) rope.fraction = section->number_or("partial_rotary_factor", rope.fraction, kFraction);
    const std::vector<std::string> types{"default", "llama3", "yarn"};
    const std::string hint = "other scalings of rotary positions are not built";
    std::string type = section->one_of_or("type", "default", types, hint);
    type = section->one_of_or("rope_type", type, types, hint);
    if (type == "llama3") read_llama3(*section, positions, rope.spec);
    if (type == "yarn") rope.score_factor = read_yarn(*section, positions, rope.spec);
    note_rest(*section);
    return rope;
  }
  void read_scaling(ObjectReader& section, std::int64_t positions, RopeSpec& spec) {
    spec.factor = section.number("factor", {.min = 1, .max = 1e6}).value_or(1);
    spec.original_positions = section.integer_or("original_max_position_embeddings", positions, {1, kMaxPositions});
    if (spec.original_positions == 0)
      reader_.report(section.path(), "with original_max_position_embeddings, or max_position_embeddings beside it",
                     "add the longest sequence of pretraining");
  }
  void read_llama3(ObjectReader& section, std::int64_t positions, RopeSpec& spec) {
    spec.scaling = RopeScaling::kLlama3;
    read_scaling(section, positions, spec);
    const auto low = section.number("low_freq_factor", kPositive), high = section.number("high_freq_factor", kPositive);
    if (!low || !high) return;
    spec.low_freq_factor = *low;
    spec.high_freq_factor = *high;
    if (*high <= *low)
      reader_.report(section.path("high_freq_factor"), fmt::format("above low_freq_factor, which is {}", *low),
                     "between the two the scaling sets in");
  }
  // Gives what DeepSeek's scores are multiplied by.
  double read_yarn(ObjectReader& section, std::int64_t positions, RopeSpec& spec) {
    spec.scaling = RopeScaling::kYarn;
    read_scaling(section, positions, spec);
    spec.beta_fast = section.number_or("beta_fast", 32, kPositive);
    spec.beta_slow = section.number_or("beta_slow", 1, kPositive);
    spec.truncate = section.boolean_or("truncate", true);
    const auto m = [&](double s) { return spec.factor <= 1 ? 1 : 0.1 * s * std::log(spec.factor) + 1; };
    constexpr NumberRange kScale{.min = 0, .max = 1e3};
    const double mscale = section.number_or("mscale", 0, kScale), all = section.number_or("mscale_all_dim", 0, kScale);
    const double by_default = mscale != 0 && all != 0 ? m(mscale) / m(all) : m(1);
    spec.attention_factor = section.number_or("attention_factor", by_default, kPositive);
    return all != 0 ? m(all) * m(all) : 1;
  }

  // ---- attention ----

  MultiHeadAttention read_attention(std::int64_t width, std::int64_t heads, std::int64_t positions, double epsilon) {
    MultiHeadAttention a{.heads = std::max<std::int64_t>(heads, 1)};
    if (root_.given("head_dim"))
      a.head_dim = size("head_dim", kMaxHeadDim);
    else if (family_.head_dim > 0 && !root_.has("head_dim"))
      a.head_dim = family_.head_dim;
    else
      a.head_dim = channels_of_a_head("hidden_size", width, "num_attention_heads", heads);

    const bool has_groups = root_.given("num_key_value_heads");
    a.kv_heads = has_groups                                                  ? size("num_key_value_heads", kMaxHeads)
                 : family_.kv_heads > 0 && !root_.has("num_key_value_heads") ? family_.kv_heads
                                                                             : heads;
    if (heads > 0 && a.kv_heads > 0 && heads % a.kv_heads != 0) {
      if (has_groups)
        reader_.report(root_.path("num_key_value_heads"),
                       fmt::format("a divisor of num_attention_heads, which is {}", heads),
                       "every key-value head serves as many heads");
      else
        reader_.report(root_.path("num_attention_heads"),
                       fmt::format("a multiple of num_key_value_heads, which is {} where it is missing", a.kv_heads),
                       "set num_key_value_heads");
    }
    a.bias = a.out_bias = is("phi") || (family_.attention_bias && root_.boolean_or("attention_bias", false));
    a.qk_norm = family_.qk_norm;
    a.qk_norm_epsilon = epsilon;
    a.dropout = rate("attention_dropout", 0);

    const Rope rope = read_rope(positions);
    a.rope = rope.spec;
    a.rope_width = static_cast<std::int64_t>(static_cast<double>(a.head_dim) * rope.fraction);
    if (a.head_dim > 0 && (a.rope_width < 2 || a.rope_width % 2 != 0))
      reader_.report(root_.path(root_.given("head_dim") ? "head_dim" : "num_attention_heads"),
                     fmt::format("heads of which an even number of channels is rotated; it is {}", a.rope_width),
                     "rotary positions turn pairs of channels");
    read_window(a);
    return a;
  }
  void read_window(MultiHeadAttention& a) {
    if (is("mixtral")) {
      if (root_.given("sliding_window")) a.window = size("sliding_window", kMaxPositions);
    } else if (is("qwen3") || is("qwen3_moe")) {
      root_.has("sliding_window");
      root_.has("max_window_layers");
      only("use_sliding_window", false, "windows that differ from layer to layer are not built");
    }
    if (root_.given("layer_types"))
      root_.words("layer_types", {"full_attention"}, "attention that differs from layer to layer is not built");
  }
  LatentAttention read_latent_attention(std::int64_t heads, std::int64_t positions) {
    LatentAttention a{.heads = std::max<std::int64_t>(heads, 1)};
    for (const char* key : {"num_key_value_heads", "head_dim", "qk_head_dim"}) root_.has(key);  // mean nothing here
    a.key_dim = root_.integer_or("qk_nope_head_dim", 128, {1, kMaxHeadDim});
    a.value_dim = root_.integer_or("v_head_dim", 128, {1, kMaxHeadDim});
    a.rope_width = root_.integer_or("qk_rope_head_dim", 64, {2, kMaxHeadDim});
    a.kv_latent = root_.integer_or("kv_lora_rank", 512, {1, kMaxWidth});
    a.q_latent = size_or_none("q_lora_rank", 1536, kMaxWidth);
    a.bias = root_.boolean_or("attention_bias", false);
    if (a.rope_width % 2 != 0)
      reader_.report(root_.path("qk_rope_head_dim"), "an even integer", "rotary positions turn pairs of channels");
    if (rate("attention_dropout", 0) > 0)
      reader_.report(root_.path("attention_dropout"), "only 0", "latent attention has no dropout here");
    const Rope rope = read_rope(positions);
    a.rope = rope.spec;
    if (!is("deepseek_v3") || root_.boolean_or("rope_interleave", true)) a.rope.pairing = RopePairing::kAdjacent;
    a.scale = rope.score_factor / std::sqrt(static_cast<double>(a.key_dim + a.rope_width));
    return a;
  }

  // ---- feed-forward ----

  struct Mixture {
    Experts experts;
    std::vector<bool> in_layer;  // else a dense feed-forward
  };
  Mixture read_mixture(std::int64_t layers, ActivationKind activation) {
    Mixture mixture{.experts = {.activation = activation,
                                .gated = true,
                                .bias = false,
                                .score = Experts::Score::kSoftmax,
                                .capacity_factor = 0},
                    .in_layer = std::vector<bool>(static_cast<std::size_t>(layers), true)};
    Experts& e = mixture.experts;
    std::string count_key = "num_experts";
    if (is("mixtral")) {
      count_key = "num_local_experts";
      e.experts = root_.integer_or(count_key, 8, {1, kMaxExperts});
      e.choices = root_.integer_or("num_experts_per_tok", 2, {1, kMaxChoices});
      e.hidden = size("intermediate_size", kMaxHidden);
      if (root_.number_or("router_jitter_noise", 0, {.min = 0, .max = 1}) > 0)
        reader_.report("router_jitter_noise", "only 0", "routers get no noise");
    } else if (is("qwen3_moe")) {
      e.experts = root_.integer_or(count_key, 128, {1, kMaxExperts});
      e.choices = root_.integer_or("num_experts_per_tok", 8, {1, kMaxChoices});
      e.hidden = size("moe_intermediate_size", kMaxHidden);
      e.rule.normalise = root_.boolean_or("norm_topk_prob", false);
      const std::int64_t every = root_.integer_or("decoder_sparse_step", 1, {1, kMaxLayers});
      for (std::int64_t i = 0; i < layers; ++i) mixture.in_layer[static_cast<std::size_t>(i)] = (i + 1) % every == 0;
      if (root_.given("mlp_only_layers") && layers > 0)
        for (const std::int64_t i :
             root_.integers("mlp_only_layers", {}, {0, layers - 1}).value_or(std::vector<std::int64_t>{}))
          mixture.in_layer[static_cast<std::size_t>(i)] = false;
    } else {
      count_key = "n_routed_experts";
      read_deepseek_experts(e);
      const std::int64_t dense = root_.integer_or("first_k_dense_replace", is("deepseek_v3") ? 3 : 0, {0, kMaxLayers});
      for (std::int64_t i = 0; i < std::min(dense, layers); ++i) mixture.in_layer[static_cast<std::size_t>(i)] = false;
    }
    const std::string choices_key = "num_experts_per_tok";
    if (e.choices > e.experts)
      reader_.report(root_.path(root_.given(choices_key) ? choices_key : count_key),
                     fmt::format("at most as many choices as experts; they are {} and {}", e.choices, e.experts),
                     "a token's choices are distinct experts");
    read_balance();
    return mixture;
  }
  void read_deepseek_experts(Experts& e) {
    const bool v3 = is("deepseek_v3");
    e.experts = root_.integer_or("n_routed_experts", v3 ? 256 : 64, {1, kMaxExperts});
    e.choices = v3 ? root_.integer_or("num_experts_per_tok", 8, {1, kMaxChoices})
                   : root_.integer("num_experts_per_tok", {1, kMaxChoices}).value_or(1);
    e.hidden = size("moe_intermediate_size", kMaxHidden);
    const std::int64_t shared = size_or_none("n_shared_experts", v3 ? 1 : 2, kMaxShared);
    if (shared * e.hidden > kMaxHidden)
      reader_.report(root_.path("moe_intermediate_size"),
                     fmt::format("at most {} channels of all shared experts, which are {}", kMaxHidden, shared),
                     "lower it or n_shared_experts");
    if (shared > 0) e.shared = GatedShared{std::max<std::int64_t>(shared * e.hidden, 1)};
    e.rule.scale = root_.number_or("routed_scaling_factor", v3 ? 2.5 : 1, kPositive);
    std::int64_t groups = size_or_none("n_group", v3 ? 8 : 0, kMaxExperts),
                 kept = size_or_none("topk_group", v3 ? 4 : 0, kMaxExperts);
    if (v3) {
      e.score = Experts::Score::kSigmoid;
      e.correction = true;
      e.rule.group_by_two = true;
      e.rule.epsilon = 1e-20;
      e.rule.normalise = root_.boolean_or("norm_topk_prob", true);
      note_unless("topk_method", "\"noaux_tc\"", "not read, as in Hugging Face: deepseek_v3 is noaux_tc");
      note_unless("scoring_func", "\"sigmoid\"", "not read, as in Hugging Face: deepseek_v3 scores by the sigmoid");
      if (root_.integer_or("num_nextn_predict_layers", 0, {0, kMaxLayers}) > 0)
        note(
            fmt::format("num_nextn_predict_layers = {}: not built; the checkpoint's layers beyond num_hidden_layers "
                        "are skipped",
                        root_.value_text("num_nextn_predict_layers")));
    } else {
      e.rule.normalise = false;
      if (root_.one_of_or("topk_method", "greedy", {"greedy", "group_limited_greedy"}) == "greedy") groups = kept = 1;
      note_unless("norm_topk_prob", "false", "not read, as in Hugging Face: deepseek_v2 never normalises");
      note_unless("scoring_func", "\"softmax\"", "not read, as in Hugging Face: deepseek_v2 scores by the softmax");
    }
    e.rule.groups = std::max<std::int64_t>(groups, 1);
    e.rule.kept_groups = std::max<std::int64_t>(kept, 1);
    note_unless("moe_layer_freq", "1",
                "not read, as in Hugging Face: layers from first_k_dense_replace on have experts");
    // Where a key is missing the fault lies in another one that is there: by default all fits.
    const auto report = [&](const std::string& allowed, const char* hint) {
      for (const char* key : {"n_group", "topk_group", "n_routed_experts", "num_experts_per_tok"})
        if (root_.given(key)) return reader_.report(root_.path(key), allowed, hint);
    };
    const std::int64_t least = e.rule.group_by_two && e.rule.groups > 1 ? 2 : 1;
    if (e.experts % e.rule.groups != 0 || e.experts / e.rule.groups < least)
      report(fmt::format("groups of as many experts, of at least {}; {} experts are in {} groups", least, e.experts,
                         e.rule.groups),
             "n_group divides n_routed_experts");
    else if (e.rule.kept_groups > e.rule.groups)
      report(fmt::format("at most n_group, which is {}", e.rule.groups), "lower topk_group");
    else if (e.choices <= e.experts && e.choices > e.rule.kept_groups * (e.experts / e.rule.groups))
      report(fmt::format("groups that hold at least num_experts_per_tok experts, which is {}", e.choices),
             "raise topk_group, or lower num_experts_per_tok");
  }
  void read_balance() {
    constexpr NumberRange kWeight{.min = 0, .max = 1e6};
    if (deepseek()) {
      model_.balance_weight = root_.number_or("aux_loss_alpha", 0.001, kWeight);
      note_unless("seq_aux", "true", "not read: the balance loss is per sequence; training.balance says otherwise");
      return;
    }
    const double weight = root_.number_or("router_aux_loss_coef", 0.001, kWeight);
    if (root_.boolean_or("output_router_logits", false))
      model_.balance_weight = weight;
    else
      note(
          "output_router_logits = false: no balance loss is added, as in Hugging Face; true adds it per sequence, "
          "training.balance = \"pooled\" over all layers' tokens, as there");
  }

  // ---- families ----

  void read_frame() {
    const std::int64_t width = size("hidden_size", kMaxWidth), layers = size("num_hidden_layers", kMaxLayers),
                       heads = size("num_attention_heads", kMaxHeads);
    const std::int64_t positions = root_.integer_or("max_position_embeddings", 0, {1, kMaxPositions});
    read_common(positions);
    read_embedding(width);
    const bool gemma = is("gemma"), phi = is("phi");
    const Norm norm{.kind = phi ? Norm::Kind::kLayer : Norm::Kind::kRms,
                    .epsilon = root_.number_or(phi ? "layer_norm_eps" : "rms_norm_eps", family_.epsilon, kEpsilon),
                    .shift = phi,
                    .around_one = gemma};
    if (gemma) model_.embedding.scale = std::sqrt(static_cast<double>(model_.width));
    ActivationKind activation = read_activation("hidden_act");
    if (gemma) {  // old files say gelu and mean its approximation, new ones say so
      if (activation == ActivationKind::kGeluErf) activation = ActivationKind::kGeluTanh;
      if (root_.given("hidden_activation")) activation = read_activation("hidden_activation");
    }

    Layer layer{.norm = norm, .place = family_.place};
    if (deepseek())
      layer.attention = read_latent_attention(heads, positions);
    else
      layer.attention = read_attention(width, heads, positions, norm.epsilon);
    FeedForward dense{.activation = activation, .gated = !phi, .bias = phi};
    if (family_.mlp_bias) dense.bias = root_.boolean_or("mlp_bias", false);
    if (is("deepseek_v2")) only("mlp_bias", false, "feed-forwards beside experts have no biases here");
    if (phi) {
      only("qk_layernorm", false, "queries and keys with a layer norm are not built");
      layer.dropout = rate("resid_pdrop", 0);
      model_.embedding.dropout = rate("embd_pdrop", 0);
      model_.head.bias = true;
    }

    Mixture mixture{.in_layer = std::vector<bool>(static_cast<std::size_t>(layers), false)};
    if (is("mixtral") || is("qwen3_moe") || deepseek()) mixture = read_mixture(layers, activation);
    root_.has("intermediate_size");  // there also where no layer is dense
    if (std::count(mixture.in_layer.begin(), mixture.in_layer.end(), false) > 0)
      dense.hidden = size("intermediate_size", kMaxHidden);
    for (const bool of_experts : mixture.in_layer) {
      if (of_experts)
        layer.ffn = mixture.experts;
      else
        layer.ffn = dense;
      model_.layers.push_back(layer);
    }
    model_.head.norm = norm;
  }

  void read_gpt2() {
    const std::int64_t width = size("n_embd", kMaxWidth), layers = size("n_layer", kMaxLayers),
                       heads = size("n_head", kMaxHeads), positions = size("n_positions", kMaxPositions);
    read_common(positions);
    read_embedding(width);
    model_.init.residual = std::sqrt(2.0 * static_cast<double>(std::max<std::int64_t>(layers, 1)));
    model_.embedding.positions = positions;
    model_.embedding.dropout = rate("embd_pdrop", 0.1);
    const Norm norm{.kind = Norm::Kind::kLayer, .epsilon = root_.number_or("layer_norm_epsilon", 1e-5, kEpsilon)};
    only("scale_attn_weights", true, "scores are divided by the root of a head's channels");
    only("scale_attn_by_inverse_layer_idx", false, "all layers scale their scores alike");
    only("add_cross_attention", false, "this is a decoder alone");
    const std::int64_t head_dim = channels_of_a_head("n_embd", width, "n_head", heads);
    const Layer layer{.norm = norm,
                      .attention = MultiHeadAttention{.heads = heads,
                                                      .kv_heads = heads,
                                                      .head_dim = head_dim,
                                                      .bias = true,
                                                      .out_bias = true,
                                                      .dropout = rate("attn_pdrop", 0.1)},
                      .ffn = FeedForward{.hidden = root_.integer_or("n_inner", 4 * model_.width, {1, kMaxHidden}),
                                         .activation = read_activation("activation_function")},
                      .dropout = rate("resid_pdrop", 0.1)};
    model_.layers.assign(static_cast<std::size_t>(layers), layer);
    model_.head.norm = norm;
  }

  // https://docs.jaxstack.ai, "Train a miniGPT language model with JAX": norms after the sums, no final norm.
  void read_minigpt() {
    const std::int64_t width = size("embed_dim", kMaxWidth), layers = size("num_transformer_blocks", kMaxLayers),
                       heads = size("num_heads", kMaxHeads), positions = size("maxlen", kMaxPositions),
                       hidden = size("feed_forward_dim", kMaxHidden), vocab = size("vocab_size", kMaxVocab);
    out_.positions = positions;
    model_.width = std::max<std::int64_t>(width, 1);
    model_.init.kind = InitScheme::Kind::kXavierUniform;
    model_.embedding = {.vocab = vocab, .positions = positions};
    const Layer layer{
        .norm = {.kind = Norm::Kind::kLayer, .epsilon = 1e-6},
        .place = NormPlace::kAfter,
        .attention = MultiHeadAttention{.heads = heads,
                                        .kv_heads = heads,
                                        .head_dim = channels_of_a_head("embed_dim", width, "num_heads", heads),
                                        .bias = true,
                                        .out_bias = true},
        .ffn = FeedForward{.hidden = hidden, .activation = ActivationKind::kRelu}};
    model_.layers.assign(static_cast<std::size_t>(layers), layer);
    model_.head = {.norm = std::nullopt, .tied = false, .bias = true};
  }

  JsonReader reader_;
  ObjectReader root_;
  Family family_;
  ModelSpec model_;
  HuggingFaceModel out_;
};

}  // namespace

bool is_hugging_face(const Json& root) {
  return root.is_object() &&
         (root.contains("model_type") || (root.contains("embed_dim") && root.contains("num_transformer_blocks")));
}

HuggingFaceModel read_hugging_face(const JsonDocument& document, const std::string& name) {
  return Reader(document, name).read();
}

}  // namespace meshwright
