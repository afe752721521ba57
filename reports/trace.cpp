#include "reports/trace.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <initializer_list>
#include <limits>
#include <map>
#include <memory>
#include <ostream>
#include <sstream>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "model/input/json_reader.h"
#include "model/program/check.h"
#include "model/program/live_memory.h"
#include "model/program/slot_name.h"

namespace meshwright {
namespace {

using Nanoseconds = std::int64_t;

std::string quoted(const std::string& text) { return Json(text).dump(-1, ' ', true, Json::error_handler_t::replace); }

// "12.345": microseconds.
std::string microseconds(Nanoseconds t) { return fmt::format("{}.{:03}", t / 1000, t % 1000); }

// ---- names -------------------------------------------------------------------------------------------------------------

std::string without_suffix(const std::string& text, std::initializer_list<std::string_view> suffixes) {
  for (const std::string_view suffix : suffixes)
    if (text.ends_with(suffix)) return text.substr(0, text.size() - suffix.size());
  return text;
}

std::string phase_name(const Slot& slot) {
  if (slot.action == Action::kForward) return fmt::format("forward m{}", slot.microbatch);
  if (slot.action == Action::kBackward) return fmt::format("backward m{}", slot.microbatch);
  return slot_name(slot);
}

std::string layer_name(const Call& call, const Piece& piece) {
  if (call.layer < 0) return piece.name;
  return fmt::format("L{} {}", call.layer, without_suffix(piece.name, {".forward", ".backward"}));
}

// What an operation is called, and the parameters that it has to do with.
struct OpName {
  std::string name;       // "L28 ffn.0 dW"
  std::string parameter;  // "layers.28.ffn.0.kernel": the first that it reads, or gives the gradient of
  std::string unit;       // "layers.28": what a collective gathers or reduces
};

class Names {
 public:
  explicit Names(const ProgramSet& set) : set_(set) {}

  OpName of(const PlacedOp& placed) const {
    OpName result;
    std::string what;
    if (const auto* collective = std::get_if<Collective>(&placed.op)) {
      const View& moved = collective->kind == CollectiveKind::kAllGather ? collective->dst : collective->src;
      const Tensor& tensor = tensor_of(placed, moved);
      what = fmt::format("{} {}", op_name(placed.op), tensor.name);
      if (const Unit* unit = unit_of(placed, tensor)) {
        result.unit = unit->name;
        what = fmt::format("{} {}", op_name(placed.op), tensor.frame == Frame::kGrads ? "gradients" : "weights");
        if (placed.call.layer < 0 || unit->tp_replicated) what += " of " + unit->name;
      }
    } else if (std::holds_alternative<Send>(placed.op) || std::holds_alternative<Recv>(placed.op)) {
      what = slot_name(placed.slot);
    } else {
      what = compute(placed, result.parameter);
    }
    result.name = placed.call.layer < 0 ? what : fmt::format("L{} {}", placed.call.layer, what);
    return result;
  }

 private:
  static const Tensor& tensor_of(const PlacedOp& placed, const View& view) {
    return placed.piece.tensors[static_cast<std::size_t>(view.tensor)];
  }

  // Products by their weight alone; what else works with parameters by the module and its kind; the rest by its kind.
  std::string compute(const PlacedOp& placed, std::string& parameter) const {
    std::string module;
    bool gradient = false;
    for_each_operand(placed.op, [&](std::string_view, const View& view, Access) {
      if (!module.empty()) return;
      const Tensor& tensor = tensor_of(placed, view);
      const Parameter* found = parameter_of(placed, tensor);
      if (!found) return;
      parameter = found->name;
      gradient = tensor.frame == Frame::kGrads;
      // As pieces name it, which is without the layer.
      module = without_suffix(gradient && tensor.name.starts_with("d.") ? tensor.name.substr(2) : tensor.name,
                              {".kernel", ".gamma", ".beta"});
    });
    const std::string kind(op_name(placed.op));
    if (module.empty()) return kind;
    const auto product = [&](bool transposed) { return module + (gradient ? " dW" : transposed ? " dx" : ""); };
    if (const auto* op = std::get_if<Gemm>(&placed.op)) return product(op->tb);
    if (const auto* op = std::get_if<GroupedGemm>(&placed.op)) return product(op->tb);
    if (std::holds_alternative<ExpertCombine>(placed.op)) return product(false);
    return fmt::format("{} {}", module, kind);
  }

