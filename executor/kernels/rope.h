#pragma once

#include <cstdint>
#include <vector>

#include "executor/kernels/bf16.h"
#include "model/program/rope.h"

namespace meshwright::kernels {

// Cosines and sines of the rotary position embedding (model/program/rope.h) of the first `width` (even) channels of a head
// and the positions tau = 1 .. positions:   angle(tau, j) = tau * omega_j for pair j in [0, width/2), times
// spec.attention_factor. Immutable; computed in double.
template <class Real>
class RopeTable {
 public:
  RopeTable(const RopeSpec& spec, std::int64_t width, std::int64_t positions);

  const RopeSpec& spec() const { return spec_; }
  std::int64_t width() const { return width_; }
  std::int64_t positions() const { return positions_; }
  const Real* cosines(std::int64_t tau) const { return cosines_.data() + (tau - 1) * (width_ / 2); }  // (W/2)
  const Real* sines(std::int64_t tau) const { return sines_.data() + (tau - 1) * (width_ / 2); }      // (W/2)

 private:
  RopeSpec spec_;
  std::int64_t width_;
  std::int64_t positions_;
  std::vector<Real> cosines_;
  std::vector<Real> sines_;
};

// Which vectors to rotate: row t*sequences + b of a matrix with leading dimension ld holds, for token
// position_offset + t of sequence b, `heads` heads, head_width columns from one to the next, of which the table's width turns.
struct RopeRows {
  std::int64_t tokens = 0;
  std::int64_t sequences = 0;
  std::int64_t heads = 1;
  std::int64_t head_width = 0;
  std::int64_t ld = 0;
  std::int64_t position_offset = 0;  // counts from 0, positions from 1: tau = position_offset + t + 1
};

// In place, of the channels (a, b) of a pair: y[a] = x[a] cos - x[b] sin,  y[b] = x[b] cos + x[a] sin.
// `inverse`: the transpose, which is the backward pass, and rotates back where attention_factor is 1.
template <class T>
void rope(const RopeTable<Arithmetic<T>>& table, const RopeRows& rows, bool inverse, T* x);

}  // namespace meshwright::kernels
