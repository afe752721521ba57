#include "model/input/printable.h"

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>

namespace meshwright {
namespace {

struct Character {
  std::uint32_t code = 0;
  std::size_t bytes = 0;  // 0: not UTF-8
};

// The character at the beginning of `text`: shortest form, no surrogates, at most U+10FFFF (RFC 3629).
Character decode(std::string_view text) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  const std::size_t bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < bytes) return {};
  std::uint32_t code = lead & (0x7F >> bytes);
  for (std::size_t i = 1; i < bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return {};
    code = code << 6 | (byte(i) & 0x3F);
  }
  constexpr std::uint32_t kSmallest[]{0, 0, 0x80, 0x800, 0x10000};
  const bool surrogate = code >= 0xD800 && code <= 0xDFFF;
  if (code < kSmallest[bytes] || code > 0x10FFFF || surrogate) return {};
  return {code, bytes};
}

bool is_obeyed(std::uint32_t code) {
  const auto within = [code](std::uint32_t low, std::uint32_t high) { return low <= code && code <= high; };
  return within(0, 0x1F) || within(0x7F, 0x9F)                // C0, DEL, C1
         || within(0x2028, 0x202E) || within(0x2066, 0x2069)  // separators, embeddings and overrides, isolates
         || code == 0x061C || within(0x200E, 0x200F);         // marks of direction
}

}  // namespace

std::string printable(std::string_view text) {
  std::string shown;
  shown.reserve(text.size());
  while (!text.empty()) {
    const Character c = decode(text);
    const std::size_t bytes = c.bytes == 0 ? 1 : c.bytes;
    if (c.bytes == 0)
      shown += fmt::format("\\x{:02x}", static_cast<unsigned char>(text[0]));
    else if (c.code == '\n')
      shown += "\\n";
    else if (c.code == '\t')
      shown += "\\t";
    else if (is_obeyed(c.code))
      shown += c.code < 0x100 ? fmt::format("\\x{:02x}", c.code) : fmt::format("\\u{:04x}", c.code);
    else
      shown += text.substr(0, bytes);
    text.remove_prefix(bytes);
  }
  return shown;
}

}  // namespace meshwright
