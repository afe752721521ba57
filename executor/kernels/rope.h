#pragma once

#include <cstdint>
#include <vector>

namespace meshwright::kernels {

// Cosines and sines of the rotary position embedding (Su et al. 2021) for one head width W (even) and the
// positions tau = 1 .. positions:   angle(tau, i) = tau * 10000^(-2i/W) for the channel pair (2i, 2i+1), i in
// [0, W/2). Immutable; computed in double.
template <class Real>
class RopeTable {
 public:
  RopeTable(std::int64_t width, std::int64_t positions);

  std::int64_t width() const { return width_; }
  std::int64_t positions() const { return positions_; }
  const Real* cosines(std::int64_t tau) const { return cosines_.data() + (tau - 1) * (width_ / 2); }  // (W/2)
  const Real* sines(std::int64_t tau) const { return sines_.data() + (tau - 1) * (width_ / 2); }      // (W/2)

 private:
  std::int64_t width_;
  std::int64_t positions_;
  std::vector<Real> cosines_;
  std::vector<Real> sines_;
};

// Which vectors to rotate: row t*sequences + b of a matrix with leading dimension ld holds, for token
// position_offset + t of sequence b, `heads` vectors of the table's width, one after the other.
struct RopeRows {
  std::int64_t tokens = 0;
  std::int64_t sequences = 0;
  std::int64_t heads = 1;
  std::int64_t ld = 0;
  std::int64_t position_offset = 0;  // counts from 0, positions from 1: tau = position_offset + t + 1
};

// In place: y[2i] = x[2i] cos - x[2i+1] sin,  y[2i+1] = x[2i+1] cos + x[2i] sin.
// `inverse` rotates back, which is also the adjoint: the backward pass.
template <class Real>
void rope(const RopeTable<Real>& table, const RopeRows& rows, bool inverse, Real* x);

}  // namespace meshwright::kernels
