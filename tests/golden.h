// How the files of hf_golden/ are read: the formula that fills their tensors, and the files there are.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <string>

#include "tests/cases.h"

namespace meshwright {

inline std::uint64_t splitmix(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EB;
  return x ^ (x >> 31);
}

// Element i of a tensor {tid, scale, shift}.
inline double fill_value(const nlohmann::json& tensor, std::uint64_t i) {
  const double u = static_cast<double>(splitmix((tensor["tid"].get<std::uint64_t>() << 32) | i) >> 11) * 0x1p-53;
  return tensor["shift"].get<double>() + tensor["scale"].get<double>() * (2 * u - 1);
}

// The names of all files, without ".json": those of tests/data, and those that only MESHWRIGHT_CASES has.
inline std::set<std::string> golden_families() {
  std::set<std::string> names;
  std::string folders[] = {TEST_DATA, ""};
  if (const char* cases = std::getenv("MESHWRIGHT_CASES"); cases != nullptr) folders[1] = cases;
  for (const std::string& folder : folders) {
    const std::filesystem::path golden = std::filesystem::path(folder) / "hf_golden";
    if (folder.empty() || !std::filesystem::is_directory(golden)) continue;
    for (const auto& file : std::filesystem::directory_iterator(golden))
      if (file.path().extension() == ".json") names.insert(file.path().stem().string());
  }
  return names;
}

}  // namespace meshwright
