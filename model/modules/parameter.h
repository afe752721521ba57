// What a module says of its parameters: shape, initial distribution, and how tensor parallelism cuts them. Counts, placement
// and initial weights follow from this list; no other names a parameter again.
#pragma once

#include <cmath>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "model/program/tensor.h"

namespace meshwright {

// What a parameter belongs to, for counting.
enum class ModuleKind : std::uint8_t {
  kEmbedding,  // the token table
  kPositions,  // the table of learned positions
  kNorm,       // of a layer
  kAttention,
  kFfn,     // a dense feed-forward
  kShared,  // shared experts
  kRouter,
  kExperts,  // routed experts
  kFinalNorm,
  kHead,  // of an untied embedding
};

// How a parameter is drawn.
struct Init {
  enum class Kind : std::uint8_t {
    kConstant,         // `scale` itself
    kNormal,           // N(0, scale^2)
    kTruncatedNormal,  // N(0, 1) cut to (-2, 2), of that a multiple with deviation `scale`
    kUniform,          // in (-scale, scale)
  } kind = Kind::kConstant;
  double scale = 0;

  bool operator==(const Init&) const = default;
};

// A family's way to draw the weights of linear maps and tables; norms begin at 1 (or what multiplies by 1), biases at 0.
struct InitScheme {
  enum class Kind : std::uint8_t {
    kFanIn,          // maps: truncated normal of variance 1/in; tables: N(0, 1/C) (JAXformer)
    kNormal,         // all: N(0, deviation^2) (Hugging Face: initializer_range)
    kXavierUniform,  // maps: uniform within sqrt(6 / (in + out)); tables: N(0, 1/C) (flax's miniGPT)
  } kind = Kind::kFanIn;
  double deviation = 0.02;
  double residual = 1;  // of maps that end a branch of the residual stream, the deviation is this times smaller (GPT-2)

  bool operator==(const InitScheme&) const = default;
};

constexpr int kNoLayer = -1;

// One parameter tensor of the model, whole.
struct ParameterSpec {
  std::string name;  // "layers.7.mla.down.kernel", "embedding.embedding"
  Shape shape;       // kernels (in, out), of routed experts (E, in, out); biases (out), (E, out); norms (C)
  ModuleKind module = ModuleKind::kEmbedding;
  Init init;
  Layout tp;            // over tensor parallelism: replicate, or shard; whole heads or channels that belong together
  bool trained = true;  // false: a buffer, which has no gradient and is no parameter for counting
  int layer = kNoLayer;

  bool operator==(const ParameterSpec&) const = default;
};

// Collects the parameters of modules under a prefix, such as "layers.7.".
class ParameterList {
 public:
  ParameterList(const InitScheme& scheme, std::int64_t width, std::string prefix = "", int layer = kNoLayer)
      : scheme_(scheme), width_(width), prefix_(std::move(prefix)), layer_(layer) {}

  void constant(const std::string& name, Shape shape, double value, ModuleKind module, Layout tp = {}) {
    add(name, std::move(shape), module, {Init::Kind::kConstant, value}, tp);
  }
  void buffer(const std::string& name, Shape shape, ModuleKind module) {
    constant(name, std::move(shape), 0, module);
    all_.back().trained = false;
  }
  void table(const std::string& name, Shape shape, ModuleKind module) {
    const double deviation =
        scheme_.kind == InitScheme::Kind::kNormal ? scheme_.deviation : 1.0 / std::sqrt(static_cast<double>(width_));
    add(name, std::move(shape), module, {Init::Kind::kNormal, deviation}, {});
  }
  // A kernel whose last two dimensions are in and out. `ends_branch`: what it gives is added to the residual stream.
  void kernel(const std::string& name, Shape shape, ModuleKind module, Layout tp = {}, bool ends_branch = false) {
    const Init init = of_kernel(shape[shape.size() - 2], shape.back(), ends_branch);
    add(name, std::move(shape), module, init, tp);
  }
  // The same, (out, in).
  void transposed_kernel(const std::string& name, Shape shape, ModuleKind module) {
    const Init init = of_kernel(shape.back(), shape[shape.size() - 2], false);
    add(name, std::move(shape), module, init, {});
  }
  // name.kernel (in, out) and name.bias (out), cut over the outputs alike.
  void linear(const std::string& name, std::int64_t in, std::int64_t out, bool bias, ModuleKind module,
              Layout kernel_tp = {}, Layout bias_tp = {}, bool ends_branch = false) {
    kernel(name + ".kernel", {in, out}, module, kernel_tp, ends_branch);
    if (bias) constant(name + ".bias", {out}, 0, module, bias_tp);
  }

  std::int64_t width() const { return width_; }  // C
  std::vector<ParameterSpec> take() { return std::move(all_); }

 private:
  Init of_kernel(std::int64_t in, std::int64_t out, bool ends_branch) const {
    switch (scheme_.kind) {
      case InitScheme::Kind::kFanIn:
        return {Init::Kind::kTruncatedNormal, 1.0 / std::sqrt(static_cast<double>(in))};
      case InitScheme::Kind::kNormal:
        return {Init::Kind::kNormal, scheme_.deviation / (ends_branch ? scheme_.residual : 1)};
      case InitScheme::Kind::kXavierUniform:
        return {Init::Kind::kUniform, std::sqrt(6.0 / static_cast<double>(in + out))};
    }
    return {};
  }
  void add(const std::string& name, Shape shape, ModuleKind module, Init init, Layout tp) {
    all_.push_back({prefix_ + name, std::move(shape), module, init, tp, true, layer_});
  }

  const InitScheme& scheme_;
  std::int64_t width_;
  std::string prefix_;
  int layer_;
  std::vector<ParameterSpec> all_;
};

}  // namespace meshwright
