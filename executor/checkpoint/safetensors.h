// Files of tensors by name in the safetensors format (https://huggingface.co/docs/safetensors): 8 bytes of length, little
// endian; a header of JSON, name to dtype, shape and the bytes where it lies; then the tensors, row-major, without gaps.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "executor/data/regular_file.h"
#include "model/program/tensor.h"

namespace meshwright {

struct SafetensorsEntry {
  std::string dtype;  // "F32", "BF16", ...
  Shape shape;
  std::int64_t offset = 0;  // bytes, in the file
};

class SafetensorsFile {
 public:
  // Reads and checks the header: every tensor as long as its shape, none over another, no gap, the file neither longer nor
  // shorter. Throws InputError with all that is wrong.
  explicit SafetensorsFile(const std::filesystem::path& path);

  const std::map<std::string, SafetensorsEntry>& tensors() const { return tensors_; }

  static bool is_readable(std::string_view dtype);  // by read(): F64, F32, BF16 or F16
  // Elements [first, first + n) of a tensor, row-major, of such a type, converted: exactly where Real is as wide.
  template <class Real>
  void read(const SafetensorsEntry& tensor, std::int64_t first, std::int64_t n, Real* out) const;

 private:
  RegularFile file_;
  std::map<std::string, SafetensorsEntry> tensors_;
};

struct SafetensorsShape {
  std::string name;
  Shape shape;
};

// Writes a file, which appears under its name when it is whole. `values(i, out)` gives all elements of tensor i. `dtype`: kF32,
// kF64 or kBF16, to which values are rounded, ties to even. Throws InputError where it can't be written.
template <class Real>
void write_safetensors(const std::filesystem::path& path, DType dtype, const std::vector<SafetensorsShape>& tensors,
                       const std::function<void(int tensor, Real* out)>& values);

}  // namespace meshwright
