#include "executor/kernels/attention.h"
#include "executor/kernels/flop_count.h"
#include "tests/executor/kernel_test_support.h"

namespace meshwright::kernels {
namespace {

constexpr std::int64_t kRotaryColumn = 3;  // where kr starts in a row of zk, which has kRotaryColumn + R + 2 columns

struct Inputs {
  Values qn, qr, kv, zk;
};

std::int64_t zk_width(const AttentionShape& s) { return kRotaryColumn + s.rope_width + 2; }

Inputs random_inputs(const AttentionShape& s, double size = 1) {
  const std::int64_t rows = s.tokens * s.sequences;
  return {random_values(rows * s.heads * s.head_width, 1, -size, size),
          random_values(rows * s.heads * s.rope_width, 2, -size, size),
          random_values(rows * 2 * s.heads * s.head_width, 3), random_values(rows * zk_width(s), 4)};
}

template <class Real>
Inputs stored_inputs(const Inputs& in) {
  return {stored<Real>(in.qn), stored<Real>(in.qr), stored<Real>(in.kv), stored<Real>(in.zk)};
}

struct Result {
  Values o, lse;
};

// One score at a time.
Result naive(const AttentionShape& s, const Inputs& in) {
  const std::int64_t T = s.tokens, B = s.sequences, H = s.heads, dh = s.head_width, R = s.rope_width;
  Result out{Values(T * B * H * dh, 0.0), Values(B * H * T)};
  for (std::int64_t b = 0; b < B; ++b) {
    for (std::int64_t h = 0; h < H; ++h) {
      for (std::int64_t t = 0; t < T; ++t) {
        Values weights;
        double total = 0;
        for (std::int64_t u = 0; u <= t; ++u) {
          double score = 0;
          for (std::int64_t c = 0; c < dh; ++c)
            score += in.qn[((t * B + b) * H + h) * dh + c] * in.kv[(u * B + b) * 2 * H * dh + h * dh + c];
          for (std::int64_t c = 0; c < R; ++c)
            score += in.qr[((t * B + b) * H + h) * R + c] * in.zk[(u * B + b) * zk_width(s) + kRotaryColumn + c];
          weights.push_back(std::exp(score / std::sqrt(dh + R)));
          total += weights.back();
        }
        out.lse[(b * H + h) * T + t] = std::log(total);
        for (std::int64_t u = 0; u <= t; ++u)
          for (std::int64_t c = 0; c < dh; ++c)
            out.o[((t * B + b) * H + h) * dh + c] +=
                weights[u] / total * in.kv[(u * B + b) * 2 * H * dh + H * dh + h * dh + c];
      }
    }
  }
  return out;
}

template <class Real>
struct Buffers {  // the inputs in the kernel's type
  explicit Buffers(const AttentionShape& s, const Inputs& in)
      : qn(as<Real>(in.qn)), qr(as<Real>(in.qr)), kv(as<Real>(in.kv)), zk(as<Real>(in.zk)), ld(zk_width(s)) {}
  AttentionInputs<Real> view() const { return {qn.data(), qr.data(), kv.data(), zk.data() + kRotaryColumn, ld}; }
  std::vector<Real> qn, qr, kv, zk;
  std::int64_t ld;
};

const std::vector<AttentionShape> kShapes = {
    {.tokens = 7, .sequences = 2, .heads = 3, .head_width = 4, .rope_width = 2, .block = 3},
    {.tokens = 8, .sequences = 1, .heads = 2, .head_width = 5, .rope_width = 0, .block = 4},
    {.tokens = 1, .sequences = 2, .heads = 1, .head_width = 3, .rope_width = 4, .block = 8},
    {.tokens = 40, .sequences = 2, .heads = 2, .head_width = 16, .rope_width = 6, .block = 16},
    {.tokens = 5, .sequences = 1, .heads = 1, .head_width = 2, .rope_width = 2, .block = 1},
};

template <class Real>
class Attention : public InBothPrecisions<Real> {};
TYPED_TEST_SUITE(Attention, Precisions);

TYPED_TEST(Attention, forward_equals_the_score_by_score_reference_for_any_block) {
  using Real = TypeParam;
  for (const AttentionShape& s : kShapes) {
    const Inputs in = stored_inputs<Real>(random_inputs(s, 3));
    const Buffers<Real> buffers(s, in);
    auto o = unwritten<Real>(in.qn.size()), lse = unwritten<Real>(s.sequences * s.heads * s.tokens);
    auto scratch = unwritten<Real>(attention_forward_scratch(s));
    attention_forward(s, buffers.view(), o.data(), lse.data(), scratch.data());
    const Result expected = naive(s, in);
    expect_close(o, expected.o);
    expect_close(lse, expected.lse);
  }
}

TEST(AttentionPass, backward_is_the_derivative) {
  for (const AttentionShape& s : kShapes) {
    if (s.tokens > 10) continue;
    const Inputs in = random_inputs(s);
    const Values d = random_values(in.qn.size(), 9);
    const Buffers<double> buffers(s, in);
    Values o(in.qn.size()), lse(s.sequences * s.heads * s.tokens);
    Values scratch(attention_backward_scratch(s));
    attention_forward(s, buffers.view(), o.data(), lse.data(), scratch.data());
    auto dqn = unwritten<double>(in.qn.size()), dqr = unwritten<double>(in.qr.size()),
         dkv = unwritten<double>(in.kv.size());
    Values dzk(in.zk.size(), 0.0);  // kr's columns are overwritten, the others belong to somebody else
    for (std::int64_t r = 0; r < s.tokens * s.sequences; ++r)
      for (std::int64_t c = 0; c < s.rope_width; ++c)
        dzk[r * zk_width(s) + kRotaryColumn + c] = std::numeric_limits<double>::quiet_NaN();
    attention_backward<double>(s, buffers.view(), lse.data(), d.data(),
                               {dqn.data(), dqr.data(), dkv.data(), dzk.data() + kRotaryColumn, zk_width(s), false},
                               scratch.data());
    const auto with = [&](Values Inputs::*which) {
      return [&, which](const Values& at) {
        Inputs moved = in;
        moved.*which = at;
        return inner(naive(s, moved).o, d);
      };
    };
    expect_gradient(with(&Inputs::qn), in.qn, dqn);
    expect_gradient(with(&Inputs::qr), in.qr, dqr);
    expect_gradient(with(&Inputs::kv), in.kv, dkv);
    expect_gradient(with(&Inputs::zk), in.zk, dzk);

    const Values once = dzk;
    attention_backward<double>(s, buffers.view(), lse.data(), d.data(),
                               {dqn.data(), dqr.data(), dkv.data(), dzk.data() + kRotaryColumn, zk_width(s), true},
                               scratch.data());
    for (std::size_t i = 0; i < once.size(); ++i) EXPECT_NEAR(dzk[i], 2 * once[i], 1e-13);
  }
}

TEST(AttentionPass, backward_in_float_follows_double) {
  const AttentionShape s = kShapes[3];
  const Inputs in = stored_inputs<float>(random_inputs(s, 2));
  const Values d = stored<float>(random_values(in.qn.size(), 9));
  const auto gradients = [&]<class Real>(Real) {
    const Buffers<Real> buffers(s, in);
    std::vector<Real> o(in.qn.size()), lse(s.sequences * s.heads * s.tokens), scratch(attention_backward_scratch(s));
    attention_forward(s, buffers.view(), o.data(), lse.data(), scratch.data());
    std::vector<Real> dqn(in.qn.size()), dqr(in.qr.size()), dkv(in.kv.size()), dzk(in.zk.size(), Real(0));
    attention_backward<Real>(s, buffers.view(), lse.data(), as<Real>(d).data(),
                             {dqn.data(), dqr.data(), dkv.data(), dzk.data() + kRotaryColumn, zk_width(s), false},
                             scratch.data());
    for (const auto& part : {dqr, dkv, dzk}) dqn.insert(dqn.end(), part.begin(), part.end());
    return dqn;
  };
  expect_close(gradients(float{}), gradients(double{}), 5e-6);
}

TEST(AttentionPass, counts_the_blocks_that_it_computes) {
  // T = 7 in blocks of 3: 3 x 3, 3 x 6 and 1 x 7 scores = 34, for each of 2 sequences x 3 heads; dh = 4, R
  // = 2.
  const AttentionShape s = kShapes[0];
  const Inputs in = random_inputs(s);
  const Buffers<float> buffers(s, in);
  std::vector<float> o(in.qn.size()), lse(42), scratch(attention_backward_scratch(s)), dqn(in.qn.size()),
      dqr(in.qr.size()), dkv(in.kv.size()), dkr(in.zk.size());
  std::int64_t before = flop_count();
  attention_forward(s, buffers.view(), o.data(), lse.data(), scratch.data());
  EXPECT_EQ(flop_count() - before, 6 * 34 * 2 * (6 + 4));
  before = flop_count();
  attention_backward<float>(s, buffers.view(), lse.data(), o.data(),
                            {dqn.data(), dqr.data(), dkv.data(), dkr.data(), 2, false}, scratch.data());
  EXPECT_EQ(flop_count() - before, 6 * 34 * 2 * (3 * 6 + 2 * 4));
  EXPECT_EQ(attention_forward_scratch(s), 3 * 7);
  EXPECT_EQ(attention_backward_scratch(s), 2 * 3 * 7);
}

}  // namespace
}  // namespace meshwright::kernels
