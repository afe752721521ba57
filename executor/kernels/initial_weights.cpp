#include "executor/kernels/initial_weights.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>
#include <numbers>

#include "executor/kernels/philox.h"

namespace meshwright::kernels {
namespace {

// Elements 2p and 2p + 1 share the two 53-bit numbers of one Philox block, {p (low, high), attempt, 0}.
std::array<double, 2> uniform_pair(PhiloxKey key, std::uint64_t pair, std::uint32_t attempt) {
  const PhiloxCounter w =
      philox({static_cast<std::uint32_t>(pair), static_cast<std::uint32_t>(pair >> 32), attempt, 0}, key);
  const auto unit = [](std::uint32_t low, std::uint32_t high) {  // [0, 1)
    return static_cast<double>(((std::uint64_t{high} << 32) | low) >> 11) * 0x1p-53;
  };
  return {unit(w[0], w[1]), unit(w[2], w[3])};
}

std::array<double, 2> normal_pair(PhiloxKey key, std::uint64_t pair, std::uint32_t attempt) {
  const auto [u, v] = uniform_pair(key, pair, attempt);
  const double radius = std::sqrt(-2 * std::log1p(-u)), angle = 2 * std::numbers::pi * v;
  return {radius * std::cos(angle), radius * std::sin(angle)};
}

double truncated_normal_at(PhiloxKey key, std::uint64_t element, std::array<double, 2> first_attempt) {
  double z = first_attempt[element % 2];
  for (std::uint32_t attempt = 1; !(std::abs(z) < 2); ++attempt)
    z = normal_pair(key, element / 2, attempt)[element % 2];
  return z;
}

// Calls store(i, pair values, element) for elements first .. first + n, computing each pair once.
template <class Pair, class Store>
void for_each_element(std::int64_t first, std::int64_t n, Pair pair_of, Store store) {
  std::array<double, 2> pair{};
  for (std::int64_t i = 0; i < n; ++i) {
    const auto element = static_cast<std::uint64_t>(first + i);
    if (i == 0 || element % 2 == 0) pair = pair_of(element / 2);
    store(i, pair, element);
  }
}

// ---- many normals at once ----
//
// In float a value is the double rounded, and the double is the one that the functions above make with the C library. So that
// many are made at once, the same is computed with polynomials (fdlibm's, by Sun Microsystems: log, sin and cos on reduced
// arguments, each off by less than a unit in the last place) that vectorise; where that is not enough to tell which way the
// double rounds to float, or whether it is below 2, the functions above decide. So every bit is theirs.

constexpr int kPairs = 32;              // at a time
constexpr double kMargin = 0x1p-44;     // relative; both ways are off by some 2^-50
constexpr double kEdge = 2 - 0x1p-32;   // of the restriction to (-2, 2)
constexpr double kSmallest = 0x1p-100;  // below, zero included, the functions above decide

// log(x), 0 < x <= 1.
inline double log_of(double x) {
  const auto bits = std::bit_cast<std::int64_t>(x);
  const std::int64_t exponent = (bits - 0x3FE6A09E667F3BCD) >> 52;  // so that m lies around 1, in [sqrt(1/2), sqrt(2))
  const double m = std::bit_cast<double>(bits - (exponent << 52)), k = static_cast<double>(exponent);
  const double f = m - 1, s = f / (2 + f), z = s * s, half = 0.5 * f * f;
  double r = 1.479819860511658591e-01;
  r = r * z + 1.531383769920937332e-01;
  r = r * z + 1.818357216161805012e-01;
  r = r * z + 2.222219843214978396e-01;
  r = r * z + 2.857142874366239149e-01;
  r = r * z + 3.999999999940941908e-01;
  r = r * z + 6.666666666666735130e-01;
  return k * 6.93147180369123816490e-01 - ((half - (s * (half + r * z) + k * 1.90821492927058770002e-10)) - f);
}

struct Angle {
  double cosine, sine, reduced;  // reduced: the distance to the nearest multiple of pi/2
};
// 0 <= x <= 2 pi.
inline Angle cosine_and_sine(double x) {
  constexpr double kMagic = 6755399441055744.0;  // 1.5 * 2^52: adding it leaves the nearest integer in the low bits
  const double shifted = x * 6.36619772367581382433e-01 + kMagic, n = shifted - kMagic;
  const auto quadrant = std::bit_cast<std::int64_t>(shifted) & 3;
  const double r = (x - n * 1.57079632673412561417e+00) - n * 6.07710050650619224932e-11, z = r * r;
  double s = 1.58969099521155010221e-10;
  s = s * z - 2.50507602534068634195e-08;
  s = s * z + 2.75573137070700676789e-06;
  s = s * z - 1.98412698298579493134e-04;
  s = s * z + 8.33333333332248946124e-03;
  s = s * z - 1.66666666666666324348e-01;
  const double sine = r + r * z * s;
  double c = -1.13596475577881948265e-11;
  c = c * z + 2.08757232129817482790e-09;
  c = c * z - 2.75573143513906633035e-07;
  c = c * z + 2.48015872894767294178e-05;
  c = c * z - 1.38888888888741095749e-03;
  c = c * z + 4.16666666666666019037e-02;
  const double cosine = 1 - (0.5 * z - z * z * c);
  const double a = quadrant & 1 ? sine : cosine, b = quadrant & 1 ? cosine : sine;
  return {(quadrant + 1) & 2 ? -a : a, quadrant & 2 ? -b : b, r};
}

// z[2i], z[2i + 1]: normals of pair first + i at attempt 0; NaN where the functions above must decide.
void fast_normals(PhiloxKey key, std::uint64_t first, double* z) {
  std::uint32_t words[4 * kPairs];
  philox_words(key, 0, 0, 4 * first, 4 * kPairs, words);
  for (int i = 0; i < kPairs; ++i) {
    const auto unit = [&](int w) {
      const std::uint64_t bits = (std::uint64_t{words[4 * i + w + 1]} << 32) | words[4 * i + w];
      return static_cast<double>(static_cast<std::int64_t>(bits >> 11)) * 0x1p-53;
    };
    const double radius = std::sqrt(-2 * log_of(1 - unit(0)));  // 1 - u is exact
    const Angle angle = cosine_and_sine(2 * std::numbers::pi * unit(2));
    const bool sure = std::abs(angle.reduced) > 0x1p-20 && radius > kSmallest;
    const double unsure = std::numeric_limits<double>::quiet_NaN();
    z[2 * i] = sure ? radius * angle.cosine : unsure;
    z[2 * i + 1] = sure ? radius * angle.sine : unsure;
  }
}

// out[i] = scale * value of element first + i, where fast says its value and slow(element, value) what decides.
template <class Slow>
void draw_fast(PhiloxKey key, std::int64_t first, std::int64_t n, double scale, double edge, float* out, Slow slow) {
  for (std::int64_t done = 0; done < n;) {
    const auto element = static_cast<std::uint64_t>(first + done);
    double z[2 * kPairs];
    fast_normals(key, element / 2, z);
    const auto skip = static_cast<std::int64_t>(element % 2);
    const std::int64_t run = std::min<std::int64_t>(2 * kPairs - skip, n - done);
    bool sure[2 * kPairs];
    for (std::int64_t i = 0; i < run; ++i) {
      const double value = scale * z[skip + i];
      const auto low = static_cast<float>(value * (1 - kMargin)), high = static_cast<float>(value * (1 + kMargin));
      out[done + i] = low;
      sure[i] = low == high && std::abs(z[skip + i]) < edge && std::abs(value) > kSmallest;  // false for NaN
    }
    for (std::int64_t i = 0; i < run; ++i)
      if (!sure[i])
        out[done + i] = static_cast<float>(scale * slow(element + static_cast<std::uint64_t>(i), z[skip + i]));
    done += run;
  }
}

PhiloxKey key_of(const TensorStream& stream) {
  return philox_key(stream.seed, Purpose::kInitialWeights, stream.tensor);
}

}  // namespace

template <class Real>
void uniform(const TensorStream& stream, std::int64_t first, std::int64_t n, double low, double high, Real* out) {
  const PhiloxKey key = key_of(stream);
  for_each_element(
      first, n, [&](std::uint64_t pair) { return uniform_pair(key, pair, 0); },
      [&](std::int64_t i, const std::array<double, 2>& u, std::uint64_t element) {
        out[i] = static_cast<Real>(low + (high - low) * u[element % 2]);
      });
}

template <>
void normal(const TensorStream& stream, std::int64_t first, std::int64_t n, double deviation, double* out) {
  const PhiloxKey key = key_of(stream);
  for_each_element(
      first, n, [&](std::uint64_t pair) { return normal_pair(key, pair, 0); },
      [&](std::int64_t i, const std::array<double, 2>& z, std::uint64_t element) {
        out[i] = deviation * z[element % 2];
      });
}
template <>
void normal(const TensorStream& stream, std::int64_t first, std::int64_t n, double deviation, float* out) {
  const PhiloxKey key = key_of(stream);
  draw_fast(key, first, n, deviation, std::numeric_limits<double>::infinity(), out,
            [&](std::uint64_t element, double) { return normal_pair(key, element / 2, 0)[element % 2]; });
}

template <>
void truncated_normal(const TensorStream& stream, std::int64_t first, std::int64_t n, double scale, double* out) {
  const PhiloxKey key = key_of(stream);
  for_each_element(
      first, n, [&](std::uint64_t pair) { return normal_pair(key, pair, 0); },
      [&](std::int64_t i, const std::array<double, 2>& z, std::uint64_t element) {
        out[i] = scale * truncated_normal_at(key, element, z);
      });
}
template <>
void truncated_normal(const TensorStream& stream, std::int64_t first, std::int64_t n, double scale, float* out) {
  const PhiloxKey key = key_of(stream);
  draw_fast(key, first, n, scale, kEdge, out, [&](std::uint64_t element, double z) {
    const bool rejected = std::abs(z) > 4 - kEdge;  // beyond doubt: the first attempt need not be made again
    return truncated_normal_at(key, element, rejected ? std::array<double, 2>{z, z} : normal_pair(key, element / 2, 0));
  });
}

template void uniform(const TensorStream&, std::int64_t, std::int64_t, double, double, float*);
template void uniform(const TensorStream&, std::int64_t, std::int64_t, double, double, double*);

}  // namespace meshwright::kernels
