// One target (TARGET, its name) as libFuzzer wants it: clang brings main().
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "tests/fuzz/targets.h"

extern "C" std::size_t LLVMFuzzerMutate(std::uint8_t* data, std::size_t size, std::size_t max_size);

namespace {

constexpr const meshwright::fuzz::Target& target() {
  for (const auto& target : meshwright::fuzz::kTargets)
    if (target.name == TARGET) return target;
  throw "no such target";  // does not compile
}
constexpr const meshwright::fuzz::Target& kTarget = target();

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  kTarget.run({reinterpret_cast<const char*>(data), size});
  return 0;
}

extern "C" std::size_t LLVMFuzzerCustomMutator(std::uint8_t* data, std::size_t size, std::size_t max_size,
                                               unsigned int seed) {
  std::mt19937 random(seed);
  if (kTarget.mutate != nullptr && random() % 2 == 0) {
    const std::string mutated = kTarget.mutate({reinterpret_cast<const char*>(data), size}, random);
    if (!mutated.empty() && mutated.size() <= max_size) {
      std::memcpy(data, mutated.data(), mutated.size());
      return mutated.size();
    }
  }
  return LLVMFuzzerMutate(data, size, max_size);
}
