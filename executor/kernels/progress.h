// How far this process is in its work, counted where kernels finish a block: every matrix product is one, so a block of
// attention or a chunk of logits is a few. A rank that computes for minutes in one operation is so told from one that
// hangs (executor/launch/heartbeat.h).
#pragma once

#include <atomic>
#include <cstdint>

namespace meshwright::kernels {

inline std::atomic<std::uint64_t> blocks_finished{0};  // by all threads of the process

inline void finished_block() { blocks_finished.fetch_add(1, std::memory_order_relaxed); }

}  // namespace meshwright::kernels
