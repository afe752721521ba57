#include "executor/kernels/gemm.h"

// g++ 12 warns about its own AVX-512 intrinsics once Eigen inlines them.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <dlfcn.h>
#include <dnnl.h>

#include <Eigen/Core>
#include <algorithm>
#include <stdexcept>
#include <string>

#include "executor/kernels/flop_count.h"
#include "executor/kernels/progress.h"
#include "model/program/check.h"

namespace meshwright::kernels {

std::int64_t& flop_count() {
  thread_local std::int64_t flops = 0;
  return flops;
}

namespace {

// A tenth of a second at 80 GFLOP/s; rows enough to be worth packing B for.
constexpr std::int64_t kBlockFlops = std::int64_t{1} << 33;
constexpr std::int64_t kFewestRows = 256;

// A rank is one core, but dnnl_sgemm would take as many OpenMP threads as the machine has. The setting
// belongs to the calling thread. It is looked up at run time because oneDNN may have been built without
// OpenMP.
void keep_onednn_on_this_thread() {
  thread_local const bool done = [] {
    if (void* symbol = dlsym(RTLD_DEFAULT, "omp_set_num_threads")) reinterpret_cast<void (*)(int)>(symbol)(1);
    return true;
  }();
  (void)done;
}

template <class Real>
void scale_matrix(std::int64_t m, std::int64_t n, Real beta, Real* c, std::int64_t ldc) {
  for (std::int64_t i = 0; i < m; ++i) {
    Real* row = c + i * ldc;
    if (beta == 0) {
      std::fill(row, row + n, Real(0));
    } else {
      for (std::int64_t j = 0; j < n; ++j) row[j] *= beta;
    }
  }
}

void multiply(Transpose ta, Transpose tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a,
              std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
  keep_onednn_on_this_thread();
  const auto letter = [](Transpose t) { return t == Transpose::kYes ? 'T' : 'N'; };
  const dnnl_status_t status = dnnl_sgemm(letter(ta), letter(tb), m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
  if (status != dnnl_success) throw std::runtime_error("dnnl_sgemm failed with status " + std::to_string(status));
}

void multiply(Transpose ta, Transpose tb, std::int64_t m, std::int64_t n, std::int64_t k, double alpha, const double* a,
              std::int64_t lda, const double* b, std::int64_t ldb, double beta, double* c, std::int64_t ldc) {
  using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  using Input = Eigen::Map<const Matrix, Eigen::Unaligned, Eigen::OuterStride<>>;
  using Output = Eigen::Map<Matrix, Eigen::Unaligned, Eigen::OuterStride<>>;
  const bool a_transposed = ta == Transpose::kYes, b_transposed = tb == Transpose::kYes;
  const Input ma(a, a_transposed ? k : m, a_transposed ? m : k, Eigen::OuterStride<>(lda));
  const Input mb(b, b_transposed ? n : k, b_transposed ? k : n, Eigen::OuterStride<>(ldb));
  Output mc(c, m, n, Eigen::OuterStride<>(ldc));
  if (beta != 1) scale_matrix(m, n, beta, c, ldc);
  if (a_transposed && b_transposed) {
    mc.noalias() += alpha * ma.transpose() * mb.transpose();
  } else if (a_transposed) {
    mc.noalias() += alpha * ma.transpose() * mb;
  } else if (b_transposed) {
    mc.noalias() += alpha * ma * mb.transpose();
  } else {
    mc.noalias() += alpha * ma * mb;
  }
}

}  // namespace

template <class Real>
void gemm(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k, Real alpha,
          const Real* a, std::int64_t lda, const Real* b, std::int64_t ldb, Real beta, Real* c, std::int64_t ldc) {
  check(m >= 0 && n >= 0 && k >= 0, "gemm: {} x {} x {}", m, n, k);
  if (m == 0 || n == 0) return;
  if (k == 0) {
    if (beta != 1) scale_matrix(m, n, beta, c, ldc);
    return;
  }
  check(lda >= (transpose_a == Transpose::kYes ? m : k), "gemm: rows of A overlap: {}", lda);
  check(ldb >= (transpose_b == Transpose::kYes ? k : n), "gemm: rows of B overlap: {}", ldb);
  check(ldc >= n, "gemm: rows of C overlap: {}", ldc);
  // Rows of C at a time, so that a block is finished every second or so, however large the product.
  const std::int64_t rows = std::max(kFewestRows, kBlockFlops / (2 * n * k));
  for (std::int64_t i = 0; i < m; i += rows) {
    const Real* part = a + (transpose_a == Transpose::kYes ? i : i * lda);
    multiply(transpose_a, transpose_b, std::min(rows, m - i), n, k, alpha, part, lda, b, ldb, beta, c + i * ldc, ldc);
    finished_block();
  }
  flop_count() += 2 * m * n * k;
}

template <class Real>
void expert_gemm(const ExpertRows& experts, Transpose transpose_w, std::int64_t n, std::int64_t k, const Real* a,
                 std::int64_t lda, const Real* w, Real* c, std::int64_t ldc) {
  const std::int64_t ldw = transpose_w == Transpose::kYes ? k : n;
  experts.for_each([&](std::int64_t e, std::int64_t first, std::int64_t rows) {
    gemm(Transpose::kNo, transpose_w, rows, n, k, Real(1), a + first * lda, lda, w + e * k * n, ldw, Real(0),
         c + first * ldc, ldc);
  });
}

template <class Real>
void expert_weight_gradient(const ExpertRows& experts, std::int64_t m, std::int64_t n, const Real* a, std::int64_t lda,
                            const Real* b, std::int64_t ldb, bool accumulate, Real* dw) {
  experts.for_each([&](std::int64_t e, std::int64_t first, std::int64_t rows) {
    gemm(Transpose::kYes, Transpose::kNo, m, n, rows, Real(1), a + first * lda, lda, b + first * ldb, ldb,
         Real(accumulate ? 1 : 0), dw + e * m * n, n);
  });
}

#define MESHWRIGHT_INSTANTIATE(Real)                                                                                  \
  template void gemm(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, Real, const Real*, std::int64_t, \
                     const Real*, std::int64_t, Real, Real*, std::int64_t);                                           \
  template void expert_gemm(const ExpertRows&, Transpose, std::int64_t, std::int64_t, const Real*, std::int64_t,      \
                            const Real*, Real*, std::int64_t);                                                        \
  template void expert_weight_gradient(const ExpertRows&, std::int64_t, std::int64_t, const Real*, std::int64_t,      \
                                       const Real*, std::int64_t, bool, Real*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
