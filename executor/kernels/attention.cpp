#include "executor/kernels/attention.h"

#include <algorithm>
#include <cmath>

#include "executor/kernels/gemm.h"
#include "executor/kernels/vector_math.h"
#include "model/program/check.h"

namespace meshwright::kernels {
namespace {

std::int64_t largest_block(const AttentionShape& shape) { return std::min(shape.block, shape.tokens) * shape.tokens; }

// Rows [first, first + rows) of the scores and their columns [0, cols).
struct Block {
  std::int64_t first;
  std::int64_t rows;
  std::int64_t cols;
};

Block block_at(const AttentionShape& shape, std::int64_t i) {
  const std::int64_t first = i * shape.block, end = std::min(shape.tokens, first + shape.block);
  return {first, end - first, end};
}

// Leading dimensions of the views "all tokens of one sequence": consecutive tokens are `sequences` rows
// apart.
struct Strides {
  explicit Strides(const AttentionShape& s)
      : head(s.heads * s.head_width), rope(s.heads * s.rope_width), q(s.sequences * head), qr(s.sequences * rope) {}
  std::int64_t head, rope;  // columns of qn (also of o, and half of kv's), of qr
  std::int64_t q, qr;       // from token to token
};

// One head of one sequence: where its first token's parts lie.
template <class Real>
struct Head {
  Head(const AttentionShape& s, const Strides& ld, const AttentionInputs<Real>& in, std::int64_t b, std::int64_t h)
      : qn(in.qn + b * ld.head + h * s.head_width),
        k(in.kv + b * 2 * ld.head + h * s.head_width),
        v(k + ld.head),
        qr(s.rope_width > 0 ? in.qr + b * ld.rope + h * s.rope_width : nullptr),
        kr(s.rope_width > 0 ? in.kr + b * in.kr_ld : nullptr),
        kr_ld(s.sequences * in.kr_ld) {}
  const Real* qn;
  const Real* k;
  const Real* v;
  const Real* qr;
  const Real* kr;
  std::int64_t kr_ld;
};

template <class Real>
Real score_scale(const AttentionShape& shape) {
  return static_cast<Real>(1.0 / std::sqrt(static_cast<double>(shape.head_width + shape.rope_width)));
}

template <class Real>
void block_scores(const AttentionShape& shape, const Strides& ld, const Head<Real>& head, const Block& block,
                  Real* scores) {
  const Real scale = score_scale<Real>(shape);
  gemm(Transpose::kNo, Transpose::kYes, block.rows, block.cols, shape.head_width, scale, head.qn + block.first * ld.q,
       ld.q, head.k, 2 * ld.q, Real(0), scores, block.cols);
  if (shape.rope_width > 0) {
    gemm(Transpose::kNo, Transpose::kYes, block.rows, block.cols, shape.rope_width, scale,
         head.qr + block.first * ld.qr, ld.qr, head.kr, head.kr_ld, Real(1), scores, block.cols);
  }
}

}  // namespace

std::int64_t attention_forward_scratch(const AttentionShape& shape) { return largest_block(shape); }
std::int64_t attention_backward_scratch(const AttentionShape& shape) { return 2 * largest_block(shape); }

template <class Real>
void attention_forward(const AttentionShape& shape, const AttentionInputs<Real>& in, Real* o, Real* lse,
                       Real* scratch) {
  check(shape.block >= 1, "attention: blocks of {} rows", shape.block);
  const Strides ld(shape);
  const std::int64_t blocks = (shape.tokens + shape.block - 1) / shape.block;
  for (std::int64_t b = 0; b < shape.sequences; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const Head<Real> head(shape, ld, in, b, h);
      Real* head_lse = lse + (b * shape.heads + h) * shape.tokens;
      for (std::int64_t i = 0; i < blocks; ++i) {
        const Block block = block_at(shape, i);
        block_scores(shape, ld, head, block, scratch);
        for (std::int64_t r = 0; r < block.rows; ++r) {
          Real* row = scratch + r * block.cols;
          const std::int64_t visible = block.first + r + 1;
          const Real top = largest(visible, row);
          for (std::int64_t c = 0; c < visible; ++c) row[c] = fast_exp(row[c] - top);
          const Real total = sum(visible, row), inverse = Real(1) / total;
          head_lse[block.first + r] = top + std::log(total);
          for (std::int64_t c = 0; c < visible; ++c) row[c] *= inverse;
          std::fill(row + visible, row + block.cols, Real(0));
        }
        gemm(Transpose::kNo, Transpose::kNo, block.rows, shape.head_width, block.cols, Real(1), scratch, block.cols,
             head.v, 2 * ld.q, Real(0), o + b * ld.head + h * shape.head_width + block.first * ld.q, ld.q);
      }
    }
  }
}

