#include <map>
#include <numeric>

#include "executor/kernels/routing.h"
#include "tests/executor/kernel_test_support.h"

namespace meshwright::kernels {
namespace {

// Everything that routing writes.
template <class Real>
struct Routed {
  Routed(const RouteShape& s)
      : choice(s.tokens * s.batch * s.choices, -7),
        slot(choice.size(), -7),
        gate(unwritten<Real>(choice.size())),
        rows(s.experts, -7),
        fraction(unwritten<Real>(s.batch * s.experts)),
        load(s.experts, 0.0),
        scratch(routing_scratch(s), -7) {}
  Routing<Real> view() { return {choice.data(), slot.data(), gate.data(), rows.data(), fraction.data()}; }
  RoutingStatistics statistics() { return {load.data(), &dropped, &balance}; }

  std::vector<std::int32_t> choice, slot;
  std::vector<Real> gate;
  std::vector<std::int32_t> rows;
  std::vector<Real> fraction;
  Values load;
  std::int64_t dropped = 0;
  double balance = 0;
  std::vector<std::int32_t> scratch;
};

template <class Real>
Routed<Real> routed(const RouteShape& s, const Values& scores) {
  Routed<Real> out(s);
  route<Real>(s, {}, as<Real>(scores).data(), nullptr, out.view(), out.statistics(), out.scratch.data());
  return out;
}

// The semantics text, sentence by sentence, for one sequence.
struct Transcription {
  std::vector<std::vector<int>> choice;  // [t][j]
  std::vector<Values> gate;
  std::vector<std::vector<bool>> kept;
  Values load, f, P;
  int dropped = 0;
};
Transcription transcribe(const RouteShape& s, const Values& scores, std::int64_t b) {
  const auto score = [&](std::int64_t t, std::int64_t e) { return scores[(t * s.batch + b) * s.experts + e]; };
  Transcription out;
  for (std::int64_t t = 0; t < s.tokens; ++t) {
    std::vector<int> experts(s.experts);
    std::iota(experts.begin(), experts.end(), 0);
    std::stable_sort(experts.begin(), experts.end(), [&](int x, int y) { return score(t, x) > score(t, y); });
    experts.resize(s.choices);
    double total = 0;
    for (const int e : experts) total += score(t, e);
    Values gates;
    for (const int e : experts) gates.push_back(score(t, e) / total);
    out.choice.push_back(experts);
    out.gate.push_back(gates);
    out.kept.emplace_back(s.choices);
  }
  std::vector<int> order(s.tokens);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int x, int y) { return out.gate[x][0] > out.gate[y][0]; });
  std::map<int, int> queued;
  for (std::int64_t j = 0; j < s.choices; ++j) {
    for (const int t : order) {
      const int position = queued[out.choice[t][j]]++;
      out.kept[t][j] = position < s.capacity;
      out.dropped += !out.kept[t][j];
    }
  }
  for (std::int64_t e = 0; e < s.experts; ++e) {
    out.f.push_back(queued[e] / static_cast<double>(s.tokens));
    double mean = 0;
    for (std::int64_t t = 0; t < s.tokens; ++t) {
      double total = 0;
      for (std::int64_t i = 0; i < s.experts; ++i) total += score(t, i);
      mean += score(t, e) / total / s.tokens;
    }
    out.P.push_back(mean);
  }
  return out;
}

