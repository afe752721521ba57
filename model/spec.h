// What is trained, without any plan: a list of modules (model/modules). Families of models are readers that fill one
// (model/families).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model/modules/embedding.h"
#include "model/modules/head.h"
#include "model/modules/layer.h"
#include "model/modules/parameter.h"
#include "model/program/program.h"

namespace meshwright {

struct ModelSpec {
  std::string name;
  std::int64_t width = 1;  // C
  Embedding embedding;
  std::vector<Layer> layers;
  Head head;
  InitScheme init;
  double balance_weight = 0;  // alpha: loss = cross-entropy + alpha * balance (jaxformer_semantics 11)
  Balance balance = Balance::kSequence;

  bool operator==(const ModelSpec&) const = default;

  std::int64_t vocab() const { return embedding.vocab; }
};

// All parameters, in the order in which everything lists them: the embedding's, the layers', the head's.
std::vector<ParameterSpec> parameters(const ModelSpec& model);
// Those of one layer, without the prefix of its number.
std::vector<ParameterSpec> parameters(const ModelSpec& model, const Layer& layer);

// The same model at a size that any machine can run: width (4 channels a head), hidden channels (16 a head), latents, rotary
// parts, and a vocabulary of at most 512. Layers, heads, experts and choices, and so every operation and every collective of a
// plan, are the same.
ModelSpec reduced(const ModelSpec& model);

}  // namespace meshwright
