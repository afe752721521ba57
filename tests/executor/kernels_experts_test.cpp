#include "executor/kernels/elementwise.h"
#include "executor/kernels/experts.h"
#include "executor/kernels/routing.h"
#include "tests/executor/kernel_test_support.h"

namespace meshwright::kernels {
namespace {

constexpr ActivationKind kGelu = ActivationKind::kGeluTanh;

// A layer of experts, T x B tokens of width C, hidden width F.
constexpr std::int64_t T = 5, B = 2, C = 6, F = 8, E = 3, k = 2, cap = 3;
constexpr std::int64_t kTokens = T * B, kSlots = E * B * cap;
const std::vector<std::int64_t> kSequences = {4, 2};

struct Inputs {
  Values h = random_values(kTokens * C, 1), scores = random_values(kTokens * E, 2, 0.1, 1);
  Values w0 = random_values(E * C * F, 3), b0 = random_values(E * F, 4);
  Values w1 = random_values(E * F * C, 5), b1 = random_values(E * C, 6);
};

struct Gradients {
  Values h, scores, w0, b0, w1, b1;
};

// Columns [first, first + n) of every (E, rows, width) matrix: a tensor-parallel slice.
Values columns(const Values& w, std::int64_t rows, std::int64_t width, std::int64_t first, std::int64_t n) {
  Values out;
  for (std::int64_t r = 0; r < E * rows; ++r)
    out.insert(out.end(), w.begin() + r * width + first, w.begin() + r * width + first + n);
  return out;
}
Values rows(const Values& w, std::int64_t rows, std::int64_t width, std::int64_t first, std::int64_t n) {
  Values out;
  for (std::int64_t e = 0; e < E; ++e)
    out.insert(out.end(), w.begin() + (e * rows + first) * width, w.begin() + (e * rows + first + n) * width);
  return out;
}

// Runs the layer with the kernels, hidden units [first, first + n), bias1 weighted with n/F: one
// tensor-parallel rank.
template <class Real>
class Layer {
 public:
  Layer(const Inputs& in, double p, std::int64_t first = 0, std::int64_t n = F)
      : n_(n),
        bias_scale_(static_cast<Real>(n) / F),
        h_(as<Real>(in.h)),
        scores_(as<Real>(in.scores)),
        w0_(as<Real>(columns(in.w0, C, F, first, n))),
        b0_(as<Real>(columns(in.b0, 1, F, first, n))),
        w1_(as<Real>(rows(in.w1, F, C, first, n))),
        b1_(as<Real>(in.b1)) {
    std::vector<std::int32_t> scratch(routing_scratch(shape_));
    route<Real>(shape_, {}, scores_.data(), nullptr,
                Routing<Real>{choice_.data(), slot_.data(), gate_.data(), rows_.data(), f_.data()},
                RoutingStatistics{load_.data(), &dropped, &balance_}, scratch.data());
    combine_ = {.rows = {T, B, T, 0, kSequences.data()},
                .experts = E,
                .choices = k,
                .width = C,
                .dropout = {1, 2, 3, p},
                .choice = choice_.data(),
                .slot = slot_.data(),
                .gate = gate_.data()};
  }

  std::vector<Real> forward() {
    dispatch(kTokens, k, C, slot_.data(), h_.data(), packed_.data());
    u_ = unwritten<Real>(kSlots * n_);
    a_ = u_;
    auto y = unwritten<Real>(kSlots * C);
    expert_gemm(experts_, Transpose::kNo, n_, C, packed_.data(), C, w0_.data(), u_.data(), n_);
    expert_add_bias(experts_, n_, b0_.data(), u_.data());
    expert_activation(experts_, kGelu, n_, u_.data(), a_.data());
    expert_gemm(experts_, Transpose::kNo, C, n_, a_.data(), n_, w1_.data(), y.data(), C);
    auto out = unwritten<Real>(kTokens * C);
    combine(combine_, y.data(), b1_.data(), bias_scale_, false, out.data());
    return out;
  }

