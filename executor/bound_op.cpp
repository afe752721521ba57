#include "executor/bound_op.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <functional>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "executor/kernels/activation.h"
#include "executor/kernels/adamw.h"
#include "executor/kernels/attention.h"
#include "executor/kernels/dropout.h"
#include "executor/kernels/elementwise.h"
#include "executor/kernels/embedding.h"
#include "executor/kernels/experts.h"
#include "executor/kernels/gemm.h"
#include "executor/kernels/layer_norm.h"
#include "executor/kernels/lm_head.h"
#include "executor/kernels/rms_norm.h"
#include "executor/kernels/routing.h"
#include "model/program/check.h"

namespace meshwright {
namespace {

using kernels::Transpose;

Transpose transpose(bool t) { return t ? Transpose::kYes : Transpose::kNo; }
std::int64_t count(const View& v) { return v.rows * v.cols; }

template <class T>
constexpr DType kTypeOf = std::is_same_v<T, float>    ? DType::kF32
                          : std::is_same_v<T, double> ? DType::kF64
                          : std::is_same_v<T, Bf16>   ? DType::kBF16
                                                      : DType::kI32;

template <class T>
struct Type {
  using Is = T;
};

// f(Type<T>) for the T that a dtype is stored as.
template <class F>
BoundOp with_type(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kF32:
      return f(Type<float>());
    case DType::kF64:
      return f(Type<double>());
    case DType::kBF16:
      return f(Type<Bf16>());
    case DType::kI32:
    case DType::kF16:
      break;
  }
  check(false, "this executor does not compute in {}", name(dtype));
  return {};
}
// The same, of what the Program keeps as state: float or double.
template <class F>
BoundOp with_state_type(DType dtype, F&& f) {
  check(dtype == DType::kF32 || dtype == DType::kF64, "this executor keeps no state in {}", name(dtype));
  if (dtype == DType::kF64) return f(Type<double>());
  return f(Type<float>());
}

// Where an operand is: so many bytes into a frame of the call. Null for one that is not there.
template <class T>
struct Place {
  int frame = -1;
  std::int64_t offset = 0;

  T* operator()(const CallState& call) const {
    return frame < 0 ? nullptr : reinterpret_cast<T*>(call.frames[frame] + offset);
  }
};

// One overload per kind of operation: what it means stands in model/program/op.h.
class Binder {
 public:
  Binder(const Piece& piece, BindContext& context)
      : piece_(piece), context_(context), mesh_(context.mesh()), set_(context.set()) {}

  // ---- operands ----

  const Tensor& tensor(const View& v) const { return piece_.tensors[static_cast<std::size_t>(v.tensor)]; }
  DType dtype(const View& v) const { return tensor(v).dtype; }

  Place<std::byte> bytes_at(const View& v) const {
    const Tensor& t = tensor(v);
    const std::int64_t tp = mesh_.coordinates().tp;
    const std::int64_t skip = v.offset + (v.own_rows ? tp * v.rows * v.ld : 0) + (v.own_cols ? tp * v.cols : 0);
    return {static_cast<int>(t.frame), t.offset + skip * size_of(t.dtype)};
  }
  template <class T>
  Place<T> at(const View& v) const {
    if (!v) return {};
    check(dtype(v) == kTypeOf<T>, "{}: {} is {}, its operation computes with {}", piece_.name, tensor(v).name,
          name(dtype(v)), name(kTypeOf<T>));
    const Place<std::byte> place = bytes_at(v);
    return {place.frame, place.offset};
  }

  auto expert_rows(const View& rows, std::int64_t experts, std::int64_t capacity) const {
    return [=, rows = at<std::int32_t>(rows)](const CallState& s) {
      return kernels::ExpertRows{experts, capacity, rows(s)};
    };
  }
  auto token_rows(std::int64_t tokens, bool own_part) const {
    return [tokens, batch = set_.step.microbatch, whole = set_.step.tokens,
            first = own_part ? mesh_.coordinates().tp * tokens : 0](const CallState& s) {
      return kernels::TokenRows{tokens, batch, whole, first, s.sequences};
    };
  }
  auto dropout(DropoutSite site, double p) const {
    return [seed = context_.seed(), site = static_cast<int>(site), p](const CallState& s) {
      return kernels::Dropout{seed, static_cast<std::uint32_t>(s.step->step),
                              static_cast<std::uint32_t>((s.layer + 1) * kDropoutSites + site), p};
    };
  }

  // ---- matrix products ----

