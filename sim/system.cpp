#include "sim/system.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string_view>
#include <system_error>
#include <utility>

#include "model/input/diagnostics.h"
#include "model/input/json_reader.h"
#include "model/input/printable.h"
#include "model/program/op_work.h"

namespace meshwright {
namespace {

constexpr IntegerRange kCount{.min = 1, .max = 1 << 20};
constexpr double kMicro = 1e-6;

// ---- plausible numbers -------------------------------------------------------------------------------------------------

// A unit that people write by mistake.
struct Slip {
  std::string_view unit;
  double factor;  // to the unit of the key
};

// Which numbers a key may have: wide enough for a core of long ago and for machines that are announced, and narrow enough
// to notice a unit that is off by a thousand or a million. What lies outside is explained by the first slip whose value
// is a usual one.
struct Plausible {
  double min, max;
  double usual_min = 0, usual_max = 0;
  std::vector<Slip> slips = {};
  bool or_zero = false;
};
const Plausible kPeakFlops{1e8, 1e18, 1e11, 1e16, {{"TFLOP/s", 1e12}, {"PFLOP/s", 1e15}, {"GFLOP/s", 1e9}}};
const Plausible kMeasuredFlops{1e4, 1e18, 1e9, 1e16, {{"GFLOP/s", 1e9}, {"TFLOP/s", 1e12}}};
const Plausible kMemoryRate{1e8, 1e15, 2e10, 5e13, {{"GB/s", 1e9}, {"TB/s", 1e12}}};
const Plausible kLinkRate{1e6, 1e14, 1e9, 4e12, {{"GB/s", 1e9}, {"MB/s", 1e6}}};
const Plausible kMeasuredRate{1e4, 1e16, 1e8, 1e14, {{"GB/s", 1e9}, {"MB/s", 1e6}}};
const Plausible kEfficiency{1e-3, 1, 0.01, 1, {{"%", 1e-2}}};
const Plausible kLatency{1e-4, 1e6, 1e-2, 1e5, {{"s", 1e6}, {"ns", 1e-3}}, true};
const Plausible kMeasuredOverhead{1e-9, 1e6, 1e-2, 1e5, {{"s", 1e6}}, true};
const Plausible kMeasuredTime{1e-4, 1e9, 1e-1, 1e8, {{"s", 1e6}}};
const Plausible kMemory{1 << 20, 0x1p50, 0x1p28, 0x1p48, {{"GiB", 0x1p30}, {"MiB", 0x1p20}}};
const Plausible kMessageBytes{1, 0x1p50};
const Plausible kDimension{1, 1e9};

// 4.5e10, 0.87, 34359738368: as people write them, and exact.
std::string plain(double value) {
  std::string text = fmt::format("{:.6g}", value);
  if (std::strtod(text.c_str(), nullptr) != value)
    return value == std::floor(value) && std::abs(value) < 1e15 ? fmt::format("{:.0f}", value)
                                                                : fmt::format("{}", value);
  if (const std::size_t e = text.find("e+"); e != std::string::npos) text.erase(e + 1, text[e + 2] == '0' ? 2 : 1);
  if (const std::size_t e = text.find("e-0"); e != std::string::npos) text.erase(e + 2, 1);
  return text;
}

std::string allowed_text(const Plausible& p) {
  return fmt::format("{}{} to {}", p.or_zero ? "0, or " : "", plain(p.min), plain(p.max));
}

// "45: below 1e6; 45 GB/s is 4.5e10"
std::string hint_text(double value, const Plausible& p) {
  std::string text = value < p.min ? fmt::format("{}: below {}", plain(value), plain(p.min))
                                   : fmt::format("{}: above {}", plain(value), plain(p.max));
  for (const auto& [unit, factor] : p.slips)
    if (const double meant = std::strtod(fmt::format("{:.12g}", value * factor).c_str(), nullptr);
        meant >= p.usual_min && meant <= p.usual_max)
      return text + fmt::format("; {} {} is {}", plain(value), unit, plain(meant));
  return text + "; look at its unit";
}

// Which slices of a torus exist, and which of their dimensions close to rings.
enum class WrapRule { kWholeBlocks, kAlways, kNever };

struct SliceRules {
  bool shared_memory = false;
  int devices = 1;  // of shared memory
  WrapRule wrap = WrapRule::kNever;
  std::vector<int> block;               // a wrapped slice is made of whole ones
  std::vector<std::vector<int>> below;  // slices smaller than a block
  std::vector<int> largest;
  std::vector<int> host;
};

// Reads one file. Getters report what is wrong and return a harmless value; JsonReader::finish() throws
// before it is used.
class SystemFile {
 public:
  explicit SystemFile(const JsonDocument& document) : document_(document), reader_(document) {}

