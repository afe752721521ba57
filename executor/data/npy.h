// Arrays of token ids in NumPy's .npy format, versions 1 to 3
// (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html).
// Read: little-endian or single-byte integers, signed or not, of 1, 2, 4 or 8 bytes, of any shape in C order,
// taken as flat. Not for: floats, pickled objects, Fortran order, big-endian arrays, .npz archives; each is
// refused by name.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace meshwright {

struct NpyHeader {
  std::string descr;                // "<u4"
  std::vector<std::int64_t> shape;  // (n,) has one entry; a scalar's is empty and its elements are 1
  std::int64_t elements = 0;
  std::int64_t data_offset = 0;  // bytes before the first element
};

// Reads the header, and checks that the file holds all its elements. Throws InputError.
NpyHeader read_npy_header(const std::filesystem::path& path);

// All elements in file order. Each must lie in [0, vocab): throws InputError with the first that doesn't, and
// where it stands, and for whatever read_npy_header refuses.
std::vector<std::int32_t> read_npy_tokens(const std::filesystem::path& path, std::int64_t vocab);

// Elements [first, first + tokens.size()), the same checked, and none if the file has no longer so many. Returns how many
// elements it has.
std::int64_t read_npy_tokens(const std::filesystem::path& path, std::int64_t vocab, std::int64_t first,
                             std::span<std::int32_t> tokens);

// Throws what read_npy_tokens would throw, in the memory of a block.
void check_npy_tokens(const std::filesystem::path& path, std::int64_t vocab);

}  // namespace meshwright