  // The parameter that a tensor of the frames of whole weights and gradients is, found by where it lies in its block.
  const Parameter* parameter_of(const PlacedOp& placed, const Tensor& tensor) const {
    if (placed.call.block < 0 || (tensor.frame != Frame::kWeights && tensor.frame != Frame::kGrads)) return nullptr;
    for (const Unit& unit : set_.blocks()[static_cast<std::size_t>(placed.call.block)].units)
      for (const ParameterPlacement& p : unit.parameters)
        if (tensor.offset == (unit.offset + p.offset) * size_of(tensor.dtype) &&
            elements(tensor.shape) == elements(p.local_shape))
          return &set_.parameters()[static_cast<std::size_t>(p.parameter)];
    return nullptr;
  }

  // The unit whose parameters or gradients, or whose shard of them, a tensor is.
  const Unit* unit_of(const PlacedOp& placed, const Tensor& tensor) const {
    const bool whole = tensor.frame == Frame::kWeights || tensor.frame == Frame::kGrads;
    const bool shard = tensor.frame == Frame::kGradShard || tensor.frame == Frame::kWeightShard;
    if (placed.call.block < 0 || !(whole || shard)) return nullptr;
    for (const Unit& unit : set_.blocks()[static_cast<std::size_t>(placed.call.block)].units)
      for (const std::int64_t parts : {1, set_.mesh.dp})
        if ((shard || parts == 1) && tensor.offset == unit.offset / parts * size_of(tensor.dtype) &&
            elements(tensor.shape) == unit.padded / parts)
          return &unit;
    return nullptr;
  }

  const ProgramSet& set_;
};

// ---- where things are drawn --------------------------------------------------------------------------------------------

struct Span {
  Nanoseconds begin = 0, end = 0;
};

// The operations of one rank, moved apart on each stream where rounding would lay them over each other, and the waits
// that fit between those of the compute stream.
struct Drawing {
  std::vector<Span> operations;                              // of each interval of the timeline
  std::array<std::vector<std::size_t>, kStreams> of_stream;  // indices of intervals, in order of time
  std::vector<Span> waits;                                   // of each wait; empty where there is no room
};

Drawing draw(const RankReport& rank) {
  constexpr double kTolerance = 1e-9;
  constexpr std::size_t kNoOperation = static_cast<std::size_t>(-1);
  Drawing d;
  d.operations.resize(rank.timeline.size());
  d.waits.resize(rank.waits.size());
  for (std::size_t i = 0; i < rank.timeline.size(); ++i)
    d.of_stream[static_cast<int>(rank.timeline[i].stream)].push_back(i);
  const auto order = [&](std::size_t i) { return std::pair(rank.timeline[i].begin, rank.timeline[i].end); };
  for (int stream = 0; stream < kStreams; ++stream) {
    std::vector<std::size_t>& track = d.of_stream[stream];
    std::stable_sort(track.begin(), track.end(), [&](std::size_t a, std::size_t b) { return order(a) < order(b); });
    std::size_t wait = stream == static_cast<int>(Stream::kCompute) ? 0 : rank.waits.size();
    Nanoseconds cursor = 0;
    const auto draw_waits_until = [&](Seconds begin) {
      for (; wait < rank.waits.size() && rank.waits[wait].begin < begin; ++wait) {
        Span& span = d.waits[wait];
        span.begin = std::max<Nanoseconds>(std::llround(rank.waits[wait].begin.value * 1e9), cursor);
        span.end = std::max<Nanoseconds>(std::llround(rank.waits[wait].end.value * 1e9), span.begin);
        cursor = span.end;
      }
    };
    std::size_t previous = kNoOperation;
    for (const std::size_t index : track) {
      const Interval& i = rank.timeline[index];
      check(i.begin.value >= 0 && i.end >= i.begin, "{} {} ends before it begins", name(i.stream), i.name);
      check(previous == kNoOperation || i.begin.value >= rank.timeline[previous].end.value - kTolerance,
            "{} begins at {} s, before its predecessor on stream {} ends at {} s", i.name, i.begin.value,
            name(i.stream), previous == kNoOperation ? 0.0 : rank.timeline[previous].end.value);
      previous = index;
      draw_waits_until(i.begin);
      Span& span = d.operations[index];
      span.begin = std::max<Nanoseconds>(std::llround(i.begin.value * 1e9), cursor);
      span.end = std::max<Nanoseconds>(std::llround(i.end.value * 1e9), span.begin + 1);
      cursor = span.end;
    }
    draw_waits_until({std::numeric_limits<double>::infinity()});
  }
  return d;
}

// The mesh axis that an operation communicates over.
std::string_view axis_of(const Op& op) {
  const auto* collective = std::get_if<Collective>(&op);
  return collective && (collective->group == Group::kTp || collective->group == Group::kDp) ? name(collective->group)
                                                                                            : name(Group::kPp);
}

class Writer {
 public:
  Writer(std::ostream& out, const ProgramSet& set, const TraceOptions& options)
      : out_(out), set_(set), options_(options), names_(set) {}

