#pragma once

#include <cstddef>
#include <cstdint>

// What a core can do at most, with none of the libraries that are then measured against it.
namespace meshwright::kernels {

// Multiplies and adds in f32 with the widest vectors that the kernels are compiled for, in as many independent chains of
// registers as hide the latency of an addition; no memory is touched. Returns the FLOPs done: one multiply-add of an
// element is 2. `rounds`: of some hundred FLOPs each. `result` gets a finite sum of all chains, so that none is left out.
double multiply_add_rounds(std::int64_t rounds, float* result);

// The same of products of bf16 that are added in f32, where the machine multiplies bf16; elsewhere in f32, as they are then
// made (gemm.h). A round adds 1/4 to every element of every chain.
double bf16_multiply_add_rounds(std::int64_t rounds, float* result);

// Copies `bytes` from one buffer to another, apart. Returns the bytes moved: read plus written, 2 * bytes (STREAM's
// convention). Where it stores with ordinary instructions the machine also reads what it overwrites; that is not counted.
double copy_bytes(std::size_t bytes, const std::byte* from, std::byte* to);

}  // namespace meshwright::kernels