  BoundOp operator()(const Gemm& op) {
    const DType a = dtype(op.a), b = dtype(op.b), c = dtype(op.c);
    constexpr DType kF32 = DType::kF32, kBF16 = DType::kBF16;
    if (a == b && b == c) return with_type(a, [&]<class T>(Type<T>) { return gemm<T, T, T>(op); });
    if (a == kBF16 && b == kBF16 && c == kF32) return gemm<Bf16, Bf16, float>(op);
    if (a == kF32 && b == kBF16 && c == kBF16) return gemm<float, Bf16, Bf16>(op);
    if (a == kBF16 && b == kF32 && c == kF32) return gemm<Bf16, float, float>(op);
    check(false, "{}: no product of {} and {} gives {}", piece_.name, name(a), name(b), name(c));
    return {};
  }
  template <class A, class B, class C>
  BoundOp gemm(const Gemm& op) {
    const auto product = [=, a = at<A>(op.a), b = at<B>(op.b), c = at<C>(op.c)](const CallState& s) {
      kernels::mixed_gemm<A, B, C>(transpose(op.ta), transpose(op.tb), op.m(), op.n(), op.k(), 1, a(s), op.a.ld, b(s),
                                   op.b.ld, op.accumulate ? 1 : 0, c(s), op.c.ld);
    };
    if (!op.bias) return product;
    if constexpr (std::is_same_v<A, B>)
      return [=, bias = at<B>(op.bias), c = at<C>(op.c), m = op.m(), n = op.n(), ld = op.c.ld](const CallState& s) {
        product(s);
        kernels::add_bias<B, C>(m, n, bias(s), c(s), ld);
      };
    check(false, "{}: a product of two dtypes has no bias", piece_.name);
    return {};
  }
  BoundOp operator()(const GroupedGemm& op) {
    return with_type(dtype(op.a), [&]<class T>(Type<T>) -> BoundOp {
      const auto rows = expert_rows(op.rows, op.experts, op.capacity);
      if (op.ta)
        return [=, a = at<T>(op.a), b = at<T>(op.b), c = at<Arithmetic<T>>(op.c)](const CallState& s) {
          kernels::expert_weight_gradient<T>(rows(s), op.a.cols, op.b.cols, a(s), op.a.ld, b(s), op.b.ld, op.accumulate,
                                             c(s));
        };
      return [=, a = at<T>(op.a), b = at<T>(op.b), c = at<T>(op.c), bias = at<T>(op.bias)](const CallState& s) {
        kernels::expert_gemm<T>(rows(s), transpose(op.tb), op.c.cols, op.a.cols, a(s), op.a.ld, b(s), c(s), op.c.ld);
        if (const T* x = bias(s)) kernels::expert_add_bias<T>(rows(s), op.c.cols, x, c(s));
      };
    });
  }
  BoundOp operator()(const ColumnSum& op) {
    return with_type(dtype(op.in), [&]<class T>(Type<T>) -> BoundOp {
      return [=, in = at<T>(op.in), out = at<Arithmetic<T>>(op.out)](const CallState& s) {
        kernels::column_sum<T>(op.in.rows, op.in.cols, in(s), op.in.ld, op.accumulate, op.repeat, out(s));
      };
    });
  }
  BoundOp operator()(const GroupedColumnSum& op) {
    return with_type(dtype(op.in), [&]<class T>(Type<T>) -> BoundOp {
      using Real = Arithmetic<T>;
      return [=, rows = expert_rows(op.rows, op.experts, op.capacity), in = at<T>(op.in), weight = at<Real>(op.weight),
              out = at<Real>(op.out)](const CallState& s) {
        kernels::expert_column_sum<T>(rows(s), op.in.cols, in(s), weight(s), static_cast<Real>(op.scale), op.accumulate,
                                      out(s));
      };
    });
  }

  // ---- row-wise ----

