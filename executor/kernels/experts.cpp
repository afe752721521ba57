#include "executor/kernels/experts.h"

#include <algorithm>

#include "executor/kernels/elementwise.h"
#include "executor/kernels/row_sums.h"
#include "executor/kernels/vector_math.h"

namespace meshwright::kernels {
namespace {

constexpr std::int64_t kRun = 256;  // columns whose dropout multipliers are made at a time, on the stack

// Calls body(at, slot, row, token) for every kept assignment, `at` = row*k + j its place in (T, B, k).
template <class Real, class Body>
void for_each_kept(const Combine<Real>& c, Body body) {
  for (std::int64_t t = 0; t < c.rows.tokens; ++t) {
    for (std::int64_t b = 0; b < c.rows.sequences; ++b) {
      const std::int64_t row = t * c.rows.sequences + b;
      for (std::int64_t at = row * c.choices; at < (row + 1) * c.choices; ++at) {
        if (c.slot[at] >= 0) body(at, std::int64_t{c.slot[at]}, row, c.rows.global_token(t, b));
      }
    }
  }
}

// Calls body(first column, columns, multipliers) for the width of one expert's output for one token.
template <class Real, class Body>
void for_each_run(const Combine<Real>& c, std::int64_t token, std::int64_t expert, Body body) {
  Real multiplier[kRun];
  for (std::int64_t first = 0; first < c.width; first += kRun) {
    const std::int64_t run = std::min(kRun, c.width - first);
    dropout_multipliers(c.dropout, (token * c.experts + expert) * c.width + first, run, multiplier);
    body(first, run, multiplier);
  }
}

}  // namespace

template <class Real>
void dispatch(std::int64_t rows, std::int64_t choices, std::int64_t width, const std::int32_t* slot, const Real* h,
              Real* packed) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t at = r * choices; at < (r + 1) * choices; ++at) {
      if (slot[at] >= 0) std::copy_n(h + r * width, width, packed + slot[at] * width);
    }
  }
}

template <class Real>
void dispatch_backward(std::int64_t rows, std::int64_t choices, std::int64_t width, const std::int32_t* slot,
                       const Real* dpacked, Real* dh) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t at = r * choices; at < (r + 1) * choices; ++at) {
      if (slot[at] >= 0) add(width, dpacked + slot[at] * width, dh + r * width);
    }
  }
}

template <class Real>
void combine(const Combine<Real>& combine, const Real* y, const Real* bias, Real bias_scale, bool accumulate,
             Real* out) {
  if (!accumulate) std::fill_n(out, combine.rows.rows() * combine.width, Real(0));
  for_each_kept(combine, [&](std::int64_t at, std::int64_t slot, std::int64_t row, std::int64_t token) {
    const std::int64_t expert = combine.choice[at];
    const Real gate = combine.gate[at];
    for_each_run(combine, token, expert, [&](std::int64_t first, std::int64_t run, const Real* multiplier) {
      const Real* in = y + slot * combine.width + first;
      Real* target = out + row * combine.width + first;
      if (bias) {
        const Real* b = bias + expert * combine.width + first;
        for (std::int64_t i = 0; i < run; ++i) target[i] += gate * multiplier[i] * (in[i] + bias_scale * b[i]);
      } else {
        for (std::int64_t i = 0; i < run; ++i) target[i] += gate * multiplier[i] * in[i];
      }
    });
  });
}

template <class Real>
void combine_backward(const Combine<Real>& combine, const Real* dout, Real* masked, Real* row_gate) {
  for_each_kept(combine, [&](std::int64_t at, std::int64_t slot, std::int64_t row, std::int64_t token) {
    row_gate[slot] = combine.gate[at];
    for_each_run(combine, token, combine.choice[at], [&](std::int64_t first, std::int64_t run, const Real* multiplier) {
      const Real* d = dout + row * combine.width + first;
      Real* target = masked + slot * combine.width + first;
      for (std::int64_t i = 0; i < run; ++i) target[i] = multiplier[i] * d[i];
    });
  });
}

template <class Real>
void gate_gradient(const Combine<Real>& combine, std::int64_t hidden, const Real* a, const Real* da_raw,
                   const Real* masked, const Real* bias, Real bias_scale, Real* dgate) {
  std::fill_n(dgate, combine.rows.rows() * combine.choices, Real(0));
  for_each_kept(combine, [&](std::int64_t at, std::int64_t slot, std::int64_t, std::int64_t) {
    dgate[at] = dot(hidden, a + slot * hidden, da_raw + slot * hidden);
    if (bias)
      dgate[at] +=
          bias_scale * dot(combine.width, masked + slot * combine.width, bias + combine.choice[at] * combine.width);
  });
}

