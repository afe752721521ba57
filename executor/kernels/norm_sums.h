#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "executor/kernels/rms_norm.h"
#include "executor/kernels/row_sums.h"

// What the kernels of norms share. Internal to executor/kernels.
namespace meshwright::kernels {

// gamma_offset + gamma, not rounded.
template <class T>
class Gains {
 public:
  using Real = Arithmetic<T>;

  Gains(const NormWeights<T>& weights, std::int64_t width) {
    if constexpr (std::is_same_v<T, Real>) {
      data_ = weights.gamma;
      if (weights.gamma_offset == 0) return;
    }
    shifted_.assign(weights.gamma, weights.gamma + width);
    for (Real& g : shifted_) g += static_cast<Real>(weights.gamma_offset);
    data_ = shifted_.data();
  }
  Gains(const Gains&) = delete;
  Gains& operator=(const Gains&) = delete;
  const Real* data() const { return data_; }

 private:
  const Real* data_ = nullptr;
  std::vector<Real> shifted_;
};

// Sums over rows of the gradients of gamma and beta, in blocks.
template <class T>
class ParameterSums {
 public:
  using Real = Arithmetic<T>;

  explicit ParameterSums(std::int64_t width)
      : width_(width),
        totals_(static_cast<std::size_t>(2 * width), 0.0),
        sums_(static_cast<std::size_t>(2 * width), Real(0)) {}

  Real* gamma() { return sums_.data(); }
  Real* beta() { return sums_.data() + width_; }
  // Row r of `rows` has been added to gamma() and beta().
  void row_done(std::int64_t r, std::int64_t rows) {
    if ((r + 1) % kSumRows != 0 && r + 1 != rows) return;
    add_block(width_, gamma(), totals_.data());
    add_block(width_, beta(), totals_.data() + width_);
  }
  void store(const NormGradients<T>& gradients) const {
    store_sums(width_, totals_.data(), gradients.accumulate_parameters, gradients.dgamma);
    if (gradients.dbeta) store_sums(width_, totals_.data() + width_, gradients.accumulate_parameters, gradients.dbeta);
  }

 private:
  std::int64_t width_;
  std::vector<double> totals_;
  std::vector<Real> sums_;
};

}  // namespace meshwright::kernels
