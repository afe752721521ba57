#include "executor/kernels/routing.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "model/program/check.h"

namespace meshwright::kernels {
namespace {

// The k experts with the largest scores, descending, ties to the lower expert.
template <class Real>
void top_choices(std::int64_t experts, std::int64_t k, const Real* scores, std::int32_t* choice) {
  for (std::int64_t j = 0; j < k; ++j) {
    std::int32_t best = -1;
    for (std::int32_t e = 0; e < experts; ++e) {
      if (std::find(choice, choice + j, e) != choice + j) continue;
      if (best < 0 || scores[e] > scores[best]) best = e;
    }
    choice[j] = best;
  }
}

// A token's choices: top_choices of scores + bias, among the experts of the groups that the rule keeps.
template <class Real>
class Chooser {
 public:
  Chooser(const RouteShape& shape, const RoutingRule& rule, const Real* bias)
      : shape_(shape),
        rule_(rule),
        bias_(bias),
        biased_(static_cast<std::size_t>(shape.experts)),
        of_groups_(static_cast<std::size_t>(rule.groups)),
        kept_(static_cast<std::size_t>(rule.kept_groups)) {}

  void operator()(const Real* scores, std::int32_t* choice) {
    if (!bias_ && rule_.kept_groups == rule_.groups) return top_choices(shape_.experts, shape_.choices, scores, choice);
    std::copy_n(scores, shape_.experts, biased_.begin());
    if (bias_)
      for (std::int64_t e = 0; e < shape_.experts; ++e) biased_[static_cast<std::size_t>(e)] += bias_[e];
    if (rule_.kept_groups < rule_.groups) leave_groups();
    top_choices(shape_.experts, shape_.choices, biased_.data(), choice);
  }

 private:
  void leave_groups() {
    const std::int64_t size = shape_.experts / rule_.groups;
    for (std::int64_t g = 0; g < rule_.groups; ++g) {
      Real first = -kNever, second = -kNever;  // its largest two
      for (std::int64_t e = g * size; e < (g + 1) * size; ++e) {
        const Real score = biased_[static_cast<std::size_t>(e)];
        if (score > first)
          second = first, first = score;
        else if (score > second)
          second = score;
      }
      of_groups_[static_cast<std::size_t>(g)] = rule_.group_by_two && size > 1 ? first + second : first;
    }
    top_choices(rule_.groups, rule_.kept_groups, of_groups_.data(), kept_.data());
    for (std::int64_t g = 0; g < rule_.groups; ++g)
      if (std::find(kept_.begin(), kept_.end(), static_cast<std::int32_t>(g)) == kept_.end())
        std::fill_n(biased_.begin() + g * size, size, -kNever);
  }

