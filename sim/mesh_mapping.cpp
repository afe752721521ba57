#include "sim/mesh_mapping.h"

#include <fmt/format.h>

#include <algorithm>
#include <cassert>
#include <cstdlib>
#include <utility>

namespace meshwright {
namespace {

enum Axis { kTpAxis, kDpAxis, kPpAxis, kAxes };  // nesting order, innermost first

int product(const std::vector<int>& sizes) {
  int n = 1;
  for (const int size : sizes) n *= size;
  return n;
}

// Digits of `index`, lowest dimension fastest.
std::vector<int> digits(int index, const std::vector<int>& sizes) {
  std::vector<int> out;
  for (const int size : sizes) {
    out.push_back(index % size);
    index /= size;
  }
  return out;
}

// Digits of `index` in the reflected (snake) order: one step of the index moves one digit by one. A digit
// runs backwards in every second round of it, that is, when the number made of the digits above it is odd.
std::vector<int> reflected_digits(int index, const std::vector<int>& sizes) {
  std::vector<int> out;
  for (const int size : sizes) {
    const int digit = index % size;
    index /= size;
    out.push_back(index % 2 == 0 ? digit : size - 1 - digit);
  }
  return out;
}

std::vector<int> axis_digits(Axis axis, int index, const std::vector<int>& sizes) {
  return axis == kPpAxis ? reflected_digits(index, sizes) : digits(index, sizes);
}

constexpr std::array<Group, kAxes> kGroupOfAxis{Group::kTp, Group::kDp, Group::kPp};

}  // namespace

int GroupPlacement::members() const {
  int n = 1;
  for (const AxisFactor& f : factors) n *= f.size;
  return n;
}

MeshMapping::MeshMapping(Topology topology, Factors sizes)
    : topology_(std::move(topology)),
      sizes_(std::move(sizes)),
      mesh_{.dp = product(sizes_[kDpAxis]), .pp = product(sizes_[kPpAxis]), .tp = product(sizes_[kTpAxis])} {
  for (int d = 0; d < topology_.dimensions(); ++d) {
    int stride = 1;
    for (int axis = 0; axis < kAxes; ++axis) {
      const int size = sizes_[axis][d];
      const bool whole = stride * size == topology_.shape()[d];
      if (size > 1) {
        placements_[static_cast<int>(kGroupOfAxis[axis])].factors.push_back(
            {.dimension = d, .size = size, .stride = stride, .sharing = stride, .wraps = whole && topology_.wraps(d)});
      }
      stride *= size;
    }
    assert(stride == topology_.shape()[d]);
  }
  if (mesh_.pp == 1) return;
  const std::vector<int> first = coordinates({.pp = 0}), last = coordinates({.pp = mesh_.pp - 1});
  AxisFactor ends{.size = 2, .stride = 0, .sharing = 0};
  for (int d = 0; d < topology_.dimensions(); ++d) {
    const int apart = std::abs(last[d] - first[d]);
    if (apart == 0) continue;
    ends.stride += topology_.wraps(d) ? std::min(apart, topology_.shape()[d] - apart) : apart;
    if (const int box = sizes_[kTpAxis][d] * sizes_[kDpAxis][d]; box > ends.sharing) {
      ends.dimension = d;
      ends.sharing = box;
    }
  }
  placements_[static_cast<int>(Group::kPpEnds)].factors = {ends};
}

int MeshMapping::chip(const MeshCoordinates& rank) const {
  assert(0 <= rank.dp && rank.dp < mesh_.dp && 0 <= rank.pp && rank.pp < mesh_.pp && 0 <= rank.tp &&
         rank.tp < mesh_.tp);
  const std::vector<int> t = axis_digits(kTpAxis, rank.tp, sizes_[kTpAxis]);
  const std::vector<int> d = axis_digits(kDpAxis, rank.dp, sizes_[kDpAxis]);
  const std::vector<int> p = axis_digits(kPpAxis, rank.pp, sizes_[kPpAxis]);
  std::vector<int> at;
  for (int i = 0; i < topology_.dimensions(); ++i) {
    at.push_back(t[i] + sizes_[kTpAxis][i] * (d[i] + sizes_[kDpAxis][i] * p[i]));
  }
  return topology_.chip_at(at);
}

int MeshMapping::stage_hops() const {
  int hops = 0;
  for (const AxisFactor& f : placement(Group::kPp).factors) hops = std::max(hops, f.stride);
  return hops;
}

std::string MeshMapping::describe() const {
  const auto axis_name = [](int dimension) {
    constexpr std::string_view letters = "xyz";
    return dimension < 3 ? std::string(1, letters[dimension]) : fmt::format("d{}:", dimension);
  };
  std::string text;
  for (const Group group : kGroupOfAxis) {
    if (!text.empty()) text += "; ";
    text += fmt::format("{}:", name(group));
    if (placement(group).factors.empty()) text += " 1";
    for (const AxisFactor& f : placement(group).factors) {
      text += fmt::format(" {}{}", axis_name(f.dimension), f.size);
      if (f.stride > 1 && f.wraps) text += fmt::format(" (stride {}, ring)", f.stride);
      if (f.stride > 1 && !f.wraps) text += fmt::format(" (stride {})", f.stride);
      if (f.stride == 1 && f.wraps) text += " (ring)";
    }
  }
  return text;
}

std::vector<MeshMapping> mappings(const Topology& topology, const MeshShape& mesh) {
  assert(mesh.ranks() == topology.chips());
  std::vector<MeshMapping> found;
  MeshMapping::Factors sizes;
  // Dimension by dimension, what is left of each axis; larger tp factors first.
  const auto cut = [&](const auto& self, int dimension, int tp, int dp, int pp) -> void {
    if (dimension == topology.dimensions()) {
      if (tp == 1 && dp == 1 && pp == 1) found.emplace_back(topology, sizes);
      return;
    }
    const int length = topology.shape()[dimension];
    for (int t = length; t >= 1; --t) {
      if (length % t != 0 || tp % t != 0) continue;
      for (int d = length / t; d >= 1; --d) {
        const int p = length / t / d;
        if (length / t % d != 0 || dp % d != 0 || pp % p != 0) continue;
        sizes[kTpAxis].push_back(t);
        sizes[kDpAxis].push_back(d);
        sizes[kPpAxis].push_back(p);
        self(self, dimension + 1, tp / t, dp / d, pp / p);
        for (std::vector<int>& axis : sizes) axis.pop_back();
      }
    }
  };
  cut(cut, 0, mesh.tp, mesh.dp, mesh.pp);
  return found;
}

}  // namespace meshwright
