#include "sim/system.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <string_view>
#include <system_error>
#include <utility>

#include "model/input/diagnostics.h"
#include "model/input/json_reader.h"
#include "model/input/printable.h"

namespace meshwright {
namespace {

constexpr NumberRange kPositive{.min = 0, .min_open = true};
constexpr NumberRange kNotNegative{.min = 0};
constexpr NumberRange kFraction{.min = 0, .max = 1, .min_open = true};
constexpr IntegerRange kCount{.min = 1, .max = 1 << 20};
constexpr double kMicro = 1e-6;

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
    auto object = parent.object(key, R"(write {"value": ..., "source": "where it is from"})");
    if (object) read_source(*object);
    return object;
  }
  void read_source(ObjectReader& object) {
    const auto source = object.text("source", "where does this number come from?");
    if (source && source->empty()) {
      reader_.report(object.path("source"), "a source", "name the page, paper or measurement that it is from");
    }
  }
  double number(ObjectReader& parent, std::string_view key, NumberRange range) {
    auto object = sourced(parent, key);
    return object ? object->number("value", range).value_or(1) : 1;
  }
  std::optional<std::int64_t> integer(ObjectReader& parent, std::string_view key, IntegerRange range) {
    auto object = sourced(parent, key);
    return object ? object->integer("value", range) : std::nullopt;
  }
  Seconds microseconds(ObjectReader& parent, std::string_view key) {
    return {kMicro * number(parent, key, kNotNegative)};
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
  Curve curve(ObjectReader& parent, std::string_view key, std::string_view x_key, std::string_view y_key,
              double y_unit) {
    auto object = parent.object(key);
    return object ? curve(*object, x_key, y_key, y_unit) : Curve();
  }
  Curve curve(ObjectReader& object, std::string_view x_key, std::string_view y_key, double y_unit) {
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
      const auto x = row.number(x_key, kPositive), y = row.number(y_key, kPositive);
      if (!x || !y) {
        whole = false;
      } else if (!points.empty() && *x <= points.back().size) {
        reader_.report(row.path(x_key), fmt::format("more than {}, the point before it", points.back().size),
                       "sort the points, and keep one for each size");
        whole = false;
      } else {
        points.push_back({*x, *y * y_unit});
      }
    }
    return whole ? Curve(std::move(points)) : Curve();
  }

  void read_memory(ObjectReader& memory, System& system) {
    constexpr IntegerRange kBytes{.min = 1, .max = std::int64_t{1} << 50};
    const auto all = integer(memory, "bytes", kBytes), usable = integer(memory, "usable_bytes", kBytes);
    system.memory = {all.value_or(1)};
    system.usable_memory = {usable.value_or(1)};
    if (all && usable && *usable > *all) {
      reader_.report(memory.path("usable_bytes") + ".value", fmt::format("at most memory.bytes, {}", *all),
                     "usable memory is what is left of it for a program");
    }
  }

  PeakRates read_peaks(ObjectReader& compute) {
    PeakRates peaks;
    auto object = compute.object("peak_flops_per_s", "for each type of products: bf16, f32, f64");
    if (!object) return peaks;
    for (const DType dtype : {DType::kF32, DType::kBF16, DType::kF64}) {
      const std::string key(name(dtype));
      if (object->has(key)) peaks[dtype] = {number(*object, key, kPositive)};
    }
    if (object->keys().empty()) {
      reader_.report(object->path(), "at least one of f32, bf16, f64", "add the peak of the type that you train in");
    }
    return peaks;
  }

  void read_compute(ObjectReader& compute, System& system) {
    const auto model = compute.one_of("model", {"roofline", "measured"});
    PeakRates peak = read_peaks(compute);
    if (model == "roofline") {
      RooflineCompute roofline;
      roofline.peak = std::move(peak);
      roofline.matmul_efficiency = number(compute, "matmul_efficiency", kFraction);
      roofline.tile.rows = integer(compute, "tile_rows", kCount).value_or(1);
      roofline.tile.columns = integer(compute, "tile_columns", kCount).value_or(1);
      roofline.tile.depth = integer(compute, "tile_depth", kCount).value_or(1);
      roofline.memory_bandwidth = {number(compute, "memory_bytes_per_s", kPositive) *
                                   number(compute, "memory_efficiency", kFraction)};
      roofline.op_overhead = microseconds(compute, "op_overhead_us");
      system.compute = std::move(roofline);
    } else if (model == "measured") {
      MeasuredCompute measured;
      measured.peak = std::move(peak);
      if (auto kinds = compute.object("kinds")) {
        for (int kind = 0; kind < kOpKinds; ++kind) kinds->has(kind_name(static_cast<OpKind>(kind)));  // all are known
        for (const std::string& key : kinds->keys()) {
          if (key != "other") read_listed_kind(*kinds, key, measured);
        }
        if (auto other = kinds->object("other", "what operations cost that are not listed")) {
          measured.other = read_kind(*other, measured.peak);
        }
      }
      system.compute = std::move(measured);
    }
  }