  System read(const std::string& slice) {
    ObjectReader root = reader_.root();
    System system;
    // Both are shown on terminals.
    const std::string name = printable(root.text("name").value_or(""));
    system.device = printable(root.text("device").value_or(""));
    if (auto memory = root.object("memory")) read_memory(*memory, system);
    if (auto compute = root.object("compute")) read_compute(*compute, system);
    if (auto topology = root.object("topology")) read_topology(*topology);
    if (auto network = root.object("network")) read_network(*network, system);
    std::string wanted = slice;
    if (root.has("slice")) {
      const std::string usual = root.text("slice").value_or("");
      if (wanted.empty()) wanted = usual;
    }
    reader_.finish();

    system.topology = slice_of(rules_, wanted, name);
    system.host = rules_.host;
    system.name = fmt::format("{}:{}", name, extents_text(system.topology.shape()));
    if (const auto* measured = std::get_if<MeasuredNetwork>(&system.network)) require_group_sizes(*measured, system);
    return system;
  }

 private:
  // {"value": ..., "source": "..."}
  std::optional<ObjectReader> sourced(ObjectReader& parent, std::string_view key) {
    const std::string stands = parent.value_text(key);
    auto object = parent.object(
        key, fmt::format(R"(write {{"value": {}, "source": "where it is from"}})", stands.empty() ? "..." : stands));
    if (object) read_source(*object);
    return object;
  }
  void read_source(ObjectReader& object) {
    const auto source = object.text("source", "where does this number come from?");
    if (source && source->empty()) {
      reader_.report(object.path("source"), "a source", "name the page, paper or measurement that it is from");
    }
  }
  // The number at a key; nothing, and a report, where it is not plausible.
  std::optional<double> plausible(ObjectReader& object, std::string_view key, const Plausible& range) {
    const auto value = object.number(key, {}, fmt::format("a number, {}", allowed_text(range)));
    if (!value || (*value >= range.min && *value <= range.max) || (range.or_zero && *value == 0)) return value;
    reader_.report(object.path(key), allowed_text(range), hint_text(*value, range));
    return std::nullopt;
  }
  double number(ObjectReader& parent, std::string_view key, const Plausible& range) {
    auto object = sourced(parent, key);
    return object ? plausible(*object, "value", range).value_or(1) : 1;
  }
  std::optional<std::int64_t> integer(ObjectReader& parent, std::string_view key, IntegerRange range) {
    auto object = sourced(parent, key);
    return object ? object->integer("value", range) : std::nullopt;
  }
  Seconds microseconds(ObjectReader& parent, std::string_view key, const Plausible& range) {
    return {kMicro * number(parent, key, range)};
  }

  std::vector<int> extents(ObjectReader& parent, std::string_view key, std::optional<std::size_t> dimensions) {
    auto object = sourced(parent, key);
    if (!object) return {};
    const auto text = object->text("value", "chips along each dimension, such as 4x4x4");
    if (!text) return {};
    std::vector<int> sizes = parse_extents(*text);
    if (sizes.empty() || (dimensions && sizes.size() != *dimensions)) {
      reader_.report(object->path("value"),
                     dimensions ? fmt::format("{} numbers joined by x", *dimensions) : "numbers joined by x",
                     "chips along each dimension, such as 4x4x4");
      return {};
    }
    return sizes;
  }

  // {"source": "...", "points": [{x_key: ..., y_key: ...}, ...]}
  struct Quantity {
    std::string_view key;
    const Plausible& range;
    double unit = 1;
  };
  Curve curve(ObjectReader& parent, std::string_view key, const Quantity& x, const Quantity& y) {
    auto object = parent.object(key);
    return object ? curve(*object, x, y) : Curve();
  }
  Curve curve(ObjectReader& object, const Quantity& size, const Quantity& quantity) {
    read_source(object);
    auto rows = object.objects("points");
    if (!rows) return {};
    if (rows->empty()) {
      reader_.report(object.path("points"), "at least one point", "calibrate again");
      return {};
    }
    std::vector<Curve::Point> points;
    bool whole = true;
    for (ObjectReader& row : *rows) {
      const auto x = plausible(row, size.key, size.range), y = plausible(row, quantity.key, quantity.range);
      if (!x || !y) {
        whole = false;
      } else if (!points.empty() && *x <= points.back().size) {
        reader_.report(row.path(size.key), fmt::format("more than {}, the point before it", points.back().size),
                       "sort the points, and keep one for each size");
        whole = false;
      } else {
        points.push_back({*x, *y * quantity.unit});
      }
    }
    return whole ? Curve(std::move(points)) : Curve();
  }