template <class Real>
void expect_follows_the_text(const RouteShape& s, const Values& scores) {
  const Routed<Real> actual = routed<Real>(s, scores);
  Values load(s.experts, 0.0);
  double balance = 0;
  int dropped = 0;
  std::vector<int> rows(s.experts, 0);
  for (std::int64_t b = 0; b < s.batch; ++b) {
    const Transcription expected = transcribe(s, scores, b);
    std::map<int, std::vector<int>> slots;  // kept, of this sequence
    for (std::int64_t t = 0; t < s.tokens; ++t) {
      for (std::int64_t j = 0; j < s.choices; ++j) {
        const std::int64_t at = (t * s.batch + b) * s.choices + j;
        ASSERT_EQ(actual.choice[at], expected.choice[t][j]);
        ASSERT_NEAR(actual.gate[at], expected.gate[t][j], 1e-6);
        ASSERT_EQ(actual.slot[at] >= 0, expected.kept[t][j]);
        if (actual.slot[at] >= 0)
          slots[actual.choice[at]].push_back(actual.slot[at]);
        else
          ASSERT_EQ(actual.slot[at], -1);
      }
    }
    for (std::int64_t e = 0; e < s.experts; ++e) {  // packed: this sequence's rows follow those of the sequences before
      std::sort(slots[e].begin(), slots[e].end());
      for (const int slot : slots[e]) ASSERT_EQ(slot, e * s.row_capacity() + rows[e]++);
      EXPECT_NEAR(actual.fraction[b * s.experts + e], expected.f[e], 1e-6);
      load[e] += expected.f[e];
    }
    balance += inner(expected.f, expected.P);
    dropped += expected.dropped;
  }
  for (std::int64_t e = 0; e < s.experts; ++e) EXPECT_EQ(actual.rows[e], rows[e]);
  expect_close(actual.load, load, 1e-12);
  EXPECT_NEAR(actual.balance, balance, 1e-6);
  EXPECT_EQ(actual.dropped, dropped);
}

TEST(Route, follows_the_text_for_all_shapes_and_capacities) {
  unsigned seed = 0;
  for (const std::int64_t T : {1, 2, 33}) {
    for (const std::int64_t B : {1, 3}) {
      for (const std::int64_t k : {1, 2, 5}) {
        for (const std::int64_t cap : {1, 4, 100}) {
          const RouteShape s{T, B, 5, k, cap};
          const Values scores = stored<float>(random_values(T * B * 5, ++seed, 0.01, 1));
          expect_follows_the_text<double>(s, scores);
          expect_follows_the_text<float>(s, scores);
        }
      }
    }
  }
}

TEST(Route, breaks_ties_by_expert_and_by_token) {
  // Scores from {1/4, 1/2, 1}: ties everywhere, and exact gates (so that equal gates are equal in both
  // types).
  const RouteShape s{40, 2, 4, 2, 7};
  Values scores = random_values(40 * 2 * 4, 5, 0, 3);
  for (double& v : scores) v = std::exp2(std::floor(v) - 2);
  expect_follows_the_text<double>(s, scores);
  expect_follows_the_text<float>(s, scores);
}

TEST(Route, sends_everything_to_one_expert_up_to_its_capacity) {
  // 6 tokens of 2 sequences all prefer expert 1; it takes 4 of each sequence, the tokens with the highest
  // gates.
  const RouteShape s{6, 2, 3, 1, 4};
  Values scores;
  for (int row = 0; row < 12; ++row) scores.insert(scores.end(), {0.1, 0.9, 0.2});
  const Routed<double> out = routed<double>(s, scores);
  EXPECT_EQ(out.rows, (std::vector<std::int32_t>{0, 8, 0}));
  EXPECT_EQ(out.dropped, 4);
  EXPECT_EQ(out.load, (Values{0, 2, 0}));
  // Equal gates (1): tokens 0..3 of sequence 0 in rows 8..11 of the buffer, of sequence 1 in rows 12..15.
  EXPECT_EQ(out.slot, (std::vector<std::int32_t>{8, 12, 9, 13, 10, 14, 11, 15, -1, -1, -1, -1}));
}

TEST(Route, adds_statistics_to_what_is_there) {
  const RouteShape s{9, 1, 4, 2, 2};
  const Values scores = random_values(36, 6, 0.1, 1);
  Routed<double> out(s);
  route<double>(s, {}, scores.data(), nullptr, out.view(), out.statistics(), out.scratch.data());
  const Routed<double> once = out;
  route<double>(s, {}, scores.data(), nullptr, out.view(), out.statistics(), out.scratch.data());
  EXPECT_EQ(out.dropped, 2 * once.dropped);
  EXPECT_DOUBLE_EQ(out.balance, 2 * once.balance);
  EXPECT_DOUBLE_EQ(out.load[0], 2 * once.load[0]);
  EXPECT_EQ(out.rows, once.rows);  // but these are of the last call
}

