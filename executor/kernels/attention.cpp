#include "executor/kernels/attention.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstring>
#include <type_traits>
#include <vector>

#include "executor/kernels/gemm.h"
#include "executor/kernels/vector_math.h"
#include "model/program/check.h"

namespace meshwright::kernels {
namespace {

std::int64_t largest_block(const AttentionShape& shape) {
  return std::min(shape.block, shape.tokens) * shape.block_columns();
}

// Rows [first, first + rows) of the scores and their columns [begin, begin + cols).
struct Block {
  std::int64_t first;
  std::int64_t rows;
  std::int64_t begin;
  std::int64_t cols;
};

Block block_at(const AttentionShape& shape, std::int64_t i) {
  const std::int64_t first = i * shape.block, end = std::min(shape.tokens, first + shape.block);
  const std::int64_t begin = shape.first_column(first);
  return {first, end - first, begin, end - begin};
}

// The columns of a block that one of its rows sees: [hidden, hidden + visible).
struct Visible {
  Visible(const AttentionShape& shape, const Block& block, std::int64_t r)
      : hidden(shape.first_column(block.first + r) - block.begin),
        visible(block.first + r + 1 - block.begin - hidden) {}
  std::int64_t hidden, visible;
};

// Some columns of all tokens of one sequence.
template <class T>
struct Head {
  T* data;
  std::int64_t ld;  // from token to token
  T* at(std::int64_t token) const { return data + token * ld; }
};
template <class T>
Head<T> head_of(const AttentionShape& shape, const TokenMatrix<T>& m, std::int64_t b, std::int64_t column) {
  return {m.data ? m.data + b * m.ld + column : nullptr, shape.batch * m.ld};
}

template <class T>
struct Inputs {  // of one head of one sequence
  Inputs(const AttentionShape& s, const AttentionInputs<T>& in, std::int64_t b, std::int64_t h)
      : kv_head(h / (s.heads / s.kv_heads)),
        q(head_of(s, in.q, b, h * s.head_dim)),
        k(head_of(s, in.k, b, kv_head * s.head_dim)),
        v(head_of(s, in.v, b, kv_head * s.value_dim)),
        qr(head_of(s, in.qr, b, h * s.rope_width)),
        kr(head_of(s, in.kr, b, 0)) {}
  std::int64_t kv_head;
  Head<const T> q, k, v, qr, kr;
};

template <class T>
void block_scores(const AttentionShape& shape, const Inputs<T>& in, const Block& block, Arithmetic<T>* scores) {
  using Real = Arithmetic<T>;
  const Real scale = static_cast<Real>(shape.scale);
  mixed_gemm<T, T, Real>(Transpose::kNo, Transpose::kYes, block.rows, block.cols, shape.head_dim, scale,
                         in.q.at(block.first), in.q.ld, in.k.at(block.begin), in.k.ld, Real(0), scores, block.cols);
  if (shape.rope_width > 0)
    mixed_gemm<T, T, Real>(Transpose::kNo, Transpose::kYes, block.rows, block.cols, shape.rope_width, scale,
                           in.qr.at(block.first), in.qr.ld, in.kr.at(block.begin), in.kr.ld, Real(1), scores,
                           block.cols);
}

// A row of a block becomes T, from where it begins. Its columns are then as_stored() of the block, with stored_ld().
template <class T>
void store_row(std::int64_t cols, Arithmetic<T>* row) {
  if constexpr (!std::is_same_v<T, Arithmetic<T>>) {
    constexpr std::int64_t kRun = 256;
    Arithmetic<T> wide[kRun];
    T narrow[kRun];
    for (std::int64_t c = 0; c < cols; c += kRun) {
      const auto run = static_cast<std::size_t>(std::min(kRun, cols - c));
      std::memcpy(wide, row + c, run * sizeof(wide[0]));
      for (std::size_t i = 0; i < run; ++i) narrow[i] = wide[i];
      std::memcpy(reinterpret_cast<std::byte*>(row) + static_cast<std::size_t>(c) * sizeof(T), narrow, run * sizeof(T));
    }
  }
}
template <class T>
const T* as_stored(const Arithmetic<T>* block) {
  return reinterpret_cast<const T*>(block);
}
template <class T>
std::int64_t stored_ld(std::int64_t cols) {
  return cols * static_cast<std::int64_t>(sizeof(Arithmetic<T>) / sizeof(T));
}

// A gradient that is summed over blocks of rows and over heads: in place, or, of a narrower T, in scratch until store().
template <class T>
class Sum {
 public:
  using Real = Arithmetic<T>;

