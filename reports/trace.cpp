#include "reports/trace.h"

#include <fmt/format.h>
#include <zlib.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <numeric>
#include <ostream>
#include <sstream>
#include <tuple>
#include <vector>

#include "model/input/json_reader.h"
#include "model/program/check.h"

namespace meshwright {
namespace {

using Nanoseconds = std::int64_t;

std::string quoted(const std::string& text) { return Json(text).dump(-1, ' ', true, Json::error_handler_t::replace); }

// "12.345": microseconds.
std::string microseconds(Nanoseconds t) { return fmt::format("{}.{:03}", t / 1000, t % 1000); }

// An operation as it is drawn.
struct Drawn {
  const Interval* interval = nullptr;
  Nanoseconds begin = 0, end = 0;
};

// The operations of one rank by stream, in order of time, moved apart where rounding would lay them over each other.
using Tracks = std::array<std::vector<Drawn>, kStreams>;

Tracks draw(const RankReport& rank) {
  Tracks tracks;
  for (const Interval& interval : rank.timeline) tracks[static_cast<int>(interval.stream)].push_back({&interval});
  for (std::vector<Drawn>& track : tracks) {
    std::stable_sort(track.begin(), track.end(), [](const Drawn& a, const Drawn& b) {
      return std::tie(a.interval->begin, a.interval->end) < std::tie(b.interval->begin, b.interval->end);
    });
    constexpr double kTolerance = 1e-9;
    Seconds previous_end;
    Nanoseconds cursor = 0;
    for (Drawn& d : track) {
      const Interval& i = *d.interval;
      check(i.begin.value >= 0 && i.end >= i.begin, "{} {} ends before it begins", i.name, i.where);
      check(i.begin.value >= previous_end.value - kTolerance,
            "{} {} begins at {} s, before its predecessor on stream {} ends at {} s", i.name, i.where, i.begin.value,
            name(i.stream), previous_end.value);
      previous_end = i.end;
      d.begin = std::max<Nanoseconds>(std::llround(i.begin.value * 1e9), cursor);
      d.end = std::max<Nanoseconds>(std::llround(i.end.value * 1e9), d.begin + 1);
      cursor = d.end;
    }
  }
  return tracks;
}

class Writer {
 public:
  Writer(std::ostream& out, const TraceOptions& options) : out_(out), options_(options) {}

  TraceSize write(const StepReport& report) {
    const std::vector<const RankReport*> ranks = choose(report);
    size_.ranks = static_cast<int>(ranks.size());
    size_.ranks_left_out = static_cast<int>(report.ranks.size() - ranks.size());
    out_ << R"({"displayTimeUnit":"ns","otherData":{"tool":"meshwright","title":)" << quoted(options_.title)
         << R"(,"ranks_left_out":)" << size_.ranks_left_out << R"(},"traceEvents":[)";
    std::vector<Tracks> tracks;
    for (const RankReport* rank : ranks) {
      tracks.push_back(draw(*rank));
      write_rank(*rank, tracks.back());
    }
    for (std::size_t i = 0; i < ranks.size(); ++i)
      for (std::size_t j = 0; j < ranks.size(); ++j)
        if (follows(ranks[i]->rank, ranks[j]->rank)) {
          write_arrows(*ranks[i], tracks[i], Stream::kSendNext, *ranks[j], tracks[j], Stream::kRecvPrevious);
          write_arrows(*ranks[j], tracks[j], Stream::kSendPrevious, *ranks[i], tracks[i], Stream::kRecvNext);
        }
    out_ << "\n]}\n";
    return size_;
  }

 private:
  std::vector<const RankReport*> choose(const StepReport& report) const {
    std::vector<const RankReport*> ranks;
    std::int64_t events = 0;
    for (const RankReport& rank : report.ranks) {
      events += static_cast<std::int64_t>(rank.timeline.size());
      if (static_cast<int>(ranks.size()) >= options_.most_ranks || (events > options_.most_events && !ranks.empty()))
        break;
      ranks.push_back(&rank);
    }
    return ranks;
  }