template <class Real>
void expert_scale_rows(const ExpertRows& experts, std::int64_t n, const Real* row_gate, Real* x) {
  experts.for_each([&](std::int64_t, std::int64_t first, std::int64_t rows) {
    for (std::int64_t r = first; r < first + rows; ++r) {
      for (std::int64_t c = 0; c < n; ++c) x[r * n + c] *= row_gate[r];
    }
  });
}

template <class Real>
void expert_add_bias(const ExpertRows& experts, std::int64_t n, const Real* bias, Real* x) {
  experts.for_each([&](std::int64_t e, std::int64_t first, std::int64_t rows) {
    add_bias(rows, n, bias + e * n, x + first * n, n);
  });
}

template <class Real>
void expert_column_sum(const ExpertRows& experts, std::int64_t n, const Real* x, const Real* row_gate, Real scale,
                       bool accumulate, Real* out) {
  double totals[kSumColumns];
  experts.for_each([&](std::int64_t e, std::int64_t begin, std::int64_t rows) {
    for (std::int64_t first = 0; first < n; first += kSumColumns) {
      const std::int64_t columns = std::min(kSumColumns, n - first);
      sum_rows<Real>(
          rows, columns,
          [&](std::int64_t r, Real* sums) {
            const Real* row = x + (begin + r) * n + first;
            const Real weight = row_gate ? scale * row_gate[begin + r] : scale;
            for (std::int64_t c = 0; c < columns; ++c) sums[c] += weight * row[c];
          },
          totals);
      store_sums(columns, totals, accumulate, out + e * n + first);
    }
  });
}

template <class Real>
void expert_activation(const ExpertRows& experts, ActivationKind kind, std::int64_t n, const Real* u, Real* a) {
  experts.for_each([&](std::int64_t, std::int64_t first, std::int64_t rows) {
    activation(kind, rows * n, u + first * n, a + first * n);
  });
}

template <class Real>
void expert_activation_backward(const ExpertRows& experts, ActivationKind kind, std::int64_t n, const Real* u,
                                const Real* da, Real* du) {
  experts.for_each([&](std::int64_t, std::int64_t first, std::int64_t rows) {
    activation_backward(kind, rows * n, u + first * n, da + first * n, du + first * n);
  });
}

template <class Real>
void expert_gated_activation(const ExpertRows& experts, ActivationKind kind, std::int64_t n, const Real* u, Real* a) {
  experts.for_each([&](std::int64_t, std::int64_t first, std::int64_t rows) {
    gated_activation(kind, rows, n, u + first * 2 * n, a + first * n);
  });
}

template <class Real>
void expert_gated_activation_backward(const ExpertRows& experts, ActivationKind kind, std::int64_t n, const Real* u,
                                      const Real* da, Real* du) {
  experts.for_each([&](std::int64_t, std::int64_t first, std::int64_t rows) {
    gated_activation_backward(kind, rows, n, u + first * 2 * n, da + first * n, du + first * 2 * n);
  });
}

#define MESHWRIGHT_INSTANTIATE(Real)                                                                                  \
  template void dispatch(std::int64_t, std::int64_t, std::int64_t, const std::int32_t*, const Real*, Real*);          \
  template void dispatch_backward(std::int64_t, std::int64_t, std::int64_t, const std::int32_t*, const Real*, Real*); \
  template void combine(const Combine<Real>&, const Real*, const Real*, Real, bool, Real*);                           \
  template void combine_backward(const Combine<Real>&, const Real*, Real*, Real*);                                    \
  template void gate_gradient(const Combine<Real>&, std::int64_t, const Real*, const Real*, const Real*, const Real*, \
                              Real, Real*);                                                                           \
  template void expert_scale_rows(const ExpertRows&, std::int64_t, const Real*, Real*);                               \
  template void expert_add_bias(const ExpertRows&, std::int64_t, const Real*, Real*);                                 \
  template void expert_column_sum(const ExpertRows&, std::int64_t, const Real*, const Real*, Real, bool, Real*);      \
  template void expert_activation(const ExpertRows&, ActivationKind, std::int64_t, const Real*, Real*);               \
  template void expert_activation_backward(const ExpertRows&, ActivationKind, std::int64_t, const Real*, const Real*, \
                                           Real*);                                                                    \
  template void expert_gated_activation(const ExpertRows&, ActivationKind, std::int64_t, const Real*, Real*);         \
  template void expert_gated_activation_backward(const ExpertRows&, ActivationKind, std::int64_t, const Real*,        \
                                                 const Real*, Real*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