TEST(Route, survives_scores_that_are_not_numbers) {
  const RouteShape s{50, 1, 4, 2, 10};
  Values scores = random_values(200, 7, 0.1, 1);
  for (std::size_t i = 0; i < scores.size(); i += 3) scores[i] = std::nan("");
  const Routed<float> out = routed<float>(s, scores);
  for (std::size_t at = 0; at < out.choice.size(); at += 2) EXPECT_NE(out.choice[at], out.choice[at + 1]);
  for (const std::int32_t e : out.choice) EXPECT_TRUE(e >= 0 && e < 4);
}

TEST(ReplayRouting, of_a_record_gives_the_same_assignments_and_gates_of_the_new_scores) {
  const RouteShape s{20, 2, 5, 2, 6};
  const Values scores = random_values(200, 8, 0.1, 1), other = random_values(200, 9, 0.1, 1);
  const Routed<double> recorded = routed<double>(s, scores);
  std::vector<std::uint8_t> kept;
  for (const std::int32_t slot : recorded.slot) kept.push_back(slot >= 0);

  Routed<double> same(s), moved(s);
  replay_routing(s, {}, scores.data(), recorded.choice.data(), kept.data(), same.view(), same.statistics(),
                 same.scratch.data());
  EXPECT_EQ(same.choice, recorded.choice);
  EXPECT_EQ(same.gate, recorded.gate);
  EXPECT_EQ(same.rows, recorded.rows);
  EXPECT_EQ(same.load, recorded.load);
  EXPECT_EQ(same.dropped, recorded.dropped);
  EXPECT_EQ(same.balance, recorded.balance);
  std::vector<bool> used(5 * s.row_capacity(), false);
  for (std::size_t at = 0; at < same.slot.size(); ++at) {
    ASSERT_EQ(same.slot[at] >= 0, kept[at] == 1);
    if (!kept[at]) continue;
    EXPECT_FALSE(used[same.slot[at]]);
    used[same.slot[at]] = true;
    EXPECT_LT(same.slot[at] - same.choice[at] * s.row_capacity(), same.rows[same.choice[at]]);
  }

  replay_routing(s, {}, other.data(), recorded.choice.data(), kept.data(), moved.view(), moved.statistics(),
                 moved.scratch.data());
  EXPECT_EQ(moved.slot, same.slot);
  for (std::int64_t row = 0; row < 40; ++row) {
    const double first = other[row * 5 + moved.choice[2 * row]], second = other[row * 5 + moved.choice[2 * row + 1]];
    EXPECT_DOUBLE_EQ(moved.gate[2 * row], first / (first + second));
  }
}

TEST(RoutingBackward, is_the_derivative_of_the_gates) {
  const RouteShape s{5, 2, 4, 2, 3};
  const Values scores = random_values(40, 10, 0.1, 1), dgate = random_values(20, 11);
  const Routed<double> out = routed<double>(s, scores);
  auto dscores = unwritten<double>(40);
  routing_backward(s, {}, scores.data(), out.choice.data(), out.gate.data(), dgate.data(), dscores.data());
  expect_gradient([&](const Values& at) { return inner(routed<double>(s, at).gate, dgate); }, scores, dscores);
}

TEST(BalanceBackward, is_the_derivative_of_the_balance_and_can_be_cut_along_the_sequence) {
  const RouteShape s{6, 2, 4, 2, 3};
  const std::int64_t B = 2, E = 4;
  const Values scores = random_values(6 * B * E, 12, 0.1, 1);
  const Routed<double> out = routed<double>(s, scores);
  Values dscores(scores.size(), 1.0);
  double balance = 0;
  for (const std::int64_t first : {0, 2, 4}) {
    balance += balance_backward(s, 2, scores.data() + first * B * E, out.fraction.data(), false, 0.3,
                                dscores.data() + first * B * E);
  }
  EXPECT_NEAR(balance, out.balance, 1e-12);
  for (double& v : dscores) v -= 1;
  expect_gradient([&](const Values& at) { return 0.3 * routed<double>(s, at).balance; }, scores, dscores);

  std::vector<float> single(scores.size(), 0.f);
  const Routed<float> routed_single = routed<float>(s, scores);
  balance_backward(s, 6, as<float>(scores).data(), routed_single.fraction.data(), false, 0.3f, single.data());
  expect_close(single, dscores, 1e-6);
}

