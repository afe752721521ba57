#include <algorithm>
#include <optional>
#include <regex>

#include "executor/data/npy.h"
#include "tests/fuzz/support.h"

namespace meshwright::fuzz {
namespace {

constexpr std::int64_t kVocab = 50'000;

// The array that numpy.save would have written as exactly these bytes, by the format's description and nothing else.
// None: it would not have, or they are not flat token ids.
std::optional<std::vector<std::int32_t>> read_plainly(const std::string& bytes) {
  constexpr std::size_t kLongest = 500;  // std::regex recurses
  if (bytes.size() < 10 || bytes.compare(0, 8, std::string("\x93NUMPY\x01\x00", 8)) != 0) return std::nullopt;
  const std::size_t length = static_cast<unsigned char>(bytes[8]) + 256U * static_cast<unsigned char>(bytes[9]);
  if (length > kLongest || bytes.size() < 10 + length) return std::nullopt;
  const std::string header = bytes.substr(10, length);
  static const std::regex form(
      R"(\{'descr': '([<|])([iu])([1248])', 'fortran_order': False, 'shape': \((\d{1,6}),\), \} *\n)");
  std::smatch match;
  if (!std::regex_match(header, match, form)) return std::nullopt;
  const bool is_signed = match[2] == "i";
  const std::size_t size = std::stoul(match[3]), count = std::stoul(match[4]);
  if ((match[1] == "|") != (size == 1) || bytes.size() < 10 + length + count * size) return std::nullopt;
  std::vector<std::int32_t> tokens;
  for (std::size_t i = 0; i < count; ++i) {
    __int128 value = 0;
    for (std::size_t b = size; b-- > 0;)
      value = value * 256 + static_cast<unsigned char>(bytes[10 + length + i * size + b]);
    if (is_signed && value >= __int128{1} << (8 * size - 1)) value -= __int128{1} << (8 * size);
    if (value < 0 || value >= kVocab) return std::nullopt;
    tokens.push_back(static_cast<std::int32_t>(value));
  }
  return tokens;
}

}  // namespace

// Tokens that are read lie in the vocabulary and are as many as the header says; what numpy writes is read, as the
// numbers that it wrote; and what was read is written and read again.
void npy(std::string_view input) {
  static const ScratchFolder scratch;
  const auto file = scratch.write("tokens.npy", input);
  const auto plain = read_plainly(std::string(input));

  std::vector<std::int32_t> tokens;
  const bool accepted = accepts([&] { tokens = read_npy_tokens(file, kVocab); });
  require(accepted || !plain, "a plain array is refused");
  require(accepts([&] { check_npy_tokens(file, kVocab); }) == accepted, "checked and read, the verdicts differ");
  if (!accepted) return;
  require(!plain || *plain == tokens, "a plain array is read as other numbers");
  const NpyHeader header = read_npy_header(file);
  require(header.elements == static_cast<std::int64_t>(tokens.size()), "{} elements, {} tokens", header.elements,
          tokens.size());
  std::int64_t product = 1;
  for (const std::int64_t extent : header.shape) product *= extent;
  require(product == header.elements, "a shape of {} elements, {} read", product, header.elements);
  require(std::ranges::all_of(tokens, [](std::int32_t t) { return t >= 0 && t < kVocab; }),
          "a token off the vocabulary");
}

}  // namespace meshwright::fuzz