  TraceSize write(const StepReport& report) {
    const std::vector<const RankReport*> ranks = choose(report);
    size_.ranks = static_cast<int>(ranks.size());
    size_.ranks_left_out = static_cast<int>(report.ranks.size() - ranks.size());
    out_ << R"({"displayTimeUnit":"ns","otherData":{"tool":"meshwright","title":)" << quoted(options_.title)
         << R"(,"ranks_left_out":)" << size_.ranks_left_out << R"(},"traceEvents":[)";
    std::vector<Drawing> drawings;
    for (const RankReport* rank : ranks) {
      drawings.push_back(draw(*rank));
      write_rank(*rank, drawings.back());
    }
    for (std::size_t i = 0; i < ranks.size(); ++i)
      for (std::size_t j = 0; j < ranks.size(); ++j)
        if (follows(ranks[i]->rank, ranks[j]->rank)) {
          write_arrows(*ranks[i], drawings[i], Stream::kSendNext, *ranks[j], drawings[j], Stream::kRecvPrevious);
          write_arrows(*ranks[j], drawings[j], Stream::kSendPrevious, *ranks[i], drawings[i], Stream::kRecvNext);
        }
    out_ << "\n]}\n";
    return size_;
  }

 private:
  std::vector<const RankReport*> choose(const StepReport& report) const {
    std::vector<const RankReport*> ranks;
    std::int64_t operations = 0;
    for (const RankReport& rank : report.ranks) {
      operations += static_cast<std::int64_t>(rank.timeline.size());
      if (static_cast<int>(ranks.size()) >= options_.most_ranks ||
          (operations > options_.most_operations && !ranks.empty()))
        break;
      ranks.push_back(&rank);
    }
    return ranks;
  }

  // Whether b is the next stage after a.
  static bool follows(const MeshCoordinates& a, const MeshCoordinates& b) {
    return a.dp == b.dp && a.tp == b.tp && a.pp + 1 == b.pp;
  }

  int pid(const MeshCoordinates& at) const { return (at.dp * set_.mesh.pp + at.pp) * set_.mesh.tp + at.tp; }

  std::string process_name(const MeshCoordinates& at) const {
    const MeshShape& mesh = set_.mesh;
    if (!options_.one_rank_per_stage) return fmt::format("rank {}: dp {}, pp {}, tp {}", pid(at), at.dp, at.pp, at.tp);
    return fmt::format("stage {}: rank {}, for all {} of this stage", at.pp, pid(at), mesh.dp * mesh.tp);
  }

  void write_rank(const RankReport& rank, const Drawing& drawing) {
    const int process = pid(rank.rank);
    const Program& program = set_.stages[static_cast<std::size_t>(rank.rank.pp)];
    event(R"({{"ph":"M","name":"process_name","pid":{},"args":{{"name":{}}}}})", process,
          quoted(process_name(rank.rank)));
    event(R"({{"ph":"M","name":"process_sort_index","pid":{},"args":{{"sort_index":{}}}}})", process,
          options_.one_rank_per_stage ? rank.rank.pp : process);
    for (int stream = 0; stream < kStreams; ++stream) {
      if (drawing.of_stream[stream].empty()) continue;
      event(R"({{"ph":"M","name":"thread_name","pid":{},"tid":{},"args":{{"name":{}}}}})", process, stream,
            quoted(std::string(kStreamNames[stream])));
      event(R"({{"ph":"M","name":"thread_sort_index","pid":{},"tid":{},"args":{{"sort_index":{}}}}})", process, stream,
            stream);
      if (stream == static_cast<int>(Stream::kCompute))
        write_compute(rank, program, drawing);
      else
        for (const std::size_t i : drawing.of_stream[stream]) write_operation(rank, program, drawing, i);
    }
    for (std::size_t w = 0; w < rank.waits.size(); ++w)
      if (const Span& span = drawing.waits[w]; span.end > span.begin)
        slice(rank.waits[w].kind == Wait::Kind::kBubble ? "bubble" : "exposed communication", "wait", process,
              static_cast<int>(Stream::kCompute), span, "");
    write_memory(rank, program, drawing);
    write_link_use(rank, program, drawing);
  }

