// Files of reference figures: from the folder MESHWRIGHT_CASES names, or, where it has no such file, from
// tests/data.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string>

namespace meshwright {

inline std::filesystem::path case_file(const std::string& name) {
  if (const char* folder = std::getenv("MESHWRIGHT_CASES"); folder != nullptr && *folder != '\0') {
    if (const auto file = std::filesystem::path(folder) / name; std::filesystem::exists(file)) return file;
  }
  return std::filesystem::path(TEST_DATA) / name;
}

inline nlohmann::json read_case_file(const std::string& name) {
  const std::filesystem::path file = case_file(name);
  std::ifstream in(file);
  if (!in) throw std::runtime_error("no such case file: " + file.string());
  return nlohmann::json::parse(in);
}

}  // namespace meshwright