  template <class T>
  auto norm_weights(const View& gamma, const View& beta, double gamma_offset) const {
    return [gamma = at<T>(gamma), beta = at<T>(beta), gamma_offset](const CallState& s) {
      return kernels::NormWeights<T>{gamma(s), beta(s), gamma_offset};
    };
  }
  template <class T>
  auto norm_gradients(const View& dx, bool accumulate_dx, const View& dgamma, const View& dbeta,
                      bool accumulate) const {
    return [dx = at<T>(dx), dgamma = at<Arithmetic<T>>(dgamma), dbeta = at<Arithmetic<T>>(dbeta), accumulate_dx,
            accumulate](const CallState& s) {
      return kernels::NormGradients<T>{dx(s), accumulate_dx, dgamma(s), dbeta(s), accumulate};
    };
  }
  BoundOp operator()(const RmsNorm& op) {
    return with_type(dtype(op.x), [&]<class T>(Type<T>) -> BoundOp {
      const auto x = at<T>(op.x), out = at<T>(op.out);
      const auto rstd = at<Arithmetic<T>>(op.rstd);
      const auto weights = norm_weights<T>(op.gamma, op.beta, op.gamma_offset);
      const std::int64_t rows = op.x.rows, cols = op.x.cols;
      if (op.rstd_known)
        return [=](const CallState& s) { kernels::rms_norm_apply<T>(rows, cols, x(s), rstd(s), weights(s), out(s)); };
      return [=, epsilon = op.epsilon](const CallState& s) {
        kernels::rms_norm<T>(rows, cols, x(s), weights(s), epsilon, out(s), rstd(s));
      };
    });
  }
  BoundOp operator()(const RmsNormBackward& op) {
    return with_type(dtype(op.x), [&]<class T>(Type<T>) -> BoundOp {
      return [=, rows = op.x.rows, cols = op.x.cols, x = at<T>(op.x), rstd = at<Arithmetic<T>>(op.rstd),
              weights = norm_weights<T>(op.gamma, {}, op.gamma_offset), dy = at<T>(op.dy),
              gradients =
                  norm_gradients<T>(op.dx, op.accumulate_dx, op.dgamma, op.dbeta, op.accumulate)](const CallState& s) {
        kernels::rms_norm_backward<T>(rows, cols, x(s), rstd(s), weights(s), dy(s), gradients(s));
      };
    });
  }
  BoundOp operator()(const LayerNorm& op) {
    return with_type(dtype(op.x), [&]<class T>(Type<T>) -> BoundOp {
      const auto x = at<T>(op.x), out = at<T>(op.out);
      const auto mean = at<Arithmetic<T>>(op.mean), rstd = at<Arithmetic<T>>(op.rstd);
      const auto weights = norm_weights<T>(op.gamma, op.beta, 0);
      const std::int64_t rows = op.x.rows, cols = op.x.cols;
      if (op.known)
        return [=](const CallState& s) {
          kernels::layer_norm_apply<T>(rows, cols, x(s), mean(s), rstd(s), weights(s), out(s));
        };
      return [=, epsilon = op.epsilon](const CallState& s) {
        kernels::layer_norm<T>(rows, cols, x(s), weights(s), epsilon, out(s), mean(s), rstd(s));
      };
    });
  }
  BoundOp operator()(const LayerNormBackward& op) {
    return with_type(dtype(op.x), [&]<class T>(Type<T>) -> BoundOp {
      return [=, rows = op.x.rows, cols = op.x.cols, x = at<T>(op.x), mean = at<Arithmetic<T>>(op.mean),
              rstd = at<Arithmetic<T>>(op.rstd), weights = norm_weights<T>(op.gamma, {}, 0), dy = at<T>(op.dy),
              gradients =
                  norm_gradients<T>(op.dx, op.accumulate_dx, op.dgamma, op.dbeta, op.accumulate)](const CallState& s) {
        kernels::layer_norm_backward<T>(rows, cols, x(s), mean(s), rstd(s), weights(s), dy(s), gradients(s));
      };
    });
  }
  BoundOp operator()(const RowMeanSquare& op) {
    return with_type(dtype(op.x), [&]<class T>(Type<T>) -> BoundOp {
      return [rows = op.x.rows, cols = op.x.cols, width = op.width, x = at<T>(op.x), out = at<Arithmetic<T>>(op.out)](
                 const CallState& s) { kernels::row_mean_square<T>(rows, cols, x(s), width, out(s)); };
    });
  }
  BoundOp operator()(const RowMeanSquareBackward& op) {
    return with_type(dtype(op.x), [&]<class T>(Type<T>) -> BoundOp {
      return [rows = op.x.rows, cols = op.x.cols, width = op.width, accumulate = op.accumulate, x = at<T>(op.x),
              d = at<Arithmetic<T>>(op.d), dx = at<T>(op.dx)](const CallState& s) {
        kernels::row_mean_square_backward<T>(rows, cols, d(s), x(s), width, accumulate, dx(s));
      };
    });
  }
  BoundOp operator()(const RmsScale& op) {
    return with_type(dtype(op.x), [&]<class T>(Type<T>) -> BoundOp {
      return [rows = op.x.rows, cols = op.x.cols, epsilon = op.epsilon, x = at<T>(op.x),
              mean_square = at<Arithmetic<T>>(op.mean_square), gamma = at<T>(op.gamma),
              out = at<T>(op.out)](const CallState& s) {
        kernels::rms_scale<T>(rows, cols, x(s), mean_square(s), gamma(s), epsilon, out(s));
      };
    });
  }
  BoundOp operator()(const RmsScaleBackward& op) {
    return with_type(dtype(op.x), [&]<class T>(Type<T>) -> BoundOp {
      return [rows = op.x.rows, cols = op.x.cols, epsilon = op.epsilon, x = at<T>(op.x),
              mean_square = at<Arithmetic<T>>(op.mean_square), gamma = at<T>(op.gamma), dy = at<T>(op.dy),
              gradients = norm_gradients<T>(op.dx, op.accumulate_dx, op.dgamma, {}, op.accumulate),
              dmean_square = at<Arithmetic<T>>(op.dmean_square)](const CallState& s) {
        kernels::rms_scale_backward<T>(rows, cols, x(s), mean_square(s), gamma(s), epsilon, dy(s), gradients(s),
                                       dmean_square(s));
      };
    });
  }
  BoundOp operator()(const Rope& op) {
    return with_type(dtype(op.x), [&]<class T>(Type<T>) -> BoundOp {
      const std::int64_t tokens = op.x.rows / op.batch;
      const kernels::RopeRows rows{tokens,        op.batch, op.heads,
                                   op.head_width, op.x.ld,  op.own_sequence_part ? mesh_.coordinates().tp * tokens : 0};
      return [rows, &table = context_.rope_table<Arithmetic<T>>(op.spec, op.width), x = at<T>(op.x),
              inverse = op.inverse](const CallState& s) { kernels::rope<T>(table, rows, inverse, x(s)); };
    });
  }