  // Operations within calls within slots: each of those is a run of operations on the stream.
  void write_compute(const RankReport& rank, const Program& program, const Drawing& drawing) {
    const std::vector<std::size_t>& track = drawing.of_stream[static_cast<int>(Stream::kCompute)];
    const auto place = [&](std::size_t k) -> const OpPlace& { return rank.timeline[track[k]].place; };
    const auto run = [&](std::size_t first, auto&& same) {
      std::size_t last = first;
      while (last + 1 < track.size() && same(place(first), place(last + 1))) ++last;
      return Span{drawing.operations[track[first]].begin, drawing.operations[track[last]].end};
    };
    const auto same_slot = [](const OpPlace& a, const OpPlace& b) { return a.slot == b.slot; };
    const auto same_call = [](const OpPlace& a, const OpPlace& b) { return a.slot == b.slot && a.call == b.call; };
    const int process = pid(rank.rank), thread = static_cast<int>(Stream::kCompute);
    for (std::size_t k = 0; k < track.size(); ++k) {
      const PlacedOp placed = op_at(set_, program, place(k));
      if (k == 0 || !same_slot(place(k - 1), place(k)))
        slice(phase_name(placed.slot), "phase", process, thread, run(k, same_slot), "");
      if (k == 0 || !same_call(place(k - 1), place(k)))
        slice(layer_name(placed.call, placed.piece), "layer", process, thread, run(k, same_call), "");
      write_operation(rank, program, drawing, track[k]);
    }
  }

  void write_operation(const RankReport& rank, const Program& program, const Drawing& drawing, std::size_t index) {
    const Interval& i = rank.timeline[index];
    const PlacedOp placed = op_at(set_, program, i.place);
    const OpName op = names_.of(placed);
    std::string args = fmt::format(R"("op":{},"piece":{},"phase":{})", label(std::string(i.name)),
                                   label(placed.piece.name), label(phase_name(placed.slot)));
    if (i.flops.value) args += fmt::format(R"(,"flops":{})", i.flops.value);
    if (i.bytes.value) args += fmt::format(R"(,"bytes_sent":{})", i.bytes.value);
    if (!op.parameter.empty()) args += fmt::format(R"(,"weight":{})", label(op.parameter));
    if (!op.unit.empty()) args += fmt::format(R"(,"unit":{})", label(op.unit));
    slice(op.name, std::string(i.name), pid(rank.rank), static_cast<int>(i.stream), drawing.operations[index], args);
  }

  void slice(const std::string& name, const std::string& category, int process, int thread, const Span& span,
             const std::string& args) {
    event(R"({{"ph":"X","name":{},"cat":{},"pid":{},"tid":{},"ts":{},"dur":{},"args":{{{}}}}})", label(name),
          label(category), process, thread, microseconds(span.begin), microseconds(span.end - span.begin), args);
    ++size_.events;
  }

  void counter(const std::string& name, std::string_view unit, int process, Nanoseconds at, std::int64_t value) {
    event(R"({{"ph":"C","name":{},"pid":{},"ts":{},"args":{{"{}":{}}}}})", label(name), process, microseconds(at), unit,
          value);
    ++size_.events;
  }

  void write_memory(const RankReport& rank, const Program& program, const Drawing& drawing) {
    const auto live = live_bytes(set_, program, rank.timeline, [&](std::size_t i) {
      return std::pair(drawing.operations[i].begin, drawing.operations[i].end);
    });
    const std::array<std::int64_t, kMemoryClasses> kept = program.bytes_by_class();
    for (int c = 0; c < kMemoryClasses; ++c)
      if (kept[c] > 0)
        for (const auto& [time, bytes] : live[c])
          counter(fmt::format("memory: {}", kMemoryClassNames[c]), "bytes", pid(rank.rank), time, bytes);
  }

  void write_link_use(const RankReport& rank, const Program& program, const Drawing& drawing) {
    std::map<std::string_view, std::map<Nanoseconds, std::int64_t>> changes;  // of the rate, by axis and time
    for (std::size_t i = 0; i < rank.timeline.size(); ++i) {
      if (rank.timeline[i].bytes.value == 0) continue;
      const Span& span = drawing.operations[i];
      const std::int64_t rate = std::llround(static_cast<double>(rank.timeline[i].bytes.value) * 1e9 /
                                             static_cast<double>(span.end - span.begin));
      auto& of_axis = changes[axis_of(op_at(set_, program, rank.timeline[i].place).op)];
      of_axis[span.begin] += rate;
      of_axis[span.end] -= rate;
    }
    for (const auto& [axis, of_axis] : changes) {
      const std::string name = fmt::format("link use: {}", axis);
      std::int64_t rate = 0;
      if (of_axis.begin()->first > 0) counter(name, "bytes_per_s", pid(rank.rank), 0, 0);
      for (const auto& [time, change] : of_axis)
        if (change != 0) counter(name, "bytes_per_s", pid(rank.rank), time, rate += change);
    }
  }

