// The closed set of operations of a Program. What an operation means is written here, once; the verifier, the printer,
// the simulator and the executor obey it. A new kind does not compile until all of them handle it (they visit Op).
//
// Streams. A rank has a compute stream and named communication streams; stream_of() says where an operation runs.
// Operations of one stream run in program order; an operation starts when its stream predecessor has finished and
// everything it depends on has: the last writer of what it reads, the last reader and writer of what it writes.
// That is the only ordering. A collective, or a matching send and receive, starts when its last member is ready.
// A tensor of the workspace lives from its first write to its Free.
//
// Shapes: T tokens of a sequence (Tl of them on this tp rank), B sequences of the microbatch, C width, E experts,
// k choices. Rows of activations are (t, b), row = t * B + b. `accumulate`: the result is added to what is there.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <type_traits>
#include <variant>
#include <vector>

#include "model/program/mesh.h"
#include "model/program/rope.h"
#include "model/program/tensor.h"

namespace meshwright {

enum class Access : std::uint8_t { kRead, kWrite, kUpdate };  // kUpdate: reads what is there and writes

// Of an operand: its rows are those of a row buffer of experts (RouteShape), of which only the routed ones are touched.
struct ExpertRows {
  bool value = true;
};

// Every operation lists its fields once, in `fields(self, v)`: operands as v(name, View, Access) or, where it matters which
// rows they have, v(name, View, Access, ExpertRows); attributes as v(name, value). Printing, verifying and address
// computation are visitors of that list.
template <class... Rest>  // of what v is given behind the name
constexpr bool kIsOperand = sizeof...(Rest) >= 2;

// ---- matrix products -----------------------------------------------------------------------------------------------

// c (+)= op(a) op(b) [+ bias on every row]. m x n = c's window, k = the inner extent.
struct Gemm {
  static constexpr std::string_view kName = "gemm";
  View a, b, c;
  View bias{};  // 1 x n, or none
  bool ta = false, tb = false, accumulate = false;
  std::int64_t m() const { return c.rows; }
  std::int64_t n() const { return c.cols; }
  std::int64_t k() const { return ta ? a.rows : a.cols; }
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("a", s.a, Access::kRead);
    v("b", s.b, Access::kRead);
    v("bias", s.bias, Access::kRead);
    v("c", s.c, s.accumulate ? Access::kUpdate : Access::kWrite);
    v("ta", s.ta);
    v("tb", s.tb);
    v("acc", s.accumulate);
  }
};

// The same for each expert e on the rows routed to it, `rows[e]` of the row buffers (RouteShape).
// ta false: c_e = a_e b_e(^T) [+ bias_e];  ta true: c_e (+)= a_e^T b_e, the experts' weight gradient.
// `capacity`: rows that an expert has in the buffers, RouteShape::row_capacity(); 0: experts are packed, one behind the other.
struct GroupedGemm {
  static constexpr std::string_view kName = "grouped_gemm";
  View a, b, c;
  View bias{};  // E x n, or none
  View rows;    // 1 x E, i32
  std::int64_t experts = 1, capacity = 0;
  bool ta = false, tb = false, accumulate = false;
  // Of one expert, with r rows: m x n x k multiply-adds, where m is r, or k is r if ta.
  std::int64_t n() const { return c.cols; }
  std::int64_t other() const { return ta ? a.cols : (tb ? b.cols : b.rows / experts); }
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("a", s.a, Access::kRead, ExpertRows{});
    v("b", s.b, Access::kRead, ExpertRows{s.ta});
    v("bias", s.bias, Access::kRead);
    v("rows", s.rows, Access::kRead);
    v("c", s.c, s.accumulate ? Access::kUpdate : Access::kWrite, ExpertRows{!s.ta});
    v("experts", s.experts);
    v("capacity", s.capacity);
    v("ta", s.ta);
    v("tb", s.tb);
    v("acc", s.accumulate);
  }
};

// out (+)= column sums of in, written `repeat` times side by side: a bias gradient.
struct ColumnSum {
  static constexpr std::string_view kName = "column_sum";
  View in, out;
  std::int64_t repeat = 1;
  bool accumulate = false;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("in", s.in, Access::kRead);
    v("out", s.out, s.accumulate ? Access::kUpdate : Access::kWrite);
    v("repeat", s.repeat);
    v("acc", s.accumulate);
  }
};

// out[e] (+)= scale * sum over the expert's rows of weight[row] * in[row]  (weight 1 where there is none).
struct GroupedColumnSum {
  static constexpr std::string_view kName = "grouped_column_sum";
  View in, rows, out;
  View weight{};  // one per row of the buffer, or none
  std::int64_t experts = 1, capacity = 0;
  double scale = 1;
  bool accumulate = false;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("in", s.in, Access::kRead, ExpertRows{});
    v("rows", s.rows, Access::kRead);
    v("weight", s.weight, Access::kRead, ExpertRows{});
    v("out", s.out, s.accumulate ? Access::kUpdate : Access::kWrite);
    v("experts", s.experts);
    v("capacity", s.capacity);
    v("scale", s.scale);
    v("acc", s.accumulate);
  }
};

