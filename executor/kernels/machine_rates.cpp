#include "executor/kernels/machine_rates.h"

#include <cstring>

#if defined(__AVX512BF16__)
#include <immintrin.h>
#endif

namespace meshwright::kernels {
namespace {

#if defined(__AVX512F__)
constexpr int kVectorBytes = 64, kChains = 16;  // of 32 registers; 2 units x 4 cycles need 8 chains
#elif defined(__AVX__)
constexpr int kVectorBytes = 32, kChains = 12;  // of 16 registers; 2 units x 5 cycles need 10
#elif defined(__aarch64__)
constexpr int kVectorBytes = 16, kChains = 24;  // of 32 registers; 4 units x 4 cycles need 16
#else
constexpr int kVectorBytes = 16, kChains = 12;
#endif
typedef float Vector __attribute__((vector_size(kVectorBytes)));
constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(float));

}  // namespace

double multiply_add_rounds(std::int64_t rounds, float* result) {
  Vector chain[kChains];
  for (int j = 0; j < kChains; ++j)
    for (int l = 0; l < kWidth; ++l) chain[j][l] = static_cast<float>(j) + static_cast<float>(l);
  Vector factor = Vector{} + 0.5f, summand = Vector{} + 1.0f;  // every chain settles at 2
  for (std::int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kChains; ++j) chain[j] = chain[j] * factor + summand;
  }
  float sum = 0;
  for (int j = 0; j < kChains; ++j)
    for (int l = 0; l < kWidth; ++l) sum += chain[j][l];
  *result = sum;
  return 2.0 * kWidth * kChains * static_cast<double>(rounds);
}

double bf16_multiply_add_rounds(std::int64_t rounds, float* result) {
#if defined(__AVX512BF16__)
  __m512 chain[kChains];
  for (int j = 0; j < kChains; ++j) chain[j] = _mm512_set1_ps(static_cast<float>(j));
  const __m512bh factor = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.5f), _mm512_set1_ps(0.5f));
  const __m512bh other = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.25f), _mm512_set1_ps(0.25f));
  for (std::int64_t i = 0; i < rounds; ++i) {
#pragma GCC unroll 32
    for (int j = 0; j < kChains; ++j) chain[j] = _mm512_dpbf16_ps(chain[j], factor, other);  // two of each element
  }
  float sum = 0;
  for (int j = 0; j < kChains; ++j) {
    float element[kWidth];
    _mm512_storeu_ps(element, chain[j]);
    for (int l = 0; l < kWidth; ++l) sum += element[l];
  }
  *result = sum;
  return 4.0 * kWidth * kChains * static_cast<double>(rounds);
#else
  return multiply_add_rounds(rounds, result);
#endif
}

double copy_bytes(std::size_t bytes, const std::byte* from, std::byte* to) {
  std::memcpy(to, from, bytes);
  return 2.0 * static_cast<double>(bytes);
}

}  // namespace meshwright::kernels