  Sum(const Head<T>& out, std::int64_t width, Real* scratch) : out_(out), width_(width), scratch_(scratch) {}

  std::int64_t ld() const { return kInPlace ? out_.ld : width_; }
  Real* at(std::int64_t token) const {
    if constexpr (kInPlace)
      return out_.at(token);
    else
      return scratch_ + token * width_;
  }
  void clear(std::int64_t tokens) const {
    for (std::int64_t t = 0; t < tokens; ++t) std::fill_n(at(t), width_, Real(0));
  }
  void store(std::int64_t tokens) const {
    if constexpr (!kInPlace)
      for (std::int64_t t = 0; t < tokens; ++t) {
        const Real* from = at(t);
        T* to = out_.at(t);
        for (std::int64_t c = 0; c < width_; ++c) to[c] = from[c];
      }
  }

 private:
  static constexpr bool kInPlace = std::is_same_v<T, Real>;

  Head<T> out_;
  std::int64_t width_;
  Real* scratch_;
};

// Multipliers of a row's probabilities.
template <class Real>
class Mask {
 public:
  Mask(const AttentionShape& shape, const AttentionDropout& dropout, std::int64_t b, std::int64_t h)
      : dropout_(dropout.dropout), tokens_(shape.tokens) {
    if (!on()) return;
    values_.resize(static_cast<std::size_t>(tokens_));
    head_ = dropout.sequence_index[b] * dropout.heads + dropout.first_head + h;
  }
  bool on() const { return dropout_.p > 0; }
  const Real* of(std::int64_t row, std::int64_t first_column, std::int64_t columns) {
    dropout_multipliers(dropout_, (head_ * tokens_ + row) * tokens_ + first_column, columns, values_.data());
    return values_.data();
  }

 private:
  Dropout dropout_;
  std::int64_t tokens_, head_ = 0;
  std::vector<Real> values_;
};

void check_shape(const AttentionShape& shape) {
  check(shape.block >= 1, "attention: blocks of {} rows", shape.block);
  check(shape.kv_heads >= 1 && shape.heads % shape.kv_heads == 0, "attention: {} heads for {} keys and values",
        shape.heads, shape.kv_heads);
}

}  // namespace

std::int64_t attention_forward_scratch(const AttentionShape& shape) { return largest_block(shape); }
std::int64_t attention_backward_scratch(const AttentionShape& shape, bool narrow) {
  return 2 * largest_block(shape) + (narrow ? shape.tokens * (shape.head_dim + shape.value_dim + shape.rope_width) : 0);
}

template <class T>
void attention_forward(const AttentionShape& shape, const AttentionInputs<T>& in, const AttentionDropout& dropout,
                       const TokenMatrix<T>& o, Arithmetic<T>* lse, Arithmetic<T>* scratch) {
  using Real = Arithmetic<T>;
  check_shape(shape);
  const std::int64_t blocks = (shape.tokens + shape.block - 1) / shape.block;
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const Inputs<T> head(shape, in, b, h);
      const Head<T> out = head_of(shape, o, b, h * shape.value_dim);
      Mask<Real> mask(shape, dropout, b, h);
      Real* head_lse = lse + (b * shape.heads + h) * shape.tokens;
      for (std::int64_t i = 0; i < blocks; ++i) {
        const Block block = block_at(shape, i);
        block_scores(shape, head, block, scratch);
        for (std::int64_t r = 0; r < block.rows; ++r) {
          const auto [hidden, visible] = Visible(shape, block, r);
          Real* whole_row = scratch + r * block.cols;
          Real* row = whole_row + hidden;
          const Real top = largest(visible, row);
          for (std::int64_t c = 0; c < visible; ++c) row[c] = fast_exp(row[c] - top);
          const Real total = sum(visible, row), inverse = Real(1) / total;
          head_lse[block.first + r] = top + std::log(total);
          for (std::int64_t c = 0; c < visible; ++c) row[c] *= inverse;
          if (mask.on()) {
            const Real* multiplier = mask.of(block.first + r, block.begin + hidden, visible);
            for (std::int64_t c = 0; c < visible; ++c) row[c] *= multiplier[c];
          }
          std::fill(whole_row, row, Real(0));
          std::fill(row + visible, whole_row + block.cols, Real(0));
          store_row<T>(block.cols, whole_row);
        }
        gemm<T>(Transpose::kNo, Transpose::kNo, block.rows, shape.value_dim, block.cols, Real(1), as_stored<T>(scratch),
                stored_ld<T>(block.cols), head.v.at(block.begin), head.v.ld, Real(0), out.at(block.first), out.ld);
      }
    }
  }
}