  static constexpr Real kNever = std::numeric_limits<Real>::infinity();
  const RouteShape& shape_;
  const RoutingRule& rule_;
  const Real* bias_;
  std::vector<Real> biased_, of_groups_;
  std::vector<std::int32_t> kept_;
};

template <class Real>
void gates(std::int64_t k, const RoutingRule& rule, const Real* scores, const std::int32_t* choice, Real* gate) {
  const Real scale = static_cast<Real>(rule.scale);
  if (!rule.normalise) {
    for (std::int64_t j = 0; j < k; ++j) gate[j] = scale * scores[choice[j]];
    return;
  }
  Real total = static_cast<Real>(rule.epsilon);
  for (std::int64_t j = 0; j < k; ++j) total += scores[choice[j]];
  for (std::int64_t j = 0; j < k; ++j) gate[j] = scale * scores[choice[j]] / total;
}

// Where the rows of experts begin, once they have been counted: what comes before is added to slots, which were counted
// from 0 for each.
template <class Real>
void pack(const RouteShape& shape, const Routing<Real>& routing) {
  std::vector<std::int32_t> first(static_cast<std::size_t>(shape.experts), 0);
  for (std::size_t e = 1; e < first.size(); ++e) first[e] = first[e - 1] + routing.rows[e - 1];
  for (std::int64_t at = 0; at < shape.tokens * shape.batch * shape.choices; ++at)
    routing.slot[at] += first[static_cast<std::size_t>(routing.choice[at])];
}

// f, load and balance of sequence b, from its choices and scores.
template <class Real>
void count_sequence(const RouteShape& shape, const Real* scores, std::int64_t b, const Routing<Real>& routing,
                    const RoutingStatistics& statistics, std::int32_t* chosen) {
  const std::int64_t E = shape.experts;
  std::fill(chosen, chosen + E, 0);
  for (std::int64_t t = 0; t < shape.tokens; ++t) {
    const std::int32_t* choice = routing.choice + (t * shape.batch + b) * shape.choices;
    for (std::int64_t j = 0; j < shape.choices; ++j) ++chosen[choice[j]];
  }
  const double tokens = static_cast<double>(shape.tokens);
  for (std::int64_t e = 0; e < E; ++e) statistics.load[e] += chosen[e] / tokens;
  if (routing.fraction_tokens > 0) {
    const auto of = static_cast<double>(routing.fraction_tokens);
    if (routing.fraction)
      for (std::int64_t e = 0; e < E; ++e) routing.fraction[e] += static_cast<Real>(chosen[e] / of);
    return;
  }
  for (std::int64_t e = 0; e < E; ++e) routing.fraction[b * E + e] = static_cast<Real>(chosen[e] / tokens);
  double balance = 0;
  for (std::int64_t t = 0; t < shape.tokens; ++t) {
    const Real* s = scores + (t * shape.batch + b) * E;
    double total = 0, weighted = 0;
    for (std::int64_t e = 0; e < E; ++e) {
      total += s[e];
      weighted += chosen[e] * static_cast<double>(s[e]);
    }
    balance += weighted / total;
  }
  *statistics.balance += balance / (tokens * tokens);
}

void check_shape(const RouteShape& shape, const RoutingRule& rule) {
  check(shape.choices >= 1 && shape.choices <= shape.experts && shape.capacity >= 0,
        "routing: {} of {} experts, capacity {}", shape.choices, shape.experts, shape.capacity);
  check(shape.buffer_rows() <= std::numeric_limits<std::int32_t>::max(), "routing: buffers of {} rows",
        shape.buffer_rows());
  check(rule.groups >= 1 && rule.kept_groups >= 1 && rule.kept_groups <= rule.groups &&
            shape.experts % rule.groups == 0 && shape.choices <= shape.experts / rule.groups * rule.kept_groups,
        "routing: {} choices in {} of {} groups of {} experts", shape.choices, rule.kept_groups, rule.groups,
        shape.experts);
}

}  // namespace

std::int64_t routing_scratch(const RouteShape& shape) { return shape.tokens + shape.experts; }

template <class Real>
void route(const RouteShape& shape, const RoutingRule& rule, const Real* scores, const Real* bias,
           const Routing<Real>& routing, const RoutingStatistics& statistics, std::int32_t* scratch) {
  check_shape(shape, rule);
  const std::int64_t B = shape.batch, E = shape.experts, k = shape.choices;
  std::int32_t* order = scratch;
  std::int32_t* taken = scratch + shape.tokens;
  const bool packed = shape.capacity == 0;
  Chooser<Real> choose(shape, rule, bias);
  std::fill(routing.rows, routing.rows + E, 0);
  for (std::int64_t b = 0; b < B; ++b) {
    for (std::int64_t t = 0; t < shape.tokens; ++t) {
      const std::int64_t row = t * B + b;
      choose(scores + row * E, routing.choice + row * k);
      gates(k, rule, scores + row * E, routing.choice + row * k, routing.gate + row * k);
      order[t] = static_cast<std::int32_t>(t);
    }
    count_sequence(shape, scores, b, routing, statistics, taken);

    const auto first_gate = [&](std::int32_t t) {
      const Real gate = routing.gate[(t * B + b) * k];
      return gate == gate ? gate : Real(-1);  // a NaN must not break the sort: a diverged run should print its NaN loss
    };
    if (!packed)
      std::sort(order, order + shape.tokens, [&](std::int32_t a, std::int32_t c) {
        const Real ga = first_gate(a), gc = first_gate(c);
        return ga != gc ? ga > gc : a < c;
      });

    std::fill(taken, taken + E, 0);
    for (std::int64_t j = 0; j < k; ++j) {
      for (std::int64_t i = 0; i < shape.tokens; ++i) {
        const std::int64_t at = (order[i] * B + b) * k + j;
        const std::int32_t e = routing.choice[at];
        const bool kept = packed || taken[e]++ < shape.capacity;
        routing.slot[at] = kept ? static_cast<std::int32_t>(e * shape.row_capacity()) + routing.rows[e]++ : -1;
        *statistics.dropped += !kept;
      }
    }
  }
  if (packed) pack(shape, routing);
}

template <class Real>
void replay_routing(const RouteShape& shape, const RoutingRule& rule, const Real* scores, const std::int32_t* choice,
                    const std::uint8_t* kept, const Routing<Real>& routing, const RoutingStatistics& statistics,
                    std::int32_t* scratch) {
  check_shape(shape, rule);
  const std::int64_t B = shape.batch, E = shape.experts, k = shape.choices;
  const bool packed = shape.capacity == 0;
  std::fill(routing.rows, routing.rows + E, 0);
  if (choice != routing.choice) std::copy_n(choice, shape.tokens * B * k, routing.choice);
  for (std::int64_t b = 0; b < B; ++b) {
    for (std::int64_t t = 0; t < shape.tokens; ++t) {
      const std::int64_t row = t * B + b;
      gates(k, rule, scores + row * E, routing.choice + row * k, routing.gate + row * k);
    }
    count_sequence(shape, scores, b, routing, statistics, scratch);
    for (std::int64_t j = 0; j < k; ++j) {
      for (std::int64_t t = 0; t < shape.tokens; ++t) {
        const std::int64_t at = (t * B + b) * k + j;
        const std::int32_t e = routing.choice[at];
        check(!packed || kept[at], "routing: expert {} drops a row, but takes all", e);
        check(packed || !kept[at] || routing.rows[e] < (b + 1) * shape.capacity, "routing: expert {} is full", e);
        routing.slot[at] = kept[at] ? static_cast<std::int32_t>(e * shape.row_capacity()) + routing.rows[e]++ : -1;
        *statistics.dropped += !kept[at];
      }
    }
  }
  if (packed) pack(shape, routing);
}

template <class Real>
void routing_backward(const RouteShape& shape, const RoutingRule& rule, const Real* scores, const std::int32_t* choice,
                      const Real* gate, const Real* dgate, Real* dscores) {
  const std::int64_t E = shape.experts, k = shape.choices;
  const Real scale = static_cast<Real>(rule.scale);
  for (std::int64_t row = 0; row < shape.tokens * shape.batch; ++row) {
    const Real* s = scores + row * E;
    Real* ds = dscores + row * E;
    std::fill(ds, ds + E, Real(0));
    if (!rule.normalise) {
      for (std::int64_t j = 0; j < k; ++j) ds[choice[row * k + j]] = scale * dgate[row * k + j];
      continue;
    }
    Real total = static_cast<Real>(rule.epsilon), mean = 0;
    for (std::int64_t j = 0; j < k; ++j) {
      total += s[choice[row * k + j]];
      mean += dgate[row * k + j] * gate[row * k + j];
    }
    for (std::int64_t j = 0; j < k; ++j) ds[choice[row * k + j]] = (scale * dgate[row * k + j] - mean) / total;
  }
}

template <class Real>
double balance_backward(const RouteShape& shape, std::int64_t tokens, const Real* scores, const Real* fraction,
                        bool one_fraction, Real coefficient, Real* dscores) {
  const std::int64_t B = shape.batch, E = shape.experts;
  const Real weight = coefficient / static_cast<Real>(shape.tokens);
  double balance = 0;
  for (std::int64_t row = 0; row < tokens * B; ++row) {
    const Real* s = scores + row * E;
    const Real* f = one_fraction ? fraction : fraction + row % B * E;
    Real* ds = dscores + row * E;
    Real total = 0, weighted = 0;
    for (std::int64_t e = 0; e < E; ++e) {
      total += s[e];
      weighted += f[e] * s[e];
    }
    for (std::int64_t e = 0; e < E; ++e) ds[e] += weight * (f[e] - weighted / total) / total;
    balance += weighted / total;
  }
  return balance / static_cast<double>(shape.tokens);
}

#define MESHWRIGHT_INSTANTIATE(Real)                                                                                   \
  template void route(const RouteShape&, const RoutingRule&, const Real*, const Real*, const Routing<Real>&,           \
                      const RoutingStatistics&, std::int32_t*);                                                        \
  template void replay_routing(const RouteShape&, const RoutingRule&, const Real*, const std::int32_t*,                \
                               const std::uint8_t*, const Routing<Real>&, const RoutingStatistics&, std::int32_t*);    \
  template void routing_backward(const RouteShape&, const RoutingRule&, const Real*, const std::int32_t*, const Real*, \
                                 const Real*, Real*);                                                                  \
  template double balance_backward(const RouteShape&, std::int64_t, const Real*, const Real*, bool, Real, Real*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
