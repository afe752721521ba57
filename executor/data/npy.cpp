#include "executor/data/npy.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <optional>
#include <string_view>
#include <type_traits>

#include "executor/data/regular_file.h"
#include "model/input/diagnostics.h"

namespace meshwright {
namespace {

static_assert(std::endian::native == std::endian::little, "token files are little-endian");

constexpr std::string_view kMagic = "\x93NUMPY";
constexpr std::int64_t kLongestHeader = 1 << 20;

[[noreturn]] void refuse(const std::filesystem::path& file, const std::string& where, const std::string& value,
                         const std::string& allowed, const std::string& hint) {
  throw InputError(Diagnostic{file.string(), where, value, allowed, hint});
}

// The header's text is a Python dictionary such as {'descr': '<u4', 'fortran_order': False, 'shape': (3, 4),
// }. This reads that form only: string keys, and values that are strings, True/False or tuples of whole
// numbers.
class HeaderParser {
 public:
  explicit HeaderParser(std::string_view text) : text_(text) {}

  struct Fields {
    std::optional<std::string> descr;
    std::optional<bool> fortran_order;
    std::optional<std::vector<std::int64_t>> shape;
  };

  // Nothing if the text is not of that form. A descr that is not a string (records) comes as the text it is.
  std::optional<Fields> parse() {
    Fields fields;
    if (!take('{')) return std::nullopt;
    while (!take('}')) {
      const auto key = string();
      if (!key || !take(':')) return std::nullopt;
      if (*key == "descr") {
        fields.descr = peek() == '[' ? rest_of_list() : string();
        if (!fields.descr) return std::nullopt;
      } else if (*key == "fortran_order") {
        if (word("True")) {
          fields.fortran_order = true;
        } else if (word("False")) {
          fields.fortran_order = false;
        } else {
          return std::nullopt;
        }
      } else if (*key == "shape") {
        fields.shape = tuple();
        if (!fields.shape) return std::nullopt;
      } else {
        return std::nullopt;
      }
      if (!take(',') && peek() != '}') return std::nullopt;
    }
    if (peek() != '\0' || !fields.descr || !fields.fortran_order || !fields.shape) return std::nullopt;
    return fields;
  }

 private:
  char peek() {
    while (at_ < text_.size() && std::isspace(static_cast<unsigned char>(text_[at_]))) ++at_;
    return at_ < text_.size() ? text_[at_] : '\0';
  }
  bool take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
  }
  bool word(std::string_view w) {
    peek();
    if (text_.substr(at_, w.size()) != w) return false;
    at_ += w.size();
    return true;
  }
  std::optional<std::string> string() {
    const char quote = peek();
    if (quote != '\'' && quote != '"') return std::nullopt;
    const std::size_t end = text_.find(quote, at_ + 1);
    if (end == std::string_view::npos) return std::nullopt;
    std::string s(text_.substr(at_ + 1, end - at_ - 1));
    at_ = end + 1;
    return s;
  }
  std::optional<std::string> rest_of_list() {
    const std::size_t end = text_.find(']', at_);
    if (end == std::string_view::npos) return std::nullopt;
    std::string s(text_.substr(at_, end + 1 - at_));
    at_ = end + 1;
    return s;
  }
  std::optional<std::vector<std::int64_t>> tuple() {
    std::vector<std::int64_t> numbers;
    if (!take('(')) return std::nullopt;
    while (!take(')')) {
      std::int64_t n = 0;
      if (!std::isdigit(static_cast<unsigned char>(peek()))) return std::nullopt;
      for (; at_ < text_.size() && std::isdigit(static_cast<unsigned char>(text_[at_])); ++at_) {
        if (__builtin_mul_overflow(n, 10, &n) || __builtin_add_overflow(n, text_[at_] - '0', &n)) return std::nullopt;
      }
      numbers.push_back(n);
      if (!take(',') && peek() != ')') return std::nullopt;
    }
    return numbers;
  }