  void read_listed_kind(ObjectReader& kinds, const std::string& key, MeasuredCompute& measured) {
    for (int kind = 0; kind < kOpKinds; ++kind) {
      if (kind_name(static_cast<OpKind>(kind)) != key) continue;
      if (auto object = kinds.object(key)) {
        measured.kinds[static_cast<OpKind>(kind)] = read_kind(*object, measured.peak);
      }
      return;
    }  // no operation: never asked for, so finish() reports it as unknown
  }

  MeasuredKind read_kind(ObjectReader& object, const PeakRates& peaks) {
    MeasuredKind kind;
    kind.overhead = microseconds(object, "overhead_us");
    if (object.has("bytes_per_s")) kind.bandwidth = BytesPerSecond{number(object, "bytes_per_s", kPositive)};
    if (object.has("flops_per_s")) {
      if (auto rates = object.object("flops_per_s")) {
        for (const auto& [dtype, peak] : peaks) {  // a rate for each type that has a peak
          kind.rates[dtype] = curve(*rates, name(dtype), "smallest_dimension", "flops_per_s", 1);
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
      links.link = {number(network, "link_bytes_per_s", kPositive)};
      links.link_efficiency = number(network, "link_efficiency", kFraction);
      links.hop_latency = microseconds(network, "hop_latency_us");
      links.collective_overhead = microseconds(network, "collective_overhead_us");
      links.message_overhead = microseconds(network, "message_overhead_us");
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
    if (auto rows = network.objects("collectives")) {
      const std::vector<std::string> names{"all-gather", "reduce-scatter", "all-reduce", "direct all-reduce"};
      for (ObjectReader& row : *rows) {
        const auto kind = row.one_of("kind", names);
        const auto members = row.integer("members", {.min = 2, .max = kCount.max});
        Curve seconds = curve(row, "bytes", "us", kMicro);
        if (!kind || !members) continue;
        const auto index = std::find(names.begin(), names.end(), *kind) - names.begin();
        const MeasuredNetwork::Key key{static_cast<CollectiveKind>(std::min<std::ptrdiff_t>(index, 2)),
                                       index == 3 ? Algorithm::kDirect : Algorithm::kRing, static_cast<int>(*members)};
        if (!measured.collectives.emplace(key, std::move(seconds)).second) {
          reader_.report(row.path("members"), "each kind and number of members once", "remove one of the two");
        }
      }
    }
    measured.message = curve(network, "message", "bytes", "us", kMicro);
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

std::filesystem::path systems_folder() {
  const char* configs = std::getenv("MESHWRIGHT_CONFIGS");
  return std::filesystem::path(configs != nullptr && *configs != '\0' ? configs : MESHWRIGHT_SOURCE_CONFIGS) /
         "systems";
}

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

std::vector<std::string> known_systems() {
  std::vector<std::string> names;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(systems_folder(), error)) {
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

System load_system(const std::string& spec, const std::vector<std::string>& others) {
  // The slice is what follows the last colon, unless that is part of a file's path.
  const std::size_t colon = spec.find_last_of(":/");
  const bool sliced = colon != std::string::npos && spec[colon] == ':';
  const std::string what = sliced ? spec.substr(0, colon) : spec;
  const std::string slice = sliced ? spec.substr(colon + 1) : "";
  if (what.find('/') != std::string::npos || what.ends_with(".json")) return load_system_file(what, slice);

  std::vector<std::string> known = known_systems();
  if (std::find(known.begin(), known.end(), what) == known.end()) {
    known.insert(known.end(), others.begin(), others.end());
    const auto near = nearest_word(what, known);
    throw InputError(
        {"--system", "", fmt::format("\"{}\"", spec), fmt::format("{}, or a JSON file", fmt::join(known, ", ")),
         near ? fmt::format("did you mean {}{}?", *near, sliced ? ":" + slice : "")
              : fmt::format("describe it in a file of your own, like those in {}", systems_folder().string())});
  }
  const std::filesystem::path plain = systems_folder() / (what + ".json");
  std::error_code error;
  const bool is_plain = std::filesystem::exists(plain, error);
  return load_system_file(is_plain ? plain : systems_folder() / fmt::format("{}{}.json", kTpuPrefix, what), slice);
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