  template <class T>
  auto matrix(const View& v) const {
    return [x = at<std::remove_const_t<T>>(v), ld = v.ld](const CallState& s) {
      return kernels::TokenMatrix<T>{x(s), ld};
    };
  }
  template <class T, class AttentionOp>
  auto attention_inputs(const AttentionOp& op) const {
    return [q = matrix<const T>(op.q), k = matrix<const T>(op.k), v = matrix<const T>(op.v),
            qr = matrix<const T>(op.qr), kr = matrix<const T>(op.kr)](const CallState& s) {
      return kernels::AttentionInputs<T>{q(s), k(s), v(s), qr(s), kr(s)};
    };
  }
  auto attention_dropout(const AttentionShape& shape, double p) const {
    return [dropout = dropout(DropoutSite::kScores, p), first = mesh_.coordinates().tp * shape.heads,
            heads = mesh_.shape().tp * shape.heads](const CallState& s) {
      return kernels::AttentionDropout{dropout(s), s.sequences, first, heads};
    };
  }
  BoundOp operator()(const Attention& op) {
    return with_type(dtype(op.q), [&]<class T>(Type<T>) -> BoundOp {
      check(count(op.scratch) >= kernels::attention_forward_scratch(op.shape),
            "{}: attention has {} elements of scratch", piece_.name, count(op.scratch));
      return [shape = op.shape, in = attention_inputs<T>(op), dropout = attention_dropout(op.shape, op.dropout),
              out = matrix<T>(op.out), lse = at<Arithmetic<T>>(op.lse),
              scratch = at<Arithmetic<T>>(op.scratch)](const CallState& s) {
        kernels::attention_forward<T>(shape, in(s), dropout(s), out(s), lse(s), scratch(s));
      };
    });
  }
  BoundOp operator()(const AttentionBackward& op) {
    return with_type(dtype(op.q), [&]<class T>(Type<T>) -> BoundOp {
      constexpr bool kNarrow = !std::is_same_v<T, Arithmetic<T>>;
      check(count(op.scratch) >= kernels::attention_backward_scratch(op.shape, kNarrow),
            "{}: attention_backward has {} elements of scratch", piece_.name, count(op.scratch));
      return [shape = op.shape, in = attention_inputs<T>(op), dropout = attention_dropout(op.shape, op.dropout),
              lse = at<Arithmetic<T>>(op.lse), dout = matrix<const T>(op.dout), dq = matrix<T>(op.dq),
              dk = matrix<T>(op.dk), dv = matrix<T>(op.dv), dqr = matrix<T>(op.dqr), dkr = matrix<T>(op.dkr),
              scratch = at<Arithmetic<T>>(op.scratch)](const CallState& s) {
        kernels::attention_backward<T>(shape, in(s), dropout(s), lse(s), dout(s), {dq(s), dk(s), dv(s), dqr(s), dkr(s)},
                                       scratch(s));
      };
    });
  }
  BoundOp operator()(const Activation& op) {
    return with_type(dtype(op.in), [&]<class T>(Type<T>) -> BoundOp {
      const auto in = at<T>(op.in), out = at<T>(op.out);
      if (!op.rows)
        return [=, kind = op.kind, n = count(op.in)](const CallState& s) {
          kernels::activation<T>(kind, n, in(s), out(s));
        };
      return [=, kind = op.kind, rows = expert_rows(op.rows, op.experts, op.capacity), cols = op.in.cols](
                 const CallState& s) { kernels::expert_activation<T>(rows(s), kind, cols, in(s), out(s)); };
    });
  }
  BoundOp operator()(const ActivationBackward& op) {
    return with_type(dtype(op.in), [&]<class T>(Type<T>) -> BoundOp {
      const auto in = at<T>(op.in), d = at<T>(op.d);
      if (!op.rows)
        return [=, kind = op.kind, n = count(op.in)](const CallState& s) {
          kernels::activation_backward<T>(kind, n, in(s), d(s), d(s));
        };
      return [=, kind = op.kind, rows = expert_rows(op.rows, op.experts, op.capacity),
              cols = op.in.cols](const CallState& s) {
        kernels::expert_activation_backward<T>(rows(s), kind, cols, in(s), d(s), d(s));
      };
    });
  }
  BoundOp operator()(const GatedActivation& op) {
    return with_type(dtype(op.in), [&]<class T>(Type<T>) -> BoundOp {
      const auto in = at<T>(op.in), out = at<T>(op.out);
      if (!op.rows)
        return [=, kind = op.kind, rows = op.out.rows, cols = op.out.cols](const CallState& s) {
          kernels::gated_activation<T>(kind, rows, cols, in(s), out(s));
        };
      return [=, kind = op.kind, rows = expert_rows(op.rows, op.experts, op.capacity), cols = op.out.cols](
                 const CallState& s) { kernels::expert_gated_activation<T>(rows(s), kind, cols, in(s), out(s)); };
    });
  }
  BoundOp operator()(const GatedActivationBackward& op) {
    return with_type(dtype(op.in), [&]<class T>(Type<T>) -> BoundOp {
      const auto in = at<T>(op.in), d = at<T>(op.d), din = at<T>(op.din);
      if (!op.rows)
        return [=, kind = op.kind, rows = op.d.rows, cols = op.d.cols](const CallState& s) {
          kernels::gated_activation_backward<T>(kind, rows, cols, in(s), d(s), din(s));
        };
      return [=, kind = op.kind, rows = expert_rows(op.rows, op.experts, op.capacity),
              cols = op.d.cols](const CallState& s) {
        kernels::expert_gated_activation_backward<T>(rows(s), kind, cols, in(s), d(s), din(s));
      };
    });
  }

