// What is fuzzed: every way in which bytes that we did not write reach the program. A target takes any bytes whatsoever;
// it returns if all that was promised held, and throws BrokenPromise, or lets pass whatever else was thrown, if not.
//   config  a configuration, then lines "--set KEY=VALUE"
//   system  a system file; a first line that does not begin with '{' is the slice
//   plan    the text of a plan
//   npy     an array of token ids
//   rows    lines "TABLE.COLUMN = VALUE": cells that somebody else changed in a database of ours
// tests/fuzz/libfuzzer_main.cpp searches for bytes that break one (make fuzz); tests/fuzz/corpora_test.cpp runs them over
// tests/fuzz/corpus/ with everything else (make test), so that what was found and mended stays mended.
#pragma once

#include <array>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>

namespace meshwright::fuzz {

struct BrokenPromise : std::logic_error {
  using std::logic_error::logic_error;
};

void config(std::string_view input);
void system(std::string_view input);
void plan(std::string_view input);
void npy(std::string_view input);
void rows(std::string_view input);

// A neighbour of `input` that is further away than a few changed bytes, as it keeps to the input's form: another value in
// a JSON document, another cell of a row. What is not of that form comes back as it is.
std::string mutate_json(std::string_view input, std::mt19937& random);
std::string mutate_rows(std::string_view input, std::mt19937& random);

struct Target {
  std::string_view name;
  void (*run)(std::string_view input);
  std::string (*mutate)(std::string_view input, std::mt19937& random);  // nullptr: bytes are all there is to change
};
constexpr std::array<Target, 5> kTargets{{{"config", config, mutate_json},
                                          {"system", system, mutate_json},
                                          {"plan", plan, nullptr},
                                          {"npy", npy, nullptr},
                                          {"rows", rows, mutate_rows}}};

}  // namespace meshwright::fuzz
