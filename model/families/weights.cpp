#include "model/families/weights.h"

#include <fmt/format.h>

#include <map>
#include <string_view>
#include <utility>
#include <variant>

#include "model/program/check.h"

namespace meshwright {
namespace {

class MapWriter {
 public:
  MapWriter(const std::string& family, const ModelSpec& model) : family_(family), model_(model) {
    map_.parameters = parameters(model);
    for (std::size_t i = 0; i < map_.parameters.size(); ++i) index_[map_.parameters[i].name] = static_cast<int>(i);
  }

  WeightMap write() {
    family_ == "gpt2" ? write_gpt2() : family_ == "minigpt" ? write_minigpt() : write_frame();
    return std::move(map_);
  }

 private:
  // ---- pieces ----

  int tensor(std::string name, Shape shape) {
    map_.tensors.push_back({std::move(name), std::move(shape)});
    return static_cast<int>(map_.tensors.size()) - 1;
  }
  // The parameter `name` of the layer that is being written, or of the whole model.
  int parameter(const std::string& name) const {
    const auto found = index_.find(ours_ + name);
    check(found != index_.end(), "weights of {}: no parameter {}{}", family_, ours_, name);
    return found->second;
  }
  const Shape& shape(int parameter) const { return map_.parameters[static_cast<std::size_t>(parameter)].shape; }

  struct Block {  // of a parameter; all of its rows and columns by default
    std::int64_t row = 0, column = 0, rows = 0, columns = 0;
  };
  Block whole(int p) const { return {0, 0, elements(shape(p)) / shape(p).back(), shape(p).back()}; }

  // A block of a parameter is the rows [row, row + out) of a tensor (out, in), transposed: x W^T there, x W here.
  void transposed(const std::string& ours, Block b, int tensor, std::int64_t row) {
    const int p = parameter(ours);
    map_.pieces.push_back({{p, b.row, b.column, shape(p).back()}, {tensor, row, 0, b.rows}, b.columns, b.rows, true});
  }
  // A block of a parameter is a block of a tensor whose rows have `pitch` elements.
  void straight(const std::string& ours, Block b, int tensor, std::int64_t row, std::int64_t column,
                std::int64_t pitch) {
    const int p = parameter(ours);
    map_.pieces.push_back(
        {{p, b.row, b.column, shape(p).back()}, {tensor, row, column, pitch}, b.rows, b.columns, false});
  }

  // All of a parameter, of another shape perhaps.
  void same(const std::string& ours, const std::string& theirs, Shape shape) {
    const Block b = whole(parameter(ours));
    straight(ours, b, tensor(theirs, std::move(shape)), 0, 0, b.columns);
  }
  void vector(const std::string& ours, const std::string& theirs) {
    const std::int64_t n = elements(shape(parameter(ours)));
    same(ours, theirs, {n});
  }
  // Columns [column, column + out) of ours.kernel, and of ours.bias where there is one, are the Linear `theirs`.
  void linear(const std::string& ours, const std::string& theirs, std::int64_t column, std::int64_t out) {
    const std::int64_t in = shape(parameter(ours + ".kernel"))[0];
    transposed(ours + ".kernel", {0, column, in, out}, tensor(theirs + ".weight", {out, in}), 0);
    if (has(ours + ".bias")) straight(ours + ".bias", {0, column, 1, out}, tensor(theirs + ".bias", {out}), 0, 0, out);
  }
  void linear(const std::string& ours, const std::string& theirs) {
    linear(ours, theirs, 0, shape(parameter(ours + ".kernel")).back());
  }
  bool has(const std::string& name) const { return index_.contains(ours_ + name); }

  void norm(const std::string& ours, const std::string& theirs) {
    vector(ours + ".gamma", theirs + ".weight");
    if (has(ours + ".beta")) vector(ours + ".beta", theirs + ".bias");
  }
  void layer(std::size_t i, std::string_view theirs) {
    ours_ = fmt::format("layers.{}.", i);
    theirs_ = fmt::format("{}.{}.", theirs, i);
  }
  void outside() { ours_ = ""; }

  // ---- the frame that most families share ----

  void write_frame() {
    const std::int64_t V = model_.vocab(), C = model_.width;
    same("embedding.embedding", "model.embed_tokens.weight", {V, C});
    for (std::size_t i = 0; i < model_.layers.size(); ++i) {
      layer(i, "model.layers");
      if (family_ == "phi") {
        norm("norm0", theirs_ + "input_layernorm");
      } else {
        const bool behind = family_ == "olmo2";
        norm("norm0", theirs_ + (behind ? "post_attention_layernorm" : "input_layernorm"));
        norm("norm1", theirs_ + (behind ? "post_feedforward_layernorm" : "post_attention_layernorm"));
      }
      const Layer& l = model_.layers[i];
      if (const auto* latent = std::get_if<LatentAttention>(&l.attention))
        write_latent(*latent);
      else
        write_attention();
      if (const auto* experts = std::get_if<Experts>(&l.ffn))
        write_experts(*experts);
      else if (family_ == "phi") {
        linear("ffn.0", theirs_ + "mlp.fc1");
        linear("ffn.1", theirs_ + "mlp.fc2");
      } else {
        write_gated("ffn", theirs_ + "mlp.");
      }
    }
    outside();
    norm("embedding.norm", family_ == "phi" ? "model.final_layernorm" : "model.norm");
    if (model_.head.tied)
      map_.skipped.push_back("lm_head.weight");
    else
      same("head.kernel", "lm_head.weight", {V, C});
    if (model_.head.bias) vector("head.bias", "lm_head.bias");
    map_.skipped.push_back("*.rotary_emb.inv_freq");
    if (family_ == "deepseek_v3")  // what predicts further tokens, as layers behind the last one
      map_.skipped.push_back(fmt::format("model.layers.{}.*", model_.layers.size()));
  }