// ---- row-wise ------------------------------------------------------------------------------------------------------

// out = x * rstd * (gamma_offset + gamma) [+ beta], rstd = 1/sqrt(mean(x^2) + epsilon) of every row: written, or read if it
// is known. gamma_offset 1: a weight of 0 changes nothing (Gemma).
struct RmsNorm {
  static constexpr std::string_view kName = "rms_norm";
  View x, gamma;
  View beta{};
  View out, rstd;
  double epsilon = 1e-6, gamma_offset = 0;
  bool rstd_known = false;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("x", s.x, Access::kRead);
    v("gamma", s.gamma, Access::kRead);
    v("beta", s.beta, Access::kRead);
    v("rstd", s.rstd, s.rstd_known ? Access::kRead : Access::kWrite);
    v("out", s.out, Access::kWrite);
    v("epsilon", s.epsilon);
    v("gamma_offset", s.gamma_offset);
    v("rstd_known", s.rstd_known);
  }
};

// dx += gradient through RmsNorm; dgamma [, dbeta] (+)=.
struct RmsNormBackward {
  static constexpr std::string_view kName = "rms_norm_backward";
  View dy, x, rstd, gamma, dx, dgamma;
  View dbeta{};
  bool accumulate = false;    // into dgamma, dbeta
  bool accumulate_dx = true;  // into dx: the residual stream's gradient already holds the skip path
  double gamma_offset = 0;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("dy", s.dy, Access::kRead);
    v("x", s.x, Access::kRead);
    v("rstd", s.rstd, Access::kRead);
    v("gamma", s.gamma, Access::kRead);
    v("dx", s.dx, s.accumulate_dx ? Access::kUpdate : Access::kWrite);
    v("dgamma", s.dgamma, s.accumulate ? Access::kUpdate : Access::kWrite);
    v("dbeta", s.dbeta, s.accumulate ? Access::kUpdate : Access::kWrite);
    v("acc", s.accumulate);
    v("acc_dx", s.accumulate_dx);
    v("gamma_offset", s.gamma_offset);
  }
};

// out = (x - mean) * rstd * gamma [+ beta], rstd = 1/sqrt(mean((x - mean)^2) + epsilon). mean and rstd of every row are
// written, or read if they are known.
struct LayerNorm {
  static constexpr std::string_view kName = "layer_norm";
  View x, gamma;
  View beta{};
  View out, mean, rstd;
  double epsilon = 1e-5;
  bool known = false;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("x", s.x, Access::kRead);
    v("gamma", s.gamma, Access::kRead);
    v("beta", s.beta, Access::kRead);
    v("mean", s.mean, s.known ? Access::kRead : Access::kWrite);
    v("rstd", s.rstd, s.known ? Access::kRead : Access::kWrite);
    v("out", s.out, Access::kWrite);
    v("epsilon", s.epsilon);
    v("known", s.known);
  }
};

// dx (+)= gradient through LayerNorm; dgamma [, dbeta] (+)=.
struct LayerNormBackward {
  static constexpr std::string_view kName = "layer_norm_backward";
  View dy, x, mean, rstd, gamma, dx, dgamma;
  View dbeta{};
  bool accumulate = false;  // into dgamma, dbeta
  bool accumulate_dx = true;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("dy", s.dy, Access::kRead);
    v("x", s.x, Access::kRead);
    v("mean", s.mean, Access::kRead);
    v("rstd", s.rstd, Access::kRead);
    v("gamma", s.gamma, Access::kRead);
    v("dx", s.dx, s.accumulate_dx ? Access::kUpdate : Access::kWrite);
    v("dgamma", s.dgamma, s.accumulate ? Access::kUpdate : Access::kWrite);
    v("dbeta", s.dbeta, s.accumulate ? Access::kUpdate : Access::kWrite);
    v("acc", s.accumulate);
    v("acc_dx", s.accumulate_dx);
  }
};

// An RMS norm over rows of which each tp rank has some columns, in three: RowMeanSquare, an all-reduce of what it gives,
// RmsScale.
// out (rows, 1) = this part's share of the mean: sum of x^2 / width, `width` columns of the whole row.
struct RowMeanSquare {
  static constexpr std::string_view kName = "row_mean_square";
  View x, out;
  std::int64_t width = 0;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("x", s.x, Access::kRead);
    v("out", s.out, Access::kWrite);
    v("width", s.width);
  }
};

// dx (+)= 2 d x / width.
struct RowMeanSquareBackward {
  static constexpr std::string_view kName = "row_mean_square_backward";
  View d, x, dx;
  std::int64_t width = 0;
  bool accumulate = false;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("d", s.d, Access::kRead);
    v("x", s.x, Access::kRead);
    v("dx", s.dx, s.accumulate ? Access::kUpdate : Access::kWrite);
    v("width", s.width);
    v("acc", s.accumulate);
  }
};