  void read_memory(ObjectReader& memory, System& system) {
    const auto bytes = [&](std::string_view key) -> std::optional<std::int64_t> {
      auto object = sourced(memory, key);
      const auto value = object ? object->integer("value", {}) : std::nullopt;
      if (!value || !plausible(*object, "value", kMemory)) return std::nullopt;
      return value;
    };
    const auto all = bytes("bytes"), usable = bytes("usable_bytes");
    system.memory = {all.value_or(1)};
    system.usable_memory = {usable.value_or(1)};
    if (all && usable && *usable > *all) {
      reader_.report(memory.path("usable_bytes") + ".value", fmt::format("at most memory.bytes, {}", *all),
                     "usable memory is what is left of it for a program");
    }
  }

  PeakRates read_peaks(ObjectReader& compute) {
    PeakRates peaks;
    auto object = compute.object("peak_flops_per_s", "for each type of products: bf16, f16, f32, f64");
    if (!object) return peaks;
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF64, DType::kF16}) {
      const std::string key(name(dtype));
      if (object->has(key)) peaks[dtype] = {number(*object, key, kPeakFlops)};
    }
    if (object->keys().empty()) {
      reader_.report(object->path(), "at least one of f32, bf16, f16, f64",
                     "add the peak of the type that you train in");
    }
    return peaks;
  }

  void read_compute(ObjectReader& compute, System& system) {
    const auto model = compute.one_of("model", {"roofline", "measured"});
    PeakRates peak = read_peaks(compute);
    if (model == "roofline") {
      RooflineCompute roofline;
      roofline.peak = std::move(peak);
      roofline.matmul_efficiency = number(compute, "matmul_efficiency", kEfficiency);
      roofline.tile.rows = integer(compute, "tile_rows", kCount).value_or(1);
      roofline.tile.columns = integer(compute, "tile_columns", kCount).value_or(1);
      roofline.tile.depth = integer(compute, "tile_depth", kCount).value_or(1);
      roofline.memory_bandwidth = {number(compute, "memory_bytes_per_s", kMemoryRate) *
                                   number(compute, "memory_efficiency", kEfficiency)};
      roofline.op_overhead = microseconds(compute, "op_overhead_us", kLatency);
      system.compute = std::move(roofline);
    } else if (model == "measured") {
      MeasuredCompute measured;
      measured.peak = std::move(peak);
      if (compute.has("memory_bytes_per_s"))
        measured.memory_bandwidth = BytesPerSecond{number(compute, "memory_bytes_per_s", kMemoryRate)};
      if (auto kinds = compute.object("kinds")) {
        std::vector<std::string> unlisted_products;
        for (int i = 0; i < kOpKinds; ++i) {
          const auto kind = static_cast<OpKind>(i);
          const std::string key(kind_name(kind));
          if (!kinds->has(key)) {
            if (is_product(kind)) unlisted_products.push_back(key);
          } else if (auto object = kinds->object(key)) {
            measured.kinds[kind] = read_kind(*object, measured.peak);
            if (is_product(kind)) require_rates(*object, key);
          }
        }
        if (auto other = kinds->object("other", "what operations cost that are not listed")) {
          measured.other = read_kind(*other, measured.peak);
          if (!unlisted_products.empty()) require_rates(*other, fmt::format("{}", fmt::join(unlisted_products, ", ")));
        }
      }
      system.compute = std::move(measured);
    }
  }

  // Without a rate, the FLOPs of a product would cost nothing.
  void require_rates(ObjectReader& kind, const std::string& products) {
    if (kind.has("flops_per_s")) return;
    reader_.report(kind.path(), "with flops_per_s, by type and size",
                   fmt::format("what products reach is missing, for {}: calibrate again, or add it", products));
  }