  // Whether b is the next stage after a.
  static bool follows(const MeshCoordinates& a, const MeshCoordinates& b) {
    return a.dp == b.dp && a.tp == b.tp && a.pp + 1 == b.pp;
  }

  int pid(const MeshCoordinates& at) const { return (at.dp * options_.mesh.pp + at.pp) * options_.mesh.tp + at.tp; }

  std::string process_name(const MeshCoordinates& at) const {
    const MeshShape& mesh = options_.mesh;
    if (!options_.one_rank_per_stage) return fmt::format("rank {}: dp {}, pp {}, tp {}", pid(at), at.dp, at.pp, at.tp);
    return fmt::format("stage {}: rank {}, for all {} of this stage", at.pp, pid(at), mesh.dp * mesh.tp);
  }

  void write_rank(const RankReport& rank, const Tracks& tracks) {
    const int process = pid(rank.rank);
    event(R"({{"ph":"M","name":"process_name","pid":{},"args":{{"name":{}}}}})", process,
          quoted(process_name(rank.rank)));
    event(R"({{"ph":"M","name":"process_sort_index","pid":{},"args":{{"sort_index":{}}}}})", process,
          options_.one_rank_per_stage ? rank.rank.pp : process);
    for (int stream = 0; stream < kStreams; ++stream) {
      if (tracks[stream].empty()) continue;
      event(R"({{"ph":"M","name":"thread_name","pid":{},"tid":{},"args":{{"name":{}}}}})", process, stream,
            quoted(std::string(kStreamNames[stream])));
      event(R"({{"ph":"M","name":"thread_sort_index","pid":{},"tid":{},"args":{{"sort_index":{}}}}})", process, stream,
            stream);
      for (const Drawn& d : tracks[stream]) {
        const Interval& i = *d.interval;
        std::string args;
        if (i.flops.value) args += fmt::format(R"(,"flops":{})", i.flops.value);
        if (i.bytes.value) args += fmt::format(R"(,"bytes_sent":{})", i.bytes.value);
        event(R"({{"ph":"X","name":{},"cat":{},"pid":{},"tid":{},"ts":{},"dur":{},"args":{{"where":{}{}}}}})",
              label(i.where.empty() ? i.name : i.where + " " + i.name), label(i.name), process, stream,
              microseconds(d.begin), microseconds(d.end - d.begin), label(i.where), args);
        ++size_.events;
      }
    }
  }

  // Messages of one direction between two neighbours match in order.
  void write_arrows(const RankReport& from, const Tracks& from_tracks, Stream send, const RankReport& to,
                    const Tracks& to_tracks, Stream receive) {
    const std::vector<Drawn>& sends = from_tracks[static_cast<int>(send)];
    const std::vector<Drawn>& receives = to_tracks[static_cast<int>(receive)];
    check(sends.size() == receives.size(), "stage {} sends {} messages on '{}', and stage {} receives {}", from.rank.pp,
          sends.size(), name(send), to.rank.pp, receives.size());
    for (std::size_t m = 0; m < sends.size(); ++m) {
      // Both ends lie within their operations; the arrow never points back in time.
      const Nanoseconds begin = sends[m].begin, end = std::max(begin, receives[m].end - 1);
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
  const TraceOptions& options_;
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

TraceSize write_trace(std::ostream& out, const StepReport& report, const TraceOptions& options) {
  return Writer(out, options).write(report);
}

TraceSize write_trace_file(const std::filesystem::path& file, const StepReport& report, const TraceOptions& options) {
  if (file.extension() == ".gz") {
    std::ostringstream text;
    const TraceSize size = write_trace(text, report, options);
    write_compressed(file, text.str());
    return size;
  }
  errno = 0;
  std::ofstream out(file, std::ios::binary);
  if (!out) cannot_write(file, errno);
  const TraceSize size = write_trace(out, report, options);
  out.close();
  if (!out) cannot_write(file, errno);
  return size;
}

}  // namespace meshwright
