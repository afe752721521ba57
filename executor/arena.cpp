#include "executor/arena.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <new>

namespace meshwright {

Arena::Arena(std::int64_t bytes) : bytes_(bytes), mapped_(std::max<std::int64_t>(bytes, 64)) {
  void* p =
      mmap(nullptr, static_cast<std::size_t>(mapped_), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) throw std::bad_alloc();
  madvise(p, static_cast<std::size_t>(mapped_), MADV_HUGEPAGE);
  data_ = static_cast<std::byte*>(p);
  std::memset(data_, 0, static_cast<std::size_t>(mapped_));
}

Arena::~Arena() { munmap(data_, static_cast<std::size_t>(mapped_)); }

}  // namespace meshwright
