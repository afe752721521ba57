#include "executor/kernels/experts.h"

#include <algorithm>

#include "executor/kernels/elementwise.h"
#include "executor/kernels/row_sums.h"
#include "executor/kernels/vector_math.h"

namespace meshwright::kernels {
namespace {

constexpr std::int64_t kRun = 256;  // columns whose dropout multipliers are made at a time, on the stack

// Calls body(at, slot, row, token) for every kept assignment, `at` = row*k + j its place in (T, B, k).
template <class T, class Body>
void for_each_kept(const Combine<T>& c, Body body) {
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
template <class T, class Body>
void for_each_run(const Combine<T>& c, std::int64_t token, std::int64_t expert, Body body) {
  Arithmetic<T> multiplier[kRun];
  for (std::int64_t first = 0; first < c.width; first += kRun) {
    const std::int64_t run = std::min(kRun, c.width - first);
    dropout_multipliers(c.dropout, (token * c.experts + expert) * c.width + first, run, multiplier);
    body(first, run, multiplier);
  }
}

// Adds to a row of T what add(run's sums, first, run) adds to a run of it, and rounds once.
template <class T, class Add>
void add_to_row(std::int64_t width, bool accumulate, T* row, Add add) {
  using Real = Arithmetic<T>;
  Real sums[kRun];
  for (std::int64_t first = 0; first < width; first += kRun) {
    const std::int64_t run = std::min(kRun, width - first);
    for (std::int64_t i = 0; i < run; ++i) sums[i] = accumulate ? Real(row[first + i]) : Real(0);
    add(sums, first, run);
    for (std::int64_t i = 0; i < run; ++i) row[first + i] = sums[i];
  }
}

}  // namespace

template <class T>
void dispatch(std::int64_t rows, std::int64_t choices, std::int64_t width, const std::int32_t* slot, const T* h,
              T* packed) {
  for (std::int64_t r = 0; r < rows; ++r) {
    for (std::int64_t at = r * choices; at < (r + 1) * choices; ++at) {
      if (slot[at] >= 0) std::copy_n(h + r * width, width, packed + slot[at] * width);
    }
  }
}

template <class T>
void dispatch_backward(std::int64_t rows, std::int64_t choices, std::int64_t width, const std::int32_t* slot,
                       const T* dpacked, T* dh) {
  for (std::int64_t r = 0; r < rows; ++r) {
    add_to_row(width, true, dh + r * width, [&](Arithmetic<T>* sums, std::int64_t first, std::int64_t run) {
      for (std::int64_t at = r * choices; at < (r + 1) * choices; ++at)
        if (slot[at] >= 0) add(run, dpacked + slot[at] * width + first, sums);
    });
  }
}

template <class T>
void combine(const Combine<T>& combine, const T* y, const T* bias, Arithmetic<T> bias_scale, bool accumulate, T* out) {
  using Real = Arithmetic<T>;
  const std::int64_t width = combine.width;
  Real multiplier[kRun];
  for (std::int64_t row = 0; row < combine.rows.rows(); ++row) {
    const std::int64_t token = combine.rows.global_token(row / combine.rows.sequences, row % combine.rows.sequences);
    add_to_row(width, accumulate, out + row * width, [&](Real* sums, std::int64_t first, std::int64_t run) {
      for (std::int64_t at = row * combine.choices; at < (row + 1) * combine.choices; ++at) {
        if (combine.slot[at] < 0) continue;
        const std::int64_t expert = combine.choice[at];
        const Real gate = combine.gate[at];
        dropout_multipliers(combine.dropout, (token * combine.experts + expert) * width + first, run, multiplier);
        const T* in = y + combine.slot[at] * width + first;
        if (bias) {
          const T* b = bias + expert * width + first;
          for (std::int64_t i = 0; i < run; ++i) sums[i] += gate * multiplier[i] * (in[i] + bias_scale * b[i]);
        } else {
          for (std::int64_t i = 0; i < run; ++i) sums[i] += gate * multiplier[i] * in[i];
        }
      }
    });
  }
}

template <class T>
void combine_backward(const Combine<T>& combine, const T* dout, T* masked, Arithmetic<T>* row_gate) {
  for_each_kept(combine, [&](std::int64_t at, std::int64_t slot, std::int64_t row, std::int64_t token) {
    row_gate[slot] = combine.gate[at];
    for_each_run(combine, token, combine.choice[at],
                 [&](std::int64_t first, std::int64_t run, const Arithmetic<T>* multiplier) {
                   const T* d = dout + row * combine.width + first;
                   T* target = masked + slot * combine.width + first;
                   for (std::int64_t i = 0; i < run; ++i) target[i] = multiplier[i] * d[i];
                 });
  });
}

template <class T>
void gate_gradient(const Combine<T>& combine, std::int64_t hidden, const T* a, const T* da_raw, const T* masked,
                   const T* bias, Arithmetic<T> bias_scale, Arithmetic<T>* dgate) {
  std::fill_n(dgate, combine.rows.rows() * combine.choices, Arithmetic<T>(0));
  for_each_kept(combine, [&](std::int64_t at, std::int64_t slot, std::int64_t, std::int64_t) {
    dgate[at] = dot(hidden, a + slot * hidden, da_raw + slot * hidden);
    if (bias)
      dgate[at] +=
          bias_scale * dot(combine.width, masked + slot * combine.width, bias + combine.choice[at] * combine.width);
  });
}

template <class T>
void expert_scale_rows(const ExpertRows& experts, std::int64_t n, const Arithmetic<T>* row_gate, T* x) {
  experts.for_each([&](std::int64_t, std::int64_t first, std::int64_t rows) {
    for (std::int64_t r = first; r < first + rows; ++r) {
      for (std::int64_t c = 0; c < n; ++c) x[r * n + c] *= row_gate[r];
    }
  });
}

template <class T>
void expert_add_bias(const ExpertRows& experts, std::int64_t n, const T* bias, T* x) {
  experts.for_each([&](std::int64_t e, std::int64_t first, std::int64_t rows) {
    add_bias(rows, n, bias + e * n, x + first * n, n);
  });
}

template <class T>
void expert_column_sum(const ExpertRows& experts, std::int64_t n, const T* x, const Arithmetic<T>* row_gate,
                       Arithmetic<T> scale, bool accumulate, Arithmetic<T>* out) {
  using Real = Arithmetic<T>;
  double totals[kSumColumns];
  experts.for_each([&](std::int64_t e, std::int64_t begin, std::int64_t rows) {
    for (std::int64_t first = 0; first < n; first += kSumColumns) {
      const std::int64_t columns = std::min(kSumColumns, n - first);
      sum_rows<Real>(
          rows, columns,
          [&](std::int64_t r, Real* sums) {
            const T* row = x + (begin + r) * n + first;
            const Real weight = row_gate ? scale * row_gate[begin + r] : scale;
            for (std::int64_t c = 0; c < columns; ++c) sums[c] += weight * row[c];
          },
          totals);
      store_sums(columns, totals, accumulate, out + e * n + first);
    }
  });
}

template <class T>
void expert_activation(const ExpertRows& experts, ActivationKind kind, std::int64_t n, const T* u, T* a) {
  experts.for_each([&](std::int64_t, std::int64_t first, std::int64_t rows) {
    activation(kind, rows * n, u + first * n, a + first * n);
  });
}

template <class T>
void expert_activation_backward(const ExpertRows& experts, ActivationKind kind, std::int64_t n, const T* u, const T* da,
                                T* du) {
  experts.for_each([&](std::int64_t, std::int64_t first, std::int64_t rows) {
    activation_backward(kind, rows * n, u + first * n, da + first * n, du + first * n);
  });
}

template <class T>
void expert_gated_activation(const ExpertRows& experts, ActivationKind kind, std::int64_t n, const T* u, T* a) {
  experts.for_each([&](std::int64_t, std::int64_t first, std::int64_t rows) {
    gated_activation(kind, rows, n, u + first * 2 * n, a + first * n);
  });
}

template <class T>
void expert_gated_activation_backward(const ExpertRows& experts, ActivationKind kind, std::int64_t n, const T* u,
                                      const T* da, T* du) {
  experts.for_each([&](std::int64_t, std::int64_t first, std::int64_t rows) {
    gated_activation_backward(kind, rows, n, u + first * 2 * n, da + first * n, du + first * 2 * n);
  });
}

#define MESHWRIGHT_INSTANTIATE(T)                                                                                    \
  template void dispatch<T>(std::int64_t, std::int64_t, std::int64_t, const std::int32_t*, const T*, T*);            \
  template void dispatch_backward<T>(std::int64_t, std::int64_t, std::int64_t, const std::int32_t*, const T*, T*);   \
  template void combine<T>(const Combine<T>&, const T*, const T*, Arithmetic<T>, bool, T*);                          \
  template void combine_backward<T>(const Combine<T>&, const T*, T*, Arithmetic<T>*);                                \
  template void gate_gradient<T>(const Combine<T>&, std::int64_t, const T*, const T*, const T*, const T*,            \
                                 Arithmetic<T>, Arithmetic<T>*);                                                     \
  template void expert_scale_rows<T>(const ExpertRows&, std::int64_t, const Arithmetic<T>*, T*);                     \
  template void expert_add_bias<T>(const ExpertRows&, std::int64_t, const T*, T*);                                   \
  template void expert_column_sum<T>(const ExpertRows&, std::int64_t, const T*, const Arithmetic<T>*, Arithmetic<T>, \
                                     bool, Arithmetic<T>*);                                                          \
  template void expert_activation<T>(const ExpertRows&, ActivationKind, std::int64_t, const T*, T*);                 \
  template void expert_activation_backward<T>(const ExpertRows&, ActivationKind, std::int64_t, const T*, const T*,   \
                                              T*);                                                                   \
  template void expert_gated_activation<T>(const ExpertRows&, ActivationKind, std::int64_t, const T*, T*);           \
  template void expert_gated_activation_backward<T>(const ExpertRows&, ActivationKind, std::int64_t, const T*,       \
                                                    const T*, T*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
MESHWRIGHT_INSTANTIATE(Bf16)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
