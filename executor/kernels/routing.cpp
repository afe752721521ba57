#include "executor/kernels/routing.h"

#include <algorithm>
#include <limits>

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

template <class Real>
void gates(std::int64_t k, const Real* scores, const std::int32_t* choice, Real* gate) {
  Real total = 0;
  for (std::int64_t j = 0; j < k; ++j) total += scores[choice[j]];
  for (std::int64_t j = 0; j < k; ++j) gate[j] = scores[choice[j]] / total;
}

// f, load and balance of sequence b, from its choices and scores.
template <class Real>
void count_sequence(const RoutingShape& shape, const Real* scores, std::int64_t b, const Routing<Real>& routing,
                    const RoutingStatistics& statistics, std::int32_t* chosen) {
  const std::int64_t E = shape.experts;
  std::fill(chosen, chosen + E, 0);
  for (std::int64_t t = 0; t < shape.tokens; ++t) {
    const std::int32_t* choice = routing.choice + (t * shape.sequences + b) * shape.choices;
    for (std::int64_t j = 0; j < shape.choices; ++j) ++chosen[choice[j]];
  }
  const double tokens = static_cast<double>(shape.tokens);
  for (std::int64_t e = 0; e < E; ++e) {
    routing.fraction[b * E + e] = static_cast<Real>(chosen[e] / tokens);
    statistics.load[e] += chosen[e] / tokens;
  }
  double balance = 0;
  for (std::int64_t t = 0; t < shape.tokens; ++t) {
    const Real* s = scores + (t * shape.sequences + b) * E;
    double total = 0, weighted = 0;
    for (std::int64_t e = 0; e < E; ++e) {
      total += s[e];
      weighted += chosen[e] * static_cast<double>(s[e]);
    }
    balance += weighted / total;
  }
  *statistics.balance += balance / (tokens * tokens);
}

void check_shape(const RoutingShape& shape) {
  check(shape.choices >= 1 && shape.choices <= shape.experts && shape.capacity >= 0,
        "routing: {} of {} experts, capacity {}", shape.choices, shape.experts, shape.capacity);
  check(shape.experts * shape.row_capacity() <= std::numeric_limits<std::int32_t>::max(),
        "routing: {} experts of {} rows", shape.experts, shape.row_capacity());
}

}  // namespace

std::int64_t routing_scratch(const RoutingShape& shape) { return shape.tokens + shape.experts; }

template <class Real>
void route(const RoutingShape& shape, const Real* scores, const Routing<Real>& routing,
           const RoutingStatistics& statistics, std::int32_t* scratch) {
  check_shape(shape);
  const std::int64_t B = shape.sequences, E = shape.experts, k = shape.choices;
  std::int32_t* order = scratch;
  std::int32_t* taken = scratch + shape.tokens;
  std::fill(routing.rows, routing.rows + E, 0);
  for (std::int64_t b = 0; b < B; ++b) {
    for (std::int64_t t = 0; t < shape.tokens; ++t) {
      const std::int64_t row = t * B + b;
      top_choices(E, k, scores + row * E, routing.choice + row * k);
      gates(k, scores + row * E, routing.choice + row * k, routing.gate + row * k);
      order[t] = static_cast<std::int32_t>(t);
    }
    count_sequence(shape, scores, b, routing, statistics, taken);

    const auto first_gate = [&](std::int32_t t) {
      const Real gate = routing.gate[(t * B + b) * k];
      return gate == gate ? gate : Real(-1);  // a NaN must not break the sort: a diverged run should print its NaN loss
    };
    std::sort(order, order + shape.tokens, [&](std::int32_t a, std::int32_t c) {
      const Real ga = first_gate(a), gc = first_gate(c);
      return ga != gc ? ga > gc : a < c;
    });

    std::fill(taken, taken + E, 0);
    for (std::int64_t j = 0; j < k; ++j) {
      for (std::int64_t i = 0; i < shape.tokens; ++i) {
        const std::int64_t at = (order[i] * B + b) * k + j;
        const std::int32_t e = routing.choice[at];
        const bool kept = taken[e]++ < shape.capacity;
        routing.slot[at] = kept ? static_cast<std::int32_t>(e * shape.row_capacity()) + routing.rows[e]++ : -1;
        *statistics.dropped += !kept;
      }
    }
  }
}

