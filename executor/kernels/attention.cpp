#include "executor/kernels/attention.h"

#include <algorithm>
#include <cmath>
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
template <class Real>
struct Head {
  Real* data;
  std::int64_t ld;  // from token to token
  Real* at(std::int64_t token) const { return data + token * ld; }
};
template <class Real>
Head<Real> head_of(const AttentionShape& shape, const TokenMatrix<Real>& m, std::int64_t b, std::int64_t column) {
  return {m.data ? m.data + b * m.ld + column : nullptr, shape.batch * m.ld};
}

template <class Real>
struct Inputs {  // of one head of one sequence
  Inputs(const AttentionShape& s, const AttentionInputs<Real>& in, std::int64_t b, std::int64_t h)
      : kv_head(h / (s.heads / s.kv_heads)),
        q(head_of(s, in.q, b, h * s.head_dim)),
        k(head_of(s, in.k, b, kv_head * s.head_dim)),
        v(head_of(s, in.v, b, kv_head * s.value_dim)),
        qr(head_of(s, in.qr, b, h * s.rope_width)),
        kr(head_of(s, in.kr, b, 0)) {}
  std::int64_t kv_head;
  Head<const Real> q, k, v, qr, kr;
};

template <class Real>
void block_scores(const AttentionShape& shape, const Inputs<Real>& in, const Block& block, Real* scores) {
  const Real scale = static_cast<Real>(shape.scale);
  gemm(Transpose::kNo, Transpose::kYes, block.rows, block.cols, shape.head_dim, scale, in.q.at(block.first), in.q.ld,
       in.k.at(block.begin), in.k.ld, Real(0), scores, block.cols);
  if (shape.rope_width > 0)
    gemm(Transpose::kNo, Transpose::kYes, block.rows, block.cols, shape.rope_width, scale, in.qr.at(block.first),
         in.qr.ld, in.kr.at(block.begin), in.kr.ld, Real(1), scores, block.cols);
}

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

// Zeros: of `columns` columns of all tokens.
template <class Real>
void clear(const AttentionShape& shape, const Head<Real>& head, std::int64_t columns) {
  for (std::int64_t t = 0; t < shape.tokens; ++t) std::fill_n(head.at(t), columns, Real(0));
}

}  // namespace

std::int64_t attention_forward_scratch(const AttentionShape& shape) { return largest_block(shape); }
std::int64_t attention_backward_scratch(const AttentionShape& shape) { return 2 * largest_block(shape); }

template <class Real>
void attention_forward(const AttentionShape& shape, const AttentionInputs<Real>& in, const AttentionDropout& dropout,
                       const TokenMatrix<Real>& o, Real* lse, Real* scratch) {
  check_shape(shape);
  const std::int64_t blocks = (shape.tokens + shape.block - 1) / shape.block;
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const Inputs<Real> head(shape, in, b, h);
      const Head<Real> out = head_of(shape, o, b, h * shape.value_dim);
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
        }
        gemm(Transpose::kNo, Transpose::kNo, block.rows, shape.value_dim, block.cols, Real(1), scratch, block.cols,
             head.v.at(block.begin), head.v.ld, Real(0), out.at(block.first), out.ld);
      }
    }
  }
}

template <class Real>
void attention_backward(const AttentionShape& shape, const AttentionInputs<Real>& in, const AttentionDropout& dropout,
                        const Real* lse, const TokenMatrix<const Real>& do_, const AttentionGradients<Real>& out,
                        Real* scratch) {
  check_shape(shape);
  const Real scale = static_cast<Real>(shape.scale);
  const std::int64_t blocks = (shape.tokens + shape.block - 1) / shape.block, group = shape.heads / shape.kv_heads;
  Real* p = scratch;
  Real* ds = scratch + largest_block(shape);
  for (std::int64_t b = 0; b < shape.batch; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const Inputs<Real> head(shape, in, b, h);
      Mask<Real> mask(shape, dropout, b, h);
      const Real* head_lse = lse + (b * shape.heads + h) * shape.tokens;
      const Head<const Real> head_do = head_of(shape, do_, b, h * shape.value_dim);
      const Head<Real> dq = head_of(shape, out.dq, b, h * shape.head_dim),
                       dk = head_of(shape, out.dk, b, head.kv_head * shape.head_dim),
                       dv = head_of(shape, out.dv, b, head.kv_head * shape.value_dim),
                       dqr = head_of(shape, out.dqr, b, h * shape.rope_width), dkr = head_of(shape, out.dkr, b, 0);
      // The last block of the first head reaches all columns, so it can overwrite the sums over blocks and heads, to which
      // the others add. With a window it may not: then they begin as zeros.
      const bool first_of_group = h % group == 0, reaches_all = block_at(shape, blocks - 1).begin == 0;
      if (!reaches_all && first_of_group) clear(shape, dk, shape.head_dim), clear(shape, dv, shape.value_dim);
      if (!reaches_all && h == 0 && shape.rope_width > 0) clear(shape, dkr, shape.rope_width);
      for (std::int64_t i = blocks - 1; i >= 0; --i) {
        const Block block = block_at(shape, i);
        const bool first = reaches_all && i == blocks - 1;
        const Real keep = first && first_of_group ? Real(0) : Real(1), keep_kr = first && h == 0 ? Real(0) : Real(1);
        block_scores(shape, head, block, p);
        gemm(Transpose::kNo, Transpose::kYes, block.rows, block.cols, shape.value_dim, Real(1), head_do.at(block.first),
             head_do.ld, head.v.at(block.begin), head.v.ld, Real(0), ds, block.cols);
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
        }
        gemm(Transpose::kNo, Transpose::kNo, block.rows, shape.head_dim, block.cols, scale, ds, block.cols,
             head.k.at(block.begin), head.k.ld, Real(0), dq.at(block.first), dq.ld);
        gemm(Transpose::kYes, Transpose::kNo, block.cols, shape.head_dim, block.rows, scale, ds, block.cols,
             head.q.at(block.first), head.q.ld, keep, dk.at(block.begin), dk.ld);
        gemm(Transpose::kYes, Transpose::kNo, block.cols, shape.value_dim, block.rows, Real(1), p, block.cols,
             head_do.at(block.first), head_do.ld, keep, dv.at(block.begin), dv.ld);
        if (shape.rope_width > 0) {
          gemm(Transpose::kNo, Transpose::kNo, block.rows, shape.rope_width, block.cols, scale, ds, block.cols,
               head.kr.at(block.begin), head.kr.ld, Real(0), dqr.at(block.first), dqr.ld);
          gemm(Transpose::kYes, Transpose::kNo, block.cols, shape.rope_width, block.rows, scale, ds, block.cols,
               head.qr.at(block.first), head.qr.ld, keep_kr, dkr.at(block.begin), dkr.ld);
        }
      }
    }
  }
}

#define MESHWRIGHT_INSTANTIATE(Real)                                                                             \
  template void attention_forward(const AttentionShape&, const AttentionInputs<Real>&, const AttentionDropout&,  \
                                  const TokenMatrix<Real>&, Real*, Real*);                                       \
  template void attention_backward(const AttentionShape&, const AttentionInputs<Real>&, const AttentionDropout&, \
                                   const Real*, const TokenMatrix<const Real>&, const AttentionGradients<Real>&, \
                                   Real*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