// out = x / sqrt(mean_square + epsilon) * gamma, mean_square of every row.
struct RmsScale {
  static constexpr std::string_view kName = "rms_scale";
  View x, mean_square, gamma, out;
  double epsilon = 1e-6;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("x", s.x, Access::kRead);
    v("mean_square", s.mean_square, Access::kRead);
    v("gamma", s.gamma, Access::kRead);
    v("out", s.out, Access::kWrite);
    v("epsilon", s.epsilon);
  }
};

// dx (+)= dy gamma r, r = 1/sqrt(mean_square + epsilon); dmean_square = -r^3/2 * sum of dy gamma x of the row (so of this
// part's columns); dgamma (+)= column sums of dy x r.
struct RmsScaleBackward {
  static constexpr std::string_view kName = "rms_scale_backward";
  View dy, x, mean_square, gamma, dx, dmean_square, dgamma;
  double epsilon = 1e-6;
  bool accumulate = false;  // into dgamma
  bool accumulate_dx = false;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("dy", s.dy, Access::kRead);
    v("x", s.x, Access::kRead);
    v("mean_square", s.mean_square, Access::kRead);
    v("gamma", s.gamma, Access::kRead);
    v("dx", s.dx, s.accumulate_dx ? Access::kUpdate : Access::kWrite);
    v("dmean_square", s.dmean_square, Access::kWrite);
    v("dgamma", s.dgamma, s.accumulate ? Access::kUpdate : Access::kWrite);
    v("epsilon", s.epsilon);
    v("acc", s.accumulate);
    v("acc_dx", s.accumulate_dx);
  }
};

// Rotates x in place: of `heads` heads, `head_width` columns from one to the next, the first `width` channels, by `spec`
// (rope.h). Row (t, b) has position t + 1, counted from the begin of the whole sequence (own_sequence_part: the rows are
// this tp rank's part of it). inverse: the transpose of that, which rotates back (times attention_factor^2).
struct Rope {
  static constexpr std::string_view kName = "rope";
  View x;
  std::int64_t heads = 1, head_width = 0, width = 0, batch = 1;
  RopeSpec spec{};
  bool own_sequence_part = false, inverse = false;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("x", s.x, Access::kUpdate);
    v("heads", s.heads);
    v("head_width", s.head_width);
    v("width", s.width);
    v("batch", s.batch);
    s.spec.fields(s.spec, v);
    v("own_part", s.own_sequence_part);
    v("inverse", s.inverse);
  }
};

// heads, kv_heads: of this rank. Query head h reads key-value head h / (heads / kv_heads).
struct AttentionShape {
  std::int64_t tokens = 0, batch = 0, heads = 0, kv_heads = 0;
  std::int64_t head_dim = 0, value_dim = 0;  // of q and k, of v
  std::int64_t rope_width = 0;               // of qr and kr, 0: there are none
  std::int64_t block = 128;  // rows of a score block; only the columns that one of its rows sees are computed
  std::int64_t window = 0;   // keys at this distance and beyond are not seen; 0: there is no such
  double scale = 1;          // of scores
  bool operator==(const AttentionShape&) const = default;

  // The first key that row `row` sees. (The last is `row` itself.)
  std::int64_t first_column(std::int64_t row) const { return window > 0 && row >= window ? row - window + 1 : 0; }
  // Columns of a score block, at most: of scratch, which has `block` such rows forward and twice as many backward.
  std::int64_t block_columns() const { return window > 0 && window + block - 1 < tokens ? window + block - 1 : tokens; }
};

// Causal attention, scores scale * (q k^T + qr kr^T). q (T,B,heads*head_dim), k (T,B,kv_heads*head_dim), v
// (T,B,kv_heads*value_dim), qr (T,B,heads*rope_width) and kr (T,B,rope_width), which all heads share, each a window with
// an ld of its own. out (T,B,heads*value_dim). lse (B,heads,T): log-sum-exp of each row of scores. dropout: of
// probabilities, by (global sequence, global head, row, column).
struct Attention {
  static constexpr std::string_view kName = "attention";
  View q, k, v;
  View qr{}, kr{};
  View out, lse, scratch;
  AttentionShape shape;
  double dropout = 0;
  template <class S, class V>
  static void fields(S& s, V&& visit) {
    visit("q", s.q, Access::kRead);
    visit("qr", s.qr, Access::kRead);
    visit("k", s.k, Access::kRead);
    visit("kr", s.kr, Access::kRead);
    visit("v", s.v, Access::kRead);
    visit("out", s.out, Access::kWrite);
    visit("lse", s.lse, Access::kWrite);
    visit("scratch", s.scratch, Access::kWrite);
    visit("heads", s.shape.heads);
    visit("kv_heads", s.shape.kv_heads);
    visit("block", s.shape.block);
    visit("window", s.shape.window);
    visit("scale", s.shape.scale);
    visit("p", s.dropout);
  }
};

