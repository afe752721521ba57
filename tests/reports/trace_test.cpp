#include "reports/trace.h"

#include <gtest/gtest.h>
#include <zlib.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <sstream>

#include "model/config.h"
#include "model/input/diagnostics.h"
#include "model/lowering/lower.h"
#include "model/plan.h"
#include "sim/simulate.h"
#include "sim/system.h"
#include "sim/system_cost_model.h"

namespace meshwright {
namespace {

// Places in every stage's program of handmade().
constexpr OpPlace kWork{0, 0, 0}, kSendForward{1, 0, 0}, kRecvForward{2, 0, 0}, kSendBackward{3, 0, 0},
    kRecvBackward{4, 0, 0};

// A program whose slots hold one operation each.
ProgramSet handmade(MeshShape mesh, const std::string& piece = "work") {
  ProgramSet set{.mesh = mesh};
  const auto add = [&](std::string name, Op op) { set.pieces.push_back({std::move(name), {}, {std::move(op)}, 0}); };
  add(piece, Gemm{});
  add("send.forward", Send{{}, Direction::kNext});
  add("recv.forward", Recv{{}, Direction::kPrevious});
  add("send.backward", Send{{}, Direction::kPrevious});
  add("recv.backward", Recv{{}, Direction::kNext});
  for (int stage = 0; stage < mesh.pp; ++stage) {
    Program program{.stage = stage};
    for (int piece = 0; piece < static_cast<int>(set.pieces.size()); ++piece) {
      program.chunks.push_back({"chunk", {Call{.piece = piece, .layer = piece == 0 ? 7 : -1}}});
      program.slots.push_back({.action = Action::kForward, .microbatch = 3, .chunk = piece});
    }
    set.stages.push_back(std::move(program));
  }
  return set;
}

Interval at(Stream stream, double begin, double end, std::string_view name = "gemm", OpPlace place = kWork) {
  return {stream, {begin}, {end}, name, place};
}

// Two stages; stage 0 sends one activation forward, stage 1 one gradient back.
StepReport two_stages() {
  RankReport first{.rank = {0, 0, 0}}, second{.rank = {0, 1, 0}};
  first.timeline = {at(Stream::kCompute, 0, 1e-3), at(Stream::kSendNext, 1e-3, 1.5e-3, "send", kSendForward),
                    at(Stream::kRecvNext, 2.5e-3, 3e-3, "recv", kRecvBackward), at(Stream::kCompute, 3e-3, 4e-3)};
  second.timeline = {at(Stream::kRecvPrevious, 1e-3, 1.5e-3, "recv", kRecvForward),
                     at(Stream::kCompute, 1.5e-3, 2.5e-3),
                     at(Stream::kSendPrevious, 2.5e-3, 3e-3, "send", kSendBackward)};
  return {{4e-3}, {first, second}};
}

nlohmann::json traced(const StepReport& report, const ProgramSet& set, TraceOptions options = {}) {
  std::ostringstream out;
  write_trace(out, report, set, options);
  return nlohmann::json::parse(out.str());
}

// A slice of a thread, in nanoseconds, and what encloses it.
struct Slice {
  std::int64_t begin = 0, end = 0;
  nlohmann::json event;
  std::vector<std::string> within;  // names, outermost first
};

// Slices by (pid, tid), in order of time, enclosing ones first. Fails where two overlap without one holding the other.
std::map<std::pair<int, int>, std::vector<Slice>> nested(const nlohmann::json& trace) {
  std::map<std::pair<int, int>, std::vector<Slice>> tracks;
  for (const auto& e : trace.at("traceEvents"))
    if (e.at("ph") == "X") {
      const auto begin = std::llround(e.at("ts").get<double>() * 1e3),
                 length = std::llround(e.at("dur").get<double>() * 1e3);
      EXPECT_GE(length, 1);
      tracks[{e.at("pid"), e.at("tid")}].push_back({begin, begin + length, e, {}});
    }
  for (auto& [track, slices] : tracks) {
    std::stable_sort(slices.begin(), slices.end(), [](const Slice& a, const Slice& b) {
      return std::pair(a.begin, -a.end) < std::pair(b.begin, -b.end);
    });
    std::vector<const Slice*> open;
    for (Slice& s : slices) {
      while (!open.empty() && open.back()->end <= s.begin) open.pop_back();
      if (!open.empty()) {
        EXPECT_LE(s.end, open.back()->end) << s.event.at("name") << " leaves " << open.back()->event.at("name");
      }
      for (const Slice* outer : open) s.within.push_back(outer->event.at("name"));
      open.push_back(&s);
    }
  }
  return tracks;
}

bool is_operation(const nlohmann::json& event) { return event.at("ph") == "X" && event.at("args").contains("op"); }

TEST(Trace, EveryOperationIsAnEventWithItsTimeInMicroseconds) {
  const auto trace = traced(two_stages(), handmade({1, 2, 1}));
  double compute = 0;
  int events = 0;
  for (const auto& e : trace.at("traceEvents"))
    if (is_operation(e)) {
      ++events;
      if (e.at("tid") == 0) compute += e.at("dur").get<double>();
    }
  EXPECT_EQ(events, 7);
  EXPECT_DOUBLE_EQ(compute, 3000);  // three operations of 1 ms
  const auto tracks = nested(trace);
  for (const Slice& s : tracks.at({0, 0}))
    if (is_operation(s.event)) {
      EXPECT_EQ(s.within, (std::vector<std::string>{"forward m3", "L7 work"}));
    }
}

TEST(Trace, AnArrowJoinsEachSendToItsReceive) {
  std::map<int, std::set<std::string>> ends;
  const auto trace = traced(two_stages(), handmade({1, 2, 1}));
  for (const auto& e : trace.at("traceEvents"))
    if (e.at("ph") == "s" || e.at("ph") == "f") {
      ends[e.at("id")].insert(e.at("ph"));
      const bool first_message = e.at("id") == 0;
      EXPECT_EQ(e.at("pid"), (e.at("ph") == "s") == first_message ? 0 : 1);
    }
  EXPECT_EQ(ends.size(), 2u);
  for (const auto& [id, both] : ends) EXPECT_EQ(both, (std::set<std::string>{"s", "f"})) << id;
}

TEST(Trace, NamesARankByItsMeshCoordinatesAndAThreadByItsStream) {
  RankReport rank{.rank = {1, 1, 0}};
  rank.timeline = {at(Stream::kTp, 0, 1e-6)};
  const auto trace = traced({{1e-6}, {rank}}, handmade({2, 2, 2}));
  std::map<std::string, std::string> names;
  for (const auto& e : trace.at("traceEvents"))
    if (e.at("ph") == "M" && e.at("args").contains("name")) {
      EXPECT_EQ(e.at("pid"), 6);  // (1 * 2 + 1) * 2 + 0
      names[e.at("name")] = e.at("args").at("name");
    }
  EXPECT_EQ(names["process_name"], "rank 6: dp 1, pp 1, tp 0");
  EXPECT_EQ(names["thread_name"], "tp");
}

TEST(Trace, EventsWithoutLengthGetANanosecondAndPushWhatFollows) {
  RankReport rank;
  for (int i = 0; i < 4; ++i) rank.timeline.push_back(at(Stream::kCompute, 1e-6, 1e-6));
  rank.timeline.push_back(at(Stream::kCompute, 1e-6, 2e-6));
  const auto trace = traced({{2e-6}, {rank}}, handmade({1, 1, 1}));
  nested(trace);
  EXPECT_EQ(trace.at("traceEvents").back().at("ts"), 1.004);
  EXPECT_EQ(trace.at("traceEvents").back().at("dur"), 0.996);
}

TEST(Trace, TimesBetweenNanosecondsNeverOverlapOnceRounded) {
  std::mt19937 random(7);
  RankReport rank;
  double t = 0;
  for (int i = 0; i < 2000; ++i) {
    const double length = std::uniform_real_distribution(0.0, 3e-9)(random);
    rank.timeline.push_back(at(Stream::kCompute, t, t + length));
    t += length;
  }
  nested(traced({{t}, {rank}}, handmade({1, 1, 1})));
}

TEST(Trace, TextThatCouldBreakTheFileIsEscaped) {
  RankReport rank;
  rank.timeline = {at(Stream::kCompute, 0, 1e-6)};
  const std::string odd = "a\"b\\c\n\x01";
  const auto trace = traced({{1e-6}, {rank}}, handmade({1, 1, 1}, odd), {.title = "tab\t\xff"});
  EXPECT_EQ(trace.at("otherData").at("title"), "tab\t\uFFFD");
  EXPECT_EQ(trace.at("traceEvents").back().at("args").at("piece"), odd);
}

TEST(Trace, OverlappingOperationsOfAStreamAreOurMistake) {
  RankReport rank;
  rank.timeline = {at(Stream::kCompute, 0, 2e-6), at(Stream::kCompute, 1e-6, 3e-6)};
  std::ostringstream out;
  EXPECT_THROW(write_trace(out, {{3e-6}, {rank}}, handmade({1, 1, 1}), {}), std::logic_error);
}

TEST(Trace, ASendWithoutItsReceiveIsOurMistake) {
  StepReport report = two_stages();
  report.ranks[1].timeline.erase(report.ranks[1].timeline.begin());
  std::ostringstream out;
  EXPECT_THROW(write_trace(out, report, handmade({1, 2, 1}), {}), std::logic_error);
}

TEST(Trace, RanksBeyondTheLimitsAreLeftOutWhole) {
  std::ostringstream out;
  const TraceSize size = write_trace(out, two_stages(), handmade({1, 2, 1}), {.most_operations = 5});
  EXPECT_EQ(size.ranks, 1);
  EXPECT_EQ(size.ranks_left_out, 1);
  // Four operations, and a phase and a layer around two of them; no arrows, as their other ends are not there.
  EXPECT_EQ(size.events, 4 + 2);
}

TEST(Trace, WaitsAreDrawnBetweenOperationsAndNeverOverThem) {
  RankReport rank;
  rank.timeline = {at(Stream::kCompute, 0, 1e-6), at(Stream::kCompute, 3e-6, 3e-6), at(Stream::kCompute, 3e-6, 4e-6)};
  rank.waits = {{Wait::Kind::kBubble, {1e-6}, {1.5e-6}},
                {Wait::Kind::kExposedComm, {1.5e-6}, {3e-6}},
                {Wait::Kind::kBubble, {4e-6}, {6e-6}}};
  std::map<std::string, std::vector<std::int64_t>> lengths;
  const auto tracks = nested(traced({{6e-6}, {rank}}, handmade({1, 1, 1})));
  for (const Slice& s : tracks.at({0, 0}))
    if (s.event.at("cat") == "wait") lengths[s.event.at("name")].push_back(s.end - s.begin);
  EXPECT_EQ(lengths["bubble"], (std::vector<std::int64_t>{500, 2000}));
  EXPECT_EQ(lengths["exposed communication"], (std::vector<std::int64_t>{1500}));
}

// ---- a real program ----------------------------------------------------------------------------------------------------

struct Simulated {
  ProgramSet set;
  StepReport report;
  nlohmann::json trace;
};

Simulated simulated(const std::string& plan, const std::string& system = "v4:2x2x1", bool overlaps = true) {
  const TrainingConfig config = read_config(REPOSITORY "/configs/moe-small.json");
  System machine = load_system(system, REPOSITORY "/configs");
  machine.overlaps_compute = overlaps;
  Simulated s;
  s.set = lower(config.model, {.sequences = config.sequences, .tokens = config.sequence_length}, parse_plan(plan));
  s.report = simulate(s.set, SystemCostModel(machine, s.set), {.timeline = true});
  s.trace = traced(s.report, s.set, {.one_rank_per_stage = true});
  return s;
}

const char* const kPipelined = "2x2x1,microbatches=4,fsdp=2,recompute=full";
const char* const kTensorParallel = "2x1x2,microbatches=2,fsdp=3";

class TraceOfTheSmallModel : public testing::TestWithParam<const char*> {};
INSTANTIATE_TEST_SUITE_P(Plans, TraceOfTheSmallModel,
                         testing::Values(kPipelined, kTensorParallel, "4x1x1,fsdp=1",
                                         "1x4x1,microbatches=8,schedule=gpipe"),
                         [](const auto& info) { return "Plan" + std::to_string(info.index); });

TEST_P(TraceOfTheSmallModel, OperationsOfTheComputeStreamLieWithinTheirLayerAndPhase) {
  const Simulated s = simulated(GetParam());
  std::set<std::string> phases;
  int operations = 0;
  for (const auto& [track, slices] : nested(s.trace)) {
    if (track.second != 0) continue;
    for (const Slice& slice : slices) {
      if (!is_operation(slice.event)) continue;
      ++operations;
      ASSERT_EQ(slice.within.size(), 2u) << slice.event;
      EXPECT_EQ(slice.within[0], slice.event.at("args").at("phase"));
      const std::string name = slice.event.at("name"), layer = slice.within[1];
      if (name.starts_with("L")) {
        EXPECT_EQ(layer.substr(0, layer.find(' ')), name.substr(0, name.find(' ')));
      }
      phases.insert(slice.within[0]);
    }
  }
  EXPECT_GT(operations, 200);
  for (int m = 0; m < s.set.step.microbatches; ++m)
    for (const char* direction : {"forward m", "backward m"})
      EXPECT_TRUE(phases.contains(direction + std::to_string(m))) << direction << m;
}

TEST_P(TraceOfTheSmallModel, EveryProductNamesItsLayersWeight) {
  const Simulated s = simulated(GetParam());
  std::set<std::string> known;
  for (const Parameter& p : s.set.parameters()) known.insert(p.name);
  std::set<std::string> read, differentiated, names;
  for (const auto& e : s.trace.at("traceEvents")) {
    if (!is_operation(e) || (e.at("args").at("op") != "gemm" && e.at("args").at("op") != "grouped_gemm")) continue;
    ASSERT_TRUE(e.at("args").contains("weight")) << e;
    const std::string weight = e.at("args").at("weight"), name = e.at("name");
    EXPECT_TRUE(known.contains(weight)) << weight;
    // "L2 moe.router dx" is of "layers.2.moe.router.kernel".
    const std::size_t blank = name.find(' ');
    ASSERT_NE(blank, std::string::npos);
    EXPECT_EQ(weight, "layers." + name.substr(1, blank - 1) + "." +
                          name.substr(blank + 1, name.find(' ', blank + 1) - blank - 1) + ".kernel");
    (name.ends_with(" dW") ? differentiated : read).insert(weight);
    names.insert(name);
  }
  // Every kernel is multiplied by, and has a gradient.
  for (const std::string& name : known)
    if (name.ends_with(".kernel")) {
      EXPECT_TRUE(read.contains(name)) << name;
      EXPECT_TRUE(differentiated.contains(name)) << name;
    }
  for (const char* name : {"L0 ffn.0", "L0 ffn.0 dx", "L0 ffn.0 dW", "L2 moe.expert.1 dW"})
    EXPECT_TRUE(names.contains(name)) << name;
}

TEST_P(TraceOfTheSmallModel, CollectivesNameTheParametersThatTheyMove) {
  const Simulated s = simulated(GetParam());
  std::set<std::string> units, moved;
  for (const Block& block : s.set.blocks())
    for (const Unit& unit : block.units) units.insert(unit.name);
  for (const auto& e : s.trace.at("traceEvents"))
    if (is_operation(e) && e.at("tid") == static_cast<int>(Stream::kDp) && e.at("name") != "all-reduce metrics") {
      ASSERT_TRUE(e.at("args").contains("unit")) << e;
      moved.insert(e.at("args").at("unit"));
    }
  EXPECT_EQ(moved, s.set.mesh.dp > 1 ? units : std::set<std::string>());
}

TEST_P(TraceOfTheSmallModel, CountersAreNeverNegativeAndEndWhereTheyBegan) {
  const Simulated s = simulated(GetParam());
  std::map<std::pair<int, std::string>, std::vector<std::int64_t>> counters;
  std::map<std::pair<int, std::string>, double> last_time;
  for (const auto& e : s.trace.at("traceEvents"))
    if (e.at("ph") == "C") {
      const std::pair<int, std::string> key{e.at("pid"), e.at("name")};
      ASSERT_EQ(e.at("args").size(), 1u);
      counters[key].push_back(e.at("args").begin().value());
      if (last_time.contains(key)) {
        EXPECT_GT(e.at("ts"), last_time[key]);
      }
      last_time[key] = e.at("ts");
    }
  for (const auto& [key, values] : counters) {
    EXPECT_GE(*std::min_element(values.begin(), values.end()), 0) << key.second;
    EXPECT_EQ(values.back(), key.second.starts_with("link use") ? 0 : values.front()) << key.second;
  }
  for (std::size_t stage = 0; stage < s.set.stages.size(); ++stage) {
    const auto bytes = s.set.stages[stage].bytes_by_class();
    const int pid = static_cast<int>(stage) * s.set.mesh.tp;
    for (int c = 0; c < kMemoryClasses; ++c) {
      if (bytes[c] == 0) continue;
      const auto& values = counters.at({pid, "memory: " + std::string(kMemoryClassNames[c])});
      const std::int64_t most = *std::max_element(values.begin(), values.end());
      EXPECT_LE(most, bytes[c]) << kMemoryClassNames[c];
      const auto as = static_cast<MemoryClass>(c);
      if (as == MemoryClass::kParameters || as == MemoryClass::kOptimizer) {
        EXPECT_EQ(most, bytes[c]);
      }
      // What is in flight, less the room for a stage's input to arrive early.
      if (as == MemoryClass::kActivations) {
        EXPECT_GT(most, bytes[c] / 2);
        EXPECT_EQ(values.front(), 0);
      }
    }
  }
  EXPECT_EQ(counters.contains({0, "link use: tp"}), s.set.mesh.tp > 1);
  EXPECT_EQ(counters.contains({0, "link use: dp"}), s.set.mesh.dp > 1);
  EXPECT_EQ(counters.contains({0, "link use: pp"}), s.set.mesh.pp > 1);
}

void expect_waits_of_the_report(const Simulated& s) {
  const auto tracks = nested(s.trace);
  for (const RankReport& rank : s.report.ranks) {
    double bubble = 0, exposed = 0, seconds = 0;
    int waits = 0;
    for (const Slice& slice : tracks.at({rank.rank.pp * s.set.mesh.tp, 0})) {
      const double length = 1e-9 * static_cast<double>(slice.end - slice.begin);
      if (slice.event.at("name") == "bubble") bubble += length;
      if (slice.event.at("name") == "exposed communication") exposed += length;
      waits += slice.event.at("cat") == "wait";
      if (is_operation(slice.event)) seconds += length;
    }
    const double rounding = 1e-9 * static_cast<double>(rank.timeline.size() + static_cast<std::size_t>(waits));
    EXPECT_NEAR(bubble, rank.bubble.value, rounding);
    EXPECT_NEAR(exposed, rank.exposed_comm.value, rounding);
    EXPECT_NEAR(bubble + exposed + seconds, s.report.step_time.value, rounding);
  }
}

TEST_P(TraceOfTheSmallModel, WaitsAddUpToTheReportsBubbleAndExposedCommunication) {
  expect_waits_of_the_report(simulated(GetParam()));
}

TEST_P(TraceOfTheSmallModel, CommunicationThatStopsADeviceIsExposed) {
  expect_waits_of_the_report(simulated(GetParam(), "v4:2x2x1", false));
}

TEST(TraceFile, IsCompressedIfItsNameEndsInGz) {
  const auto folder = std::filesystem::temp_directory_path() / "meshwright_trace_test";
  std::filesystem::create_directories(folder);
  const auto plain = folder / "t.json", packed = folder / "t.json.gz";
  write_trace_file(plain, two_stages(), handmade({1, 2, 1}), {});
  write_trace_file(packed, two_stages(), handmade({1, 2, 1}), {});
  std::ostringstream text;
  text << std::ifstream(plain).rdbuf();
  std::string unpacked(1 << 16, '\0');
  gzFile in = gzopen(packed.c_str(), "rb");
  ASSERT_NE(in, nullptr);
  EXPECT_EQ(gzdirect(in), 0);  // it is compressed
  unpacked.resize(static_cast<std::size_t>(gzread(in, unpacked.data(), static_cast<unsigned>(unpacked.size()))));
  gzclose(in);
  EXPECT_EQ(unpacked, text.str());
  std::filesystem::remove_all(folder);
}

TEST(TraceFile, AFolderThatIsNotThereIsBadInput) {
  EXPECT_THROW(write_trace_file("/no/such/folder/t.json", two_stages(), handmade({1, 2, 1}), {}), InputError);
  EXPECT_THROW(write_trace_file("/no/such/folder/t.json.gz", two_stages(), handmade({1, 2, 1}), {}), InputError);
}

}  // namespace
}  // namespace meshwright
