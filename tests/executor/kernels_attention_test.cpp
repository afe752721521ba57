#include <map>

#include "executor/kernels/attention.h"
#include "executor/kernels/flop_count.h"
#include "model/program/op_work.h"
#include "tests/executor/kernel_test_support.h"

namespace meshwright::kernels {
namespace {

const std::vector<std::int64_t> kSequences = {4, 2};  // of the step, in place of 0 and 1

// Every operand is some columns of wider rows: `before` such columns, and 2 behind.
struct Columns {
  std::int64_t width = 0, before = 0;
  std::int64_t ld() const { return before + width + 2; }
};
enum Operand { kQ, kK, kV, kQr, kKr };
constexpr int kOperands = 5;

Columns columns(const AttentionShape& s, int operand) {
  switch (operand) {
    case kQ:
      return {s.heads * s.head_dim, 0};
    case kK:
      return {s.kv_heads * s.head_dim, 1};
    case kV:
      return {s.kv_heads * s.value_dim, 5};
    case kQr:
      return {s.heads * s.rope_width, 2};
    default:
      return {s.rope_width, 3};
  }
}

using Inputs = std::vector<Values>;  // by operand

Inputs random_inputs(const AttentionShape& s, double size = 1) {
  Inputs in;
  for (int i = 0; i < kOperands; ++i)
    in.push_back(random_values(s.tokens * s.batch * columns(s, i).ld(), 1 + i, -size, size));
  return in;
}
template <class Real>
Inputs stored_inputs(const Inputs& in) {
  Inputs out;
  for (const Values& v : in) out.push_back(stored<Real>(v));
  return out;
}

struct Result {
  Values o, lse;
};

AttentionDropout dropout_of(const AttentionShape& s, double p, std::int64_t first_head = 0, std::int64_t heads = 0) {
  return {{1, 2, 3, p}, kSequences.data(), first_head, heads ? heads : s.heads};
}

// One score at a time.
Result naive(const AttentionShape& s, const Inputs& in, double p = 0) {
  const std::int64_t T = s.tokens, B = s.batch, H = s.heads;
  const auto at = [&](int operand, std::int64_t t, std::int64_t b, std::int64_t c) {
    const Columns columns_of = columns(s, operand);
    return in[operand][(t * B + b) * columns_of.ld() + columns_of.before + c];
  };
  Result out{Values(T * B * H * s.value_dim, 0.0), Values(B * H * T)};
  for (std::int64_t b = 0; b < B; ++b) {
    for (std::int64_t h = 0; h < H; ++h) {
      const std::int64_t g = h / (H / s.kv_heads);
      for (std::int64_t t = 0; t < T; ++t) {
        std::map<std::int64_t, double> weights;
        double total = 0;
        for (std::int64_t u = 0; u <= t; ++u) {
          if (s.window > 0 && t - u >= s.window) continue;
          double score = 0;
          for (std::int64_t c = 0; c < s.head_dim; ++c)
            score += at(kQ, t, b, h * s.head_dim + c) * at(kK, u, b, g * s.head_dim + c);
          for (std::int64_t c = 0; c < s.rope_width; ++c)
            score += at(kQr, t, b, h * s.rope_width + c) * at(kKr, u, b, c);
          total += weights[u] = std::exp(score * s.scale);
        }
        out.lse[(b * H + h) * T + t] = std::log(total);
        for (const auto& [u, weight] : weights) {
          double multiplier = 1;
          dropout_multipliers<double>({1, 2, 3, p}, ((kSequences[b] * H + h) * T + t) * T + u, 1, &multiplier);
          for (std::int64_t c = 0; c < s.value_dim; ++c)
            out.o[((t * B + b) * H + h) * s.value_dim + c] +=
                multiplier * weight / total * at(kV, u, b, g * s.value_dim + c);
        }
      }
    }
  }
  return out;
}

template <class Real>
struct Buffers {  // the inputs in the kernel's type
  Buffers(const AttentionShape& shape, const Inputs& in) : s(shape) {
    for (const Values& v : in) data.push_back(as<Real>(v));
  }
  TokenMatrix<const Real> operand(int i) const { return {data[i].data() + columns(s, i).before, columns(s, i).ld()}; }
  AttentionInputs<Real> view() const { return {operand(kQ), operand(kK), operand(kV), operand(kQr), operand(kKr)}; }
  const AttentionShape s;
  std::vector<std::vector<Real>> data;
};

// Gradients where the operands lie: NaN where they belong, 0 where others' columns are.
template <class Real>
struct Gradients {
  explicit Gradients(const AttentionShape& shape) : s(shape) {
    for (int i = 0; i < kOperands; ++i) {
      const Columns c = columns(s, i);
      data.emplace_back(s.tokens * s.batch * c.ld(), Real(0));
      for (std::int64_t row = 0; row < s.tokens * s.batch; ++row)
        std::fill_n(data[i].begin() + row * c.ld() + c.before, c.width, std::numeric_limits<Real>::quiet_NaN());
    }
  }
  TokenMatrix<Real> operand(int i) { return {data[i].data() + columns(s, i).before, columns(s, i).ld()}; }
  AttentionGradients<Real> view() { return {operand(kQ), operand(kK), operand(kV), operand(kQr), operand(kKr)}; }
  const AttentionShape s;
  std::vector<std::vector<Real>> data;
};

std::int64_t outputs(const AttentionShape& s) { return s.tokens * s.batch * s.heads * s.value_dim; }

template <class Real>
std::vector<std::vector<Real>> gradients_of(const AttentionShape& s, const Inputs& in, const Values& d, double p) {
  const Buffers<Real> buffers(s, in);
  std::vector<Real> o(outputs(s)), lse(s.batch * s.heads * s.tokens);
  auto scratch = unwritten<Real>(attention_backward_scratch(s));
  const std::int64_t width = s.heads * s.value_dim;
  attention_forward<Real>(s, buffers.view(), dropout_of(s, p), {o.data(), width}, lse.data(), scratch.data());
  const std::vector<Real> dout = as<Real>(d);
  Gradients<Real> out(s);
  attention_backward<Real>(s, buffers.view(), dropout_of(s, p), lse.data(), {dout.data(), width}, out.view(),
                           scratch.data());
  return out.data;
}

const std::vector<AttentionShape> kShapes = {
    {.tokens = 7,
     .batch = 2,
     .heads = 3,
     .kv_heads = 3,
     .head_dim = 4,
     .value_dim = 4,
     .rope_width = 2,
     .block = 3,
     .scale = 0.4},
    {.tokens = 8, .batch = 1, .heads = 4, .kv_heads = 2, .head_dim = 5, .value_dim = 3, .block = 4, .scale = 0.5},
    {.tokens = 1, .batch = 2, .heads = 1, .kv_heads = 1, .head_dim = 3, .value_dim = 6, .rope_width = 4, .block = 8},
    {.tokens = 40,
     .batch = 2,
     .heads = 2,
     .kv_heads = 1,
     .head_dim = 16,
     .value_dim = 16,
     .rope_width = 6,
     .block = 16,
     .scale = 0.2},
    {.tokens = 5, .batch = 1, .heads = 1, .kv_heads = 1, .head_dim = 2, .value_dim = 2, .rope_width = 2, .block = 1},
    {.tokens = 9,
     .batch = 2,
     .heads = 4,
     .kv_heads = 2,
     .head_dim = 2,
     .value_dim = 3,
     .rope_width = 2,
     .block = 2,
     .window = 3},
    {.tokens = 9, .batch = 1, .heads = 2, .kv_heads = 1, .head_dim = 2, .value_dim = 2, .block = 4, .window = 1},
    {.tokens = 9, .batch = 1, .heads = 2, .kv_heads = 1, .head_dim = 2, .value_dim = 2, .block = 4, .window = 7},
    {.tokens = 6, .batch = 1, .heads = 2, .kv_heads = 2, .head_dim = 2, .value_dim = 2, .block = 4, .window = 50},
};

template <class Real>
class Attention : public InBothPrecisions<Real> {};
TYPED_TEST_SUITE(Attention, Precisions);

TYPED_TEST(Attention, forward_equals_the_score_by_score_reference_for_any_block_group_and_window) {
  using Real = TypeParam;
  for (const AttentionShape& s : kShapes) {
    for (const double p : {0.0, 0.3}) {
      const Inputs in = stored_inputs<Real>(random_inputs(s, 3));
      const Buffers<Real> buffers(s, in);
      auto o = unwritten<Real>(outputs(s)), lse = unwritten<Real>(s.batch * s.heads * s.tokens);
      auto scratch = unwritten<Real>(attention_forward_scratch(s));
      attention_forward<Real>(s, buffers.view(), dropout_of(s, p), {o.data(), s.heads * s.value_dim}, lse.data(),
                              scratch.data());
      const Result expected = naive(s, in, p);
      expect_close(o, expected.o);
      expect_close(lse, expected.lse);
    }
  }
}

TEST(AttentionPass, backward_is_the_derivative) {
  for (const AttentionShape& s : kShapes) {
    if (s.tokens > 10) continue;
    for (const double p : {0.0, 0.3}) {
      const Inputs in = random_inputs(s);
      const Values d = random_values(outputs(s), 9);
      const auto gradients = gradients_of<double>(s, in, d, p);
      for (int i = 0; i < kOperands; ++i)
        expect_gradient(
            [&](const Values& at) {
              Inputs moved = in;
              moved[i] = at;
              return inner(naive(s, moved, p).o, d);
            },
            in[i], gradients[i]);
    }
  }
}

TEST(AttentionPass, backward_in_float_follows_double) {
  for (const AttentionShape& s : kShapes) {
    const Inputs in = stored_inputs<float>(random_inputs(s, 2));
    const Values d = stored<float>(random_values(outputs(s), 9));
    const auto single = gradients_of<float>(s, in, d, 0.2);
    const auto twice = gradients_of<double>(s, in, d, 0.2);
    for (int i = 0; i < kOperands; ++i) expect_close(single[i], twice[i], 5e-6);
  }
}

// Half the heads, as one of two tensor-parallel ranks has them: the same probabilities drop out.
TEST(AttentionPass, of_some_heads_drops_out_as_of_all) {
  const AttentionShape s = kShapes[1];
  AttentionShape half = s;
  half.heads /= 2, half.kv_heads /= 2;
  const Inputs in = random_inputs(s);
  const Buffers<double> buffers(s, in);
  Values scratch(attention_forward_scratch(s)), lse(s.batch * s.heads * s.tokens), all(outputs(s)), some(outputs(s));
  const std::int64_t ld = s.heads * s.value_dim;
  attention_forward<double>(s, buffers.view(), dropout_of(s, 0.4), {all.data(), ld}, lse.data(), scratch.data());
  for (const std::int64_t rank : {0, 1}) {
    AttentionInputs<double> part = buffers.view();
    part.q.data += rank * half.heads * s.head_dim;
    part.k.data += rank * half.kv_heads * s.head_dim;
    part.v.data += rank * half.kv_heads * s.value_dim;
    attention_forward<double>(half, part, dropout_of(s, 0.4, rank * half.heads, s.heads),
                              {some.data() + rank * half.heads * s.value_dim, ld}, lse.data(), scratch.data());
  }
  expect_close(some, all);
}

TEST(AttentionPass, counts_the_blocks_that_it_computes) {
  for (const AttentionShape& s : kShapes) {
    const Inputs in = random_inputs(s);
    const Buffers<float> buffers(s, in);
    std::vector<float> o(outputs(s)), lse(s.batch * s.heads * s.tokens), scratch(attention_backward_scratch(s));
    Gradients<float> out(s);
    const std::int64_t ld = s.heads * s.value_dim;
    std::int64_t before = flop_count();
    attention_forward<float>(s, buffers.view(), dropout_of(s, 0), {o.data(), ld}, lse.data(), scratch.data());
    EXPECT_EQ(flop_count() - before, attention_flops(s).value);
    before = flop_count();
    attention_backward<float>(s, buffers.view(), dropout_of(s, 0), lse.data(), {o.data(), ld}, out.view(),
                              scratch.data());
    EXPECT_EQ(flop_count() - before, attention_backward_flops(s).value);
  }
  // T = 7 in blocks of 3: 3 x 3, 3 x 6 and 1 x 7 scores = 34, for each of 2 sequences x 3 heads; dh = 4, R = 2.
  EXPECT_EQ(attention_flops(kShapes[0]).value, 6 * 34 * 2 * (6 + 4));
  EXPECT_EQ(attention_backward_flops(kShapes[0]).value, 6 * 34 * 2 * (3 * 6 + 2 * 4));
  EXPECT_EQ(attention_forward_scratch(kShapes[0]), 3 * 7);
  EXPECT_EQ(attention_backward_scratch(kShapes[0]), 2 * 3 * 7);
  // T = 9 in blocks of 2, each of whose rows sees 3: 2 x 2, then 3 times 2 x 4, and the last row alone, 1 x 3 = 31.
  EXPECT_EQ(attention_flops(kShapes[5]).value, 8 * 31 * (2 * (2 + 2) + 2 * 3));
  EXPECT_EQ(attention_forward_scratch(kShapes[5]), 2 * 4);
}

}  // namespace
}  // namespace meshwright::kernels
