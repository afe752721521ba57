// Tensors of a Program: what they are, how they are cut over the mesh, and in which frame of a rank's arena they lie.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "model/program/units.h"

namespace meshwright {

enum class DType : std::uint8_t { kF32, kBF16, kF64, kI32, kF16 };
constexpr std::string_view name(DType t) {
  constexpr std::array<std::string_view, 5> names{"f32", "bf16", "f64", "i32", "f16"};
  return names[static_cast<int>(t)];
}
constexpr std::int64_t size_of(DType t) { return t == DType::kF64 ? 8 : t == DType::kBF16 || t == DType::kF16 ? 2 : 4; }

constexpr std::int64_t align_up(std::int64_t bytes) { return (bytes + 63) / 64 * 64; }  // as tensors of an arena begin

using Shape = std::vector<std::int64_t>;
std::int64_t elements(const Shape& shape);
std::string to_string(const Shape& shape);  // "(1024, 8, 768)"

// How a tensor lies over one mesh axis. kPartial: each rank holds a summand of the whole tensor.
// kShard with blocks > 1: dimension `dim` is `blocks` equal parts (keys, then values), each cut by itself.
struct Layout {
  enum class Kind : std::uint8_t { kReplicate, kShard, kPartial } kind = Kind::kReplicate;
  int dim = 0;
  int blocks = 1;

  bool operator==(const Layout&) const = default;
  static constexpr Layout replicate() { return {}; }
  static constexpr Layout shard(int dim, int blocks = 1) { return {Kind::kShard, dim, blocks}; }
  static constexpr Layout partial() { return {Kind::kPartial, 0, 1}; }
};
std::string to_string(const Layout& layout);  // "replicate", "shard(0)", "partial"

// An arena is made of frames. A piece of the program names a tensor by frame and offset; where the frame begins is
// decided by the call, so that one piece serves every layer and microbatch.
enum class Frame : std::uint8_t {
  kX,            // residual stream into a layer: (Tl, B, C)
  kXOut,         // residual stream out of it
  kD,            // gradient of the residual stream, updated in place
  kStash,        // what a layer's forward saves for its backward, per microbatch in flight
  kWorkspace,    // temporaries of one call
  kWeights,      // a block's parameters in the compute dtype, whole over dp (kept, or gathered into a ring of two)
  kWeightShard,  // this rank's 1/dp of them, kept (FSDP 3)
  kMaster,       // parameters that the optimizer updates, in f32 (f64 in the f64 twin); may coincide with the two above
  kGrads,        // gradients, whole over dp: accumulators, or a ring of two that is reduced per microbatch
  kGradShard,    // gradients after the reduction over dp; may coincide with kGrads
  kMoment1,      // Adam's first moments, of the elements of kMaster
  kMoment2,
  kTokens,       // input and target ids of the step
  kMetrics,      // sums that are logged, and the squared gradient norm: f64
  kBalance,      // share of choices of every expert over the step's tokens, where the balance loss asks for it
  kCommScratch,  // receive buffers of reductions on the dp stream
};
constexpr int kFrames = 16;
constexpr std::array<std::string_view, kFrames> kFrameNames{
    "x",     "x_out",      "d",       "stash",   "ws",     "weights", "weight_shard", "master",
    "grads", "grad_shard", "moment1", "moment2", "tokens", "metrics", "balance",      "comm_scratch"};
constexpr std::string_view name(Frame f) { return kFrameNames[static_cast<int>(f)]; }

// What memory is for, as reports show it.
enum class MemoryClass : std::uint8_t {
  kParameters,
  kGradients,
  kOptimizer,
  kActivations,
  kWorkspace,
  kBuffers,
  kData
};
constexpr int kMemoryClasses = 7;
constexpr std::array<std::string_view, kMemoryClasses> kMemoryClassNames{
    "parameters", "gradients", "optimizer", "activations", "workspace", "buffers", "data"};
constexpr std::string_view name(MemoryClass c) { return kMemoryClassNames[static_cast<int>(c)]; }

struct Tensor {
  std::string name;
  Shape shape;  // local to the rank
  DType dtype = DType::kF32;
  Frame frame = Frame::kWorkspace;
  std::int64_t offset = 0;  // bytes from the frame's begin; of workspace tensors: set by place_workspace()

  std::int64_t bytes() const { return elements(shape) * size_of(dtype); }
};

using TensorId = int;
constexpr TensorId kNoTensor = -1;

// A rows x cols window of a tensor of its piece, seen as a row-major matrix.
struct View {
  TensorId tensor = kNoTensor;
  std::int64_t rows = 0, cols = 0;
  std::int64_t ld = 0;      // elements between rows
  std::int64_t offset = 0;  // elements from the tensor's first
  bool own_rows = false;    // starts (tp coordinate x rows) rows later: this rank's part of a gathered sequence
  bool own_cols = false;    // starts (tp coordinate x cols) columns later: this rank's part of every row

  explicit operator bool() const { return tensor != kNoTensor; }
  View columns(std::int64_t first, std::int64_t count) const {
    View v = *this;
    v.offset += first;
    v.cols = count;
    return v;
  }
};

}  // namespace meshwright
