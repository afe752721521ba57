#pragma once

#include <cstdint>

#include "executor/kernels/bf16.h"

namespace meshwright::kernels {

// Matrices are row-major: element (i, j) of a matrix with leading dimension ld lies at i*ld + j.

enum class Transpose { kNo, kYes };

// C = alpha * op(A) * op(B) + beta * C, with op(A) m x k, op(B) k x n, C m x n, and adds 2*m*n*k to
// flop_count(). op(A) is A (lda >= k) or, for kYes, the transpose of A stored k x m (lda >= m); B alike. C
// must not overlap A or B. beta == 0 never reads C. Any of m, n, k may be 0; with k == 0, C = beta * C. Runs
// on the calling thread only. float: dnnl_sgemm of oneDNN; double: Eigen; Bf16: oneDNN's products with sums in
// float, rounded once, beta 0 or 1 only. Of such products of one shape the primitive is made once and held; callers
// whose extents depend on data bound how many there are.
template <class T>
void gemm(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
          Arithmetic<T> alpha, const T* a, std::int64_t lda, const T* b, std::int64_t ldb, Arithmetic<T> beta, T* c,
          std::int64_t ldc);

// The same of types that differ: products of Bf16 into a float C; and where A (not transposed) or B (not transposed, C
// float) is float and the other Bf16, the float one is rounded to Bf16 first, some rows at a time.
template <class A, class B, class C>
void mixed_gemm(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                Arithmetic<C> alpha, const A* a, std::int64_t lda, const B* b, std::int64_t ldb, Arithmetic<C> beta,
                C* c, std::int64_t ldc);

// How products of Bf16 are made where oneDNN has none for this processor: widened to float, a block at a time. The same
// to rounding.
template <class C>
void gemm_in_float(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                   float alpha, const Bf16* a, std::int64_t lda, const Bf16* b, std::int64_t ldb, float beta, C* c,
                   std::int64_t ldc);

// Rows of a buffer that belong to experts: expert e has rows[e] of them, from e*row_capacity on, the rest of its range is
// padding, which no kernel reads or writes (0 <= rows[e] <= row_capacity); or with row_capacity 0, from where those of
// expert e-1 end.
struct ExpertRows {
  std::int64_t experts = 0;
  std::int64_t row_capacity = 0;
  const std::int32_t* rows = nullptr;  // (experts)

  // Calls f(expert, its first row, its rows).
  template <class F>
  void for_each(F&& f) const {
    std::int64_t packed = 0;
    for (std::int64_t e = 0; e < experts; ++e) {
      f(e, row_capacity > 0 ? e * row_capacity : packed, std::int64_t{rows[e]});
      packed += rows[e];
    }
  }
};

// C_e = A_e * op(W_e) for every expert e: A_e is rows[e] x k, C_e rows[e] x n, both packed by expert with
// leading dimensions lda and ldc. The weights are contiguous, (experts, k, n), or for kYes (experts, n, k).
// FLOPs: sum over e of 2 * rows[e] * n * k.
template <class T>
void expert_gemm(const ExpertRows& experts, Transpose transpose_w, std::int64_t n, std::int64_t k, const T* a,
                 std::int64_t lda, const T* w, T* c, std::int64_t ldc);

// dW_e = A_e^T * B_e for every expert e, added to dW_e if `accumulate`; dW is (experts, m, n), contiguous,
// A_e rows[e] x m, B_e rows[e] x n. An expert without rows gets zeros (or, with `accumulate`, keeps what it
// has). FLOPs: sum over e of 2 * rows[e] * m * n.
template <class T>
void expert_weight_gradient(const ExpertRows& experts, std::int64_t m, std::int64_t n, const T* a, std::int64_t lda,
                            const T* b, std::int64_t ldb, bool accumulate, Arithmetic<T>* dw);

}  // namespace meshwright::kernels
