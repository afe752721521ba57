#include "executor/kernels/dropout.h"

#include <algorithm>
#include <cmath>

#include "executor/kernels/elementwise.h"
#include "executor/kernels/philox.h"
#include "model/program/check.h"

namespace meshwright::kernels {
namespace {

constexpr std::int64_t kRun = 256;  // elements whose multipliers are made at a time, on the stack

}  // namespace

template <class Real>
void dropout_multipliers(const Dropout& dropout, std::int64_t first, std::int64_t n, Real* out) {
  check(dropout.p >= 0 && dropout.p < 1, "dropout: rate {}", dropout.p);
  if (dropout.p == 0) {
    std::fill(out, out + n, Real(1));
    return;
  }
  const PhiloxKey key = philox_key(dropout.seed, Purpose::kDropout);
  const auto dropped_below =  // a word below this drops its element
      static_cast<std::uint32_t>(std::min(std::nearbyint(dropout.p * 4294967296.0), 4294967295.0));
  const Real kept = static_cast<Real>(1.0 / (1.0 - dropout.p));
  std::uint32_t words[kRun];
  for (std::int64_t done = 0; done < n; done += kRun) {
    const std::int64_t run = std::min(kRun, n - done);
    philox_words(key, dropout.step, dropout.site, static_cast<std::uint64_t>(first + done), run, words);
    for (std::int64_t i = 0; i < run; ++i) out[done + i] = words[i] < dropped_below ? Real(0) : kept;
  }
}

template <class T>
void residual(const Residual<T>& residual, const T* x, const T* in, T* out) {
  using Real = Arithmetic<T>;
  const TokenRows& rows = residual.rows;
  Real bias[kRun], multiplier[kRun];
  for (std::int64_t c = 0; c < residual.width; c += kRun) {
    const std::int64_t run = std::min(kRun, residual.width - c);
    std::fill(bias, bias + run, Real(0));
    for (std::int64_t q = 0; residual.bias && q < residual.bias_chunks; ++q)
      add(run, residual.bias + q * residual.width + c, bias);
    for (std::int64_t r = 0; r < rows.rows(); ++r) {
      const std::int64_t at = r * residual.width + c;
      if (residual.dropout.p == 0) {
        if (x)
          for (std::int64_t i = 0; i < run; ++i) out[at + i] = x[at + i] + (in[at + i] + bias[i]);
        else
          for (std::int64_t i = 0; i < run; ++i) out[at + i] = in[at + i] + bias[i];
      } else {
        const std::int64_t token = rows.global_token(r / rows.sequences, r % rows.sequences);
        dropout_multipliers(residual.dropout, token * residual.width + c, run, multiplier);
        if (x)
          for (std::int64_t i = 0; i < run; ++i) out[at + i] = x[at + i] + multiplier[i] * (in[at + i] + bias[i]);
        else
          for (std::int64_t i = 0; i < run; ++i) out[at + i] = multiplier[i] * (in[at + i] + bias[i]);
      }
    }
  }
}

template <class T>
void residual_backward(const Residual<T>& residual, const T* dout, T* din, Arithmetic<T>* dbias,
                       bool accumulate_dbias) {
  using Real = Arithmetic<T>;
  const TokenRows& rows = residual.rows;
  Real multiplier[kRun];
  for (std::int64_t r = 0; r < rows.rows(); ++r) {
    const std::int64_t token = rows.global_token(r / rows.sequences, r % rows.sequences);
    for (std::int64_t c = 0; c < residual.width; c += kRun) {
      const std::int64_t run = std::min(kRun, residual.width - c), at = r * residual.width + c;
      dropout_multipliers(residual.dropout, token * residual.width + c, run, multiplier);
      for (std::int64_t i = 0; i < run; ++i) din[at + i] = multiplier[i] * dout[at + i];
    }
  }
  if (dbias)
    column_sum(rows.rows(), residual.width, din, residual.width, accumulate_dbias, residual.bias_chunks, dbias);
}

template void dropout_multipliers(const Dropout&, std::int64_t, std::int64_t, float*);
template void dropout_multipliers(const Dropout&, std::int64_t, std::int64_t, double*);

#define MESHWRIGHT_INSTANTIATE(T)                                        \
  template void residual<T>(const Residual<T>&, const T*, const T*, T*); \
  template void residual_backward<T>(const Residual<T>&, const T*, T*, Arithmetic<T>*, bool);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
MESHWRIGHT_INSTANTIATE(Bf16)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
