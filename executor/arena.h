// One allocation for everything a rank keeps and computes with, laid out by the Program. Nothing is allocated in a step.
#pragma once

#include <cstddef>
#include <cstdint>

namespace meshwright {

// `bytes` of zeros, 64-byte aligned, in huge pages where the system has them. All pages are touched at construction: a
// first touch inside a step would be slower than the step's work on them.
class Arena {
 public:
  explicit Arena(std::int64_t bytes);  // throws std::bad_alloc
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;

  std::byte* data() const { return data_; }
  std::int64_t bytes() const { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::int64_t bytes_ = 0, mapped_ = 0;
};

}  // namespace meshwright