template <class Real>
void attention_backward(const AttentionShape& shape, const AttentionInputs<Real>& in, const Real* lse, const Real* do_,
                        const AttentionGradients<Real>& out, Real* scratch) {
  check(shape.block >= 1, "attention: blocks of {} rows", shape.block);
  const Strides ld(shape);
  const Real scale = score_scale<Real>(shape);
  const std::int64_t blocks = (shape.tokens + shape.block - 1) / shape.block;
  Real* p = scratch;
  Real* ds = scratch + largest_block(shape);
  for (std::int64_t b = 0; b < shape.sequences; ++b) {
    for (std::int64_t h = 0; h < shape.heads; ++h) {
      const Head<Real> head(shape, ld, in, b, h);
      const Real* head_lse = lse + (b * shape.heads + h) * shape.tokens;
      const Real* head_do = do_ + b * ld.head + h * shape.head_width;
      Real* dk = out.dkv + b * 2 * ld.head + h * shape.head_width;
      Real* dv = dk + ld.head;
      Real* dkr = shape.rope_width > 0 ? out.dkr + b * out.dkr_ld : nullptr;
      // The last block reaches all columns, so it can overwrite the sums over blocks; the others add to them.
      for (std::int64_t i = blocks - 1; i >= 0; --i) {
        const Block block = block_at(shape, i);
        const Real* block_do = head_do + block.first * ld.q;
        const Real keep = i == blocks - 1 ? Real(0) : Real(1);
        block_scores(shape, ld, head, block, p);
        gemm(Transpose::kNo, Transpose::kYes, block.rows, block.cols, shape.head_width, Real(1), block_do, ld.q, head.v,
             2 * ld.q, Real(0), ds, block.cols);
        for (std::int64_t r = 0; r < block.rows; ++r) {  // p: scores -> P;   ds: dP -> P * (dP - sum of P * dP)
          Real* p_row = p + r * block.cols;
          Real* ds_row = ds + r * block.cols;
          const std::int64_t visible = block.first + r + 1;
          const Real row_lse = head_lse[block.first + r];
          for (std::int64_t c = 0; c < visible; ++c) p_row[c] = fast_exp(p_row[c] - row_lse);
          const Real mean = dot(visible, p_row, ds_row);
          for (std::int64_t c = 0; c < visible; ++c) ds_row[c] = p_row[c] * (ds_row[c] - mean);
          std::fill(p_row + visible, p_row + block.cols, Real(0));
          std::fill(ds_row + visible, ds_row + block.cols, Real(0));
        }
        gemm(Transpose::kNo, Transpose::kNo, block.rows, shape.head_width, block.cols, scale, ds, block.cols, head.k,
             2 * ld.q, Real(0), out.dqn + b * ld.head + h * shape.head_width + block.first * ld.q, ld.q);
        gemm(Transpose::kYes, Transpose::kNo, block.cols, shape.head_width, block.rows, scale, ds, block.cols,
             head.qn + block.first * ld.q, ld.q, keep, dk, 2 * ld.q);
        gemm(Transpose::kYes, Transpose::kNo, block.cols, shape.head_width, block.rows, Real(1), p, block.cols,
             block_do, ld.q, keep, dv, 2 * ld.q);
        if (shape.rope_width > 0) {
          gemm(Transpose::kNo, Transpose::kNo, block.rows, shape.rope_width, block.cols, scale, ds, block.cols, head.kr,
               head.kr_ld, Real(0), out.dqr + b * ld.rope + h * shape.rope_width + block.first * ld.qr, ld.qr);
          const Real keep_kr = h > 0 || out.accumulate_dkr ? Real(1) : keep;
          gemm(Transpose::kYes, Transpose::kNo, block.cols, shape.rope_width, block.rows, scale, ds, block.cols,
               head.qr + block.first * ld.qr, ld.qr, keep_kr, dkr, shape.sequences * out.dkr_ld);
        }
      }
    }
  }
}

#define MESHWRIGHT_INSTANTIATE(Real)                                                                              \
  template void attention_forward(const AttentionShape&, const AttentionInputs<Real>&, Real*, Real*, Real*);      \
  template void attention_backward(const AttentionShape&, const AttentionInputs<Real>&, const Real*, const Real*, \
                                   const AttentionGradients<Real>&, Real*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
