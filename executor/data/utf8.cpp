#include "executor/data/utf8.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/locale/utf.hpp>
#include <cstdint>
#include <cstring>
#include <utility>

#include "model/input/diagnostics.h"

namespace meshwright {
namespace {

std::string hint_for(std::string_view text) {
  constexpr std::pair<std::string_view, std::string_view> kBeginnings[] = {
      {"\x93NUMPY", "it is a NumPy array: give it a name that ends in .npy"},
      {"\x1f\x8b", "it is compressed: gunzip it first"},
      {"\x28\xb5\x2f\xfd", "it is compressed: unzstd it first"},
      {"PK\x03\x04", "it is an archive (zip, .npz, .docx): unpack it first"},
      {"%PDF", "it is a PDF: pdftotext gives its text"},
      {"\xff\xfe", "it is UTF-16: iconv -f UTF-16 -t UTF-8"},
      {"\xfe\xff", "it is UTF-16: iconv -f UTF-16 -t UTF-8"}};
  for (const auto& [beginning, hint] : kBeginnings)
    if (text.starts_with(beginning)) return std::string(hint);
  return "iconv -f ENCODING -t UTF-8 converts a text; token ids come as .npy files";
}

// Bytes at the begin that are ASCII and not NUL, in whole words of 8: most of most texts.
std::size_t plain_ascii(std::string_view text) {
  constexpr std::uint64_t kHigh = 0x8080808080808080, kOnes = 0x0101010101010101;
  std::size_t n = 0;
  for (std::uint64_t word = 0; n + sizeof word <= text.size(); n += sizeof word) {
    std::memcpy(&word, text.data() + n, sizeof word);
    if (((word | (word - kOnes)) & kHigh) != 0) break;
  }
  return n;
}

}  // namespace

char32_t next_character(std::string_view& text) {
  namespace utf = boost::locale::utf;
  const char* at = text.data();
  const utf::code_point c = utf::utf_traits<char>::decode(at, text.data() + text.size());
  text.remove_prefix(std::max<std::size_t>(static_cast<std::size_t>(at - text.data()), 1));
  return c == utf::illegal || c == utf::incomplete ? kNoCharacter : static_cast<char32_t>(c);
}

void require_utf8(std::string_view text, const std::string& source) {
  std::string_view rest = text;
  while (true) {
    rest.remove_prefix(plain_ascii(rest));
    if (rest.empty()) return;
    const std::size_t at = text.size() - rest.size();
    const char32_t c = next_character(rest);
    if (c != kNoCharacter && c != 0) continue;
    const auto line = 1 + std::count(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(at), '\n');
    throw InputError(Diagnostic{source, fmt::format("line {}, byte {}", line, at),
                                c == 0 ? "a NUL byte" : fmt::format("0x{:02X}", static_cast<unsigned char>(text[at])),
                                "UTF-8 text, a .npy file of token ids, or a folder of .npy files", hint_for(text)});
  }
}

}  // namespace meshwright