  Gradients backward(const Values& d) {
    const std::vector<Real> dout = as<Real>(d);
    auto masked = unwritten<Real>(kSlots * C), row_gate = unwritten<Real>(kSlots), da = unwritten<Real>(kSlots * n_),
         dgate = unwritten<Real>(kTokens * k), dscores = unwritten<Real>(kTokens * E),
         dw0 = unwritten<Real>(E * C * n_), db0 = unwritten<Real>(E * n_), dw1 = unwritten<Real>(E * n_ * C),
         db1 = unwritten<Real>(E * C), dpacked = unwritten<Real>(kSlots * C);
    combine_backward(combine_, dout.data(), masked.data(), row_gate.data());
    expert_gemm(experts_, Transpose::kYes, n_, C, masked.data(), C, w1_.data(), da.data(), n_);
    gate_gradient(combine_, n_, a_.data(), da.data(), masked.data(), b1_.data(), bias_scale_, dgate.data());
    routing_backward(shape_, {}, scores_.data(), choice_.data(), gate_.data(), dgate.data(), dscores.data());
    expert_column_sum(experts_, C, masked.data(), row_gate.data(), bias_scale_, false, db1.data());
    expert_scale_rows(experts_, n_, row_gate.data(), a_.data());
    expert_weight_gradient(experts_, n_, C, a_.data(), n_, masked.data(), C, false, dw1.data());
    expert_scale_rows(experts_, n_, row_gate.data(), da.data());
    expert_activation_backward(experts_, kGelu, n_, u_.data(), da.data(), da.data());
    expert_column_sum<Real>(experts_, n_, da.data(), nullptr, 1, false, db0.data());
    expert_weight_gradient(experts_, C, n_, packed_.data(), C, da.data(), n_, false, dw0.data());
    expert_gemm(experts_, Transpose::kYes, C, n_, da.data(), n_, w0_.data(), dpacked.data(), C);
    std::vector<Real> dh(kTokens * C, Real(0));
    dispatch_backward(kTokens, k, C, slot_.data(), dpacked.data(), dh.data());
    const auto wide = [](const std::vector<Real>& v) { return Values(v.begin(), v.end()); };
    return {wide(dh), wide(dscores), wide(dw0), wide(db0), wide(dw1), wide(db1)};
  }

  std::int64_t dropped = 0;

 private:
  std::int64_t n_;
  Real bias_scale_;
  std::vector<Real> h_, scores_, w0_, b0_, w1_, b1_;
  RouteShape shape_{T, B, E, k, cap};
  std::vector<std::int32_t> choice_ = std::vector<std::int32_t>(kTokens * k), slot_ = choice_,
                            rows_ = std::vector<std::int32_t>(E);
  std::vector<Real> gate_ = unwritten<Real>(kTokens * k), f_ = unwritten<Real>(B * E);
  Values load_ = Values(E);
  double balance_ = 0;
  ExpertRows experts_{E, B* cap, rows_.data()};
  Combine<Real> combine_;
  std::vector<Real> packed_ = unwritten<Real>(kSlots * C), u_, a_;  // NaN in the padding: nothing may read it
};

// Token by token, choice by choice, with queues of its own.
Values naive(const Inputs& in, double p) {
  Values out(kTokens * C, 0.0);
  for (std::int64_t b = 0; b < B; ++b) {
    std::vector<std::vector<int>> best(T);
    std::vector<double> first_gate(T), total(T);
    std::vector<int> order;
    const auto score = [&](std::int64_t t, int e) { return in.scores[(t * B + b) * E + e]; };
    for (int t = 0; t < T; ++t) {
      best[t] = {0, 1, 2};
      std::stable_sort(best[t].begin(), best[t].end(), [&](int x, int y) { return score(t, x) > score(t, y); });
      total[t] = score(t, best[t][0]) + score(t, best[t][1]);
      first_gate[t] = score(t, best[t][0]) / total[t];
      order.push_back(t);
    }
    std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return first_gate[x] > first_gate[y]; });
    std::vector<int> queued(E, 0);
    for (int j = 0; j < k; ++j) {
      for (const int t : order) {
        const int e = best[t][j];
        if (queued[e]++ >= cap) continue;
        Values a(F);
        for (std::int64_t f = 0; f < F; ++f) {
          double u = in.b0[e * F + f];
          for (std::int64_t c = 0; c < C; ++c) u += in.h[(t * B + b) * C + c] * in.w0[(e * C + c) * F + f];
          activation<double>(kGelu, 1, &u, &a[f]);
        }
        for (std::int64_t c = 0; c < C; ++c) {
          double y = in.b1[e * C + c], multiplier = 0;
          for (std::int64_t f = 0; f < F; ++f) y += a[f] * in.w1[(e * F + f) * C + c];
          dropout_multipliers<double>({1, 2, 3, p}, ((kSequences[b] * T + t) * E + e) * C + c, 1, &multiplier);
          out[(t * B + b) * C + c] += score(t, e) / total[t] * multiplier * y;
        }
      }
    }
  }
  return out;
}