  std::string_view text_;
  std::size_t at_ = 0;
};

RegularFile open(const std::filesystem::path& path) { return {path, "a readable .npy file", ""}; }

// Calls f(first, count, values) for block after block of the elements, all of which are then known to be tokens.
template <class T, class F>
void for_each_block(const RegularFile& file, const std::filesystem::path& path, const NpyHeader& header,
                    std::int64_t vocab, std::int64_t begin, std::int64_t end, F&& f) {
  const auto is_token = [vocab](T value) {
    return (!std::is_signed_v<T> || value >= T(0)) &&
           static_cast<std::uint64_t>(value) < static_cast<std::uint64_t>(vocab);
  };
  std::vector<T> block(std::min<std::int64_t>(end - begin, 1 << 18));
  for (std::int64_t first = begin; first < end; first += static_cast<std::int64_t>(block.size())) {
    const std::int64_t count = std::min<std::int64_t>(block.size(), end - first);
    file.read(header.data_offset + first * static_cast<std::int64_t>(sizeof(T)), block.data(), count * sizeof(T));
    bool all = true;  // without a branch a token: at the speed of memory
    for (std::int64_t i = 0; i < count; ++i) all &= is_token(block[i]);
    if (!all) {
      const std::int64_t i = std::find_if_not(block.begin(), block.end(), is_token) - block.begin();
      refuse(path, "element " + std::to_string(first + i), std::to_string(block[i]),
             "token ids from 0 to " + std::to_string(vocab - 1),
             "set vocab_size to that of the tokenizer that made the file");
    }
    f(first, count, block.data());
  }
}

// The same for whatever type the file has.
template <class F>
void for_each_block(const std::filesystem::path& path, const RegularFile& file, const NpyHeader& header,
                    std::int64_t vocab, std::int64_t begin, std::int64_t end, F&& f) {
  const auto as = [&]<class T>(T) { for_each_block<T>(file, path, header, vocab, begin, end, f); };
  const bool is_signed = header.descr[1] == 'i';
  switch (header.descr[2]) {
    case '1':
      return is_signed ? as(std::int8_t{}) : as(std::uint8_t{});
    case '2':
      return is_signed ? as(std::int16_t{}) : as(std::uint16_t{});
    case '4':
      return is_signed ? as(std::int32_t{}) : as(std::uint32_t{});
    default:
      return is_signed ? as(std::int64_t{}) : as(std::uint64_t{});
  }
}

// Reads the header, and checks that the file has all its elements.
NpyHeader read_header(const RegularFile& file, const std::filesystem::path& path) {
  const std::int64_t file_bytes = file.size();
  std::array<unsigned char, 12> head{};
  file.read(0, head.data(), std::min<std::int64_t>(head.size(), file_bytes));
  const std::string_view magic(reinterpret_cast<const char*>(head.data()), kMagic.size());
  if (magic != kMagic) {
    const bool zip = magic.substr(0, 2) == "PK";
    refuse(path, "first bytes",
           zip               ? "a zip archive"
           : file_bytes == 0 ? "none: the file is empty"
                             : "something else",
           "\"\\x93NUMPY\"", zip ? ".npz archives are not read: save the array with numpy.save" : "is it a .npy file?");
  }
  const int version = head[6];
  if (version < 1 || version > 3) {
    refuse(path, "version", std::to_string(version) + "." + std::to_string(head[7]), "1.0, 2.0 or 3.0", "");
  }
  const int length_bytes = version == 1 ? 2 : 4;
  std::int64_t length = 0;
  for (int i = 0; i < length_bytes; ++i) length |= static_cast<std::int64_t>(head[8 + i]) << (8 * i);
  if (length > kLongestHeader || 8 + length_bytes + length > file_bytes) {
    refuse(path, "header length", std::to_string(length), "a header within the file",
           "the file is cut off or damaged: copy it again");
  }
  std::string text(length, '\0');
  file.read(8 + length_bytes, text.data(), length);
  const auto fields = HeaderParser(text).parse();
  if (!fields) {
    refuse(path, "header", text.substr(0, 120), "{'descr': '<u4', 'fortran_order': False, 'shape': (n,), }",
           "write the file with numpy.save");
  }

  NpyHeader header{*fields->descr, *fields->shape, 1, 8 + length_bytes + length};
  constexpr std::string_view kAllowed = "|u1, |i1, <u2, <i2, <u4, <i4, <u8 or <i8";
  const std::string& d = header.descr;
  if (d.find('O') != std::string::npos) {
    refuse(path, "descr", d, std::string(kAllowed),
           "pickled objects are never loaded: convert with astype(numpy.uint32)");
  }
  const bool one_byte = d == "|u1" || d == "|i1" || d == "<u1" || d == "<i1";
  const bool more =
      d.size() == 3 && d[0] == '<' && (d[1] == 'u' || d[1] == 'i') && (d[2] == '2' || d[2] == '4' || d[2] == '8');
  if (!one_byte && !more) {
    refuse(path, "descr", d, std::string(kAllowed), "token ids are whole numbers: convert with astype('<u4')");
  }
  if (*fields->fortran_order && header.shape.size() > 1) {
    refuse(path, "fortran_order", "True", "False, or one dimension", "convert with numpy.ascontiguousarray");
  }
  const std::int64_t size = d[2] - '0';
  std::int64_t bytes = size;
  for (const std::int64_t extent : header.shape) {
    if (__builtin_mul_overflow(header.elements, extent, &header.elements)) header.elements = -1;
    if (header.elements < 0) break;
  }
  if (header.elements < 0 || __builtin_mul_overflow(header.elements, size, &bytes) ||
      bytes > file_bytes - header.data_offset) {
    refuse(path, "data", std::to_string(file_bytes - header.data_offset) + " bytes",
           header.elements < 0 ? "a shape with fewer than 2^63 elements"
                               : std::to_string(bytes) + " bytes, as the shape says",
           "the file is cut off or damaged: copy it again");
  }
  return header;
}

void read_range(const std::filesystem::path& path, const RegularFile& file, const NpyHeader& header, std::int64_t vocab,
                std::int64_t begin, std::span<std::int32_t> tokens) {
  for_each_block(path, file, header, vocab, begin, begin + static_cast<std::int64_t>(tokens.size()),
                 [&](std::int64_t first, std::int64_t count, const auto* values) {
                   std::transform(values, values + count, tokens.begin() + (first - begin),
                                  [](auto value) { return static_cast<std::int32_t>(value); });
                 });
}

}  // namespace

NpyHeader read_npy_header(const std::filesystem::path& path) { return read_header(open(path), path); }

std::vector<std::int32_t> read_npy_tokens(const std::filesystem::path& path, std::int64_t vocab) {
  const RegularFile file = open(path);
  const NpyHeader header = read_header(file, path);
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(header.elements));
  read_range(path, file, header, vocab, 0, tokens);
  return tokens;
}

std::int64_t read_npy_tokens(const std::filesystem::path& path, std::int64_t vocab, std::int64_t first,
                             std::span<std::int32_t> tokens) {
  const RegularFile file = open(path);
  const NpyHeader header = read_header(file, path);
  const auto n = static_cast<std::int64_t>(tokens.size());
  if (first + n <= header.elements) read_range(path, file, header, vocab, first, tokens);
  return header.elements;
}

void check_npy_tokens(const std::filesystem::path& path, std::int64_t vocab) {
  const RegularFile file = open(path);
  const NpyHeader header = read_header(file, path);
  for_each_block(path, file, header, vocab, 0, header.elements, [](std::int64_t, std::int64_t, const auto*) {});
}

}  // namespace meshwright