// Recomputes the probabilities from lse. dq, dk, dv, dqr, dkr as the operands of Attention: dk and dv are sums over the
// query heads that read them, dkr (T,B,rope_width) over this rank's heads. scratch: two blocks; where operands are narrower
// than scores, T x (head_dim + value_dim + rope_width) more.
struct AttentionBackward {
  static constexpr std::string_view kName = "attention_backward";
  View q, k, v;
  View qr{}, kr{};
  View lse, dout, dq, dk, dv;
  View dqr{}, dkr{};
  View scratch;
  AttentionShape shape;
  double dropout = 0;
  template <class S, class V>
  static void fields(S& s, V&& visit) {
    visit("q", s.q, Access::kRead);
    visit("qr", s.qr, Access::kRead);
    visit("k", s.k, Access::kRead);
    visit("kr", s.kr, Access::kRead);
    visit("v", s.v, Access::kRead);
    visit("lse", s.lse, Access::kRead);
    visit("dout", s.dout, Access::kRead);
    visit("dq", s.dq, Access::kWrite);
    visit("dqr", s.dqr, Access::kWrite);
    visit("dk", s.dk, Access::kWrite);
    visit("dkr", s.dkr, Access::kWrite);
    visit("dv", s.dv, Access::kWrite);
    visit("scratch", s.scratch, Access::kWrite);
    visit("heads", s.shape.heads);
    visit("kv_heads", s.shape.kv_heads);
    visit("block", s.shape.block);
    visit("window", s.shape.window);
    visit("scale", s.shape.scale);
    visit("p", s.dropout);
  }
};

// gelu_tanh(u) = u/2 (1 + tanh(sqrt(2/pi) (u + 0.044715 u^3)));  gelu_erf(u) = u/2 (1 + erf(u/sqrt(2)));
// silu(u) = u / (1 + e^-u);  relu(u) = max(u, 0), whose derivative at 0 is 0.
enum class ActivationKind : std::uint8_t { kGeluTanh, kGeluErf, kSilu, kRelu };
constexpr std::array<std::string_view, 4> kActivationNames{"gelu_tanh", "gelu_erf", "silu", "relu"};
constexpr std::string_view name(ActivationKind k) { return kActivationNames[static_cast<int>(k)]; }

// out = act(in). With `rows`: only the routed rows of an expert buffer.
struct Activation {
  static constexpr std::string_view kName = "activation";
  ActivationKind kind = ActivationKind::kGeluTanh;
  View in, out;
  View rows{};
  std::int64_t experts = 1, capacity = 0;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("in", s.in, Access::kRead, ExpertRows{bool(s.rows)});
    v("rows", s.rows, Access::kRead);
    v("out", s.out, Access::kWrite, ExpertRows{bool(s.rows)});
    v("kind", name(s.kind));
    v("experts", s.experts);
    v("capacity", s.capacity);
  }
};

// d *= act'(in), in place.
struct ActivationBackward {
  static constexpr std::string_view kName = "activation_backward";
  ActivationKind kind = ActivationKind::kGeluTanh;
  View in, d;
  View rows{};
  std::int64_t experts = 1, capacity = 0;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("in", s.in, Access::kRead, ExpertRows{bool(s.rows)});
    v("rows", s.rows, Access::kRead);
    v("d", s.d, Access::kUpdate, ExpertRows{bool(s.rows)});
    v("kind", name(s.kind));
    v("experts", s.experts);
    v("capacity", s.capacity);
  }
};

// out (rows, F) = act(gate) * up, in (rows, 2F) = gate | up. With `rows`: only the routed rows of an expert buffer.
struct GatedActivation {
  static constexpr std::string_view kName = "gated_activation";
  ActivationKind kind = ActivationKind::kSilu;
  View in, out;
  View rows{};
  std::int64_t experts = 1, capacity = 0;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("in", s.in, Access::kRead, ExpertRows{bool(s.rows)});
    v("rows", s.rows, Access::kRead);
    v("out", s.out, Access::kWrite, ExpertRows{bool(s.rows)});
    v("kind", name(s.kind));
    v("experts", s.experts);
    v("capacity", s.capacity);
  }
};

// din = d up act'(gate) | d act(gate).
struct GatedActivationBackward {
  static constexpr std::string_view kName = "gated_activation_backward";
  ActivationKind kind = ActivationKind::kSilu;
  View in, d, din;
  View rows{};
  std::int64_t experts = 1, capacity = 0;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("in", s.in, Access::kRead, ExpertRows{bool(s.rows)});
    v("d", s.d, Access::kRead, ExpertRows{bool(s.rows)});
    v("rows", s.rows, Access::kRead);
    v("din", s.din, Access::kWrite, ExpertRows{bool(s.rows)});
    v("kind", name(s.kind));
    v("experts", s.experts);
    v("capacity", s.capacity);
  }
};

// Where an operation drops out, for the counter-based generator: masks are a function of (seed, step, layer, site,
// global element) and are computed again in the backward pass.
enum class DropoutSite : std::uint8_t { kAttention, kFfn, kExpert, kEmbedding, kScores };
constexpr int kDropoutSites = 5;