  void write_attention() {
    const std::string attention = theirs_ + "self_attn.";
    for (const char* which : {"q", "k", "v"}) linear(std::string("attention.") + which, attention + which + "_proj");
    for (const char* which : {"q_norm", "k_norm"})
      if (has(std::string("attention.") + which + ".gamma"))
        vector(std::string("attention.") + which + ".gamma", attention + which + ".weight");
    linear("attention.out", attention + (family_ == "phi" ? "dense" : "o_proj"));
  }

  // Two of our kernels, (in, heads x width0) and (in, heads x width1), are one Linear there: per head [0 | 1].
  void per_head(const std::string& ours0, std::int64_t width0, const std::string& ours1, std::int64_t width1,
                std::int64_t heads, const std::string& theirs) {
    const std::int64_t in = shape(parameter(ours0 + ".kernel"))[0], width = width0 + width1;
    const int t = tensor(theirs + ".weight", {heads * width, in});
    for (std::int64_t h = 0; h < heads; ++h) transposed(ours0 + ".kernel", {0, h * width0, in, width0}, t, h * width);
    for (std::int64_t h = 0; h < heads; ++h)
      transposed(ours1 + ".kernel", {0, h * width1, in, width1}, t, h * width + width0);
  }

  void write_latent(const LatentAttention& a) {
    const std::string attention = theirs_ + "self_attn.";
    std::string queries = attention + "q_proj";
    if (a.q_latent > 0) {
      linear("mla.q_down", attention + "q_a_proj");
      norm("mla.q_norm", attention + "q_a_layernorm");
      queries = attention + "q_b_proj";
    }
    per_head("mla.qup", a.key_dim, "mla.qr", a.rope_width, a.heads, queries);
    // One Linear gives the latent and the rotary part of the keys.
    const std::int64_t C = model_.width, out = a.kv_latent + a.rope_width;
    const int weight = tensor(attention + "kv_a_proj_with_mqa.weight", {out, C});
    transposed("mla.kv_down.kernel", {0, 0, C, a.kv_latent}, weight, 0);
    transposed("mla.kr.kernel", {0, 0, C, a.rope_width}, weight, a.kv_latent);
    if (a.bias) {
      const int bias = tensor(attention + "kv_a_proj_with_mqa.bias", {out});
      straight("mla.kv_down.bias", {0, 0, 1, a.kv_latent}, bias, 0, 0, out);
      straight("mla.kr.bias", {0, 0, 1, a.rope_width}, bias, 0, a.kv_latent, out);
    }
    norm("mla.kv_norm", attention + "kv_a_layernorm");
    per_head("mla.kup", a.key_dim, "mla.vup", a.value_dim, a.heads, attention + "kv_b_proj");
    linear("mla.out", attention + "o_proj");
  }

  // ours.0 = gate | up, ours.1.
  void write_gated(const std::string& ours, const std::string& theirs) {
    const std::int64_t hidden = shape(parameter(ours + ".0.kernel")).back() / 2;
    linear(ours + ".0", theirs + "gate_proj", 0, hidden);
    linear(ours + ".0", theirs + "up_proj", hidden, hidden);
    linear(ours + ".1", theirs + "down_proj");
  }

  void write_experts(const Experts& e) {
    const bool mixtral = family_ == "mixtral";
    const std::string moe = theirs_ + (mixtral ? "block_sparse_moe." : "mlp.");
    const std::string gate = mixtral ? "w1" : "gate_proj", up = mixtral ? "w3" : "up_proj",
                      down = mixtral ? "w2" : "down_proj";
    const std::int64_t C = model_.width, F = e.hidden;
    for (std::int64_t i = 0; i < e.experts; ++i) {
      const std::string expert = fmt::format("{}experts.{}.", moe, i);
      transposed("moe.expert.0.kernel", {i * C, 0, C, F}, tensor(expert + gate + ".weight", {F, C}), 0);
      transposed("moe.expert.0.kernel", {i * C, F, C, F}, tensor(expert + up + ".weight", {F, C}), 0);
      transposed("moe.expert.1.kernel", {i * F, 0, F, C}, tensor(expert + down + ".weight", {C, F}), 0);
    }
    linear("moe.router", moe + "gate");
    if (e.correction) vector("moe.router.correction", moe + "gate.e_score_correction_bias");
    if (has("moe.shared.0.kernel")) write_gated("moe.shared", moe + "shared_experts.");
  }