TEST(Experts, forward_equals_the_token_by_token_reference) {
  const Inputs in;
  for (const double p : {0.0, 0.4}) {
    Layer<double> layer(in, p);
    EXPECT_GT(layer.dropped, 0);  // 20 assignments for 18 places
    expect_close(layer.forward(), naive(in, p));
    expect_close(Layer<float>(in, p).forward(), naive(in, p), 1e-5);
  }
}

TEST(Experts, backward_is_the_derivative) {
  const Inputs in;
  const Values d = random_values(kTokens * C, 7);
  for (const double p : {0.0, 0.4}) {
    Layer<double> layer(in, p);
    layer.forward();
    const Gradients g = layer.backward(d);
    const auto with = [&](Values Inputs::*which) {
      return [&, which](const Values& at) {
        Inputs moved = in;
        moved.*which = at;
        return inner(naive(moved, p), d);
      };
    };
    expect_gradient(with(&Inputs::h), in.h, g.h);
    expect_gradient(with(&Inputs::scores), in.scores, g.scores);
    expect_gradient(with(&Inputs::w0), in.w0, g.w0);
    expect_gradient(with(&Inputs::b0), in.b0, g.b0);
    expect_gradient(with(&Inputs::w1), in.w1, g.w1);
    expect_gradient(with(&Inputs::b1), in.b1, g.b1);
  }
}

TEST(Experts, of_two_tensor_parallel_ranks_add_up_to_one) {
  const Inputs in;
  const Values d = random_values(kTokens * C, 7);
  Layer<double> whole(in, 0.4), left(in, 0.4, 0, 3), right(in, 0.4, 3, 5);
  const auto sum_of = [](Values a, const Values& b) {
    for (std::size_t i = 0; i < a.size(); ++i) a[i] += b[i];
    return a;
  };
  const Values out = whole.forward(), left_out = left.forward(), right_out = right.forward();
  expect_close(sum_of(left_out, right_out), out);
  const Gradients g = whole.backward(d), l = left.backward(d), r = right.backward(d);
  expect_close(sum_of(l.h, r.h), g.h);
  expect_close(sum_of(l.scores, r.scores), g.scores);
  expect_close(sum_of(l.b1, r.b1), g.b1);
  expect_close(l.w0, columns(g.w0, C, F, 0, 3));
  expect_close(r.w1, rows(g.w1, F, C, 3, 5));
}

TEST(Experts, column_sum_adds_to_what_is_there_when_asked) {
  const std::vector<std::int32_t> filled = {1, 0};
  const ExpertRows experts{2, 2, filled.data()};
  const Values x = {1, 2, 9, 9, 9, 9, 9, 9}, gate = {0.5, 9, 9, 9};
  Values out = {1, 1, 1, 1};
  expert_column_sum(experts, 2, x.data(), gate.data(), 2.0, true, out.data());
  EXPECT_EQ(out, (Values{2, 3, 1, 1}));
  expert_column_sum<double>(experts, 2, x.data(), nullptr, 1, false, out.data());
  EXPECT_EQ(out, (Values{1, 2, 0, 0}));
}