  MeasuredKind read_kind(ObjectReader& object, const PeakRates& peaks) {
    MeasuredKind kind;
    kind.overhead = microseconds(object, "overhead_us", kMeasuredOverhead);
    if (object.has("bytes_per_s")) kind.bandwidth = BytesPerSecond{number(object, "bytes_per_s", kMeasuredRate)};
    if (object.has("flops_per_s")) {
      if (auto rates = object.object("flops_per_s")) {
        for (const auto& [dtype, peak] : peaks) {  // a rate for each type that has a peak
          kind.rates[dtype] =
              curve(*rates, name(dtype), {"smallest_dimension", kDimension}, {"flops_per_s", kMeasuredFlops});
        }
      }
    }
    return kind;
  }

  void read_topology(ObjectReader& topology) {
    const auto kind = topology.one_of("kind", {"torus", "shared_memory"});
    if (kind == "shared_memory") {
      rules_.shared_memory = true;
      rules_.devices = static_cast<int>(integer(topology, "devices", kCount).value_or(1));
      rules_.host = {rules_.devices};
    } else if (kind == "torus") {
      const auto wrap = topology.one_of("wraps", {"whole_blocks", "always", "never"});
      rules_.largest = extents(topology, "largest_slice", std::nullopt);
      const std::size_t dimensions = rules_.largest.size();
      const auto same = dimensions > 0 ? std::optional(dimensions) : std::nullopt;
      rules_.host = extents(topology, "host", same);
      rules_.wrap = wrap == "always" ? WrapRule::kAlways : wrap == "never" ? WrapRule::kNever : WrapRule::kWholeBlocks;
      if (rules_.wrap == WrapRule::kWholeBlocks) {
        rules_.block = extents(topology, "block", same);
        read_slices_below(topology, same);
      }
    }
  }

  void read_slices_below(ObjectReader& topology, std::optional<std::size_t> dimensions) {
    auto object = sourced(topology, "slices_below_a_block");
    if (!object) return;
    const std::string text = object->text("value").value_or("");
    for (std::size_t at = 0; at < text.size();) {
      const std::size_t end = std::min(text.find(' ', at), text.size());
      const std::vector<int> shape = parse_extents(text.substr(at, end - at));
      if (shape.empty() || (dimensions && shape.size() != *dimensions)) {
        reader_.report(object->path("value"), "slices divided by one blank",
                       fmt::format("\"{}\" is not a slice such as 2x4x4", text.substr(at, end - at)));
        return;
      }
      rules_.below.push_back(shape);
      at = end + 1;
    }
  }

  void read_network(ObjectReader& network, System& system) {
    const auto model = network.one_of("model", {"links", "measured"});
    if (auto overlap = sourced(network, "overlaps_compute")) {
      system.overlaps_compute = overlap->boolean("value").value_or(false);
    }
    if (model == "links") {
      LinkNetwork links;
      links.link = {number(network, "link_bytes_per_s", kLinkRate)};
      links.link_efficiency = number(network, "link_efficiency", kEfficiency);
      links.hop_latency = microseconds(network, "hop_latency_us", kLatency);
      links.collective_overhead = microseconds(network, "collective_overhead_us", kLatency);
      links.message_overhead = microseconds(network, "message_overhead_us", kLatency);
      system.network = links;
      if (rules_.shared_memory) {
        reader_.report(network.path("model"), "measured, as topology.kind is shared_memory",
                       "devices that share memory have no links to cost: calibrate");
      }
    } else if (model == "measured") {
      system.network = read_measured_network(network);
      if (!rules_.shared_memory && !rules_.largest.empty()) {
        reader_.report(network.path("model"), "links, as topology.kind is torus",
                       "measured tables know the size of a group, not where it lies on a torus");
      }
    }
  }

