#pragma once

#include <cstdint>

namespace meshwright::kernels {

// FLOPs executed by the matrix multiplications of this thread since it started: 2*m*n*k for every GEMM that
// was called (gemm.h), nothing for anything else. The caller takes differences, or sets it to zero.
std::int64_t& flop_count();

}  // namespace meshwright::kernels