// f and P by their definition, over all tokens that there are.
double balance_of_all(const Values& scores, const std::vector<std::int32_t>& choice, std::int64_t experts) {
  const auto tokens = static_cast<std::int64_t>(scores.size()) / experts;
  Values f(experts, 0.0), p(experts, 0.0);
  for (const std::int32_t e : choice) f[e] += 1.0 / static_cast<double>(tokens);
  for (std::int64_t n = 0; n < tokens; ++n) {
    const double sum = std::accumulate(scores.begin() + n * experts, scores.begin() + (n + 1) * experts, 0.0);
    for (std::int64_t e = 0; e < experts; ++e) p[e] += scores[n * experts + e] / sum / static_cast<double>(tokens);
  }
  return std::inner_product(f.begin(), f.end(), p.begin(), 0.0);
}

TEST(BalanceBackward, over_the_tokens_of_several_calls_takes_their_shares_from_the_sum_that_they_added_to) {
  const RouteShape s{5, 2, 4, 2, 3};
  const std::int64_t calls = 3, tokens = calls * s.tokens * s.batch;
  const Values scores = random_values(tokens * s.experts, 21, 0.1, 1);
  const auto of_call = [&](std::int64_t c) {
    return Values(scores.begin() + c * s.tokens * s.batch * s.experts,
                  scores.begin() + (c + 1) * s.tokens * s.batch * s.experts);
  };
  Values fraction(s.experts, 0.0);
  std::vector<std::int32_t> choice;
  for (std::int64_t c = 0; c < calls; ++c) {
    Routed<double> out(s);
    Routing<double> routing = out.view();
    routing.fraction = fraction.data();
    routing.fraction_tokens = tokens;
    route<double>(s, {}, of_call(c).data(), nullptr, routing, out.statistics(), out.scratch.data());
    EXPECT_EQ(out.balance, 0);  // not known yet
    choice.insert(choice.end(), out.choice.begin(), out.choice.end());
    const Values before = fraction;
    routing.fraction = nullptr;  // once more, for what was not kept
    route<double>(s, {}, of_call(c).data(), nullptr, routing, out.statistics(), out.scratch.data());
    EXPECT_EQ(fraction, before);
  }
  Values dscores(scores.size(), 0.0);
  double balance = 0;
  for (std::int64_t c = 0; c < calls; ++c)
    balance += balance_backward(s, s.tokens, of_call(c).data(), fraction.data(), true, 0.3,
                                dscores.data() + c * s.tokens * s.batch * s.experts);
  const double sequences = static_cast<double>(calls * s.batch);
  EXPECT_NEAR(balance / sequences, balance_of_all(scores, choice, s.experts), 1e-12);
  expect_gradient([&](const Values& at) { return 0.3 * sequences * balance_of_all(at, choice, s.experts); }, scores,
                  dscores);
}

// ---- rules of the families -----------------------------------------------------------------------------------------------

TEST(RoutingRules, of_groups_choose_within_the_best_groups_and_biases_choose_without_weighing) {
  // Groups {0, 1}, {2, 3}, {4, 5}.
  const RouteShape s{.tokens = 1, .batch = 1, .experts = 6, .choices = 2, .capacity = 1};
  const Values scores = {0.9, 0.1, 0.6, 0.5, 0.2, 0.7};
  const auto choices = [&](const RoutingRule& rule, const Values& bias) {
    Routed<double> out(s);
    route<double>(s, rule, scores.data(), bias.empty() ? nullptr : bias.data(), out.view(), out.statistics(),
                  out.scratch.data());
    return std::pair(out.choice, out.gate);
  };
  using Choice = std::vector<std::int32_t>;
  EXPECT_EQ(choices({}, {}).first, (Choice{0, 5}));
  // The largest: groups 0 (0.9) and 2 (0.7). One group: 0.
  EXPECT_EQ(choices({.groups = 3, .kept_groups = 2}, {}).first, (Choice{0, 5}));
  EXPECT_EQ(choices({.groups = 3, .kept_groups = 1}, {}).first, (Choice{0, 1}));
  // The sums of two: 1.0, 1.1, 0.9.
  EXPECT_EQ(choices({.groups = 3, .kept_groups = 1, .group_by_two = true}, {}).first, (Choice{2, 3}));
  EXPECT_EQ(choices({.groups = 3, .kept_groups = 2, .group_by_two = true}, {}).first, (Choice{0, 2}));
  // 0.3 for expert 1 and 0.75 for expert 4 make {0.9, 0.4, 0.6, 0.5, 0.95, 0.7}: of these 4 and 0; gates are of the scores.
  const auto [choice, gate] = choices({.epsilon = 0.1, .scale = 3}, {0, 0.3, 0, 0, 0.75, 0});
  EXPECT_EQ(choice, (Choice{4, 0}));
  EXPECT_DOUBLE_EQ(gate[0], 3 * 0.2 / (0.9 + 0.2 + 0.1));
  EXPECT_DOUBLE_EQ(gate[1], 3 * 0.9 / (0.9 + 0.2 + 0.1));
  EXPECT_DOUBLE_EQ(choices({.normalise = false, .scale = 3}, {}).second[1], 3 * 0.7);
}

