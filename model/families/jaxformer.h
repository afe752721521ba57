// JAXformer's mixture of experts, in the words of its configuration (divyamakkar0/Jaxformer at 4a0d649).
#pragma once

#include <cstdint>
#include <string>

#include "model/spec.h"

namespace meshwright {

struct JaxformerDimensions {
  std::int64_t model_dimension = 768;
  std::int64_t vocab_size = 100277;
  std::int64_t n_head = 12;
  std::int64_t blocks = 8;
  std::int64_t layers_per_block = 6;
  std::int64_t latent_dim = 128;
  std::int64_t dhR = 128;
  double dropout_rate = 0.2;
  std::int64_t k = 2;
  std::int64_t n_experts = 16;
  std::int64_t n_shared = 2;
  double capacity_factor = 1.5;

  bool operator==(const JaxformerDimensions&) const = default;
};

// blocks x (layers_per_block - 1 dense layers with rope, then one mixture of experts without). n_head must
// divide model_dimension.
ModelSpec jaxformer(const std::string& name, const JaxformerDimensions& dimensions, double balance_weight);

}  // namespace meshwright