  // What the residual's kernels need to know of a call.
  template <class T, class ResidualOp>
  auto residual(const ResidualOp& op, const View& rows, Place<T> bias) {
    return [=, tokens = token_rows(rows.rows / op.batch, true), cols = rows.cols,
            dropout = dropout(op.site, op.dropout), chunks = op.bias_chunks](const CallState& s) {
      return kernels::Residual<T>{tokens(s), cols, dropout(s), bias(s), chunks};
    };
  }
  BoundOp operator()(const Residual& op) {
    return with_type(dtype(op.in), [&]<class T>(Type<T>) -> BoundOp {
      return [=, r = residual<T>(op, op.in, at<T>(op.bias)), x = at<T>(op.x), in = at<T>(op.in),
              out = at<T>(op.out)](const CallState& s) { kernels::residual<T>(r(s), x(s), in(s), out(s)); };
    });
  }
  BoundOp operator()(const ResidualBackward& op) {
    return with_type(dtype(op.d), [&]<class T>(Type<T>) -> BoundOp {
      return [=, r = residual<T>(op, op.d, Place<T>()), d = at<T>(op.d), out = at<T>(op.out),
              dbias = at<Arithmetic<T>>(op.dbias), accumulate = op.accumulate](const CallState& s) {
        kernels::residual_backward<T>(r(s), d(s), out(s), dbias(s), accumulate);
      };
    });
  }

  // ---- mixture of experts ----

  BoundOp operator()(const Sigmoid& op) {
    return with_type(dtype(op.x), [&]<class T>(Type<T>) -> BoundOp {
      return [=, n = count(op.x), x = at<T>(op.x)](const CallState& s) { kernels::sigmoid<T>(n, x(s), x(s)); };
    });
  }
  BoundOp operator()(const SigmoidBackward& op) {
    return with_type(dtype(op.y), [&]<class T>(Type<T>) -> BoundOp {
      return [=, n = count(op.y), y = at<T>(op.y), d = at<T>(op.d)](const CallState& s) {
        kernels::sigmoid_backward<T>(n, y(s), d(s), d(s));
      };
    });
  }

  BoundOp operator()(const Softmax& op) {
    return with_state_type(dtype(op.x), [&]<class Real>(Type<Real>) -> BoundOp {
      return [rows = op.x.rows, cols = op.x.cols, x = at<Real>(op.x)](const CallState& s) {
        kernels::softmax<Real>(rows, cols, x(s));
      };
    });
  }
  BoundOp operator()(const SoftmaxBackward& op) {
    return with_state_type(dtype(op.y), [&]<class Real>(Type<Real>) -> BoundOp {
      return [rows = op.y.rows, cols = op.y.cols, y = at<Real>(op.y), d = at<Real>(op.d)](const CallState& s) {
        kernels::softmax_backward<Real>(rows, cols, y(s), d(s));
      };
    });
  }

  // The elements of a weight, bf16 or as the state is; none where there is none.
  template <class Real>
  std::function<std::vector<Real>(const CallState&)> widened(const View& weight) {
    const auto read = [n = weight ? count(weight) : 0](auto from) {
      return [n, from](const CallState& s) {
        std::vector<Real> all(static_cast<std::size_t>(n));
        std::copy_n(from(s), n, all.begin());
        return all;
      };
    };
    if (weight && dtype(weight) == DType::kBF16) return read(at<Bf16>(weight));
    return read(at<Real>(weight));
  }

  BoundOp operator()(const Route& op) {
    return with_state_type(dtype(op.scores), [&]<class Real>(Type<Real>) -> BoundOp {
      return [=, scores = at<Real>(op.scores), choice = at<std::int32_t>(op.choice), slot = at<std::int32_t>(op.slot),
              gate = at<Real>(op.gate), rows = at<std::int32_t>(op.rows), fraction = at<Real>(op.fraction),
              bias = widened<Real>(op.bias), metrics = at<double>(op.metrics), share = 1.0 / mesh_.shape().tp,
              scratch = context_.routing_scratch()](const CallState& s) {
        const RouteShape& shape = op.shape;
        const kernels::Routing<Real> routing{choice(s), slot(s), gate(s), rows(s), fraction(s), op.fraction_tokens};
        double balance = 0;
        std::int64_t dropped = 0;
        std::vector<double> load(static_cast<std::size_t>(shape.experts), 0.0);
        const kernels::RoutingStatistics statistics{load.data(), &dropped, &balance};
        if (s.step->replay) {
          const auto [choices, kept] = recorded(op.shape, s);
          kernels::replay_routing<Real>(shape, op.rule, scores(s), choices.data(), kept.data(), routing, statistics,
                                        scratch);
        } else {
          const std::vector<Real> correction = bias(s);
          kernels::route<Real>(shape, op.rule, scores(s), correction.empty() ? nullptr : correction.data(), routing,
                               statistics, scratch);
        }
        double* sums = metrics(s);
        if (!sums) return;  // recomputed: counted before
        if (s.step->record) record(op.shape, routing.choice, routing.slot, s);
        sums[kBalanceSum] += share * balance;
        sums[kDroppedSum] += share * static_cast<double>(dropped);
        for (std::int64_t e = 0; e < shape.experts; ++e) {
          sums[kLoadFirst + e] += share * load[static_cast<std::size_t>(e)];
          s.step->routed_rows[static_cast<std::size_t>(s.layer)] += routing.rows[e];
        }
      };
    });
  }
  static void record(const RouteShape& shape, const std::int32_t* choice, const std::int32_t* slot,
                     const CallState& s) {
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      SequenceRouting& r = (*s.step->record)[{s.layer, s.sequences[b]}];
      r.choice.clear();
      r.kept.clear();
      for (std::int64_t t = 0; t < shape.tokens; ++t)
        for (std::int64_t j = 0; j < shape.choices; ++j) {
          const std::int64_t i = (t * shape.batch + b) * shape.choices + j;
          r.choice.push_back(choice[i]);
          r.kept.push_back(slot[i] >= 0);
        }
    }
  }
  static std::pair<std::vector<std::int32_t>, std::vector<std::uint8_t>> recorded(const RouteShape& shape,
                                                                                  const CallState& s) {
    std::vector<std::int32_t> choice(static_cast<std::size_t>(shape.tokens * shape.batch * shape.choices));
    std::vector<std::uint8_t> kept(choice.size());
    for (std::int64_t b = 0; b < shape.batch; ++b) {
      const SequenceRouting& r = s.step->replay->at({s.layer, s.sequences[b]});
      for (std::int64_t t = 0; t < shape.tokens; ++t)
        for (std::int64_t j = 0; j < shape.choices; ++j) {
          const auto to = static_cast<std::size_t>((t * shape.batch + b) * shape.choices + j);
          const auto from = static_cast<std::size_t>(t * shape.choices + j);
          choice[to] = r.choice[from];
          kept[to] = r.kept[from];
        }
    }
    return {std::move(choice), std::move(kept)};
  }

