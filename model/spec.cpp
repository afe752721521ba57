#include "model/spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace meshwright {
namespace {

void append(std::vector<ParameterSpec>& all, std::vector<ParameterSpec> more) {
  all.insert(all.end(), std::make_move_iterator(more.begin()), std::make_move_iterator(more.end()));
}

}  // namespace

std::vector<ParameterSpec> parameters(const ModelSpec& model) {
  std::vector<ParameterSpec> all;
  ParameterList embedding(model.init, model.width);
  model.embedding.list(embedding);
  append(all, embedding.take());
  for (std::size_t i = 0; i < model.layers.size(); ++i) {
    ParameterList layer(model.init, model.width, fmt::format("layers.{}.", i), static_cast<int>(i));
    model.layers[i].list(layer);
    append(all, layer.take());
  }
  ParameterList head(model.init, model.width);
  model.head.list(head, model.vocab());
  append(all, head.take());
  return all;
}

std::vector<ParameterSpec> parameters(const ModelSpec& model, const Layer& layer) {
  ParameterList list(model.init, model.width);
  layer.list(list);
  return list.take();
}

ModelSpec reduced(const ModelSpec& model) {
  ModelSpec small = model;
  std::int64_t most_heads = 1;
  for (Layer& layer : small.layers) {
    most_heads = std::max(most_heads, heads(layer.attention));
    layer = layer.reduced();
  }
  small.width = std::min(model.width, 4 * most_heads);
  small.embedding.vocab = std::min<std::int64_t>(model.vocab(), 512);
  if (small.embedding.padding >= small.vocab()) small.embedding.padding = small.vocab() - 1;
  return small;
}

}  // namespace meshwright
