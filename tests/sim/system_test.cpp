#include "sim/system.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "model/input/diagnostics.h"
#include "model/program/op_work.h"
#include "tests/systems.h"

namespace meshwright {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Json = nlohmann::ordered_json;

const std::string kV4File = REPOSITORY "/configs/systems/tpu-v4.json";
const std::string kCoresFile = TEST_DATA "/two_cores.json";

std::vector<Diagnostic> what_is_wrong(const std::function<void()>& load) {
  try {
    load();
  } catch (const InputError& error) {
    return error.diagnostics();
  }
  return {};
}

Json parse(const std::string& file) {
  std::ifstream in(file);
  return Json::parse(in);
}

// A system file with a change, gone at the end of the test.
class ChangedFile {
 public:
  ChangedFile(const std::string& original, const std::function<void(Json&)>& change)
      : path_(std::filesystem::path(::testing::TempDir()) /
              (std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()) + ".json")) {
    Json json = parse(original);
    change(json);
    std::ofstream(path_) << json.dump(1);
  }
  ~ChangedFile() { std::filesystem::remove(path_); }
  std::vector<Diagnostic> diagnostics(const std::string& slice) const {
    return what_is_wrong([&] { load_system_file(path_, slice); });
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
};

TEST(System, ASliceOfV4IsAnOpenMeshWithItsFiguresFromTheFile) {
  const System v4 = load_system("v4:2x4x4");
  EXPECT_EQ(v4.name, "v4:2x4x4");
  EXPECT_EQ(v4.devices(), 32);
  EXPECT_EQ(v4.hosts(), 8);
  EXPECT_EQ(v4.topology.wires(), 64);
  EXPECT_EQ(v4.memory.value, 32 * kGiB);
  EXPECT_EQ(v4.usable_memory.value, 30 * kGiB + kGiB / 4 * 3);  // 30.75 GiB
  EXPECT_EQ(v4.peak(DType::kBF16).value, 2.75e14);
  EXPECT_TRUE(v4.overlaps_compute);
}

TEST(System, SlicesWrapFromAWholeCubeUp) {
  for (const char* open : {"2x2x1", "2x2x2", "2x2x4", "2x4x4"}) {
    const Topology slice = load_system(std::string("v4:") + open).topology;
    for (int d = 0; d < 3; ++d) EXPECT_FALSE(slice.wraps(d)) << open;
  }
  for (const char* wrapped : {"4x4x4", "4x4x8", "4x4x12", "4x8x8", "8x8x16", "16x16x16"}) {
    const Topology slice = load_system(std::string("v4:") + wrapped).topology;
    for (int d = 0; d < 3; ++d) EXPECT_TRUE(slice.wraps(d)) << wrapped;
  }
}

TEST(System, AnImpossibleSliceIsRefusedWithThoseThatExist) {
  const std::vector<std::pair<const char*, const char*>> impossible{{"v4", "such as v4:2x4x4"},
                                                                    {"v4:", "such as v4:2x4x4"},
                                                                    {"v4:32", "1 dimensions, not 3"},
                                                                    {"v4:3x4x4", "3 is not a multiple of 4"},
                                                                    {"v4:4x4x2", "v4:2x4x4"},
                                                                    {"v4:8x4x4", "v4:4x4x8"},
                                                                    {"v4:4x4x6", "6 is not a multiple of 4"},
                                                                    {"v4:4x4x32", "32 is more than 16"},
                                                                    {"v4:2x4x4x1", "4 dimensions, not 3"},
                                                                    {"v4:axb", "such as v4:2x4x4"},
                                                                    {"v4:4x8x2", "whole blocks"}};
  for (const auto& [spec, hint] : impossible) {
    const auto wrong = what_is_wrong([&] { load_system(spec); });
    ASSERT_EQ(wrong.size(), 1u) << spec;
    EXPECT_EQ(wrong[0].path, "slice");
    EXPECT_THAT(wrong[0].allowed, HasSubstr("2x2x4, 2x4x4, or whole blocks of 4x4x4")) << spec;
    EXPECT_THAT(wrong[0].hint, HasSubstr(hint)) << spec;
  }
}

TEST(System, AnUnknownNameIsRefusedWithThoseThatAreKnown) {
  EXPECT_THAT(known_systems(REPOSITORY "/configs"), Contains("v4"));
  const auto wrong = what_is_wrong([] { load_system("w4:2x4x4"); });
  ASSERT_EQ(wrong.size(), 1u);
  EXPECT_THAT(wrong[0].allowed, HasSubstr("v4"));
  EXPECT_EQ(wrong[0].hint, "did you mean v4:2x4x4?");
  EXPECT_EQ(what_is_wrong([] { load_system("tpu-v4:2x4x4"); }).at(0).hint, "did you mean v4:2x4x4?");
  EXPECT_EQ(what_is_wrong([] { load_system(""); }).size(), 1u);
}

TEST(System, MemoryMayBeAWholeNumberWithAPoint) {
  const ChangedFile mine(kV4File, [](Json& j) { j["memory"]["bytes"]["value"] = 34'300'000'000.0; });
  EXPECT_EQ(load_system(mine.path().string() + ":2x2x1").memory.value, 34'300'000'000);
}

TEST(System, AFileIsNamedWithItsSliceInsideOrBehindAColon) {
  EXPECT_EQ(load_system(kV4File + ":4x4x4").devices(), 64);
  const ChangedFile mine(kV4File, [](Json& j) { j["slice"] = "2x2x4"; });
  EXPECT_EQ(load_system(mine.path().string()).devices(), 16);
  EXPECT_EQ(load_system(mine.path().string() + ":2x2x1").devices(), 4);  // what is asked for wins
  EXPECT_EQ(what_is_wrong([] { load_system("no/such/file.json"); }).size(), 1u);
}

TEST(System, MeshesOfTwoDimensionsAndNoRings) {
  const ChangedFile mesh(kV4File, [](Json& j) {
    j["topology"] = {{"kind", "torus"},
                     {"wraps", "never"},
                     {"largest_slice", {{"value", "8x8"}, {"source", "mine"}}},
                     {"host", {{"value", "2x2"}, {"source", "mine"}}}};
  });
  EXPECT_EQ(load_system_file(mesh.path(), "4x8").topology.describe(), "4x8 open mesh, 32 chips, 52 wires");
  EXPECT_EQ(mesh.diagnostics("16x2").size(), 1u);
}

TEST(System, AMeasuredMachineHasADevicePerCore) {
  const System cores = load_system_file(kCoresFile);
  EXPECT_EQ(cores.name, "two-cores:2");
  EXPECT_EQ(cores.topology.kind(), Topology::Kind::kSwitch);
  EXPECT_EQ(cores.hosts(), 1);
  EXPECT_FALSE(cores.overlaps_compute);
  EXPECT_EQ(load_system_file(kCoresFile, "1").devices(), 1);
  EXPECT_THAT(what_is_wrong([] { load_system_file(kCoresFile, "4"); })[0].allowed, "1 to 2 devices");
}

TEST(System, AMeasuredMachineMaySayWhatACopyInMemoryReaches) {
  EXPECT_FALSE(std::get<MeasuredCompute>(load_system_file(kCoresFile).compute).memory_bandwidth);
  const ChangedFile file(kCoresFile, [](Json& j) {
    j["compute"]["memory_bytes_per_s"] = {{"value", 12e9}, {"source", "a test"}};
  });
  const System with = load_system_file(file.path());
  EXPECT_EQ(std::get<MeasuredCompute>(with.compute).memory_bandwidth.value().value, 12e9);
}

TEST(System, ATypeWithoutAPeakIsRefusedByName) {
  const System cores = load_system_file(kCoresFile);
  require_dtype(cores, DType::kF32);
  const auto wrong = what_is_wrong([&] { require_dtype(cores, DType::kBF16); });
  ASSERT_EQ(wrong.size(), 1u);
  EXPECT_EQ(wrong[0].value, "bf16");
  EXPECT_EQ(wrong[0].allowed, "f32");
}

TEST(BrokenSystem, EverythingWrongIsReportedAtOnce) {
  const ChangedFile broken(kV4File, [](Json& j) {
    j.erase("device");
    j["memory"]["bytes"]["value"] = -1;
    j["compute"]["matmul_efficiency"]["value"] = 1.5;
    j["network"]["link_bytes_per_s"].erase("source");
    j["network"]["speed"] = 3;
  });
  std::vector<std::string> paths;
  for (const Diagnostic& d : broken.diagnostics("2x4x4")) {
    paths.push_back(d.path);
    EXPECT_FALSE(d.hint.empty()) << to_string(d);
    EXPECT_FALSE(d.allowed.empty()) << to_string(d);
  }
  EXPECT_THAT(paths, ::testing::UnorderedElementsAre("device", "memory.bytes.value", "compute.matmul_efficiency.value",
                                                     "network.link_bytes_per_s.source", "network.speed"));
}

struct Breakage {
  const char* what;
  const std::string& file;
  std::function<void(Json&)> change;
  const char* path;  // of the one diagnostic
};

class BrokenSystemFile : public ::testing::TestWithParam<Breakage> {};

TEST_P(BrokenSystemFile, NamesThePathWhatIsAllowedAndARemedy) {
  const Breakage& breakage = GetParam();
  Json json = parse(breakage.file);
  breakage.change(json);
  const auto file = std::filesystem::path(::testing::TempDir()) / (std::string(breakage.what) + ".json");
  std::ofstream(file) << json.dump();
  const auto wrong = what_is_wrong([&] { load_system_file(file, &breakage.file == &kV4File ? "2x4x4" : ""); });
  std::filesystem::remove(file);
  ASSERT_EQ(wrong.size(), 1u);
  EXPECT_EQ(wrong[0].path, breakage.path) << to_string(wrong[0]);
  EXPECT_EQ(wrong[0].source, file.string());
  EXPECT_FALSE(wrong[0].allowed.empty()) << to_string(wrong[0]);
  EXPECT_FALSE(wrong[0].hint.empty()) << to_string(wrong[0]);
}

INSTANTIATE_TEST_SUITE_P(
    , BrokenSystemFile,
    ::testing::Values(
        Breakage{"NoMemory", kV4File, [](Json& j) { j.erase("memory"); }, "memory"},
        Breakage{"MoreUsableThanAll", kV4File, [](Json& j) { j["memory"]["usable_bytes"]["value"] = 40'000'000'000; },
                 "memory.usable_bytes.value"},
        Breakage{"FractionOfAByte", kV4File, [](Json& j) { j["memory"]["bytes"]["value"] = 3.5e10 + 0.5; },
                 "memory.bytes.value"},
        Breakage{"BareNumber", kV4File, [](Json& j) { j["network"]["hop_latency_us"] = 1; }, "network.hop_latency_us"},
        Breakage{"EmptySource", kV4File, [](Json& j) { j["network"]["hop_latency_us"]["source"] = ""; },
                 "network.hop_latency_us.source"},
        Breakage{"NegativeLatency", kV4File, [](Json& j) { j["network"]["hop_latency_us"]["value"] = -1; },
                 "network.hop_latency_us.value"},
        Breakage{"StringForANumber", kV4File, [](Json& j) { j["network"]["link_bytes_per_s"]["value"] = "45 GB/s"; },
                 "network.link_bytes_per_s.value"},
        Breakage{"ZeroBandwidth", kV4File, [](Json& j) { j["compute"]["memory_bytes_per_s"]["value"] = 0; },
                 "compute.memory_bytes_per_s.value"},
        Breakage{"UnknownType", kV4File,
                 [](Json& j) { j["compute"]["peak_flops_per_s"]["bf17"] = j["compute"]["peak_flops_per_s"]["bf16"]; },
                 "compute.peak_flops_per_s.bf17"},
        Breakage{"NoPeaks", kV4File, [](Json& j) { j["compute"]["peak_flops_per_s"] = Json::object(); },
                 "compute.peak_flops_per_s"},
        Breakage{"TileOfZero", kV4File, [](Json& j) { j["compute"]["tile_rows"]["value"] = 0; },
                 "compute.tile_rows.value"},
        Breakage{"BlockOfTwoDimensions", kV4File, [](Json& j) { j["topology"]["block"]["value"] = "4x4"; },
                 "topology.block.value"},
        Breakage{"SliceThatIsNone", kV4File,
                 [](Json& j) { j["topology"]["slices_below_a_block"]["value"] = "2x2x1 2x2"; },
                 "topology.slices_below_a_block.value"},
        Breakage{"UnknownWrapRule", kV4File, [](Json& j) { j["topology"]["wraps"] = "sometimes"; }, "topology.wraps"},
        Breakage{"MisspeltKey", kV4File,
                 [](Json& j) { j["network"]["hop_latency_ms"] = j["network"]["hop_latency_us"]; },
                 "network.hop_latency_ms"},
        Breakage{"MeasuredTorus", kV4File, [](Json& j) { j["network"] = parse(kCoresFile)["network"]; },
                 "network.model"},
        Breakage{"LinksOfSharedMemory", kCoresFile, [](Json& j) { j["network"] = parse(kV4File)["network"]; },
                 "network.model"},
        Breakage{"UnknownOperation", kCoresFile,
                 [](Json& j) { j["compute"]["kinds"]["gem"] = j["compute"]["kinds"]["gemm"]; }, "compute.kinds.gem"},
        Breakage{"NoOtherKinds", kCoresFile, [](Json& j) { j["compute"]["kinds"].erase("other"); },
                 "compute.kinds.other"},
        Breakage{"UnsortedPoints", kCoresFile,
                 [](Json& j) { std::swap(j["network"]["message"]["points"][0], j["network"]["message"]["points"][1]); },
                 "network.message.points[1].bytes"},
        Breakage{"NoPoints", kCoresFile, [](Json& j) { j["network"]["message"]["points"] = Json::array(); },
                 "network.message.points"},
        Breakage{"SameCollectiveTwice", kCoresFile,
                 [](Json& j) { j["network"]["collectives"].push_back(j["network"]["collectives"][0]); },
                 "network.collectives[4].members"},
        Breakage{"GroupOfOne", kCoresFile,
                 [](Json& j) {
                   Json one = j["network"]["collectives"][0];
                   one["members"] = 1;
                   j["network"]["collectives"].push_back(one);
                 },
                 "network.collectives[4].members"},
        Breakage{"MissingCollective", kCoresFile, [](Json& j) { j["network"]["collectives"].erase(1); },
                 "network.collectives"}),
    [](const auto& info) { return info.param.what; });

// ---- numbers that no machine has ---------------------------------------------------------------------------------------

struct Slipped {
  const char* pointer;  // to the number, in the file
  double value;
  const char* hint;
};

TEST(PlausibleNumbers, TheUsualSlipOfEveryKeyOfADataSheetIsExplained) {
  const std::vector<Slipped> slips{
      {"/memory/bytes/value", 32, "32: below 1048576; 32 GiB is 34359738368"},
      {"/memory/usable_bytes/value", 30, "30: below 1048576; 30 GiB is 32212254720"},
      {"/compute/peak_flops_per_s/bf16/value", 275, "275: below 1e8; 275 TFLOP/s is 2.75e14"},
      {"/compute/peak_flops_per_s/f32/value", 0.0459, "0.0459: below 1e8; 0.0459 PFLOP/s is 4.59e13"},
      {"/compute/matmul_efficiency/value", 90, "90: above 1; 90 % is 0.9"},
      {"/compute/tile_rows/value", 0, nullptr},
      {"/compute/tile_columns/value", 1e7, nullptr},
      {"/compute/tile_depth/value", -128, nullptr},
      {"/compute/memory_bytes_per_s/value", 1230, "1230: below 1e8; 1230 GB/s is 1.23e12"},
      {"/compute/memory_efficiency/value", 85, "85: above 1; 85 % is 0.85"},
      {"/compute/op_overhead_us/value", 1e-6, "1e-6: below 0.0001; 1e-6 s is 1"},
      {"/network/link_bytes_per_s/value", 45, "45: below 1e6; 45 GB/s is 4.5e10"},
      {"/network/link_efficiency/value", 87, "87: above 1; 87 % is 0.87"},
      {"/network/hop_latency_us/value", -1, "-1: below 0.0001; look at its unit"},
      {"/network/collective_overhead_us/value", 1e7, "1e7: above 1e6; 1e7 ns is 10000"},
      {"/network/message_overhead_us/value", 1e-5, "1e-5: below 0.0001; 1e-5 s is 10"}};
  const auto change = [](Json& j, const Slipped& slip) {
    Json& at = j.at(Json::json_pointer(slip.pointer));
    if (at.is_number_integer() && slip.value == std::floor(slip.value))
      at = static_cast<std::int64_t>(slip.value);
    else
      at = slip.value;
  };
  for (const Slipped& slip : slips) {
    const ChangedFile file(kV4File, [&](Json& j) { change(j, slip); });
    const auto wrong = file.diagnostics("2x4x4");
    ASSERT_EQ(wrong.size(), 1u) << slip.pointer;
    std::string path(slip.pointer + 1);
    std::ranges::replace(path, '/', '.');
    EXPECT_EQ(wrong[0].path, path);
    if (slip.hint != nullptr) {
      EXPECT_EQ(wrong[0].hint, slip.hint) << slip.pointer;
    }
    EXPECT_FALSE(wrong[0].allowed.empty()) << slip.pointer;
  }
  const ChangedFile all(kV4File, [&](Json& j) {
    for (const Slipped& slip : slips) change(j, slip);
  });
  EXPECT_EQ(all.diagnostics("2x4x4").size(), slips.size());  // in one pass
}

TEST(PlausibleNumbers, TheUsualSlipOfEveryMeasurementIsExplained) {
  const std::vector<Slipped> slips{
      {"/compute/peak_flops_per_s/f32/value", 230, "230: below 1e8; 230 TFLOP/s is 2.3e14"},
      {"/compute/kinds/gemm/overhead_us/value", 1e9, "1e9: above 1e6; look at its unit"},
      {"/compute/kinds/adamw/bytes_per_s/value", 50, "50: below 10000; 50 GB/s is 5e10"},
      {"/compute/kinds/gemm/flops_per_s/f32/points/0/flops_per_s", 50, "50: below 10000; 50 GFLOP/s is 5e10"},
      {"/compute/kinds/gemm/flops_per_s/f32/points/0/smallest_dimension", 0, nullptr},
      {"/topology/devices/value", 0, nullptr},
      {"/network/collectives/0/members", 1, nullptr},
      {"/network/collectives/0/points/0/bytes", 0.5, nullptr},
      {"/network/collectives/0/points/0/us", 4e-7, "4e-7: below 0.0001; 4e-7 s is 0.4"},
      {"/network/message/points/0/us", 1e12, "1e12: above 1e9; look at its unit"}};
  for (const Slipped& slip : slips) {
    const ChangedFile file(kCoresFile, [&](Json& j) {
      Json& at = j.at(Json::json_pointer(slip.pointer));
      if (slip.value == std::floor(slip.value))
        at = static_cast<std::int64_t>(slip.value);
      else
        at = slip.value;
    });
    const auto wrong = file.diagnostics("");
    ASSERT_EQ(wrong.size(), 1u) << slip.pointer;
    if (slip.hint != nullptr) {
      EXPECT_EQ(wrong[0].hint, slip.hint) << slip.pointer;
    }
  }
}

TEST(PlausibleNumbers, MachinesFromOneOldCoreToARackOfTheNewestAreAllowed) {
  struct Sheet {
    const char* name;
    double memory, peak, memory_rate, link, latency;
  };
  for (const Sheet& sheet :
       {Sheet{"one core of a single-board computer, 100 Mbit/s", 0x1p29, 4e9, 2e9, 12.5e6, 100},
        Sheet{"TPU v2", 8e9, 22.5e12, 0.3e12, 6.2e10, 1}, Sheet{"GB300", 288e9, 15e15, 8e12, 9e11, 0.5},
        Sheet{"a wafer", 44e9, 62.5e15, 2.1e14, 1e12, 0},
        Sheet{"two sites, one device each", 24e12, 1e17, 1e13, 1e10, 50'000}}) {
    const ChangedFile file(kV4File, [&](Json& j) {
      j["memory"]["bytes"]["value"] = j["memory"]["usable_bytes"]["value"] = static_cast<std::int64_t>(sheet.memory);
      j["compute"]["peak_flops_per_s"]["bf16"]["value"] = sheet.peak;
      j["compute"]["memory_bytes_per_s"]["value"] = sheet.memory_rate;
      j["network"]["link_bytes_per_s"]["value"] = sheet.link;
      j["network"]["hop_latency_us"]["value"] = sheet.latency;
    });
    EXPECT_THAT(file.diagnostics("2x4x4"), ::testing::IsEmpty()) << sheet.name;
  }
}

TEST(PlausibleNumbers, ASliceOfMoreChipsThanAnyMachineHasIsRefused) {
  const ChangedFile huge(kV4File, [](Json& j) { j["topology"]["largest_slice"]["value"] = "1048576x1048576x1048576"; });
  EXPECT_EQ(huge.diagnostics("4096x65536x1048576").size(), 1u);
}

// ---- products without rates --------------------------------------------------------------------------------------------

TEST(MeasuredProducts, WithoutRatesAreRefusedWithTheirKindAndWhatIsMissing) {
  const ChangedFile gemm(kCoresFile, [](Json& j) { j["compute"]["kinds"]["gemm"].erase("flops_per_s"); });
  auto wrong = gemm.diagnostics("");
  ASSERT_EQ(wrong.size(), 1u);
  EXPECT_EQ(wrong[0].source, gemm.path().string());
  EXPECT_EQ(wrong[0].path, "compute.kinds.gemm");
  EXPECT_THAT(wrong[0].allowed, HasSubstr("flops_per_s"));
  EXPECT_THAT(wrong[0].hint, HasSubstr("gemm"));

  // Kinds that are not listed cost as others do, so these need rates; not where all products are listed.
  const ChangedFile other(kCoresFile, [](Json& j) { j["compute"]["kinds"]["other"].erase("flops_per_s"); });
  wrong = other.diagnostics("");
  ASSERT_EQ(wrong.size(), 1u);
  EXPECT_EQ(wrong[0].path, "compute.kinds.other");
  for (int kind = 0; kind < kOpKinds; ++kind) {
    const std::string name(kind_name(static_cast<OpKind>(kind)));
    if (is_product(static_cast<OpKind>(kind)) && name != "gemm") {
      EXPECT_THAT(wrong[0].hint, HasSubstr(name));
    }
  }
  const ChangedFile listed(kCoresFile, [](Json& j) {
    Json& kinds = j["compute"]["kinds"];
    kinds["other"].erase("flops_per_s");
    for (int kind = 0; kind < kOpKinds; ++kind)
      if (is_product(static_cast<OpKind>(kind)))
        kinds[std::string(kind_name(static_cast<OpKind>(kind)))] = Json(kinds["gemm"]);
  });
  EXPECT_THAT(listed.diagnostics(""), ::testing::IsEmpty());
}

}  // namespace
}  // namespace meshwright
