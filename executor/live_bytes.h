// Counts what is live in a rank's arena while a step runs: from the operations that are executed and the addresses that they
// touch. It knows nothing of the walk that predicts the same (model/program/live_memory.h).
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>

#include "model/program/byte_ranges.h"
#include "model/program/program.h"
#include "model/program/step_report.h"

namespace meshwright {

class LiveBytes {
 public:
  // `freed(begin, end)`: is told of arena bytes that end; none: nobody wants to know. What lives throughout the step is
  // counted by its regions.
  explicit LiveBytes(const Program& program, std::function<void(std::int64_t begin, std::int64_t end)> freed = nullptr);

  void slot_begins(int slot);                                                           // before every slot
  void executes(const Slot& slot, const Call& call, const Piece& piece, const Op& op);  // before every operation
  void call_ends(const Slot& slot, const Chunk& chunk, int call);                       // behind every call
  void slot_ends(int slot);                                                             // behind every slot

  const MemoryPeak& peak() const { return peak_; }
  // The first operation that reads bytes which have ended, or which nothing has written: "gemm of dense.backward in B0".
  const std::optional<std::string>& reads_dead() const { return reads_dead_; }

 private:
  void change(MemoryClass c, std::int64_t bytes);
  void end(MemoryClass c, std::int64_t begin, std::int64_t end);

  const Program& program_;
  std::function<void(std::int64_t, std::int64_t)> freed_;
  std::array<ByteRanges, kMemoryClasses> live_;
  std::array<std::int64_t, kMemoryClasses> now_{};
  std::int64_t all_ = 0;
  std::size_t next_begin_ = 0, next_end_ = 0;  // of Program::begins and ends
  MemoryPeak peak_;
  std::optional<std::string> reads_dead_;
};

}  // namespace meshwright