template <class T>
void attention_backward(const AttentionShape& shape, const AttentionInputs<T>& in, const AttentionDropout& dropout,
                        const Arithmetic<T>* lse, const TokenMatrix<const T>& do_, const AttentionGradients<T>& out,
                        Arithmetic<T>* scratch) {
  using Real = Arithmetic<T>;
  check_shape(shape);
  const Real scale = static_cast<Real>(shape.scale);
  const std::int64_t blocks = (shape.tokens + shape.block - 1) / shape.block, group = shape.heads / shape.kv_heads;
  Real* p = scratch;
  Real* ds = scratch + largest_block(shape);
  Real* dk_sums = scratch + 2 * largest_block(shape);  // of a narrower T
  Real* dv_sums = dk_sums + shape.tokens * shape.head_dim;
  Real* dkr_sums = dv_sums + shape.tokens * shape.value_dim;
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const Inputs<T> head(shape, in, b, h);
      Mask<Real> mask(shape, dropout, b, h);
      const Real* head_lse = lse + (b * shape.heads + h) * shape.tokens;
      const Head<const T> head_do = head_of(shape, do_, b, h * shape.value_dim);
      const Head<T> dq = head_of(shape, out.dq, b, h * shape.head_dim),
                    dqr = head_of(shape, out.dqr, b, h * shape.rope_width);
      const Sum<T> dk(head_of(shape, out.dk, b, head.kv_head * shape.head_dim), shape.head_dim, dk_sums),
          dv(head_of(shape, out.dv, b, head.kv_head * shape.value_dim), shape.value_dim, dv_sums),
          dkr(head_of(shape, out.dkr, b, 0), shape.rope_width, dkr_sums);
      // The last block of the first head reaches all columns, so it can overwrite the sums over blocks and heads, to which
      // the others add. With a window it may not: then they begin as zeros.
      const bool first_of_group = h % group == 0, reaches_all = block_at(shape, blocks - 1).begin == 0;
      if (!reaches_all && first_of_group) dk.clear(shape.tokens), dv.clear(shape.tokens);
      if (!reaches_all && h == 0 && shape.rope_width > 0) dkr.clear(shape.tokens);
      for (std::int64_t i = blocks - 1; i >= 0; --i) {
        const Block block = block_at(shape, i);
        const bool first = reaches_all && i == blocks - 1;
        const Real keep = first && first_of_group ? Real(0) : Real(1), keep_kr = first && h == 0 ? Real(0) : Real(1);
        block_scores(shape, head, block, p);
        mixed_gemm<T, T, Real>(Transpose::kNo, Transpose::kYes, block.rows, block.cols, shape.value_dim, Real(1),
                               head_do.at(block.first), head_do.ld, head.v.at(block.begin), head.v.ld, Real(0), ds,
                               block.cols);
        for (std::int64_t r = 0; r < block.rows; ++r) {  // p: scores -> mask P;   ds: dP -> P * (dP - sum of P * dP)
          const auto [hidden, visible] = Visible(shape, block, r);
          Real* p_whole = p + r * block.cols;
          Real* ds_whole = ds + r * block.cols;
          Real* p_row = p_whole + hidden;
          Real* ds_row = ds_whole + hidden;
          const Real row_lse = head_lse[block.first + r];
          for (std::int64_t c = 0; c < visible; ++c) p_row[c] = fast_exp(p_row[c] - row_lse);
          if (mask.on()) {
            const Real* multiplier = mask.of(block.first + r, block.begin + hidden, visible);
            for (std::int64_t c = 0; c < visible; ++c) ds_row[c] *= multiplier[c];
            const Real mean = dot(visible, p_row, ds_row);
            for (std::int64_t c = 0; c < visible; ++c) {
              ds_row[c] = p_row[c] * (ds_row[c] - mean);
              p_row[c] *= multiplier[c];
            }
          } else {
            const Real mean = dot(visible, p_row, ds_row);
            for (std::int64_t c = 0; c < visible; ++c) ds_row[c] = p_row[c] * (ds_row[c] - mean);
          }
          std::fill(p_whole, p_row, Real(0));
          std::fill(ds_whole, ds_row, Real(0));
          std::fill(p_row + visible, p_whole + block.cols, Real(0));
          std::fill(ds_row + visible, ds_whole + block.cols, Real(0));
          store_row<T>(block.cols, p_whole);
          store_row<T>(block.cols, ds_whole);
        }
        const T* probabilities = as_stored<T>(p);
        const T* slopes = as_stored<T>(ds);
        const std::int64_t ld = stored_ld<T>(block.cols);
        gemm<T>(Transpose::kNo, Transpose::kNo, block.rows, shape.head_dim, block.cols, scale, slopes, ld,
                head.k.at(block.begin), head.k.ld, Real(0), dq.at(block.first), dq.ld);
        mixed_gemm<T, T, Real>(Transpose::kYes, Transpose::kNo, block.cols, shape.head_dim, block.rows, scale, slopes,
                               ld, head.q.at(block.first), head.q.ld, keep, dk.at(block.begin), dk.ld());
        mixed_gemm<T, T, Real>(Transpose::kYes, Transpose::kNo, block.cols, shape.value_dim, block.rows, Real(1),
                               probabilities, ld, head_do.at(block.first), head_do.ld, keep, dv.at(block.begin),
                               dv.ld());
        if (shape.rope_width > 0) {
          gemm<T>(Transpose::kNo, Transpose::kNo, block.rows, shape.rope_width, block.cols, scale, slopes, ld,
                  head.kr.at(block.begin), head.kr.ld, Real(0), dqr.at(block.first), dqr.ld);
          mixed_gemm<T, T, Real>(Transpose::kYes, Transpose::kNo, block.cols, shape.rope_width, block.rows, scale,
                                 slopes, ld, head.qr.at(block.first), head.qr.ld, keep_kr, dkr.at(block.begin),
                                 dkr.ld());
        }
      }
      if ((h + 1) % group == 0) dk.store(shape.tokens), dv.store(shape.tokens);
      if (h + 1 == shape.heads && shape.rope_width > 0) dkr.store(shape.tokens);
    }
  }
}

#define MESHWRIGHT_INSTANTIATE(T)                                                                                      \
  template void attention_forward<T>(const AttentionShape&, const AttentionInputs<T>&, const AttentionDropout&,        \
                                     const TokenMatrix<T>&, Arithmetic<T>*, Arithmetic<T>*);                           \
  template void attention_backward<T>(const AttentionShape&, const AttentionInputs<T>&, const AttentionDropout&,       \
                                      const Arithmetic<T>*, const TokenMatrix<const T>&, const AttentionGradients<T>&, \
                                      Arithmetic<T>*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
MESHWRIGHT_INSTANTIATE(Bf16)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
