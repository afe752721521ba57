#include "reports/params_report.h"

#include <fmt/format.h>

#include <utility>
#include <variant>
#include <vector>

#include "model/accounting.h"
#include "reports/figures.h"
#include "reports/table.h"
#include "reports/text.h"

namespace meshwright {
namespace {

// One line of a layer: a module, what it holds and what it multiplies.
struct ModuleLine {
  std::string_view key;    // in JSON
  std::string_view label;  // in text
  std::int64_t parameters = 0, active = 0;
  Flops forward;  // of one sequence
};

// Equal layers of a model.
struct LayerKind {
  Layer layer;
  std::int64_t count = 0;
  LayerParameters parameters;
  LayerFlops flops;

  std::vector<ModuleLine> lines() const {
    const LayerParameters& p = parameters;
    std::vector<ModuleLine> lines{
        {"norms", "norms", p.norms, p.norms, {}},
        {"attention", "attention", p.attention, p.attention, flops.projections + flops.scores}};
    if (p.ffn) lines.push_back({"ffn", "feed-forward", p.ffn, p.ffn, flops.ffn});
    if (p.shared) lines.push_back({"shared", "shared experts", p.shared, p.shared, flops.shared});
    if (p.router) lines.push_back({"router", "router", p.router, p.router, flops.router});
    if (p.experts) lines.push_back({"experts", "routed experts", p.experts, p.chosen_experts, flops.experts});
    return lines;
  }
};

std::string describe(const JointLatentAttention& a) {
  return a.rope_width > 0 ? "latent attention, rotary" : "latent attention";
}
std::string describe(const LatentAttention&) { return "latent attention, rotary"; }
std::string describe(const MultiHeadAttention& a) {
  const std::string kind = a.kv_heads == a.heads ? "multi-head attention"
                           : a.kv_heads == 1
                               ? "multi-query attention"
                               : fmt::format("attention, {} heads to {} key-value heads", a.heads, a.kv_heads);
  return kind + (a.rope_width > 0 ? ", rotary" : "");
}
std::string describe(const FeedForward& f) { return f.gated ? "dense, gated" : "dense"; }
std::string describe(const Experts& e) {
  const auto* linear = std::get_if<LinearShared>(&e.shared);
  return fmt::format("mixture of {} experts, {} chosen{}", e.experts, e.choices,
                     !linear             ? ", some shared"
                     : linear->count > 0 ? fmt::format(", {} shared", linear->count)
                                         : "");
}
// "dense; latent attention, rotary", "mixture of 16 experts, 2 chosen, 2 shared; latent attention".
std::string describe(const Layer& layer) {
  const auto text = [](const auto& module) { return describe(module); };
  return std::visit(text, layer.ffn) + "; " + std::visit(text, layer.attention);
}

std::vector<LayerKind> layer_kinds(const ModelSpec& model, const ParameterCount& count, std::int64_t tokens) {
  std::vector<LayerKind> kinds;
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    std::size_t k = 0;
    while (k < kinds.size() && !(kinds[k].layer == model.layers[i])) ++k;
    if (k == kinds.size())
      kinds.push_back({model.layers[i], 0, count.layers[i], layer_forward_flops(model, model.layers[i], tokens)});
    ++kinds[k].count;
  }
  return kinds;
}

}  // namespace

