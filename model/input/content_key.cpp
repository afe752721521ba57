#include "model/input/content_key.h"

#include <fmt/format.h>

#include <cstdint>

namespace meshwright {

std::string content_key(std::string_view bytes, std::string_view seed) {
  std::uint64_t hash = 0xcbf29ce484222325;
  for (const std::string_view part : {seed, bytes})
    for (const char c : part) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3;
  return fmt::format("{:016x}", hash);
}

}  // namespace meshwright
