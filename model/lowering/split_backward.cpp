#include "model/lowering/split_backward.h"

#include <map>
#include <utility>
#include <vector>

namespace meshwright {
namespace {

// Operations that the last value of kD depends on. What they change in place is theirs, too.
std::vector<bool> leading_to_input(const Piece& backward) {
  std::vector<bool> leads(backward.ops.size(), false), wanted(backward.tensors.size(), false);
  for (std::size_t t = 0; t < wanted.size(); ++t) wanted[t] = backward.tensors[t].frame == Frame::kD;
  for (std::size_t i = backward.ops.size(); i-- > 0;) {
    for_each_operand(backward.ops[i], [&](std::string_view, const View& v, Access access) {
      if (access != Access::kRead && wanted[static_cast<std::size_t>(v.tensor)]) leads[i] = true;
    });
    if (!leads[i]) continue;
    for_each_operand(backward.ops[i], [&](std::string_view, const View& v, Access access) {
      if (access != Access::kWrite) wanted[static_cast<std::size_t>(v.tensor)] = true;
    });
  }
  return leads;
}

}  // namespace

SplitBackward split(const Piece& backward, std::int64_t stash_begin) {
  const std::vector<bool> leads = leading_to_input(backward);
  std::vector<Tensor> tensors = backward.tensors;
  const auto changes = [&](std::size_t i, TensorId t) {
    bool found = false;
    for_each_operand(backward.ops[i], [&](std::string_view, const View& v, Access access) {
      found |= access != Access::kRead && v.tensor == t;
    });
    return found;
  };
  // The weights' part reads a value that the input's part changes later: the latter leaves a copy before it does.
  std::vector<std::vector<Op>> copies(backward.ops.size());  // in front of an operation
  std::map<std::pair<TensorId, std::size_t>, TensorId> copy_of;
  SplitBackward out;
  out.input.name = backward.name + ".input";
  out.weights.name = backward.name + ".weights";
  for (std::size_t i = 0; i < backward.ops.size(); ++i) {
    if (leads[i] || std::holds_alternative<Free>(backward.ops[i])) continue;
    Op op = backward.ops[i];
    map_operands(op, [&](std::string_view, View& v, Access access) {
      if (!v || access == Access::kWrite) return;
      std::size_t next = i + 1;
      while (next < backward.ops.size() && !(leads[next] && changes(next, v.tensor))) ++next;
      if (next == backward.ops.size()) return;
      const auto [copy, is_new] = copy_of.emplace(std::pair(v.tensor, next), static_cast<TensorId>(tensors.size()));
      if (is_new) {
        const Tensor& of = backward.tensors[static_cast<std::size_t>(v.tensor)];
        const std::int64_t n = elements(of.shape);
        tensors.push_back({of.name + ".then", of.shape, of.dtype, Frame::kWorkspace, 0});
        copies[next].emplace_back(Cast{{v.tensor, 1, n, n, 0}, {copy->second, 1, n, n, 0}});
      }
      v.tensor = copy->second;
    });
    out.weights.ops.push_back(std::move(op));
  }
  for (std::size_t i = 0; i < backward.ops.size(); ++i) {
    if (!leads[i]) continue;
    for (Op& copy : copies[i]) out.input.ops.push_back(std::move(copy));
    out.input.ops.push_back(backward.ops[i]);
  }
  std::vector<bool> left(tensors.size(), false), wanted = left;
  for (const Op& op : out.input.ops)
    for_each_operand(op, [&](std::string_view, const View& v, Access access) {
      if (access != Access::kRead) left[static_cast<std::size_t>(v.tensor)] = true;
    });
  for (const Op& op : out.weights.ops)
    for_each_operand(op, [&](std::string_view, const View& v, Access access) {
      if (access != Access::kWrite) wanted[static_cast<std::size_t>(v.tensor)] = true;
    });
  for (std::size_t t = 0; t < tensors.size(); ++t) {
    if (tensors[t].frame != Frame::kWorkspace || !left[t] || !wanted[t]) continue;
    tensors[t].frame = Frame::kStash;
    tensors[t].offset = stash_begin + out.stash_bytes;
    out.stash_bytes += align_up(tensors[t].bytes());
  }
  for (Piece* piece : {&out.input, &out.weights}) {
    piece->tensors = tensors;
    drop_unused_tensors(*piece);
    free_after_last_use(*piece);
    place_workspace(*piece);
  }
  return out;
}

}  // namespace meshwright