  // ---- GPT-2: kernels (in, out), queries, keys and values in one ----

  void kernel(const std::string& ours, const std::string& theirs) {
    const Shape s = shape(parameter(ours + ".kernel"));
    same(ours + ".kernel", theirs + ".weight", s);
    vector(ours + ".bias", theirs + ".bias");
  }
  void write_gpt2() {
    const std::int64_t V = model_.vocab(), C = model_.width;
    same("embedding.embedding", "transformer.wte.weight", {V, C});
    same("embedding.positions", "transformer.wpe.weight", {model_.embedding.positions, C});
    for (std::size_t i = 0; i < model_.layers.size(); ++i) {
      layer(i, "transformer.h");
      norm("norm0", theirs_ + "ln_1");
      norm("norm1", theirs_ + "ln_2");
      const int weight = tensor(theirs_ + "attn.c_attn.weight", {C, 3 * C}),
                bias = tensor(theirs_ + "attn.c_attn.bias", {3 * C});
      std::int64_t column = 0;
      for (const char* which : {"attention.q", "attention.k", "attention.v"}) {
        straight(std::string(which) + ".kernel", {0, 0, C, C}, weight, 0, column, 3 * C);
        straight(std::string(which) + ".bias", {0, 0, 1, C}, bias, 0, column, 3 * C);
        column += C;
      }
      kernel("attention.out", theirs_ + "attn.c_proj");
      kernel("ffn.0", theirs_ + "mlp.c_fc");
      kernel("ffn.1", theirs_ + "mlp.c_proj");
    }
    outside();
    norm("embedding.norm", "transformer.ln_f");
    if (model_.head.tied)
      map_.skipped.push_back("lm_head.weight");
    else
      same("head.kernel", "lm_head.weight", {V, C});
    map_.skipped.insert(map_.skipped.end(), {"*.attn.bias", "*.attn.masked_bias"});  // causal masks
    map_.optional_prefix = "transformer.";
  }

  // ---- miniGPT, as flax names it: heads are a dimension of their own ----

  void write_minigpt() {
    const std::int64_t V = model_.vocab(), C = model_.width;
    same("embedding.embedding", "embedding_layer.token_emb.embedding", {V, C});
    same("embedding.positions", "embedding_layer.pos_emb.embedding", {model_.embedding.positions, C});
    for (std::size_t i = 0; i < model_.layers.size(); ++i) {
      layer(i, "transformer_blocks");
      const std::int64_t H = heads(model_.layers[i].attention), d = C / H;
      for (const auto& [ours, theirs] :
           {std::pair{"attention.q", "mha.query"}, {"attention.k", "mha.key"}, {"attention.v", "mha.value"}}) {
        same(std::string(ours) + ".kernel", theirs_ + theirs + ".kernel", {C, H, d});
        same(std::string(ours) + ".bias", theirs_ + theirs + ".bias", {H, d});
      }
      same("attention.out.kernel", theirs_ + "mha.out.kernel", {H, d, C});
      vector("attention.out.bias", theirs_ + "mha.out.bias");
      for (const auto& [ours, theirs] : {std::pair{"norm0", "layer_norm1"}, {"norm1", "layer_norm2"}}) {
        vector(std::string(ours) + ".gamma", theirs_ + theirs + ".scale");
        vector(std::string(ours) + ".beta", theirs_ + theirs + ".bias");
      }
      for (const auto& [ours, theirs] : {std::pair{"ffn.0", "linear1"}, {"ffn.1", "linear2"}}) {
        same(std::string(ours) + ".kernel", theirs_ + theirs + ".kernel",
             shape(parameter(std::string(ours) + ".kernel")));
        vector(std::string(ours) + ".bias", theirs_ + theirs + ".bias");
      }
    }
    outside();
    const int kernel = tensor("output_layer.kernel", {C, V});
    const int p = parameter("head.kernel");  // (V, C)
    map_.pieces.push_back({{p, 0, 0, C}, {kernel, 0, 0, V}, C, V, true});
    vector("head.bias", "output_layer.bias");
  }

  const std::string& family_;
  const ModelSpec& model_;
  std::string ours_, theirs_;  // prefixes of the layer that is being written
  std::map<std::string, int, std::less<>> index_;
  WeightMap map_;
};

bool fits(std::string_view pattern, std::string_view name) {
  if (pattern.starts_with('*')) return name.ends_with(pattern.substr(1));
  if (pattern.ends_with('*')) return name.starts_with(pattern.substr(0, pattern.size() - 1));
  return name == pattern;
}

}  // namespace

bool WeightMap::skips(const std::string& tensor) const {
  for (const std::string& pattern : skipped)
    if (fits(pattern, tensor)) return true;
  return false;
}

WeightMap weight_map(const std::string& family, const ModelSpec& model) { return MapWriter(family, model).write(); }

}  // namespace meshwright