  BoundOp operator()(const RouteBackward& op) {
    return with_state_type(dtype(op.scores), [&]<class Real>(Type<Real>) -> BoundOp {
      return [=, shape = op.shape, rule = op.rule, scores = at<Real>(op.scores), choice = at<std::int32_t>(op.choice),
              gate = at<Real>(op.gate), dgate = at<Real>(op.dgate), fraction = at<Real>(op.fraction),
              dscores = at<Real>(op.dscores), coefficient = static_cast<Real>(op.coefficient),
              metrics = at<double>(op.metrics), share = 1.0 / mesh_.shape().tp](const CallState& s) {
        kernels::routing_backward<Real>(shape, rule, scores(s), choice(s), gate(s), dgate(s), dscores(s));
        const double balance = kernels::balance_backward<Real>(shape, shape.tokens, scores(s), fraction(s),
                                                               op.fraction.rows == 1, coefficient, dscores(s));
        if (double* sums = metrics(s)) sums[kBalanceSum] += share * balance;
      };
    });
  }
  BoundOp operator()(const Dispatch& op) {
    return with_type(dtype(op.h), [&]<class T>(Type<T>) -> BoundOp {
      return [=, slot = at<std::int32_t>(op.slot), h = at<T>(op.h), out = at<T>(op.out)](const CallState& s) {
        kernels::dispatch<T>(op.h.rows, op.shape.choices, op.h.cols, slot(s), h(s), out(s));
      };
    });
  }
  BoundOp operator()(const DispatchBackward& op) {
    return with_type(dtype(op.d), [&]<class T>(Type<T>) -> BoundOp {
      return [=, slot = at<std::int32_t>(op.slot), d = at<T>(op.d), dh = at<T>(op.dh)](const CallState& s) {
        if (!op.accumulate) kernels::fill<T>(count(op.dh), T(0), dh(s));
        kernels::dispatch_backward<T>(op.dh.rows, op.shape.choices, op.dh.cols, slot(s), d(s), dh(s));
      };
    });
  }
  template <class T>
  auto combine(const RouteShape& shape, std::int64_t width, double p, const View& choice, const View& slot,
               const View& gate) {
    return [=, rows = token_rows(shape.tokens, false), dropout = dropout(DropoutSite::kExpert, p),
            c = at<std::int32_t>(choice), l = at<std::int32_t>(slot), g = at<Arithmetic<T>>(gate)](const CallState& s) {
      return kernels::Combine<T>{rows(s), shape.experts, shape.choices, width, dropout(s), c(s), l(s), g(s)};
    };
  }
  BoundOp operator()(const ExpertCombine& op) {
    return with_type(dtype(op.a), [&]<class T>(Type<T>) -> BoundOp {
      return [=, rows = expert_rows(op.rows, op.shape.experts, op.shape.row_capacity()), a = at<T>(op.a),
              w = at<T>(op.w), product = at<T>(op.product), bias = at<T>(op.bias), out = at<T>(op.out),
              parts = combine<T>(op.shape, op.out.cols, op.dropout, op.choice, op.slot, op.gate)](const CallState& s) {
        kernels::expert_gemm<T>(rows(s), Transpose::kNo, op.product.cols, op.a.cols, a(s), op.a.ld, w(s), product(s),
                                op.product.ld);
        kernels::combine<T>(parts(s), product(s), bias(s), static_cast<Arithmetic<T>>(op.bias_scale), op.accumulate,
                            out(s));
      };
    });
  }
  BoundOp operator()(const CombineBackward& op) {
    return with_type(dtype(op.dout), [&]<class T>(Type<T>) -> BoundOp {
      return [=, parts = combine<T>(op.shape, op.dout.cols, op.dropout, op.choice, op.slot, op.gate),
              dout = at<T>(op.dout), d = at<T>(op.d), row_gate = at<Arithmetic<T>>(op.row_gate)](const CallState& s) {
        kernels::combine_backward<T>(parts(s), dout(s), d(s), row_gate(s));
      };
    });
  }
  BoundOp operator()(const GateBackward& op) {
    return with_type(dtype(op.a), [&]<class T>(Type<T>) -> BoundOp {
      using Real = Arithmetic<T>;
      return [=, parts = combine<T>(op.shape, op.d.cols, 0, op.choice, op.slot, {}), a = at<T>(op.a), da = at<T>(op.da),
              d = at<T>(op.d), bias = at<T>(op.bias), dgate = at<Real>(op.dgate)](const CallState& s) {
        kernels::gate_gradient<T>(parts(s), op.a.cols, a(s), da(s), d(s), bias(s), static_cast<Real>(op.bias_scale),
                                  dgate(s));
      };
    });
  }
  BoundOp operator()(const RowScale& op) {
    return with_type(dtype(op.x), [&]<class T>(Type<T>) -> BoundOp {
      return [=, rows = expert_rows(op.rows, op.shape.experts, op.shape.row_capacity()), cols = op.x.cols,
              row_gate = at<Arithmetic<T>>(op.row_gate),
              x = at<T>(op.x)](const CallState& s) { kernels::expert_scale_rows<T>(rows(s), cols, row_gate(s), x(s)); };
    });
  }

