#include "sim/topology.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/graph/adjacency_list.hpp>
#include <cassert>
#include <functional>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace meshwright {
namespace {

struct LinkProperty {
  LinkId id = 0;
};
using Graph = boost::adjacency_list<boost::vecS, boost::vecS, boost::directedS, boost::no_property, LinkProperty>;

int product(const std::vector<int>& extents) {
  return std::accumulate(extents.begin(), extents.end(), 1, std::multiplies<>());
}

}  // namespace

std::vector<int> parse_extents(const std::string& text) {
  constexpr int kLargest = 1 << 20;
  std::vector<int> extents;
  std::size_t at = 0;
  while (true) {
    const std::size_t end = std::min(text.find('x', at), text.size());
    int extent = 0;
    for (std::size_t i = at; i < end; ++i) {
      if (text[i] < '0' || text[i] > '9') return {};
      extent = extent * 10 + (text[i] - '0');
      if (extent > kLargest) return {};
    }
    if (end == at || extent == 0) return {};
    extents.push_back(extent);
    if (end == text.size()) return extents;
    at = end + 1;
  }
}

std::string extents_text(const std::vector<int>& extents) { return fmt::format("{}", fmt::join(extents, "x")); }

struct Topology::Wiring {
  Wiring(Kind kind, int chips, int vertices) : kind(kind), chips(chips), graph(vertices) {}

  Kind kind;
  int chips;
  Graph graph;
  std::vector<Link> links;  // in the order of their ids
  std::vector<int> shape;
  std::vector<bool> wraps;

  void add_wire(int a, int b, int dimension) {
    for (const auto& [from, to] : {std::pair{a, b}, std::pair{b, a}}) {
      boost::add_edge(from, to, LinkProperty{static_cast<LinkId>(links.size())}, graph);
      links.push_back({from, to, dimension});
    }
  }
  LinkId link_between(int from, int to) const {
    const auto [edge, found] = boost::edge(from, to, graph);
    assert(found);
    return graph[edge].id;
  }
};

Topology::Topology(std::shared_ptr<const Wiring> wiring) : wiring_(std::move(wiring)) {}

Topology Topology::grid(std::vector<int> shape, std::vector<bool> wraps) {
  assert(shape.size() == wraps.size());
  assert(std::all_of(shape.begin(), shape.end(), [](int n) { return n >= 1; }));
  const int chips = product(shape);
  auto wiring = std::make_shared<Wiring>(Kind::kGrid, chips, chips);
  for (std::size_t d = 0; d < shape.size(); ++d) wraps[d] = wraps[d] && shape[d] > 2;
  int stride = 1;  // chips between neighbours along the dimension
  for (std::size_t d = 0; d < shape.size(); ++d) {
    for (int chip = 0; chip < chips; ++chip) {
      const int at = chip / stride % shape[d];
      if (at + 1 < shape[d]) {
        wiring->add_wire(chip, chip + stride, static_cast<int>(d));
      } else if (wraps[d]) {
        wiring->add_wire(chip, chip - at * stride, static_cast<int>(d));
      }
    }
    stride *= shape[d];
  }
  wiring->shape = std::move(shape);
  wiring->wraps = std::move(wraps);
  return Topology(std::move(wiring));
}

Topology Topology::shared(int devices) {
  assert(devices >= 1);
  auto wiring = std::make_shared<Wiring>(Kind::kSwitch, devices, devices + 1);
  wiring->shape = {devices};
  wiring->wraps = {false};
  for (int device = 0; device < devices; ++device) wiring->add_wire(device, devices, 0);
  return Topology(std::move(wiring));
}

Topology::Kind Topology::kind() const { return wiring_->kind; }
int Topology::chips() const { return wiring_->chips; }
const std::vector<int>& Topology::shape() const { return wiring_->shape; }
bool Topology::wraps(int dimension) const { return wiring_->wraps[dimension]; }
const std::vector<Link>& Topology::links() const { return wiring_->links; }
int Topology::ports(int chip) const { return static_cast<int>(boost::out_degree(chip, wiring_->graph)); }

std::vector<int> Topology::coordinates(int chip) const {
  assert(0 <= chip && chip < chips());
  std::vector<int> at;
  for (const int extent : shape()) {
    at.push_back(chip % extent);
    chip /= extent;
  }
  return at;
}

int Topology::chip_at(const std::vector<int>& coordinates) const {
  assert(coordinates.size() == shape().size());
  int chip = 0;
  for (int d = dimensions() - 1; d >= 0; --d) {
    assert(0 <= coordinates[d] && coordinates[d] < shape()[d]);
    chip = chip * shape()[d] + coordinates[d];
  }
  return chip;
}

std::vector<LinkId> Topology::route(int from, int to) const {
  if (from == to) return {};
  if (kind() == Kind::kSwitch) {
    const int hub = chips();
    return {wiring_->link_between(from, hub), wiring_->link_between(hub, to)};
  }
  std::vector<LinkId> taken;
  std::vector<int> at = coordinates(from);
  const std::vector<int> goal = coordinates(to);
  for (int d = 0; d < dimensions(); ++d) {
    const int length = shape()[d];
    const int up = (goal[d] - at[d] + length) % length;  // steps upwards round a ring
    const bool upwards = wraps(d) ? up <= length - up : goal[d] > at[d];
    while (at[d] != goal[d]) {
      const int here = chip_at(at);
      at[d] = (at[d] + (upwards ? 1 : length - 1)) % length;
      taken.push_back(wiring_->link_between(here, chip_at(at)));
    }
  }
  return taken;
}

int Topology::bisection_wires() const {
  if (chips() == 1) return 0;
  if (kind() == Kind::kSwitch) return chips() / 2;
  int narrowest = std::numeric_limits<int>::max();
  for (int d = 0; d < dimensions(); ++d) {
    if (shape()[d] > 1) narrowest = std::min(narrowest, chips() / shape()[d] * (wraps(d) ? 2 : 1));
  }
  return narrowest;
}

std::string Topology::describe() const {
  if (kind() == Kind::kSwitch) return fmt::format("{} devices joined by a switch", chips());
  int rings = 0, lines = 0;
  std::string wrapped;
  for (int d = 0; d < dimensions(); ++d) {
    if (shape()[d] == 1) continue;
    wraps(d) ? ++rings : ++lines;
    if (wraps(d)) wrapped += fmt::format("{}{}", wrapped.empty() ? "" : ",", d);
  }
  const std::string form = rings == 0   ? "open mesh"
                           : lines == 0 ? "torus"
                                        : fmt::format("mesh wrapped along dimensions {}", wrapped);
  return fmt::format("{} {}, {} chips, {} wires", extents_text(shape()), form, chips(), wires());
}

}  // namespace meshwright