std::string params_report(const ModelSpec& model, std::int64_t tokens, std::int64_t sequences, int columns) {
  const ParameterCount count = count_parameters(model);
  const auto line = [&](const std::string& sentence) { return paragraph(sentence, columns, 2); };
  std::string text = line(fmt::format("{}: {} parameters, {} of them active for a token", model.name,
                                      with_commas(count.total()), with_commas(count.active())));
  text += line(fmt::format("width {}, {} layers, {} tokens in the vocabulary, sequences of {} tokens", model.width,
                           model.layers.size(), with_commas(model.vocab()), with_commas(tokens)));
  text += '\n';

  Table table({{"", Align::kLeft, "", 20},
               {"parameters\nof one"},
               {"active", Align::kRight, "", 0, 2},
               {"forward GFLOP\na sequence", Align::kRight, "GFLOP\na seq.", 0, 1},
               {"layers"},
               {"parameters\nof all"}});
  const auto gflop = [](Flops f) { return fmt::format("{:.3f}", static_cast<double>(f.value) * 1e-9); };
  for (const LayerKind& kind : layer_kinds(model, count, tokens)) {
    table.add_row({describe(kind.layer), with_commas(kind.parameters.total()), with_commas(kind.parameters.active()),
                   gflop(kind.flops.total()), with_commas(kind.count),
                   with_commas(kind.count * kind.parameters.total())});
    for (const ModuleLine& line : kind.lines())
      table.add_row({fmt::format("  {}", line.label), with_commas(line.parameters), with_commas(line.active),
                     gflop(line.forward), "", with_commas(kind.count * line.parameters)});
  }
  table.add_rule();
  const auto outside = [&](std::string label, std::int64_t parameters, Flops flops) {
    table.add_row(
        {std::move(label), with_commas(parameters), "", flops.value ? gflop(flops) : "", "", with_commas(parameters)});
  };
  const Flops logits = logits_forward_flops(model, tokens);
  outside(model.head.tied ? "embedding, also the logits'" : "embedding", count.embedding,
          model.head.tied ? logits : Flops{});
  if (count.positions) outside("positions", count.positions, {});
  if (count.final_norm) outside("final norm", count.final_norm, {});
  if (count.head) outside("head", count.head, logits);
  table.add_rule();
  table.add_row({"all", "", with_commas(count.active()), gflop(forward_flops(model, tokens)),
                 with_commas(static_cast<std::int64_t>(model.layers.size())), with_commas(count.total())});
  text += table.render_within(columns) + '\n';
  const double step = model_flops(model, tokens, sequences);
  text += line(
      fmt::format("A step of {} sequences, {} tokens: {} (3 x forward; causal attention at half, no recomputation).",
                  with_commas(sequences), with_commas(sequences * tokens), flops_text(step)));
  text += line("GFLOP: of a forward pass over one sequence. Active: layers only, the chosen and the shared experts.");
  text += line("FLOPs: matrix multiply-adds, 2 each.");
  return text;
}

OrderedJson params_json(const ModelSpec& model, std::int64_t tokens, std::int64_t sequences) {
  const ParameterCount count = count_parameters(model);
  OrderedJson out;
  out["name"] = model.name;
  out["total_parameters"] = count.total();
  out["active_parameters"] = count.active();
  out["model_flops"] = model_flops(model, tokens, sequences);
  out["forward_flops_per_sequence"] = forward_flops(model, tokens).value;
  out["tokens_per_step"] = sequences * tokens;
  std::int64_t layers = 0;
  for (const LayerParameters& layer : count.layers) layers += layer.total();
  out["parameters"] = {{"embedding", count.embedding},
                       {"positions", count.positions},
                       {"layers", layers},
                       {"final_norm", count.final_norm},
                       {"head", count.head}};
  out["layers"] = OrderedJson::array();
  for (const LayerKind& kind : layer_kinds(model, count, tokens)) {
    OrderedJson entry{{"kind", describe(kind.layer)},
                      {"count", kind.count},
                      {"parameters", kind.parameters.total()},
                      {"active_parameters", kind.parameters.active()},
                      {"forward_flops", kind.flops.total().value},
                      {"modules", OrderedJson::object()}};
    for (const ModuleLine& line : kind.lines())
      entry["modules"][std::string(line.key)] = {{"parameters", line.parameters},
                                                 {"forward_flops", line.forward.value}};
    out["layers"].push_back(std::move(entry));
  }
  return out;
}

}  // namespace meshwright