  // ---- embedding and loss ----

  auto embedding_rows(const View& rows, std::int64_t batch, const View& tokens) const {
    return [n = rows.rows, cols = rows.cols, batch, first = mesh_.coordinates().tp * (rows.rows / batch),
            ids = at<std::int32_t>(tokens)](const CallState& s) {
      return kernels::EmbeddingRows{n, cols, batch, first, ids(s)};
    };
  }
  BoundOp operator()(const Embed& op) {
    return with_type(dtype(op.table), [&]<class T>(Type<T>) -> BoundOp {
      return [rows = embedding_rows(op.out, op.batch, op.tokens), table = at<T>(op.table),
              positions = at<T>(op.positions), scale = op.scale, out = at<T>(op.out)](const CallState& s) {
        kernels::embedding<T>(rows(s), table(s), positions(s), scale, out(s));
      };
    });
  }
  BoundOp operator()(const EmbedBackward& op) {
    return with_type(dtype(op.d), [&]<class T>(Type<T>) -> BoundOp {
      return
          [rows = embedding_rows(op.d, op.batch, op.tokens), d = at<T>(op.d), scale = op.scale, padding = op.padding,
           dtable = at<Arithmetic<T>>(op.dtable), dpositions = at<Arithmetic<T>>(op.dpositions)](const CallState& s) {
            kernels::embedding_backward<T>(rows(s), d(s), scale, padding, dtable(s), dpositions(s));
          };
    });
  }
  BoundOp operator()(const LmHead& op) {
    return with_type(dtype(op.x), [&]<class T>(Type<T>) -> BoundOp {
      using Real = Arithmetic<T>;
      return [=, x = at<T>(op.x), table = at<T>(op.table), targets = at<std::int32_t>(op.targets),
              bias = at<T>(op.bias), logits = at<T>(op.logits), dx = at<T>(op.dx), dtable = at<Real>(op.dtable),
              dbias = at<Real>(op.dbias), metrics = at<double>(op.metrics)](const CallState& s) {
        kernels::LmHead<T> head{.rows = op.x.rows,
                                .width = op.x.cols,
                                .vocabulary = op.table.rows,
                                .chunk = op.logits.rows,
                                .x = x(s),
                                .table = table(s),
                                .bias = bias(s),
                                .targets = targets(s),
                                .scratch = logits(s),
                                .loss_scale = static_cast<Real>(op.scale),
                                .dx = dx(s),
                                .dtable = dtable(s),
                                .dbias = dbias(s),
                                .accumulate_dtable = true};
        const std::function<void(std::int64_t, std::int64_t, const T*)> watch = [&](std::int64_t first,
                                                                                    std::int64_t rows, const T* chunk) {
          (*s.step->on_logits)(first, rows, op.table.rows, chunk);
        };
        if (*s.step->on_logits) head.on_logits = &watch;
        metrics(s)[kCrossEntropySum] += kernels::lm_head<T>(head).loss;
      };
    });
  }

  // ---- optimizer ----