template <class Real>
void replay_routing(const RoutingShape& shape, const Real* scores, const std::int32_t* choice, const std::uint8_t* kept,
                    const Routing<Real>& routing, const RoutingStatistics& statistics, std::int32_t* scratch) {
  check_shape(shape);
  const std::int64_t B = shape.sequences, E = shape.experts, k = shape.choices;
  std::fill(routing.rows, routing.rows + E, 0);
  if (choice != routing.choice) std::copy_n(choice, shape.tokens * B * k, routing.choice);
  for (std::int64_t b = 0; b < B; ++b) {
    for (std::int64_t t = 0; t < shape.tokens; ++t) {
      const std::int64_t row = t * B + b;
      gates(k, scores + row * E, routing.choice + row * k, routing.gate + row * k);
    }
    count_sequence(shape, scores, b, routing, statistics, scratch);
    for (std::int64_t j = 0; j < k; ++j) {
      for (std::int64_t t = 0; t < shape.tokens; ++t) {
        const std::int64_t at = (t * B + b) * k + j;
        const std::int32_t e = routing.choice[at];
        check(!kept[at] || routing.rows[e] < (b + 1) * shape.capacity, "routing: expert {} is full", e);
        routing.slot[at] = kept[at] ? static_cast<std::int32_t>(e * shape.row_capacity()) + routing.rows[e]++ : -1;
        *statistics.dropped += !kept[at];
      }
    }
  }
}

template <class Real>
void routing_backward(const RoutingShape& shape, const Real* scores, const std::int32_t* choice, const Real* gate,
                      const Real* dgate, Real* dscores) {
  const std::int64_t E = shape.experts, k = shape.choices;
  for (std::int64_t row = 0; row < shape.tokens * shape.sequences; ++row) {
    const Real* s = scores + row * E;
    Real* ds = dscores + row * E;
    Real total = 0, mean = 0;
    for (std::int64_t j = 0; j < k; ++j) {
      total += s[choice[row * k + j]];
      mean += dgate[row * k + j] * gate[row * k + j];
    }
    std::fill(ds, ds + E, Real(0));
    for (std::int64_t j = 0; j < k; ++j) ds[choice[row * k + j]] = (dgate[row * k + j] - mean) / total;
  }
}

template <class Real>
void balance_backward(const RoutingShape& shape, std::int64_t tokens, const Real* scores, const Real* fraction,
                      Real coefficient, Real* dscores) {
  const std::int64_t B = shape.sequences, E = shape.experts;
  const Real weight = coefficient / static_cast<Real>(shape.tokens);
  for (std::int64_t row = 0; row < tokens * B; ++row) {
    const Real* s = scores + row * E;
    const Real* f = fraction + row % B * E;
    Real* ds = dscores + row * E;
    Real total = 0, weighted = 0;
    for (std::int64_t e = 0; e < E; ++e) {
      total += s[e];
      weighted += f[e] * s[e];
    }
    for (std::int64_t e = 0; e < E; ++e) ds[e] += weight * (f[e] - weighted / total) / total;
  }
}

#define MESHWRIGHT_INSTANTIATE(Real)                                                                              \
  template void route(const RoutingShape&, const Real*, const Routing<Real>&, const RoutingStatistics&,           \
                      std::int32_t*);                                                                             \
  template void replay_routing(const RoutingShape&, const Real*, const std::int32_t*, const std::uint8_t*,        \
                               const Routing<Real>&, const RoutingStatistics&, std::int32_t*);                    \
  template void routing_backward(const RoutingShape&, const Real*, const std::int32_t*, const Real*, const Real*, \
                                 Real*);                                                                          \
  template void balance_backward(const RoutingShape&, std::int64_t, const Real*, const Real*, Real, Real*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
