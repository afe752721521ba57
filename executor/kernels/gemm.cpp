#include "executor/kernels/gemm.h"

// g++ 12 warns about its own AVX-512 intrinsics once Eigen inlines them.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include <dlfcn.h>
#include <dnnl.h>

#include <Eigen/Core>
#include <algorithm>
#include <array>
#include <dnnl.hpp>
#include <memory>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "executor/kernels/elementwise.h"
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

template <class T>
void scale_matrix(std::int64_t m, std::int64_t n, Arithmetic<T> beta, T* c, std::int64_t ldc) {
  for (std::int64_t i = 0; i < m; ++i) {
    T* row = c + i * ldc;
    if (beta == 0) {
      std::fill(row, row + n, T(0));
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

// ---- products of Bf16 ----

// One shape of product; what oneDNN makes for it depends on nothing else.
struct ProductShape {
  std::int64_t m, n, k, lda, ldb, ldc;
  float alpha;
  bool ta, tb, accumulate, into_float;
  bool operator==(const ProductShape&) const = default;
};
struct HashOfShape {
  std::size_t operator()(const ProductShape& s) const {
    std::uint64_t hash = 0;
    for (const std::int64_t x :
         {s.m, s.n, s.k, s.lda, s.ldb, s.ldc, static_cast<std::int64_t>(std::bit_cast<std::uint32_t>(s.alpha)),
          std::int64_t{s.ta} + 2 * s.tb + 4 * s.accumulate + 8 * s.into_float})
      hash = (hash ^ static_cast<std::uint64_t>(x)) * 0x9E3779B97F4A7C15, hash ^= hash >> 29;
    return hash;
  }
};

class Product {
 public:
  // Throws dnnl::error if this processor has no such products.
  Product(const ProductShape& s, const dnnl::engine& engine) {
    using dnnl::memory;
    const auto desc = [](std::int64_t rows, std::int64_t cols, memory::data_type type, std::int64_t ld,
                         bool transposed) {
      return memory::desc({rows, cols}, type, transposed ? memory::dims{1, ld} : memory::dims{ld, 1});
    };
    const auto out = s.into_float ? memory::data_type::f32 : memory::data_type::bf16;
    const memory::desc a = desc(s.m, s.k, memory::data_type::bf16, s.lda, s.ta),
                       b = desc(s.k, s.n, memory::data_type::bf16, s.ldb, s.tb), c = desc(s.m, s.n, out, s.ldc, false);
    dnnl::primitive_attr attributes;
    if (s.alpha != 1) attributes.set_output_scales(0, {s.alpha});
    if (s.accumulate) {
      dnnl::post_ops sum;
      sum.append_sum(1.0f);
      attributes.set_post_ops(sum);
    }
    matmul_ = dnnl::matmul(dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, c), attributes, engine));
    operands_ = {memory(a, engine, nullptr), memory(b, engine, nullptr), memory(c, engine, nullptr)};
  }

  void run(const dnnl::stream& stream, const Bf16* a, const Bf16* b, void* c) {
    operands_[0].set_data_handle(const_cast<Bf16*>(a));
    operands_[1].set_data_handle(const_cast<Bf16*>(b));
    operands_[2].set_data_handle(c);
    const dnnl_exec_arg_t arguments[] = {
        {DNNL_ARG_SRC, operands_[0].get()}, {DNNL_ARG_WEIGHTS, operands_[1].get()}, {DNNL_ARG_DST, operands_[2].get()}};
    const dnnl_status_t status = dnnl_primitive_execute(matmul_.get(), stream.get(), 3, arguments);
    if (status != dnnl_success)
      throw std::runtime_error("a product of bf16 failed with status " + std::to_string(status));
  }

 private:
  dnnl::matmul matmul_;
  std::array<dnnl::memory, 3> operands_;
};

// A thread's products, made once and held. Beyond kMost all are dropped: extents that depend on data would fill the memory.
class Products {
 public:
  // Null where this processor has none.
  Product* find(const ProductShape& shape) {
    constexpr std::size_t kMost = 8192;
    if (unsupported_) return nullptr;
    const auto found = held_.find(shape);
    if (found != held_.end()) return &found->second;
    if (held_.size() >= kMost) held_.clear();
    try {
      return &held_.emplace(shape, Product(shape, engine_)).first->second;
    } catch (const dnnl::error& error) {
      if (error.status != dnnl_unimplemented)
        throw std::runtime_error(std::string("a product of bf16: ") + error.what());
      unsupported_ = true;
      return nullptr;
    }
  }
  const dnnl::stream& stream() const { return stream_; }

 private:
  dnnl::engine engine_{dnnl::engine::kind::cpu, 0};
  dnnl::stream stream_{engine_};
  std::unordered_map<ProductShape, Product, HashOfShape> held_;
  bool unsupported_ = false;
};

// out = X in float, contiguous, as it is stored: op(X) is rows x cols.
void widen(Transpose t, std::int64_t rows, std::int64_t cols, const Bf16* x, std::int64_t ld, std::vector<float>& out) {
  if (t == Transpose::kYes) std::swap(rows, cols);
  out.resize(static_cast<std::size_t>(rows * cols));
  for (std::int64_t r = 0; r < rows; ++r) cast<float>(cols, x + r * ld, out.data() + r * cols);
}

template <class C>
void multiply(Transpose ta, Transpose tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const Bf16* a,
              std::int64_t lda, const Bf16* b, std::int64_t ldb, float beta, C* c, std::int64_t ldc) {
  check(beta == 0 || beta == 1, "gemm of bf16: beta {}", beta);
  keep_onednn_on_this_thread();
  thread_local Products products;
  Product* product = products.find({m, n, k, lda, ldb, ldc, alpha, ta == Transpose::kYes, tb == Transpose::kYes,
                                    beta != 0, std::is_same_v<C, float>});
  if (product)
    product->run(products.stream(), a, b, c);
  else
    gemm_in_float(ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

constexpr std::int64_t kNarrowed = 1 << 16;  // elements of a float operand that are rounded at a time

template <class C>
void multiply(Transpose ta, Transpose tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const float* a,
              std::int64_t lda, const Bf16* b, std::int64_t ldb, float beta, C* c, std::int64_t ldc) {
  check(ta == Transpose::kNo, "gemm: a transposed {} x {} of float with one of bf16", m, k);
  const std::int64_t rows = std::max<std::int64_t>(1, std::min(m, kNarrowed / k));
  std::vector<Bf16> narrow(static_cast<std::size_t>(rows * k));
  for (std::int64_t i = 0; i < m; i += rows) {
    const std::int64_t block = std::min(rows, m - i);
    for (std::int64_t r = 0; r < block; ++r) cast<Bf16>(k, a + (i + r) * lda, narrow.data() + r * k);
    multiply(ta, tb, block, n, k, alpha, narrow.data(), k, b, ldb, beta, c + i * ldc, ldc);
  }
}

void multiply(Transpose ta, Transpose tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha, const Bf16* a,
              std::int64_t lda, const float* b, std::int64_t ldb, float beta, float* c, std::int64_t ldc) {
  check(tb == Transpose::kNo, "gemm: a transposed {} x {} of float with one of bf16", k, n);
  const std::int64_t rows = std::max<std::int64_t>(1, std::min(k, kNarrowed / n));
  std::vector<Bf16> narrow(static_cast<std::size_t>(rows * n));
  for (std::int64_t l = 0; l < k; l += rows) {
    const std::int64_t block = std::min(rows, k - l);
    for (std::int64_t r = 0; r < block; ++r) cast<Bf16>(n, b + (l + r) * ldb, narrow.data() + r * n);
    multiply(ta, tb, m, n, block, alpha, a + (ta == Transpose::kYes ? l * lda : l), lda, narrow.data(), n,
             l > 0 ? 1.0f : beta, c, ldc);
  }
}

}  // namespace

template <class C>
void gemm_in_float(Transpose ta, Transpose tb, std::int64_t m, std::int64_t n, std::int64_t k, float alpha,
                   const Bf16* a, std::int64_t lda, const Bf16* b, std::int64_t ldb, float beta, C* c,
                   std::int64_t ldc) {
  constexpr std::int64_t kRows = 64, kInner = 256;  // of op(A) in float at a time
  std::vector<float> left, right, sums(static_cast<std::size_t>(std::min(kRows, m) * n));
  for (std::int64_t i = 0; i < m; i += kRows) {
    const std::int64_t rows = std::min(kRows, m - i);
    for (std::int64_t l = 0; l < k; l += kInner) {
      const std::int64_t inner = std::min(kInner, k - l);
      widen(ta, rows, inner, a + (ta == Transpose::kYes ? l * lda + i : i * lda + l), lda, left);
      widen(tb, inner, n, b + (tb == Transpose::kYes ? l : l * ldb), ldb, right);
      multiply(ta, tb, rows, n, inner, alpha, left.data(), ta == Transpose::kYes ? rows : inner, right.data(),
               tb == Transpose::kYes ? inner : n, l > 0 ? 1.0f : 0.0f, sums.data(), n);
    }
    for (std::int64_t r = 0; r < rows; ++r) {
      C* row = c + (i + r) * ldc;
      for (std::int64_t j = 0; j < n; ++j) {
        const float sum = sums[static_cast<std::size_t>(r * n + j)];
        row[j] = beta == 0 ? sum : sum + beta * row[j];
      }
    }
  }
}

template <class A, class B, class C>
void mixed_gemm(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
                Arithmetic<C> alpha, const A* a, std::int64_t lda, const B* b, std::int64_t ldb, Arithmetic<C> beta,
                C* c, std::int64_t ldc) {
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
    const A* part = a + (transpose_a == Transpose::kYes ? i : i * lda);
    multiply(transpose_a, transpose_b, std::min(rows, m - i), n, k, alpha, part, lda, b, ldb, beta, c + i * ldc, ldc);
    finished_block();
  }
  flop_count() += 2 * m * n * k;
}

template <class T>
void gemm(Transpose transpose_a, Transpose transpose_b, std::int64_t m, std::int64_t n, std::int64_t k,
          Arithmetic<T> alpha, const T* a, std::int64_t lda, const T* b, std::int64_t ldb, Arithmetic<T> beta, T* c,
          std::int64_t ldc) {
  mixed_gemm<T, T, T>(transpose_a, transpose_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

namespace {

// Calls f(first, rows) for the rows of an expert. Products of Bf16 are made per shape: a part whose rows are a multiple of
// kRows and the rest, so that there are few shapes however rows are routed.
template <class T, class F>
void for_each_part(std::int64_t rows, F&& f) {
  constexpr std::int64_t kRows = 64;
  const std::int64_t most = std::is_same_v<T, Bf16> ? rows / kRows * kRows : rows;
  if (most > 0 || rows == 0) f(std::int64_t{0}, most);
  if (rows > most) f(most, rows - most);
}

}  // namespace

template <class T>
void expert_gemm(const ExpertRows& experts, Transpose transpose_w, std::int64_t n, std::int64_t k, const T* a,
                 std::int64_t lda, const T* w, T* c, std::int64_t ldc) {
  const std::int64_t ldw = transpose_w == Transpose::kYes ? k : n;
  experts.for_each([&](std::int64_t e, std::int64_t begin, std::int64_t all) {
    for_each_part<T>(all, [&](std::int64_t first, std::int64_t rows) {
      gemm<T>(Transpose::kNo, transpose_w, rows, n, k, 1, a + (begin + first) * lda, lda, w + e * k * n, ldw, 0,
              c + (begin + first) * ldc, ldc);
    });
  });
}

template <class T>
void expert_weight_gradient(const ExpertRows& experts, std::int64_t m, std::int64_t n, const T* a, std::int64_t lda,
                            const T* b, std::int64_t ldb, bool accumulate, Arithmetic<T>* dw) {
  using Real = Arithmetic<T>;
  experts.for_each([&](std::int64_t e, std::int64_t begin, std::int64_t all) {
    for_each_part<T>(all, [&](std::int64_t first, std::int64_t rows) {
      mixed_gemm<T, T, Real>(Transpose::kYes, Transpose::kNo, m, n, rows, 1, a + (begin + first) * lda, lda,
                             b + (begin + first) * ldb, ldb, Real(accumulate || first > 0 ? 1 : 0), dw + e * m * n, n);
    });
  });
}

template void gemm_in_float(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, float, const Bf16*,
                            std::int64_t, const Bf16*, std::int64_t, float, float*, std::int64_t);
template void gemm_in_float(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, float, const Bf16*,
                            std::int64_t, const Bf16*, std::int64_t, float, Bf16*, std::int64_t);

#define MESHWRIGHT_INSTANTIATE(A, B, C)                                                                            \
  template void mixed_gemm<A, B, C>(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, Arithmetic<C>, \
                                    const A*, std::int64_t, const B*, std::int64_t, Arithmetic<C>, C*, std::int64_t);
MESHWRIGHT_INSTANTIATE(Bf16, Bf16, float)
MESHWRIGHT_INSTANTIATE(float, Bf16, Bf16)
MESHWRIGHT_INSTANTIATE(float, Bf16, float)
MESHWRIGHT_INSTANTIATE(Bf16, float, float)
#undef MESHWRIGHT_INSTANTIATE

#define MESHWRIGHT_INSTANTIATE(T)                                                                                     \
  template void mixed_gemm<T, T, T>(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, Arithmetic<T>,    \
                                    const T*, std::int64_t, const T*, std::int64_t, Arithmetic<T>, T*, std::int64_t); \
  template void gemm<T>(Transpose, Transpose, std::int64_t, std::int64_t, std::int64_t, Arithmetic<T>, const T*,      \
                        std::int64_t, const T*, std::int64_t, Arithmetic<T>, T*, std::int64_t);                       \
  template void expert_gemm<T>(const ExpertRows&, Transpose, std::int64_t, std::int64_t, const T*, std::int64_t,      \
                               const T*, T*, std::int64_t);                                                           \
  template void expert_weight_gradient<T>(const ExpertRows&, std::int64_t, std::int64_t, const T*, std::int64_t,      \
                                          const T*, std::int64_t, bool, Arithmetic<T>*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
MESHWRIGHT_INSTANTIATE(Bf16)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
