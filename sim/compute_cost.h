// Time of one operation's compute work on one device.
#pragma once

#include <cstdint>

#include "model/program/op_work.h"
#include "model/program/units.h"
#include "sim/system.h"

namespace meshwright {

// Share of a matrix unit's multiply-adds that are useful for a product m x n x k: it works on whole tiles, so
//   m n k / (up(m, tile.rows) * up(n, tile.columns) * up(k, tile.depth)),   up(x, t) = ceil(x / t) t
// 1 where there is no product (m, n or k is 0). Not for: wave quantisation over many cores.
// Source: How to Scale Your Model, tpus.md: dimensions pad to 128, the batch axis to 8.
double tile_efficiency(const Tile& tile, std::int64_t m, std::int64_t n, std::int64_t k);

// Roofline, one operation at a time, its loads and stores overlapped with its FLOPs:
//   overhead + max(flops / (peak(dtype) * matmul efficiency * tile efficiency), bytes / memory bytes/s)
// Constants: of the system's file, with their sources.
// Assumption: no caches, each operand crosses memory once.
Seconds compute_time(const RooflineCompute& roofline, const Work& work);

// From measurements of the same kernels:
//   overhead(kind) + flops / rate(kind, dtype, smallest of m, n, k) + bytes / bandwidth(kind)
// A term that the file does not give for a kind is part of the others; kinds that are products have rates
// (load_system). Between measured sizes: see Curve.
Seconds compute_time(const MeasuredCompute& measured, const Work& work);

// Either of the two, as the system has it. Throws InputError (require_dtype) for a product of a type that the system has
// no peak for: programs in bf16 or f16 have some in f32, too.
Seconds compute_time(const System& system, const Work& work);

}  // namespace meshwright