  BoundOp operator()(const Fill& op) {
    return [x = bytes_at(op.x), n = static_cast<std::size_t>(count(op.x) * size_of(dtype(op.x)))](const CallState& s) {
      std::memset(x(s), 0, n);
    };
  }
  BoundOp operator()(const Cast& op) {
    const DType from = dtype(op.in), to = dtype(op.out);
    if (from == DType::kF32 && to == DType::kBF16) return cast<float, Bf16>(op);
    if (from == DType::kBF16 && to == DType::kF32) return cast<Bf16, float>(op);
    if (from == to) return with_type(from, [&]<class T>(Type<T>) { return cast<T, T>(op); });
    check(false, "{}: no cast from {} to {}", piece_.name, name(from), name(to));
    return {};
  }
  template <class From, class To>
  BoundOp cast(const Cast& op) {
    return [n = count(op.in), in = at<From>(op.in), out = at<To>(op.out)](const CallState& s) {
      kernels::cast<To, From>(n, in(s), out(s));
    };
  }
  BoundOp operator()(const SumSquares& op) {
    return with_state_type(dtype(op.x), [&]<class Real>(Type<Real>) -> BoundOp {
      return [n = count(op.x), x = at<Real>(op.x), metrics = at<double>(op.metrics), weight = op.weight](
                 const CallState& s) { metrics(s)[kSquaredNorm] += weight * kernels::sum_squares<Real>(n, x(s)); };
    });
  }
  BoundOp operator()(const AdamW& op) {
    return with_state_type(dtype(op.param), [&]<class Real>(Type<Real>) -> BoundOp {
      return [n = count(op.grad), grad = at<Real>(op.grad), param = at<Real>(op.param), m = at<Real>(op.m),
              v = at<Real>(op.v_), metrics = at<double>(op.metrics), spec = op.spec](const CallState& s) {
        const double norm = std::sqrt(metrics(s)[kSquaredNorm]);
        const double factor = spec.clip_norm == 0 || norm < spec.clip_norm ? 1.0 : spec.clip_norm / norm;
        kernels::adamw<Real>({.step = s.step->step,
                              .learning_rate = s.step->learning_rate,
                              .gradient_factor = factor,
                              .beta1 = spec.beta1,
                              .beta2 = spec.beta2,
                              .epsilon = spec.epsilon,
                              .weight_decay = spec.weight_decay},
                             n, grad(s), param(s), m(s), v(s));
      };
    });
  }

  // ---- communication ----

  template <class T>
  auto span(const View& v) {
    return [x = at<T>(v), n = v ? static_cast<std::size_t>(count(v)) : 0](const CallState& s) {
      return std::span<T>(x(s), n);
    };
  }
  BoundOp operator()(const Collective& op) {
    const MPI_Comm comm = mesh_.comm(op.group);
    return with_type(dtype(op.src), [&]<class T>(Type<T>) -> BoundOp {
      const auto src = span<T>(op.src), scratch = span<T>(op.scratch), dst = span<T>(op.dst);
      if (op.algorithm == Algorithm::kDirect) {
        if constexpr (!std::is_same_v<T, Bf16>)
          return [=](const CallState& s) { direct_all_reduce<T>(comm, src(s), scratch(s)); };
        check(false, "{}: no direct all-reduce of bf16", piece_.name);
      }
      switch (op.kind) {
        case CollectiveKind::kAllGather:
          return [=](const CallState& s) { ring_all_gather<T>(comm, src(s), dst(s)); };
        case CollectiveKind::kReduceScatter:
          return [=, accumulate = op.accumulate](const CallState& s) {
            ring_reduce_scatter<T>(comm, src(s), dst(s), scratch(s), accumulate);
          };
        case CollectiveKind::kAllReduce:
          return [=](const CallState& s) { ring_all_reduce<T>(comm, src(s), scratch(s)); };
      }
      return {};
    });
  }
  int neighbour(Direction d) const { return mesh_.coordinates().pp + static_cast<int>(d); }
  BoundOp operator()(const Send& op) {
    return with_type(dtype(op.x), [&]<class T>(Type<T>) -> BoundOp {
      return [comm = mesh_.comm(Group::kPp), to = neighbour(op.to), x = span<T>(op.x)](const CallState& s) {
        s.step->sends[s.step->next_send++] = isend<T>(comm, to, x(s));
      };
    });
  }
  BoundOp operator()(const Recv& op) {
    return with_type(dtype(op.x), [&]<class T>(Type<T>) -> BoundOp {
      return [comm = mesh_.comm(Group::kPp), from = neighbour(op.from), x = span<T>(op.x)](const CallState& s) {
        recv<T>(comm, from, x(s));
      };
    });
  }
  BoundOp operator()(const Free&) { return {}; }

 private:
  const Piece& piece_;
  BindContext& context_;
  const MeshComm& mesh_;
  const ProgramSet& set_;
};

}  // namespace

BindContext::BindContext(const ProgramSet& set, const MeshComm& mesh, std::uint64_t seed)
    : set_(set),
      mesh_(mesh),
      seed_(seed),
      routing_scratch_(
          static_cast<std::size_t>(kernels::routing_scratch({.tokens = set.step.tokens, .experts = set.experts}))) {}

template <class Real>
const kernels::RopeTable<Real>& BindContext::rope_table(const RopeSpec& spec, std::int64_t width) {
  Tables<Real>& tables = [this]() -> Tables<Real>& {
    if constexpr (std::is_same_v<Real, float>)
      return tables_f32_;
    else
      return tables_f64_;
  }();
  for (const auto& table : tables)
    if (table->width() == width && table->spec() == spec) return *table;
  return *tables.emplace_back(std::make_unique<kernels::RopeTable<Real>>(spec, width, set_.step.tokens));
}

std::int64_t BindContext::bytes() const {
  auto sum = static_cast<std::int64_t>(routing_scratch_.size() * sizeof(std::int32_t));
  const auto add = [&]<class Real>(const Tables<Real>& tables) {  // a cosine and a sine for every pair of channels
    for (const auto& table : tables)
      sum += table->width() * table->positions() * static_cast<std::int64_t>(sizeof(Real));
  };
  add(tables_f32_);
  add(tables_f64_);
  return sum;
}

BoundOp bind(const Op& op, const Piece& piece, BindContext& context) { return std::visit(Binder(piece, context), op); }

}  // namespace meshwright
