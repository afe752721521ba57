#include "executor/checkpoint/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <limits>
#include <numeric>
#include <optional>
#include <system_error>
#include <utility>

#include "model/input/json_reader.h"
#include "model/program/check.h"

namespace meshwright {
namespace {

static_assert(std::endian::native == std::endian::little, "safetensors are little-endian");

constexpr std::int64_t kLengthBytes = 8;
constexpr std::int64_t kChunk = 1 << 18;  // elements that are converted at once
const std::string kMetadata = "__metadata__";

struct FileType {
  const char* name;
  std::int64_t bytes;
};
constexpr std::array kTypes{FileType{"F64", 8},     FileType{"F32", 4},     FileType{"BF16", 2}, FileType{"F16", 2},
                            FileType{"I64", 8},     FileType{"U64", 8},     FileType{"I32", 4},  FileType{"U32", 4},
                            FileType{"I16", 2},     FileType{"U16", 2},     FileType{"I8", 1},   FileType{"U8", 1},
                            FileType{"F8_E5M2", 1}, FileType{"F8_E4M3", 1}, FileType{"BOOL", 1}};

std::int64_t bytes_of(std::string_view type) {
  const auto found = std::find_if(kTypes.begin(), kTypes.end(), [&](const FileType& t) { return t.name == type; });
  check(found != kTypes.end(), "safetensors: no type {}", type);
  return found->bytes;
}

// Nothing if it has more bytes than 63 bits can count.
std::optional<std::int64_t> bytes_of(const Shape& shape, std::int64_t element) {
  std::int64_t bytes = element;
  for (const std::int64_t n : shape)
    if (__builtin_mul_overflow(bytes, n, &bytes)) return std::nullopt;
  return bytes;
}

float from_bf16(std::uint16_t x) { return std::bit_cast<float>(static_cast<std::uint32_t>(x) << 16); }

float from_f16(std::uint16_t x) {
  const std::uint32_t sign = static_cast<std::uint32_t>(x & 0x8000) << 16, exponent = (x >> 10) & 0x1F,
                      fraction = x & 0x3FF;
  if (exponent == 0) {  // 0 and subnormals: fraction * 2^-24
    const float value = static_cast<float>(fraction) * 0x1p-24F;
    return sign != 0 ? -value : value;
  }
  const std::uint32_t wide = exponent == 31 ? 255 : exponent + 112;
  return std::bit_cast<float>(sign | wide << 23 | fraction << 13);
}

// Rounded once: a double comes by a float that is rounded to odd, in whose last bit it stays seen that there was more.
std::uint16_t to_bf16(double x) {
  const auto nearest = static_cast<float>(x);
  auto bits = std::bit_cast<std::uint32_t>(nearest);
  if (x != x) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
  if (static_cast<double>(nearest) != x) {
    if (std::abs(static_cast<double>(nearest)) > std::abs(x)) --bits;
    bits |= 1;
  }
  return static_cast<std::uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

template <class Stored, class Real, class Convert>
void read_as(const RegularFile& file, std::int64_t offset, std::int64_t n, Real* out, Convert convert) {
  std::vector<Stored> chunk(static_cast<std::size_t>(std::min(n, kChunk)));
  while (n > 0) {
    const std::int64_t count = std::min(n, kChunk);
    file.read(offset, chunk.data(), count * static_cast<std::int64_t>(sizeof(Stored)));
    for (std::int64_t i = 0; i < count; ++i) *out++ = static_cast<Real>(convert(chunk[static_cast<std::size_t>(i)]));
    offset += count * static_cast<std::int64_t>(sizeof(Stored));
    n -= count;
  }
}

template <class Stored, class Real, class Convert>
void write_as(std::ofstream& out, const std::vector<Real>& values, Convert convert) {
  std::vector<Stored> chunk;
  for (std::size_t first = 0; first < values.size(); first += static_cast<std::size_t>(kChunk)) {
    const std::size_t last = std::min(values.size(), first + static_cast<std::size_t>(kChunk));
    chunk.clear();
    for (std::size_t i = first; i < last; ++i) chunk.push_back(convert(values[i]));
    out.write(reinterpret_cast<const char*>(chunk.data()), static_cast<std::streamsize>(chunk.size() * sizeof(Stored)));
  }
}

}  // namespace

SafetensorsFile::SafetensorsFile(const std::filesystem::path& path)
    : file_(path, "a file of tensors in the safetensors format", "save_pretrained writes such files") {
  const std::string source = path.string();
  const auto refuse = [&](std::string value, std::string allowed) {
    throw InputError(Diagnostic{source, "", std::move(value), std::move(allowed), "is it damaged, or another format?"});
  };
  if (file_.size() < kLengthBytes) refuse(fmt::format("{} bytes", file_.size()), "at least the 8 bytes of a length");
  std::uint64_t length = 0;
  file_.read(0, &length, kLengthBytes);
  if (length > static_cast<std::uint64_t>(file_.size() - kLengthBytes))
    refuse(fmt::format("a header of {} bytes in a file of {}", length, file_.size()), "a header that the file holds");
  if (length > static_cast<std::uint64_t>(kLargestJsonFile))
    refuse(fmt::format("a header of {} bytes", length), fmt::format("at most {}", kLargestJsonFile));
  std::string text(static_cast<std::size_t>(length), '\0');
  file_.read(kLengthBytes, text.data(), static_cast<std::int64_t>(length));

  const JsonDocument header = parse_json(text, source);
  JsonReader reader(header);
  ObjectReader root = reader.root();
  std::vector<std::string> types;
  for (const FileType& t : kTypes) types.emplace_back(t.name);
  const std::int64_t data = kLengthBytes + static_cast<std::int64_t>(length), data_bytes = file_.size() - data;
  std::vector<std::pair<std::array<std::int64_t, 2>, std::string>> places;  // begin, end, name
  for (const std::string& name : root.keys()) {
    auto entry = root.object(name);
    if (!entry) continue;
    if (name == kMetadata) {
      for (const std::string& key : entry->keys()) entry->text(key);
      continue;
    }
    const auto type = entry->one_of("dtype", types);
    const auto shape = entry->integers("shape", {}, {.min = 0});
    const auto offsets = entry->integers("data_offsets", 2, {.min = 0});
    if (!type || !shape || !offsets) continue;
    const std::int64_t begin = (*offsets)[0], end = (*offsets)[1];
    if (end < begin || bytes_of(*shape, bytes_of(*type)) != end - begin)
      reader.report(entry->path("data_offsets"), fmt::format("as many bytes as {} of {}", to_string(*shape), *type),
                    "the header contradicts itself: is the file damaged?");
    else if (end > data_bytes)
      reader.report(entry->path("data_offsets"), fmt::format("at most the {} bytes behind the header", data_bytes),
                    "the file was cut");
    places.push_back({{begin, end}, name});
    tensors_[name] = {*type, *shape, data + begin};
  }
  reader.finish();

  std::sort(places.begin(), places.end());
  std::int64_t at = 0;
  for (const auto& [place, name] : places) {
    if (place[0] != at)
      reader.report(json_path(name, "data_offsets"), fmt::format("bytes from {} on", at),
                    place[0] < at ? "it lies over another tensor" : "there is a gap before it");
    at = std::max(at, place[1]);
  }
  reader.finish();
  if (at != data_bytes) refuse(fmt::format("{} bytes behind the last tensor", data_bytes - at), "none");
}

bool SafetensorsFile::is_readable(std::string_view dtype) {
  return dtype == "F64" || dtype == "F32" || dtype == "BF16" || dtype == "F16";
}

template <class Real>
void SafetensorsFile::read(const SafetensorsEntry& tensor, std::int64_t first, std::int64_t n, Real* out) const {
  check(is_readable(tensor.dtype), "safetensors: {} read as numbers", tensor.dtype);
  const std::int64_t offset = tensor.offset + first * bytes_of(tensor.dtype);
  const auto same = [](auto x) { return x; };
  if (tensor.dtype == "F64") read_as<double>(file_, offset, n, out, same);
  if (tensor.dtype == "F32") read_as<float>(file_, offset, n, out, same);
  if (tensor.dtype == "BF16") read_as<std::uint16_t>(file_, offset, n, out, from_bf16);
  if (tensor.dtype == "F16") read_as<std::uint16_t>(file_, offset, n, out, from_f16);
}

template <class Real>
void write_safetensors(const std::filesystem::path& path, DType dtype, const std::vector<SafetensorsShape>& tensors,
                       const std::function<void(int tensor, Real* out)>& values) {
  check(dtype == DType::kF32 || dtype == DType::kF64 || dtype == DType::kBF16, "safetensors: written as {}",
        name(dtype));
  const char* type = dtype == DType::kF64 ? "F64" : dtype == DType::kF32 ? "F32" : "BF16";
  OrderedJson header = OrderedJson::object();
  header[kMetadata] = {{"format", "pt"}};
  std::int64_t at = 0;
  for (const SafetensorsShape& t : tensors) {
    const std::int64_t end = at + elements(t.shape) * size_of(dtype);
    header[t.name] = {{"dtype", type}, {"shape", t.shape}, {"data_offsets", {at, end}}};
    at = end;
  }
  std::string text = header.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');  // tensors begin at whole words

  std::filesystem::path part = path;
  part += ".part";
  const auto refuse = [&] {
    const std::string reason = errno != 0 ? std::strerror(errno) : "it can't be written";
    std::error_code ignored;
    std::filesystem::remove(part, ignored);
    throw InputError(Diagnostic{path.string(), "", "", "a file that can be written", reason});
  };
  errno = 0;
  std::ofstream out(part, std::ios::binary | std::ios::trunc);
  const auto length = static_cast<std::uint64_t>(text.size());
  out.write(reinterpret_cast<const char*>(&length), kLengthBytes);
  out.write(text.data(), static_cast<std::streamsize>(text.size()));
  for (std::size_t i = 0; out && i < tensors.size(); ++i) {
    std::vector<Real> all(static_cast<std::size_t>(elements(tensors[i].shape)));
    values(static_cast<int>(i), all.data());
    if (dtype == DType::kF64)
      write_as<double>(out, all, [](Real x) { return static_cast<double>(x); });
    else if (dtype == DType::kF32)
      write_as<float>(out, all, [](Real x) { return static_cast<float>(x); });
    else
      write_as<std::uint16_t>(out, all, [](Real x) { return to_bf16(static_cast<double>(x)); });
  }
  out.close();
  if (!out) refuse();
  std::error_code error;
  std::filesystem::rename(part, path, error);
  if (error) {
    errno = error.value();
    refuse();
  }
}

template void SafetensorsFile::read(const SafetensorsEntry&, std::int64_t, std::int64_t, float*) const;
template void SafetensorsFile::read(const SafetensorsEntry&, std::int64_t, std::int64_t, double*) const;
template void write_safetensors(const std::filesystem::path&, DType, const std::vector<SafetensorsShape>&,
                                const std::function<void(int, float*)>&);
template void write_safetensors(const std::filesystem::path&, DType, const std::vector<SafetensorsShape>&,
                                const std::function<void(int, double*)>&);

}  // namespace meshwright
