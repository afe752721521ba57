#include "executor/kernels/activation.h"

#include <cmath>
#include <stdexcept>

#include "executor/kernels/vector_math.h"

namespace meshwright::kernels {
namespace {

// Each function: value(u), and slope(u, value), its derivative and the value that goes with it.

template <class Real>
Real at_least(Real u, Real low) {
  return u < low ? low : u;  // NaN stays NaN
}
template <class Real>
Real at_most(Real u, Real high) {
  return u > high ? high : u;
}

// u/2 (1 + tanh z) = u * logistic(2z),  z = sqrt(2/pi) * (u + 0.044715 u^3). Hendrycks & Gimpel 2016.
struct GeluTanh {
  static constexpr double kTwiceRootTwoOverPi = 1.5957691216057307117597842397375;  // 2 * sqrt(2/pi)
  static constexpr double kCubic = 0.044715;
  // From here on gelu(u) is u, its derivative 1, and at -u both are 0, to the last place: e^2z is e^603, which double can
  // hold. What comes out at the end of this range stands for all that lies beyond, where u^3 and e^2z overflow and
  // inf * 0 is NaN.
  static constexpr double kFlat = 20;

  template <class Real>
  static Real value(Real u) {
    const Real x = at_least(u, Real(-kFlat));
    return x * logistic(Real(kTwiceRootTwoOverPi) * x * (Real(1) + Real(kCubic) * x * x));
  }
  // s + u s (1 - s) 2z',  s = logistic(2z).
  template <class Real>
  static Real slope(Real u, Real& value) {
    const Real above = at_least(u, Real(-kFlat)), x = at_most(above, Real(kFlat));
    const Real e = fast_exp(-Real(kTwiceRootTwoOverPi) * x * (Real(1) + Real(kCubic) * x * x));
    const Real s = Real(1) / (Real(1) + e);  // so 1 - s = e * s, without cancellation
    const Real inner = Real(kTwiceRootTwoOverPi) * (Real(1) + Real(3 * kCubic) * x * x);
    value = above * s;
    return s + x * s * (e * s) * inner;
  }
};

// e^(z^2) erfc(z) times e^(-z^2), z >= 0.
inline double erfc_of(double z, double) { return std::erfc(z); }
// Abramowitz & Stegun 7.1.26: error below 1.5e-7. exponential: e^(-z^2).
inline float erfc_of(float z, float exponential) {
  const float t = 1.0f / (1.0f + 0.3275911f * z);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  return p * t * exponential;
}

// u P(u), P: the normal distribution.
struct GeluErf {
  static constexpr double kRootHalf = 0.70710678118654752440, kDensity = 0.39894228040143267794;  // 1/sqrt(2 pi)
  static constexpr double kFlat = 40;  // beyond, the density is 0

  template <class Real>
  static Real distribution(Real x, Real exponential) {
    const Real tail = Real(0.5) * erfc_of(Real(kRootHalf) * std::abs(x), exponential);
    return x < Real(0) ? tail : Real(1) - tail;
  }
  template <class Real>
  static Real value(Real u) {
    const Real x = at_least(u, Real(-kFlat)), near = at_most(x, Real(kFlat));
    return x * distribution(near, fast_exp(Real(-0.5) * near * near));
  }
  template <class Real>
  static Real slope(Real u, Real& value) {
    const Real above = at_least(u, Real(-kFlat)), x = at_most(above, Real(kFlat));
    const Real exponential = fast_exp(Real(-0.5) * x * x), p = distribution(x, exponential);
    value = above * p;
    return p + x * Real(kDensity) * exponential;
  }
};

// u s,  s = logistic(u): derivative s + u s (1 - s).
struct Silu {
  static constexpr double kFlat = 80;  // e^80 fits float, and 80 e^-80 is 0

  template <class Real>
  static Real value(Real u) {
    const Real x = at_least(u, Real(-kFlat));
    return x * logistic(x);
  }
  template <class Real>
  static Real slope(Real u, Real& value) {
    const Real above = at_least(u, Real(-kFlat)), x = at_most(above, Real(kFlat));
    const Real e = fast_exp(-x), s = Real(1) / (Real(1) + e);
    value = above * s;
    return s + x * s * (e * s);
  }
};

struct Relu {
  template <class Real>
  static Real value(Real u) {
    return u < Real(0) ? Real(0) : u;
  }
  template <class Real>
  static Real slope(Real u, Real& value) {
    value = u < Real(0) ? Real(0) : u;
    return u > Real(0) ? Real(1) : u <= Real(0) ? Real(0) : u;
  }
};

// Calls f with the function.
template <class F>
void with(ActivationKind kind, F&& f) {
  switch (kind) {
    case ActivationKind::kGeluTanh:
      return f(GeluTanh());
    case ActivationKind::kGeluErf:
      return f(GeluErf());
    case ActivationKind::kSilu:
      return f(Silu());
    case ActivationKind::kRelu:
      return f(Relu());
  }
  throw std::logic_error("activation of no kind");
}

}  // namespace

template <class T>
void activation(ActivationKind kind, std::int64_t n, const T* u, T* a) {
  using Real = Arithmetic<T>;
  with(kind, [=](auto f) {
    for (std::int64_t i = 0; i < n; ++i) a[i] = f.value(Real(u[i]));
  });
}

template <class T>
void activation_backward(ActivationKind kind, std::int64_t n, const T* u, const T* da, T* du) {
  using Real = Arithmetic<T>;
  with(kind, [=](auto f) {
    for (std::int64_t i = 0; i < n; ++i) {
      Real value;
      du[i] = da[i] * f.slope(Real(u[i]), value);
    }
  });
}

template <class T>
void gated_activation(ActivationKind kind, std::int64_t rows, std::int64_t width, const T* u, T* a) {
  using Real = Arithmetic<T>;
  with(kind, [=](auto f) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const T* gate = u + r * 2 * width;
      const T* up = gate + width;
      T* out = a + r * width;
      for (std::int64_t c = 0; c < width; ++c) out[c] = f.value(Real(gate[c])) * up[c];
    }
  });
}

template <class T>
void gated_activation_backward(ActivationKind kind, std::int64_t rows, std::int64_t width, const T* u, const T* da,
                               T* du) {
  using Real = Arithmetic<T>;
  with(kind, [=](auto f) {
    for (std::int64_t r = 0; r < rows; ++r) {
      const T* gate = u + r * 2 * width;
      const T* up = gate + width;
      const T* d = da + r * width;
      T* dgate = du + r * 2 * width;
      T* dup = dgate + width;
      for (std::int64_t c = 0; c < width; ++c) {
        Real value;
        const Real slope = f.slope(Real(gate[c]), value);
        const Real by_gate = d[c] * up[c] * slope;
        dup[c] = d[c] * value;
        dgate[c] = by_gate;
      }
    }
  });
}

#define MESHWRIGHT_INSTANTIATE(T)                                                              \
  template void activation<T>(ActivationKind, std::int64_t, const T*, T*);                     \
  template void activation_backward<T>(ActivationKind, std::int64_t, const T*, const T*, T*);  \
  template void gated_activation<T>(ActivationKind, std::int64_t, std::int64_t, const T*, T*); \
  template void gated_activation_backward<T>(ActivationKind, std::int64_t, std::int64_t, const T*, const T*, T*);
MESHWRIGHT_INSTANTIATE(float)
MESHWRIGHT_INSTANTIATE(double)
MESHWRIGHT_INSTANTIATE(Bf16)
#undef MESHWRIGHT_INSTANTIATE

}  // namespace meshwright::kernels
