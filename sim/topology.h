// How the devices of a system are wired: a graph of chips and one-way links. Grids (open mesh, torus, and
// mixtures, of any number of dimensions) and a switch that joins all devices directly.
// Not for: what a link can carry or how long a message takes (sim/system.h, sim/collective_cost.h).
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace meshwright {

using LinkId = int;

// One direction of a wire. Vertices are the chips 0..chips()-1, then the switch where there is one.
struct Link {
  int from = 0, to = 0;
  int dimension = 0;  // along which it runs; 0 in a switch
  bool operator==(const Link&) const = default;
};

// Lengths written as "2x4x4", x first. Parsing returns {} for all but positive numbers joined by x.
std::vector<int> parse_extents(const std::string& text);
std::string extents_text(const std::vector<int>& extents);

// Immutable, cheap to copy (copies share the graph), safe to share between threads.
// Chip c of a grid sits at (c % shape[0], c / shape[0] % shape[1], ...): x is the fastest coordinate.
class Topology {
 public:
  enum class Kind : std::uint8_t { kGrid, kSwitch };

  // wraps[d]: dimension d closes to a ring. A dimension of length 1 has no links; one of length 2 has a
  // single wire per pair whether it wraps or not, as no second port pair exists between the same two chips;
  // so neither counts as wrapped.
  // Precondition: as many wraps as extents, all extents at least 1.
  static Topology grid(std::vector<int> shape, std::vector<bool> wraps);
  // Each device has one wire to a common switch (or to memory that all share). shape() is {devices}.
  static Topology shared(int devices);

  Kind kind() const;
  int chips() const;
  int dimensions() const { return static_cast<int>(shape().size()); }
  const std::vector<int>& shape() const;
  bool wraps(int dimension) const;

  std::vector<int> coordinates(int chip) const;
  int chip_at(const std::vector<int>& coordinates) const;

  // Every one-way link. A wire is two of them.
  const std::vector<Link>& links() const;
  int wires() const { return static_cast<int>(links().size()) / 2; }
  // Wires that end at this chip.
  int ports(int chip) const;

  // The links that a message takes: dimension by dimension, x first, the shorter way round a ring (upwards on
  // a tie); over the switch where there is one. Empty if from == to.
  std::vector<LinkId> route(int from, int to) const;
  int hops(int from, int to) const { return static_cast<int>(route(from, to).size()); }

  // Wires over the narrowest cut across one dimension into two halves (as even as possible): chips / length
  // of the dimension, twice that where it wraps. Half the devices' wires in a switch. 0 for a single chip.
  int bisection_wires() const;

  std::string describe() const;  // "2x4x4 open mesh, 32 chips, 64 wires"

 private:
  struct Wiring;
  explicit Topology(std::shared_ptr<const Wiring> wiring);
  std::shared_ptr<const Wiring> wiring_;
};

}  // namespace meshwright
