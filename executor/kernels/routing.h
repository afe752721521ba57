#pragma once

#include <cstdint>

#include "model/program/op.h"

namespace meshwright::kernels {

// Mixture-of-experts routing, every sequence by itself (so that it does not depend on how sequences are cut
// over ranks and microbatches).
//
//   t: token in [0, T)   b: sequence in [0, B)   e: expert in [0, E)   j: choice in [0, k), k <= E
//
// Scores are (T, B, E): row t*B + b. A score is positive. Shapes and rules: RouteShape and RoutingRule (op.h).

// What routing decides. The kept assignments of expert e fill its rows of the row buffers (RouteShape) without gaps,
// sequence by sequence.
template <class Real>
struct Routing {
  std::int32_t* choice = nullptr;  // (T, B, k): expert
  std::int32_t* slot = nullptr;    // (T, B, k): row of the packed buffer, -1 if dropped
  Real* gate = nullptr;            // (T, B, k), by the rule; not renormalised after drops
  std::int32_t* rows = nullptr;    // (E): kept rows
  Real* fraction = nullptr;        // (B, E): f[b][e] = (choices of e, before the cut) / T, for the balance term
  // Not 0: fraction is (E) or null, and (choices of e in all sequences) / fraction_tokens is added to it.
  std::int64_t fraction_tokens = 0;
};

// Sums over the sequences of this call, *added* to what is there. The balance of a sequence is the sum over e
// of f[e] * P[e], P[e] = mean over t of s[t, e] / (sum over e' of s[t, e']).
struct RoutingStatistics {
  double* load = nullptr;           // (E): assignments to e before the cut / T
  std::int64_t* dropped = nullptr;  // assignments cut
  double* balance = nullptr;        // with fraction_tokens: left alone
};

// Elements of scratch: T + E.
std::int64_t routing_scratch(const RouteShape& shape);

// For each sequence: the k choices of a token by the rule, of scores + bias (E; null: 0), best first; tokens ordered by
// descending first-choice gate, ties by token; then, for j = 0..k-1 and tokens in that order, an assignment
// is kept while its expert has taken fewer than `capacity`. With capacity 0 all are kept, in the order of j and tokens.
template <class Real>
void route(const RouteShape& shape, const RoutingRule& rule, const Real* scores, const Real* bias,
           const Routing<Real>& routing, const RoutingStatistics& statistics, std::int32_t* scratch);

// The same with the decisions taken from a record: choice (T, B, k) and kept (T, B, k; 0 or 1, at most
// `capacity` per sequence and expert, or with capacity 0 all). Gates and statistics are computed from the scores given now. `choice`
// may be routing.choice.
template <class Real>
void replay_routing(const RouteShape& shape, const RoutingRule& rule, const Real* scores, const std::int32_t* choice,
                    const std::uint8_t* kept, const Routing<Real>& routing, const RoutingStatistics& statistics,
                    std::int32_t* scratch);

// dscores (T, B, E), overwritten, from the gradient of the gates (T, B, k; 0 where dropped): with S = sum
// over the choices + epsilon,
//   dscores at choice j = (scale * dgate_j - sum over i of dgate_i * gate_i) / S,   not normalised: scale * dgate_j;
// 0 elsewhere.
// Linear in dgate, so partial sums of dgate give partial sums of dscores.
template <class Real>
void routing_backward(const RouteShape& shape, const RoutingRule& rule, const Real* scores, const std::int32_t* choice,
                      const Real* gate, const Real* dgate, Real* dscores);

// Adds the gradient of coefficient * sum over b, e of f[b][e] * P[b][e] with respect to the scores of
// `tokens` tokens, to whose first row `scores` and `dscores` point (f is a constant):
//   dscores(t, b, e) += coefficient / T * (f[e] - sum over e' of f[e'] s[e'] / S) / S,   S = sum of s[e']
// shape.tokens stays the length T of the whole sequence. Returns what these tokens contribute to that sum of f P.
// one_fraction: fraction is (E), the same for every sequence.
template <class Real>
double balance_backward(const RouteShape& shape, std::int64_t tokens, const Real* scores, const Real* fraction,
                        bool one_fraction, Real coefficient, Real* dscores);

}  // namespace meshwright::kernels