// Without a capacity rows lie behind each other; every kernel then does what it does with gaps.
TEST(Experts, packed_give_what_padded_ones_give) {
  constexpr std::int64_t kWidth = 4, kInner = 3, kCapacity = 5, kRows = 6;
  const std::vector<std::int32_t> filled = {3, 0, 1, 2};
  const ExpertRows padded{4, kCapacity, filled.data()}, packed{4, 0, filled.data()};
  const Values x = random_values(kRows * kWidth, 1), w = random_values(4 * kWidth * 2 * kInner, 2),
               bias = random_values(4 * 2 * kInner, 3), gate = random_values(kRows, 4),
               d = random_values(kRows * kInner, 5);
  // Rows of a packed buffer where the padded one has them, NaN between them; and back.
  const auto spread = [&](const Values& rows, std::int64_t n) {
    Values out = unwritten<double>(4 * kCapacity * n);
    packed.for_each([&](std::int64_t e, std::int64_t first, std::int64_t count) {
      std::copy_n(rows.begin() + first * n, count * n, out.begin() + e * kCapacity * n);
    });
    return out;
  };
  const auto gathered = [&](const Values& rows, std::int64_t n) {
    Values out(kRows * n);
    packed.for_each([&](std::int64_t e, std::int64_t first, std::int64_t count) {
      std::copy_n(rows.begin() + e * kCapacity * n, count * n, out.begin() + first * n);
    });
    return out;
  };
  struct Results {
    Values u, a, scaled, du, dw, sums;
  };
  const auto run = [&](const ExpertRows& experts, const Values& in, const Values& row_gate, const Values& da) {
    const std::int64_t rows = static_cast<std::int64_t>(row_gate.size());
    Results r{unwritten<double>(rows * 2 * kInner),
              unwritten<double>(rows * kInner),
              in,
              unwritten<double>(rows * 2 * kInner),
              unwritten<double>(4 * kWidth * 2 * kInner),
              unwritten<double>(8 * kInner)};
    expert_gemm(experts, Transpose::kNo, 2 * kInner, kWidth, in.data(), kWidth, w.data(), r.u.data(), 2 * kInner);
    expert_add_bias(experts, 2 * kInner, bias.data(), r.u.data());
    expert_gated_activation(experts, ActivationKind::kSilu, kInner, r.u.data(), r.a.data());
    expert_scale_rows(experts, kWidth, row_gate.data(), r.scaled.data());
    expert_gated_activation_backward(experts, ActivationKind::kSilu, kInner, r.u.data(), da.data(), r.du.data());
    expert_weight_gradient(experts, kWidth, 2 * kInner, in.data(), kWidth, r.du.data(), 2 * kInner, false, r.dw.data());
    expert_column_sum(experts, 2 * kInner, r.du.data(), row_gate.data(), 0.5, false, r.sums.data());
    return r;
  };
  const Results one = run(packed, x, gate, d),
                other = run(padded, spread(x, kWidth), spread(gate, 1), spread(d, kInner));
  EXPECT_EQ(one.u, gathered(other.u, 2 * kInner));
  EXPECT_EQ(one.a, gathered(other.a, kInner));
  EXPECT_EQ(one.scaled, gathered(other.scaled, kWidth));
  EXPECT_EQ(one.du, gathered(other.du, 2 * kInner));
  EXPECT_EQ(one.dw, other.dw);
  EXPECT_EQ(one.sums, other.sums);
  for (std::int64_t r = 0; r < 3; ++r) {  // of expert 0, by hand
    double u = bias[1];
    for (std::int64_t c = 0; c < kWidth; ++c) u += x[r * kWidth + c] * w[c * 2 * kInner + 1];
    EXPECT_NEAR(one.u[r * 2 * kInner + 1], u, 1e-14);
  }
}

}  // namespace
}  // namespace meshwright::kernels