  MeasuredNetwork read_measured_network(ObjectReader& network) {
    MeasuredNetwork measured;
    const Quantity bytes_of_message{"bytes", kMessageBytes}, time_of_message{"us", kMeasuredTime, kMicro};
    if (auto rows = network.objects("collectives")) {
      const std::vector<std::string> names{"all-gather", "reduce-scatter", "all-reduce", "direct all-reduce"};
      for (ObjectReader& row : *rows) {
        const auto kind = row.one_of("kind", names);
        const auto members = row.integer("members", {.min = 2, .max = kCount.max});
        Curve seconds = curve(row, bytes_of_message, time_of_message);
        if (!kind || !members) continue;
        const auto index = std::find(names.begin(), names.end(), *kind) - names.begin();
        const MeasuredNetwork::Key key{static_cast<CollectiveKind>(std::min<std::ptrdiff_t>(index, 2)),
                                       index == 3 ? Algorithm::kDirect : Algorithm::kRing, static_cast<int>(*members)};
        if (!measured.collectives.emplace(key, std::move(seconds)).second) {
          reader_.report(row.path("members"), "each kind and number of members once", "remove one of the two");
        }
      }
    }
    measured.message = curve(network, "message", bytes_of_message, time_of_message);
    return measured;
  }

  Diagnostic slice_error(const std::string& name, const std::string& slice, std::string allowed,
                         std::string hint) const {
    return {document_.source, "slice", slice.empty() ? "(missing)" : fmt::format("{}:{}", name, slice),
            std::move(allowed), std::move(hint)};
  }

  Topology slice_of(const SliceRules& rules, const std::string& slice, const std::string& name) const {
    if (rules.shared_memory) {
      if (slice.empty()) return Topology::shared(rules.devices);
      const std::vector<int> devices = parse_extents(slice);
      if (devices.size() != 1 || devices[0] > rules.devices) {
        throw InputError(slice_error(name, slice, fmt::format("1 to {} devices", rules.devices),
                                     fmt::format("write {}:{} for all of them", name, rules.devices)));
      }
      return Topology::shared(devices[0]);
    }
    const std::size_t dimensions = rules.largest.size();
    const std::string allowed = allowed_slices(rules);
    const std::vector<int> shape = parse_extents(slice);
    const auto refuse = [&](const std::string& hint) { throw InputError(slice_error(name, slice, allowed, hint)); };
    if (shape.empty()) {
      refuse(fmt::format("write the chips along each dimension, such as {}:{}", name,
                         extents_text(rules.below.empty() ? rules.largest : rules.below.back())));
    }
    if (shape.size() != dimensions) refuse(fmt::format("this has {} dimensions, not {}", shape.size(), dimensions));
    double chips = 1;
    for (const int length : shape) chips *= length;
    if (chips > static_cast<double>(kCount.max)) refuse(fmt::format("{} chips are more than {}", chips, kCount.max));
    if (rules.wrap != WrapRule::kWholeBlocks) {
      check_largest(rules, shape, refuse);
      return Topology::grid(shape, std::vector<bool>(dimensions, rules.wrap == WrapRule::kAlways));
    }
    if (std::find(rules.below.begin(), rules.below.end(), shape) != rules.below.end()) {
      return Topology::grid(shape, std::vector<bool>(dimensions, false));
    }
    std::vector<int> sorted = shape;
    std::sort(sorted.begin(), sorted.end());
    if (sorted != shape) {
      const bool helps = std::find(rules.below.begin(), rules.below.end(), sorted) != rules.below.end() ||
                         blocks_that_miss(rules, sorted).empty();
      refuse(helps ? fmt::format("write it shortest side first: {}:{}", name, extents_text(sorted))
                   : "sides go from short to long, and each is whole blocks");
    }
    if (const std::string missing = blocks_that_miss(rules, shape); !missing.empty()) refuse(missing);
    check_largest(rules, shape, refuse);
    return Topology::grid(shape, std::vector<bool>(dimensions, true));
  }

  // Why `shape` is not made of whole blocks; empty if it is.
  static std::string blocks_that_miss(const SliceRules& rules, const std::vector<int>& shape) {
    for (std::size_t d = 0; d < shape.size(); ++d) {
      if (shape[d] % rules.block[d] != 0) return fmt::format("{} is not a multiple of {}", shape[d], rules.block[d]);
    }
    return "";
  }
  template <class Refuse>
  static void check_largest(const SliceRules& rules, const std::vector<int>& shape, const Refuse& refuse) {
    for (std::size_t d = 0; d < shape.size(); ++d) {
      if (shape[d] > rules.largest[d]) refuse(fmt::format("{} is more than {}", shape[d], rules.largest[d]));
    }
  }
  static std::string allowed_slices(const SliceRules& rules) {
    if (rules.wrap != WrapRule::kWholeBlocks)
      return fmt::format("1 to {} chips along each dimension", extents_text(rules.largest));
    std::string text;
    for (const std::vector<int>& shape : rules.below) text += extents_text(shape) + ", ";
    return text + fmt::format("or whole blocks of {}, sides from short to long, up to {}", extents_text(rules.block),
                              extents_text(rules.largest));
  }