// out = [x +] dropout(in [+ sum of the bias chunks]). in, out, x: (Tl, B, C); bias: bias_chunks * C.
struct Residual {
  static constexpr std::string_view kName = "residual";
  View x{};
  View in;
  View bias{};
  View out;
  std::int64_t bias_chunks = 1, batch = 1;
  double dropout = 0;
  DropoutSite site = DropoutSite::kAttention;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("x", s.x, Access::kRead);
    v("in", s.in, Access::kRead);
    v("bias", s.bias, Access::kRead);
    v("out", s.out, Access::kWrite);
    v("bias_chunks", s.bias_chunks);
    v("batch", s.batch);
    v("p", s.dropout);
    v("site", static_cast<int>(s.site));
  }
};

// out = mask * d / keep; each chunk of dbias, where there is one, (+)= its column sums.
struct ResidualBackward {
  static constexpr std::string_view kName = "residual_backward";
  View d, out;
  View dbias{};
  std::int64_t bias_chunks = 1, batch = 1;
  double dropout = 0;
  DropoutSite site = DropoutSite::kAttention;
  bool accumulate = false;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("d", s.d, Access::kRead);
    v("out", s.out, Access::kWrite);
    v("dbias", s.dbias, s.accumulate ? Access::kUpdate : Access::kWrite);
    v("bias_chunks", s.bias_chunks);
    v("batch", s.batch);
    v("p", s.dropout);
    v("site", static_cast<int>(s.site));
    v("acc", s.accumulate);
  }
};

// ---- mixture of experts --------------------------------------------------------------------------------------------

// Row buffers hold the rows that were routed to experts: of expert e those from e * row_capacity() on; or with capacity 0,
// where nothing is dropped, from where expert e-1's end.
struct RouteShape {
  std::int64_t tokens = 0, batch = 0, experts = 0, choices = 0;
  std::int64_t capacity = 0;  // of an expert, per sequence; 0: every row is taken
  bool operator==(const RouteShape&) const = default;
  std::int64_t row_capacity() const { return batch * capacity; }  // of an expert, in the row buffers; 0: packed
  std::int64_t buffer_rows() const { return capacity > 0 ? experts * row_capacity() : tokens * batch * choices; }
};

// How scores (positive) become choices and gates. A token chooses the k experts with the largest scores, ties to the lower
// one: among those of its kept_groups best groups, where the experts are `groups` groups of neighbours. A group's score is
// its experts' largest, or with group_by_two the sum of their two largest.
//   gate = scale * score / (sum over the choices + epsilon)   normalised,   else scale * score
struct RoutingRule {
  bool normalise = true;
  double epsilon = 0, scale = 1;
  std::int64_t groups = 1, kept_groups = 1;
  bool group_by_two = false;
  bool operator==(const RoutingRule&) const = default;

  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("normalise", s.normalise);
    v("epsilon", s.epsilon);
    v("gate_scale", s.scale);
    v("groups", s.groups);
    v("kept_groups", s.kept_groups);
    v("by_two", s.group_by_two);
  }
};

// x = 1/(1+exp(-x)), in place.
struct Sigmoid {
  static constexpr std::string_view kName = "sigmoid";
  View x;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("x", s.x, Access::kUpdate);
  }
};

// d *= y (1 - y), in place, y = sigmoid(x).
struct SigmoidBackward {
  static constexpr std::string_view kName = "sigmoid_backward";
  View y, d;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("y", s.y, Access::kRead);
    v("d", s.d, Access::kUpdate);
  }
};

// Each row becomes e^x / sum of e^x, in place.
struct Softmax {
  static constexpr std::string_view kName = "softmax";
  View x;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("x", s.x, Access::kUpdate);
  }
};

// d = y (d - sum of y d over the row), in place, y = softmax(x).
struct SoftmaxBackward {
  static constexpr std::string_view kName = "softmax_backward";
  View y, d;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("y", s.y, Access::kRead);
    v("d", s.d, Access::kUpdate);
  }
};

// Routing of each sequence by itself (jaxformer_semantics 5 and 11): scores (T,B,E) -> choice (T,B,k) i32,
// slot (T,B,k) i32 (row in the expert buffers, -1: dropped), gate (T,B,k), rows (E) i32, fraction (B,E): share of
// choices f. bias (1,E), where given, is added to the scores for the choice alone. Adds to metrics (where given): balance, load, drops, each weighted 1/tp, as all tp ranks route alike.
//
// With fraction_tokens the balance is over that many tokens, more than are here: fraction (1,E) is theirs, of which this
// operation adds its part, and RouteBackward, when it is complete, adds the balance to metrics.
struct Route {
  static constexpr std::string_view kName = "route";
  View scores, choice, slot, gate, rows, fraction;
  View metrics{};
  RouteShape shape;
  double balance_gradient = 0;  // of the loss by a sequence's sum_e f P: alpha * balance_factor() / step's sequences
  View bias{};
  RoutingRule rule{};
  std::int64_t fraction_tokens = 0;  // 0: each sequence by itself
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("scores", s.scores, Access::kRead);
    v("bias", s.bias, Access::kRead);
    v("choice", s.choice, Access::kWrite);
    v("slot", s.slot, Access::kWrite);
    v("gate", s.gate, Access::kWrite);
    v("rows", s.rows, Access::kWrite);
    v("fraction", s.fraction, s.fraction_tokens > 0 ? Access::kUpdate : Access::kWrite);
    v("metrics", s.metrics, Access::kUpdate);
    v("capacity", s.shape.capacity);
    v("balance_gradient", s.balance_gradient);
    v("fraction_tokens", s.fraction_tokens);
    s.rule.fields(s.rule, v);
  }
};