  // Messages of one direction between two neighbours match in order.
  void write_arrows(const RankReport& from, const Drawing& from_drawing, Stream send, const RankReport& to,
                    const Drawing& to_drawing, Stream receive) {
    const std::vector<std::size_t>& sends = from_drawing.of_stream[static_cast<int>(send)];
    const std::vector<std::size_t>& receives = to_drawing.of_stream[static_cast<int>(receive)];
    check(sends.size() == receives.size(), "stage {} sends {} messages on '{}', and stage {} receives {}", from.rank.pp,
          sends.size(), name(send), to.rank.pp, receives.size());
    for (std::size_t m = 0; m < sends.size(); ++m) {
      // Both ends lie within their operations; the arrow never points back in time.
      const Nanoseconds begin = from_drawing.operations[sends[m]].begin,
                        end = std::max(begin, to_drawing.operations[receives[m]].end - 1);
      event(R"({{"ph":"s","id":{},"name":"message","cat":"pp","pid":{},"tid":{},"ts":{}}})", arrows_, pid(from.rank),
            static_cast<int>(send), microseconds(begin));
      event(R"({{"ph":"f","bp":"e","id":{},"name":"message","cat":"pp","pid":{},"tid":{},"ts":{}}})", arrows_,
            pid(to.rank), static_cast<int>(receive), microseconds(end));
      ++arrows_;
      ++size_.events;
    }
  }

  template <class... Args>
  void event(fmt::format_string<Args...> format, Args&&... args) {
    out_ << (first_ ? "\n" : ",\n") << fmt::format(format, std::forward<Args>(args)...);
    first_ = false;
  }

  // Few distinct texts are written many times.
  const std::string& label(const std::string& text) {
    const auto it = labels_.find(text);
    return it != labels_.end() ? it->second : labels_.emplace(text, quoted(text)).first->second;
  }

  std::ostream& out_;
  const ProgramSet& set_;
  const TraceOptions& options_;
  const Names names_;
  TraceSize size_;
  std::int64_t arrows_ = 0;
  bool first_ = true;
  std::map<std::string, std::string> labels_;
};

// `code`: of errno.h, 0 if it is not known.
[[noreturn]] void cannot_write(const std::filesystem::path& file, int code) {
  throw InputError(Diagnostic{"--trace", "", Json(file.string()).dump(-1, ' ', false, Json::error_handler_t::replace),
                              "a file that can be written",
                              code != 0 ? std::strerror(code) : "its folder must exist, and have room"});
}

void write_compressed(const std::filesystem::path& file, const std::string& text) {
  errno = 0;
  std::unique_ptr<gzFile_s, int (*)(gzFile)> out(gzopen(file.c_str(), "wb6"), gzclose);
  if (!out) cannot_write(file, errno);
  constexpr std::size_t kChunk = 1 << 20;  // gzwrite takes an unsigned, and returns an int
  for (std::size_t at = 0; at < text.size(); at += kChunk) {
    const auto count = static_cast<unsigned>(std::min(kChunk, text.size() - at));
    if (gzwrite(out.get(), text.data() + at, count) != static_cast<int>(count)) cannot_write(file, errno);
  }
  if (gzclose(out.release()) != Z_OK) cannot_write(file, errno);  // which writes what is left
}

}  // namespace

TraceSize write_trace(std::ostream& out, const StepReport& report, const ProgramSet& set, const TraceOptions& options) {
  return Writer(out, set, options).write(report);
}

TraceSize write_trace_file(const std::filesystem::path& file, const StepReport& report, const ProgramSet& set,
                           const TraceOptions& options) {
  if (file.extension() == ".gz") {
    std::ostringstream text;
    const TraceSize size = write_trace(text, report, set, options);
    write_compressed(file, text.str());
    return size;
  }
  errno = 0;
  std::ofstream out(file, std::ios::binary);
  if (!out) cannot_write(file, errno);
  const TraceSize size = write_trace(out, report, set, options);
  out.close();
  if (!out) cannot_write(file, errno);
  return size;
}

}  // namespace meshwright