  // A mesh on n devices can ask for any group whose size divides n.
  void require_group_sizes(const MeasuredNetwork& network, const System& system) const {
    std::vector<Diagnostic> missing;
    for (int members = 2; members <= system.devices(); ++members) {
      if (system.devices() % members != 0) continue;
      const auto require = [&](CollectiveKind kind, Algorithm algorithm, std::string_view text) {
        if (network.collectives.contains({kind, algorithm, members})) return;
        missing.push_back({document_.source, "network.collectives", "",
                           fmt::format("a measurement of {} among {} members, as {} has {} devices", text, members,
                                       system.name, system.devices()),
                           "calibrate again on this machine"});
      };
      for (const CollectiveKind kind :
           {CollectiveKind::kAllGather, CollectiveKind::kReduceScatter, CollectiveKind::kAllReduce}) {
        require(kind, Algorithm::kRing, name(kind));
      }
      require(CollectiveKind::kAllReduce, Algorithm::kDirect, "direct all-reduce");
    }
    if (!missing.empty()) throw InputError(std::move(missing));
  }

  const JsonDocument& document_;
  JsonReader reader_;
  SliceRules rules_;
};

constexpr std::string_view kTpuPrefix = "tpu-";

}  // namespace

int System::hosts() const {
  int hosts = 1;
  for (int d = 0; d < topology.dimensions(); ++d) hosts *= (topology.shape()[d] + host[d] - 1) / host[d];
  return hosts;
}

const PeakRates& System::peaks() const {
  return std::visit([](const auto& c) -> const PeakRates& { return c.peak; }, compute);
}

std::vector<std::string> known_systems(const std::filesystem::path& configs) {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(configs / "systems", error)) {
    if (entry.path().extension() != ".json") continue;
    std::string stem = entry.path().stem().string();
    if (stem.starts_with(kTpuPrefix)) stem.erase(0, kTpuPrefix.size());
    names.push_back(std::move(stem));
  }
  std::sort(names.begin(), names.end());
  return names;
}

System load_system_file(const std::filesystem::path& file, const std::string& slice) {
  const JsonDocument document = read_json_file(file);
  return SystemFile(document).read(slice);
}

System load_system(const std::string& spec, const std::filesystem::path& configs,
                   const std::vector<std::string>& others) {
  // The slice is what follows the last colon, unless that is part of a file's path.
  const std::size_t colon = spec.find_last_of(":/");
  const bool sliced = colon != std::string::npos && spec[colon] == ':';
  const std::string what = sliced ? spec.substr(0, colon) : spec;
  const std::string slice = sliced ? spec.substr(colon + 1) : "";
  if (what.find('/') != std::string::npos || what.ends_with(".json")) return load_system_file(what, slice);

  std::vector<std::string> known = known_systems(configs);
  if (std::find(known.begin(), known.end(), what) == known.end()) {
    known.insert(known.end(), others.begin(), others.end());
    // Files are named tpu-v4.json; people call the machine so, too.
    const std::string_view meant = std::string_view(what).substr(what.starts_with(kTpuPrefix) ? kTpuPrefix.size() : 0);
    throw InputError(
        {"--system", "", fmt::format("\"{}\"", spec), fmt::format("{}, or a JSON file", fmt::join(known, ", ")),
         did_you_mean(
             meant, known,
             fmt::format("describe it in a file of your own, like those in {}", (configs / "systems").string()),
             sliced ? ":" + slice : "")});
  }
  const std::filesystem::path plain = configs / "systems" / (what + ".json");
  std::error_code error;
  const bool is_plain = std::filesystem::exists(plain, error);
  return load_system_file(is_plain ? plain : configs / "systems" / fmt::format("{}{}.json", kTpuPrefix, what), slice);
}

void require_dtype(const System& system, DType dtype) {
  if (system.computes(dtype)) return;
  std::vector<std::string_view> has;
  for (const auto& [known, peak] : system.peaks()) has.push_back(name(known));
  throw InputError({system.name, "compute.peak_flops_per_s", std::string(name(dtype)),
                    fmt::format("{}", fmt::join(has, ", ")),
                    "this system's file says nothing about products of this type: add it, or train in another"});
}

}  // namespace meshwright