// dscores (T,B,E) = gradient through scores of the gates, given dgate (T,B,k; partial over tp), and of coefficient x balance:
// that of each tp rank, which all route alike, with weight 1/tp. So dscores is partial over tp. fraction: (B,E), or (1,E) of
// all sequences; metrics, where given: the balance is added, with weight 1/tp.
struct RouteBackward {
  static constexpr std::string_view kName = "route_backward";
  View dgate, scores, choice, gate, fraction, dscores;
  RouteShape shape;
  double coefficient = 0;  // Route's balance_gradient / tp
  RoutingRule rule{};
  View metrics{};
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("dgate", s.dgate, Access::kRead);
    v("scores", s.scores, Access::kRead);
    v("choice", s.choice, Access::kRead);
    v("gate", s.gate, Access::kRead);
    v("fraction", s.fraction, Access::kRead);
    v("dscores", s.dscores, Access::kWrite);
    v("metrics", s.metrics, Access::kUpdate);
    v("coefficient", s.coefficient);
    s.rule.fields(s.rule, v);
  }
};

// rows[slot] = h[token], of every kept choice.
struct Dispatch {
  static constexpr std::string_view kName = "dispatch";
  View h, slot, out;
  RouteShape shape;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("h", s.h, Access::kRead);
    v("slot", s.slot, Access::kRead);
    v("out", s.out, Access::kWrite, ExpertRows{});
  }
};

// dh[token] (+)= sum over kept choices of d[slot].
struct DispatchBackward {
  static constexpr std::string_view kName = "dispatch_backward";
  View d, slot, dh;
  RouteShape shape;
  bool accumulate = false;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("d", s.d, Access::kRead, ExpertRows{});
    v("slot", s.slot, Access::kRead);
    v("dh", s.dh, s.accumulate ? Access::kUpdate : Access::kWrite);
    v("acc", s.accumulate);
  }
};

// out[token] (+)= sum over kept choices of gate * dropout(a[slot] W[expert] [+ bias_scale * bias[expert]]): the experts'
// second product and the sum of what they give, one operation because its gradient needs a and not the product
// (GateBackward). product: buffer_rows() rows, scratch.
struct ExpertCombine {
  static constexpr std::string_view kName = "expert_combine";
  View a, w, choice, slot, gate, rows;
  View bias{};
  View product, out;
  RouteShape shape;
  double bias_scale = 1, dropout = 0;
  bool accumulate = false;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("a", s.a, Access::kRead, ExpertRows{});
    v("w", s.w, Access::kRead);
    v("choice", s.choice, Access::kRead);
    v("slot", s.slot, Access::kRead);
    v("gate", s.gate, Access::kRead);
    v("rows", s.rows, Access::kRead);
    v("bias", s.bias, Access::kRead);
    v("product", s.product, Access::kWrite, ExpertRows{});
    v("out", s.out, s.accumulate ? Access::kUpdate : Access::kWrite);
    v("bias_scale", s.bias_scale);
    v("p", s.dropout);
    v("acc", s.accumulate);
  }
};

// d[slot] = mask * dout[token] / keep, not yet gated; row_gate[slot] = the row's gate.
struct CombineBackward {
  static constexpr std::string_view kName = "combine_backward";
  View dout, choice, slot, gate, d, row_gate;
  RouteShape shape;
  double dropout = 0;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("dout", s.dout, Access::kRead);
    v("choice", s.choice, Access::kRead);
    v("slot", s.slot, Access::kRead);
    v("gate", s.gate, Access::kRead);
    v("d", s.d, Access::kWrite, ExpertRows{});
    v("row_gate", s.row_gate, Access::kWrite, ExpertRows{});
    v("p", s.dropout);
  }
};

// dgate = a[slot].da[slot] [+ bias_scale * d[slot].bias[expert]] of every choice; 0 where it was dropped.
// (a.da with da = d W^T equals d.(a W): the expert's output need not be saved.)
struct GateBackward {
  static constexpr std::string_view kName = "gate_backward";
  View a, da, d;
  View bias{};
  View choice, slot, dgate;
  RouteShape shape;
  double bias_scale = 1;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("a", s.a, Access::kRead, ExpertRows{});
    v("da", s.da, Access::kRead, ExpertRows{});
    v("d", s.d, Access::kRead, ExpertRows{});
    v("bias", s.bias, Access::kRead);
    v("choice", s.choice, Access::kRead);
    v("slot", s.slot, Access::kRead);
    v("dgate", s.dgate, Access::kWrite);
    v("bias_scale", s.bias_scale);
  }
};

