// A machine as the simulator knows it: devices of one kind, their memory, how they are wired, and what each
// thing costs.
// Read from JSON (configs/systems/*.json): every number has its unit in its key and its source beside it,
//   "hop_latency_us": {"value": 1, "source": "How to Scale Your Model, tpus.md"}
// Two kinds of description: from data sheets (roofline, links), and measured (tables that calibration wrote).
#pragma once

#include <compare>
#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <variant>
#include <vector>

#include "model/program/op.h"
#include "model/program/tensor.h"
#include "model/program/units.h"
#include "sim/curve.h"
#include "sim/topology.h"

namespace meshwright {

using PeakRates = std::map<DType, FlopsPerSecond>;

// ---- compute (costs: sim/compute_cost.h) ---------------------------------------------------------------

// The matrix unit works on whole tiles: rows x depth times depth x columns.
struct Tile {
  std::int64_t rows = 1, columns = 1, depth = 1;
};

// "model": "roofline"
struct RooflineCompute {
  PeakRates peak;
  double matmul_efficiency = 1;  // of the peak that a large product of whole tiles reaches
  Tile tile;
  BytesPerSecond memory_bandwidth;  // achievable: the peak times the fraction that a copy reaches
  Seconds op_overhead;              // of every operation
};

// "model": "measured"
struct MeasuredKind {
  Seconds overhead;                         // of every operation
  std::map<DType, Curve> rates;             // FLOP/s by the smallest of m, n, k
  std::optional<BytesPerSecond> bandwidth;  // of the bytes that the operation touches
};
struct MeasuredCompute {
  PeakRates peak;  // of the device's arithmetic, for utilisation
  std::map<OpKind, MeasuredKind> kinds;
  MeasuredKind other;  // kinds that are not listed
};

// ---- network (costs: sim/collective_cost.h) ------------------------------------------------------------

// "model": "links"
struct LinkNetwork {
  BytesPerSecond link;         // of one link in one direction
  double link_efficiency = 1;  // of it that a collective reaches
  Seconds hop_latency;
  Seconds collective_overhead;  // of every collective
  Seconds message_overhead;     // of every message
};

// "model": "measured". Seconds by bytes of the whole buffer, all groups of this size on the machine running
// at once.
struct MeasuredNetwork {
  struct Key {
    CollectiveKind kind;
    Algorithm algorithm;
    int members;
    auto operator<=>(const Key&) const = default;
  };
  std::map<Key, Curve> collectives;
  Curve message;
};

// ---- the whole -----------------------------------------------------------------------------------------

struct System {
  std::string name;     // "v4:2x4x4": as it is asked for
  std::string device;   // "TPU v4 chip"
  Bytes memory;         // of one device
  Bytes usable_memory;  // of it, what a program may take; a plan fits if its peak is at most this
  std::variant<RooflineCompute, MeasuredCompute> compute;
  std::variant<LinkNetwork, MeasuredNetwork> network;
  bool overlaps_compute = false;  // false: a device that communicates can't compute meanwhile
  Topology topology = Topology::shared(1);
  std::vector<int> host;  // chips of one host along each dimension

  int devices() const { return topology.chips(); }
  int hosts() const;
  const PeakRates& peaks() const;
  bool computes(DType dtype) const { return peaks().contains(dtype); }
  FlopsPerSecond peak(DType dtype) const { return peaks().at(dtype); }
};

// `spec` is NAME[:SLICE] or FILE[:SLICE].
//   NAME   a file of configs/systems/, without its ending and a leading "tpu-": v4 is tpu-v4.json. `local` is
//          not known here: who calibrates knows where the file is (load_system_file).
//   FILE   ends with .json or holds a slash.
//   SLICE  chips along each dimension, as in v4:2x4x4, or a number of devices. Without it the file's "slice",
//          or for shared memory all devices.
// The configs folder is $MESHWRIGHT_CONFIGS, else that of the sources this was built from.
// Throws InputError: an unknown name (with those that are known), everything wrong with the file, an
// impossible slice.
// `others`: names that the caller knows beside these, for its message.
System load_system(const std::string& spec, const std::vector<std::string>& others = {});
System load_system_file(const std::filesystem::path& file, const std::string& slice = "");

// The names that load_system knows, sorted.
std::vector<std::string> known_systems();

// Throws InputError if the system has no peak for products of this type, naming the types that it has.
void require_dtype(const System& system, DType dtype);

}  // namespace meshwright