TEST(RoutingRules, break_ties_of_groups_and_experts_to_the_lower) {
  const RouteShape s{.tokens = 1, .batch = 1, .experts = 6, .choices = 2, .capacity = 1};
  const Values scores(6, 0.5);
  Routed<float> out(s);
  route<float>(s, {.groups = 3, .kept_groups = 1, .group_by_two = true}, as<float>(scores).data(), nullptr, out.view(),
               out.statistics(), out.scratch.data());
  EXPECT_EQ(out.choice, (std::vector<std::int32_t>{0, 1}));
}

TEST(RoutingRules, have_the_derivatives_of_their_gates) {
  const RouteShape s{5, 2, 4, 2, 3};
  const Values scores = random_values(40, 10, 0.1, 1), dgate = random_values(20, 11);
  for (const RoutingRule& rule : {RoutingRule{.epsilon = 0.2, .scale = 2.5}, RoutingRule{.normalise = false},
                                  RoutingRule{.normalise = false, .scale = 16},
                                  RoutingRule{.groups = 2, .kept_groups = 1, .group_by_two = true}}) {
    const auto at = [&](const Values& x) {
      Routed<double> out(s);
      route<double>(s, rule, x.data(), nullptr, out.view(), out.statistics(), out.scratch.data());
      return out;
    };
    const Routed<double> out = at(scores);
    auto dscores = unwritten<double>(40);
    routing_backward(s, rule, scores.data(), out.choice.data(), out.gate.data(), dgate.data(), dscores.data());
    expect_gradient([&](const Values& x) { return inner(at(x).gate, dgate); }, scores, dscores);
  }
}

TEST(Route, without_a_capacity_packs_every_row_behind_the_rows_of_the_experts_before) {
  for (const std::int64_t B : {1, 3}) {
    const RouteShape s{.tokens = 33, .batch = B, .experts = 5, .choices = 2, .capacity = 0};
    const Values scores = random_values(33 * B * 5, 4, 0.01, 1);
    const Routed<double> out = routed<double>(s, scores);
    EXPECT_EQ(out.dropped, 0);
    EXPECT_EQ(s.buffer_rows(), 33 * B * 2);
    EXPECT_EQ(std::accumulate(out.rows.begin(), out.rows.end(), 0), s.buffer_rows());
    // Every row of the buffer once; of an expert first those of sequence 0, then of 1, ...
    std::map<int, std::pair<int, std::int64_t>> of_slot;  // expert, sequence
    for (std::int64_t at = 0; at < s.buffer_rows(); ++at)
      ASSERT_TRUE(of_slot.insert({out.slot[at], {out.choice[at], at / s.choices % B}}).second);
    EXPECT_EQ(of_slot.begin()->first, 0);
    EXPECT_EQ(of_slot.rbegin()->first, s.buffer_rows() - 1);
    std::pair<int, std::int64_t> before{0, 0};
    for (const auto& [slot, owner] : of_slot) {
      EXPECT_LE(before, owner) << slot;
      before = owner;
    }

    std::vector<std::uint8_t> kept(out.slot.size(), 1);
    Routed<double> again(s);
    replay_routing(s, {}, scores.data(), out.choice.data(), kept.data(), again.view(), again.statistics(),
                   again.scratch.data());
    EXPECT_EQ(again.slot, out.slot);
    EXPECT_EQ(again.rows, out.rows);
    EXPECT_EQ(again.gate, out.gate);
  }
}

}  // namespace
}  // namespace meshwright::kernels
