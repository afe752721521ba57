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

#include "model/input/diagnostics.h"

namespace meshwright {
namespace {

Interval at(Stream stream, double begin, double end, std::string name = "gemm", std::string where = "F m0 L0") {
  return {stream, {begin}, {end}, std::move(name), std::move(where)};
}

// Two stages; stage 0 sends one activation forward, stage 1 one gradient back.
StepReport two_stages() {
  RankReport first{.rank = {0, 0, 0}}, second{.rank = {0, 1, 0}};
  first.timeline = {at(Stream::kCompute, 0, 1e-3), at(Stream::kSendNext, 1e-3, 1.5e-3, "send"),
                    at(Stream::kRecvNext, 2.5e-3, 3e-3, "recv"), at(Stream::kCompute, 3e-3, 4e-3)};
  second.timeline = {at(Stream::kRecvPrevious, 1e-3, 1.5e-3, "recv"), at(Stream::kCompute, 1.5e-3, 2.5e-3),
                     at(Stream::kSendPrevious, 2.5e-3, 3e-3, "send")};
  return {{4e-3}, {first, second}};
}

nlohmann::json traced(const StepReport& report, TraceOptions options = {.mesh = {1, 2, 1}}) {
  std::ostringstream out;
  write_trace(out, report, options);
  return nlohmann::json::parse(out.str());
}

// X events of a thread, by (pid, tid), must follow or nest. Times in nanoseconds.
void expect_no_partial_overlap(const nlohmann::json& trace) {
  std::map<std::pair<int, int>, std::vector<std::pair<std::int64_t, std::int64_t>>> tracks;
  for (const auto& e : trace.at("traceEvents"))
    if (e.at("ph") == "X") {
      const auto begin = std::llround(e.at("ts").get<double>() * 1e3),
                 length = std::llround(e.at("dur").get<double>() * 1e3);
      EXPECT_GE(length, 1);
      tracks[{e.at("pid"), e.at("tid")}].push_back({begin, begin + length});
    }
  for (auto& [track, events] : tracks) {
    std::sort(events.begin(), events.end());
    for (std::size_t i = 1; i < events.size(); ++i)
      EXPECT_GE(events[i].first, events[i - 1].second) << track.first << " " << track.second;
  }
}

TEST(Trace, EveryOperationIsAnEventWithItsTimeInMicroseconds) {
  const auto trace = traced(two_stages());
  double compute = 0;
  int events = 0;
  for (const auto& e : trace.at("traceEvents"))
    if (e.at("ph") == "X") {
      ++events;
      if (e.at("tid") == 0) compute += e.at("dur").get<double>();
    }
  EXPECT_EQ(events, 7);
  EXPECT_DOUBLE_EQ(compute, 3000);  // three operations of 1 ms
  expect_no_partial_overlap(trace);
}

TEST(Trace, AnArrowJoinsEachSendToItsReceive) {
  std::map<int, std::set<std::string>> ends;
  const auto trace = traced(two_stages());
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
  const auto trace = traced({{1e-6}, {rank}}, {.mesh = {2, 2, 2}});
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
  const auto trace = traced({{2e-6}, {rank}}, {});
  expect_no_partial_overlap(trace);
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
  expect_no_partial_overlap(traced({{t}, {rank}}, {}));
}

TEST(Trace, TextThatCouldBreakTheFileIsEscaped) {
  RankReport rank;
  rank.timeline = {at(Stream::kCompute, 0, 1e-6, "a\"b\\c\n\x01", "\xff")};
  const auto trace = traced({{1e-6}, {rank}}, {.title = "tab\t"});
  EXPECT_EQ(trace.at("otherData").at("title"), "tab\t");
  EXPECT_EQ(trace.at("traceEvents").back().at("cat"), "a\"b\\c\n\x01");
}

TEST(Trace, OverlappingOperationsOfAStreamAreOurMistake) {
  RankReport rank;
  rank.timeline = {at(Stream::kCompute, 0, 2e-6), at(Stream::kCompute, 1e-6, 3e-6)};
  std::ostringstream out;
  EXPECT_THROW(write_trace(out, {{3e-6}, {rank}}, {}), std::logic_error);
}

TEST(Trace, ASendWithoutItsReceiveIsOurMistake) {
  StepReport report = two_stages();
  report.ranks[1].timeline.erase(report.ranks[1].timeline.begin());
  std::ostringstream out;
  EXPECT_THROW(write_trace(out, report, {.mesh = {1, 2, 1}}), std::logic_error);
}

TEST(Trace, RanksBeyondTheLimitsAreLeftOutWhole) {
  std::ostringstream out;
  const TraceSize size = write_trace(out, two_stages(), {.mesh = {1, 2, 1}, .most_events = 5});
  EXPECT_EQ(size.ranks, 1);
  EXPECT_EQ(size.ranks_left_out, 1);
  EXPECT_EQ(size.events, 4);  // no arrows: their other ends are not there
}

TEST(TraceFile, IsCompressedIfItsNameEndsInGz) {
  const auto folder = std::filesystem::temp_directory_path() / "meshwright_trace_test";
  std::filesystem::create_directories(folder);
  const auto plain = folder / "t.json", packed = folder / "t.json.gz";
  write_trace_file(plain, two_stages(), {.mesh = {1, 2, 1}});
  write_trace_file(packed, two_stages(), {.mesh = {1, 2, 1}});
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
  EXPECT_THROW(write_trace_file("/no/such/folder/t.json", two_stages(), {.mesh = {1, 2, 1}}), InputError);
  EXPECT_THROW(write_trace_file("/no/such/folder/t.json.gz", two_stages(), {.mesh = {1, 2, 1}}), InputError);
}

}  // namespace
}  // namespace meshwright