// x[row] *= row_gate[row], of the routed rows.
struct RowScale {
  static constexpr std::string_view kName = "row_scale";
  View row_gate, rows, x;
  RouteShape shape;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("row_gate", s.row_gate, Access::kRead, ExpertRows{});
    v("rows", s.rows, Access::kRead);
    v("x", s.x, Access::kUpdate, ExpertRows{});
  }
};

// ---- embedding and loss --------------------------------------------------------------------------------------------

// out[row] = scale * table[tokens[row]] [+ positions[t]], t: of the token in its whole sequence, of which the rows (t, b)
// are this tp rank's part. The table's row `padding` is looked up like others, and gets no gradient.
struct Embed {
  static constexpr std::string_view kName = "embed";
  View table, tokens;
  View positions{};  // at least T rows
  View out;
  double scale = 1;
  std::int64_t batch = 1, padding = -1;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("table", s.table, Access::kRead);
    v("tokens", s.tokens, Access::kRead);
    v("positions", s.positions, Access::kRead);
    v("out", s.out, Access::kWrite);
    v("scale", s.scale);
    v("batch", s.batch);
    v("padding", s.padding);
  }
};

// dtable[tokens[row]] += scale * d[row]; dpositions[t] += d[row].
struct EmbedBackward {
  static constexpr std::string_view kName = "embed_backward";
  View d, tokens, dtable;
  View dpositions{};
  double scale = 1;
  std::int64_t batch = 1, padding = -1;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("d", s.d, Access::kRead);
    v("tokens", s.tokens, Access::kRead);
    v("dtable", s.dtable, Access::kUpdate);
    v("dpositions", s.dpositions, Access::kUpdate);
    v("scale", s.scale);
    v("batch", s.batch);
    v("padding", s.padding);
  }
};

// Logits, softmax cross-entropy and their gradient, `logits.rows` rows at a time so that a batch's logits never exist:
// metrics += sum of -log softmax(x table^T [+ bias])[target]; dx, dtable [, dbias] += gradient of `scale` times that sum, or
// none of these: the loss alone.
struct LmHead {
  static constexpr std::string_view kName = "lm_head";
  View x, table, targets, dx, dtable, logits, metrics;
  View bias{}, dbias{};  // 1 x V
  double scale = 1;      // 1 / tokens of the step
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("x", s.x, Access::kRead);
    v("table", s.table, Access::kRead);
    v("targets", s.targets, Access::kRead);
    v("dx", s.dx, Access::kWrite);
    v("dtable", s.dtable, Access::kUpdate);
    v("bias", s.bias, Access::kRead);
    v("dbias", s.dbias, Access::kUpdate);
    v("logits", s.logits, Access::kWrite);
    v("metrics", s.metrics, Access::kUpdate);
    v("scale", s.scale);
  }
};

// ---- optimizer -----------------------------------------------------------------------------------------------------

struct Fill {  // x = 0
  static constexpr std::string_view kName = "fill";
  View x;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("x", s.x, Access::kWrite);
  }
};

struct Cast {  // out = in, in out's dtype
  static constexpr std::string_view kName = "cast";
  View in, out;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("in", s.in, Access::kRead);
    v("out", s.out, Access::kWrite);
  }
};

// metrics[kSquaredNorm] += weight * sum of squares, weight = 1 / copies of these elements among all ranks, so that a sum
// over dp, tp and pp counts every distinct element once.
struct SumSquares {
  static constexpr std::string_view kName = "sum_squares";
  View x, metrics;
  double weight = 1;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("x", s.x, Access::kRead);
    v("metrics", s.metrics, Access::kUpdate);
    v("weight", s.weight);
  }
};

struct AdamSpec {
  double beta1 = 0.9, beta2 = 0.999, epsilon = 1e-8;
  double weight_decay = 1e-4;
  double clip_norm = 1;  // largest global norm of the gradients; 0: whatever it is
  bool operator==(const AdamSpec&) const = default;
};

// Clip by the global norm (from metrics), AdamW, weight decay: jaxformer_semantics 9. Gradients are left as they are.
struct AdamW {
  static constexpr std::string_view kName = "adamw";
  View grad, metrics, param, m, v_;
  AdamSpec spec{};
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("grad", s.grad, Access::kRead);
    v("metrics", s.metrics, Access::kRead);
    v("param", s.param, Access::kUpdate);
    v("m", s.m, Access::kUpdate);
    v("v", s.v_, Access::kUpdate);
    v("beta1", s.spec.beta1);
    v("beta2", s.spec.beta2);
    v("epsilon", s.spec.epsilon);
    v("weight_decay", s.spec.weight_decay);
    v("clip_norm", s.spec.clip_norm);
  }
};

// ---- communication -------------------------------------------------------------------------------------------------

enum class CollectiveKind : std::uint8_t { kAllGather, kReduceScatter, kAllReduce };
constexpr std::array<std::string_view, 3> kCollectiveNames{"all-gather", "reduce-scatter", "all-reduce"};
constexpr std::string_view name(CollectiveKind k) { return kCollectiveNames[static_cast<int>(k)]; }

