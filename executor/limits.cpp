#include "executor/limits.h"

#include <fmt/format.h>

#include <cstdint>
#include <limits>

namespace meshwright {
namespace {

constexpr std::int64_t kMostElements = std::numeric_limits<int>::max();  // MPI's count is an int

std::int64_t count(const View& v) { return v.rows * v.cols; }

// Elements of the longest message that an operation sends or receives.
std::int64_t longest_message(const Op& op, const MeshShape& mesh) {
  if (const auto* send = std::get_if<Send>(&op)) return count(send->x);
  if (const auto* recv = std::get_if<Recv>(&op)) return count(recv->x);
  const auto* c = std::get_if<Collective>(&op);
  if (!c) return 0;
  if (c->algorithm == Algorithm::kDirect) return count(c->src);
  const int members = group_size(mesh, c->group);
  if (c->kind == CollectiveKind::kAllGather) return count(c->src);
  return (count(c->src) + members - 1) / members;
}

}  // namespace

std::optional<std::string> why_not_runnable(DType compute) {
  if (compute == DType::kF16) return "f16, whose gradients need a scale: --dtype bf16 or --dtype f32";
  return std::nullopt;
}

std::optional<std::string> why_not_runnable(const ProgramSet& set) {
  if (auto why = why_not_runnable(set.compute)) return why;
  for (const Piece& piece : set.pieces)
    for (const Op& op : piece.ops)
      if (const std::int64_t n = longest_message(op, set.mesh); n > kMostElements)
        return fmt::format("a message of more than {} elements ({} of {} has {}): more microbatches, or a larger tp",
                           kMostElements, op_name(op), piece.name, n);
  return std::nullopt;
}

}  // namespace meshwright