// kRing: p-1 steps around the group, each passing 1/p of the buffer (all-reduce: twice). kDirect: every member sends
// its whole buffer to every other, and sums in member order, so that all get the same bits; for a few numbers.
enum class Algorithm : std::uint8_t { kRing, kDirect };

// Along dimension 0, in member order. all-gather: dst = the members' src, one after another (src may be this member's
// part of dst: in_place). reduce-scatter: dst (+)= this member's part of the sum of src (in_place: left in that part of
// src). all-reduce: src = dst = the sum.
struct Collective {
  static constexpr std::string_view kName = "collective";
  CollectiveKind kind = CollectiveKind::kAllGather;
  Group group = Group::kTp;
  Algorithm algorithm = Algorithm::kRing;
  View src, dst;
  View scratch{};  // receive buffer of reductions: 1/p of the buffer (kRing), p buffers (kDirect)
  bool in_place = false, accumulate = false;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("src", s.src, s.in_place || s.kind == CollectiveKind::kAllReduce ? Access::kUpdate : Access::kRead);
    v("dst", s.dst, s.accumulate || s.in_place ? Access::kUpdate : Access::kWrite);
    v("scratch", s.scratch, Access::kWrite);
    v("in_place", s.in_place);
    v("acc", s.accumulate);
  }
};

enum class Direction : std::int8_t { kNext = 1, kPrevious = -1 };  // one step along pp

struct Send {
  static constexpr std::string_view kName = "send";
  View x;
  Direction to = Direction::kNext;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("x", s.x, Access::kRead);
    v("to", static_cast<int>(s.to));
  }
};

struct Recv {
  static constexpr std::string_view kName = "recv";
  View x;
  Direction from = Direction::kPrevious;
  template <class S, class V>
  static void fields(S& s, V&& v) {
    v("x", s.x, Access::kWrite);
    v("from", static_cast<int>(s.from));
  }
};

struct Free {  // the end of a workspace tensor's life
  static constexpr std::string_view kName = "free";
  TensorId tensor = kNoTensor;
  template <class S, class V>
  static void fields(S&, V&&) {}
};

using Op =
    std::variant<Gemm, GroupedGemm, ColumnSum, GroupedColumnSum, RmsNorm, RmsNormBackward, LayerNorm, LayerNormBackward,
                 RowMeanSquare, RowMeanSquareBackward, RmsScale, RmsScaleBackward, Rope, Attention, AttentionBackward,
                 Activation, ActivationBackward, GatedActivation, GatedActivationBackward, Residual, ResidualBackward,
                 Sigmoid, SigmoidBackward, Softmax, SoftmaxBackward, Route, RouteBackward, Dispatch, DispatchBackward,
                 ExpertCombine, CombineBackward, GateBackward, RowScale, Embed, EmbedBackward, LmHead, Fill, Cast,
                 SumSquares, AdamW, Collective, Send, Recv, Free>;
constexpr int kOpKinds = std::variant_size_v<Op>;

// Index of an operation's kind, and its name: "gemm", "all-gather", ...
using OpKind = std::uint8_t;
inline OpKind kind_of(const Op& op) { return static_cast<OpKind>(op.index()); }
std::string_view kind_name(OpKind kind);  // a collective's is "collective"
std::string_view op_name(const Op& op);   // a collective's is its own: "all-gather"

enum class Stream : std::uint8_t { kCompute, kTp, kDp, kPp, kSendNext, kRecvPrevious, kSendPrevious, kRecvNext };
constexpr int kStreams = 8;
constexpr std::array<std::string_view, kStreams> kStreamNames{
    "compute", "tp", "dp", "pp", "send next", "recv previous", "send previous", "recv next"};
constexpr std::string_view name(Stream s) { return kStreamNames[static_cast<int>(s)]; }
Stream stream_of(const Op& op);  // Free runs nowhere and takes no time: kCompute

// Entries of the metrics tensor: sums over the ranks' shares, complete after the all-reduces that end a step.
enum Metric : int { kSquaredNorm, kCrossEntropySum, kBalanceSum, kDroppedSum, kLoadFirst };  // then one load per expert

// Calls f(name, view&, access) for every operand, present or not, which f may change.
template <class F>
void map_operands(Op& op, F&& f) {
  std::visit(
      [&](auto& o) {
        std::remove_cvref_t<decltype(o)>::fields(o, [&](std::string_view field, auto&&... rest) {
          if constexpr (kIsOperand<decltype(rest)...>)
            [&](View& view, Access access, ExpertRows = {}) { f(field, view, access); }(rest...);
        });
      },
      op);
}

// Calls f(name, view, access) for every operand that is present.
template <class F>
void for_each_operand(const Op& op, F&& f) {
  std::visit(
      [&](const auto& o) {
        std::remove_cvref_t<decltype(o)>::fields(o, [&](std::string_view field, const auto&... rest) {
          if constexpr (kIsOperand<decltype(rest)...>) {
            [&](const View& view, Access access, ExpertRows = {}) {
              if (view) f(field, view, access);
            }(rest...);
          }
        });
      },
      op);
}

}  // namespace meshwright
