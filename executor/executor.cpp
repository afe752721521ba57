#include "executor/executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "executor/comm/byte_counter.h"
#include "executor/kernels/activation.h"
#include "executor/kernels/adamw.h"
#include "executor/kernels/attention.h"
#include "executor/kernels/dropout.h"
#include "executor/kernels/elementwise.h"
#include "executor/kernels/embedding.h"
#include "executor/kernels/experts.h"
#include "executor/kernels/flop_count.h"
#include "executor/kernels/gemm.h"
#include "executor/kernels/initial_weights.h"
#include "executor/kernels/layer_norm.h"
#include "executor/kernels/lm_head.h"
#include "executor/kernels/rms_norm.h"
#include "executor/kernels/routing.h"
#include "executor/launch/heartbeat.h"
#include "model/program/layout.h"
#include "model/program/check.h"
#include "model/program/op_work.h"

namespace meshwright {
namespace {

using Clock = std::chrono::steady_clock;
using kernels::ExpertRows;
using kernels::Transpose;

Transpose transpose(bool t) { return t ? Transpose::kYes : Transpose::kNo; }

}  // namespace

// Runs one step. One overload per kind of operation: what it means stands in model/program/op.h.
template <class Real>
class Executor<Real>::Interpreter {
 public:
  Interpreter(Executor& executor, const StepInput& input)
      : e_(executor),
        input_(input),
        beat_(executor.options_.beat ? *executor.options_.beat : unseen_),
        mesh_(executor.mesh_),
        begin_(Clock::now()) {
    const StepShape& step = e_.set_.step;
    sequences_.resize(static_cast<std::size_t>(step.microbatch));
    for (const Block& block : e_.set_.blocks)
      routed_rows_.resize(std::max(routed_rows_.size(), static_cast<std::size_t>(block.layer + 1)));
    scratch_.resize(
        static_cast<std::size_t>(kernels::routing_scratch({.tokens = step.tokens, .experts = e_.set_.experts})));
  }

  void run() {
    beat_.step = input_.step;
    beat_.now(Activity::kReadingData);
    fill_tokens();
    for (const Slot& slot : e_.program_.slots) {
      slot_ = &slot;
      if (slot.action == Action::kUpdate) require_finite();
      if (slot.microbatch >= 0) number_sequences(slot.microbatch);
      for (const Call& call : e_.program_.chunks[slot.chunk].calls) {
        call_ = &call;
        piece_ = &e_.set_.pieces[call.piece];
        for (const Op& op : piece_->ops) run(op);
      }
    }
    for (Sent& s : pending_) s.send.wait();
    beat_.now(Activity::kEndOfStep);
  }

  std::int64_t high_water() const { return high_water_; }
  std::vector<std::int64_t> take_routed_rows() { return std::move(routed_rows_); }
  std::vector<Interval> take_timeline() { return std::move(timeline_); }
  const double* metrics() const { return metrics_; }

 private:
  // ---- operands ----

  std::byte* bytes(const View& v) {
    const Tensor& t = piece_->tensors[v.tensor];
    const std::int64_t at = address(e_.program_, *slot_, *call_, t);
    high_water_ = std::max(high_water_, at + t.bytes());
    const int tp = mesh_.coordinates().tp;
    const std::int64_t skip = v.offset + (v.own_rows ? tp * v.rows * v.ld : 0) + (v.own_cols ? tp * v.cols : 0);
    return e_.arena_.data() + at + skip * size_of(t.dtype);
  }
  Real* real(const View& v) { return v ? reinterpret_cast<Real*>(bytes(v)) : nullptr; }
  std::int32_t* ints(const View& v) { return reinterpret_cast<std::int32_t*>(bytes(v)); }
  double* metrics(const View& v) { return metrics_ = reinterpret_cast<double*>(bytes(v)); }
  static std::int64_t count(const View& v) { return v.rows * v.cols; }
  std::span<Real> span(const View& v) { return {real(v), static_cast<std::size_t>(count(v))}; }

  kernels::TokenRows token_rows(std::int64_t tokens, bool own_part) {
    const std::int64_t whole = e_.set_.step.tokens;
    return {tokens, e_.set_.step.microbatch, whole, own_part ? mesh_.coordinates().tp * tokens : 0, sequences_.data()};
  }
  kernels::Dropout dropout(DropoutSite site, double p) const {
    return {e_.options_.seed, static_cast<std::uint32_t>(input_.step),
            static_cast<std::uint32_t>((call_->layer + 1) * kDropoutSites + static_cast<int>(site)), p};
  }
  ExpertRows expert_rows(const View& rows, std::int64_t experts, std::int64_t capacity) {
    return {experts, capacity, ints(rows)};
  }
  template <class T>
  kernels::TokenMatrix<T> matrix(const View& v) {
    return {real(v), v.ld};
  }

  // ---- the step around the operations ----

  void number_sequences(int microbatch) {
    const StepShape& step = e_.set_.step;
    const std::int64_t first =
        (static_cast<std::int64_t>(microbatch) * mesh_.shape().dp + mesh_.coordinates().dp) * step.microbatch;
    for (std::int64_t b = 0; b < step.microbatch; ++b) sequences_[static_cast<std::size_t>(b)] = first + b;
  }

  // The sums are complete here, and the same on every rank: all go on, or all stop.
  void require_finite() {
    for (const Metric sum : {kSquaredNorm, kCrossEntropySum, kBalanceSum}) {
      if (std::isfinite(metrics_[sum])) continue;
      for (Sent& s : pending_) s.send.wait();
      e_.stop_diverged(input_.step, metrics_);
    }
  }

  void fill_tokens() {
    if (e_.tokens_offset_ < 0) return;
    const StepShape& step = e_.set_.step;
    const std::int64_t part = align_up(step.tokens / mesh_.shape().tp * step.microbatch * size_of(DType::kI32));
    for (int m = 0; m < step.microbatches; ++m) {
      std::byte* at = e_.arena_.data() + e_.tokens_offset_ + 2 * m * part;
      input_.fill(m, reinterpret_cast<std::int32_t*>(at), reinterpret_cast<std::int32_t*>(at + part));
    }
  }

  // An operation that writes where a message is still being sent from depends on the send.
  void wait_for_sends(const Op& op) {
    for_each_operand(op, [&](std::string_view, const View& view, Access access) {
      if (access == Access::kRead) return;
      const Tensor& t = piece_->tensors[static_cast<std::size_t>(view.tensor)];
      const std::int64_t begin = address(e_.program_, *slot_, *call_, t), end = begin + t.bytes();
      std::erase_if(pending_, [&](Sent& s) {
        if (s.end <= begin || end <= s.begin) return false;
        s.send.wait();
        return true;
      });
    });
  }

  void run(const Op& op) {
    beat_.begins(*slot_, call_->layer, op);
    if (!pending_.empty()) wait_for_sends(op);
    if (!e_.options_.timeline) {
      std::visit([this](const auto& o) { (*this)(o); }, op);
      return;
    }
    if (std::holds_alternative<Free>(op)) return;
    const auto begin = Clock::now();
    const std::int64_t flops = kernels::flop_count();
    std::visit([this](const auto& o) { (*this)(o); }, op);
    const auto seconds = [&](Clock::time_point t) {
      return Seconds{std::chrono::duration<double>(t - begin_).count()};
    };
    timeline_.push_back({stream_of(op), seconds(begin), seconds(Clock::now()), op_name(op),
                         place_of(e_.program_, *slot_, *call_, *piece_, op), bytes_sent(op, *piece_, mesh_.shape()),
                         Flops{kernels::flop_count() - flops}});
  }

  // ---- matrix products ----

  void operator()(const Gemm& op) {
    kernels::gemm<Real>(transpose(op.ta), transpose(op.tb), op.m(), op.n(), op.k(), 1, real(op.a), op.a.ld, real(op.b),
                        op.b.ld, op.accumulate ? 1 : 0, real(op.c), op.c.ld);
    if (op.bias) kernels::add_bias<Real>(op.m(), op.n(), real(op.bias), real(op.c), op.c.ld);
  }
  void operator()(const GroupedGemm& op) {
    const ExpertRows rows = expert_rows(op.rows, op.experts, op.capacity);
    if (op.ta) {
      kernels::expert_weight_gradient<Real>(rows, op.a.cols, op.b.cols, real(op.a), op.a.ld, real(op.b), op.b.ld,
                                            op.accumulate, real(op.c));
      return;
    }
    kernels::expert_gemm<Real>(rows, transpose(op.tb), op.c.cols, op.a.cols, real(op.a), op.a.ld, real(op.b),
                               real(op.c), op.c.ld);
    if (op.bias) kernels::expert_add_bias<Real>(rows, op.c.cols, real(op.bias), real(op.c));
  }
  void operator()(const ColumnSum& op) {
    kernels::column_sum<Real>(op.in.rows, op.in.cols, real(op.in), op.in.ld, op.accumulate, op.repeat, real(op.out));
  }
  void operator()(const GroupedColumnSum& op) {
    kernels::expert_column_sum<Real>(expert_rows(op.rows, op.experts, op.capacity), op.in.cols, real(op.in),
                                     real(op.weight), static_cast<Real>(op.scale), op.accumulate, real(op.out));
  }

  // ---- row-wise ----

  void operator()(const RmsNorm& op) {
    const kernels::NormWeights<Real> weights{real(op.gamma), real(op.beta), op.gamma_offset};
    if (op.rstd_known)
      kernels::rms_norm_apply<Real>(op.x.rows, op.x.cols, real(op.x), real(op.rstd), weights, real(op.out));
    else
      kernels::rms_norm<Real>(op.x.rows, op.x.cols, real(op.x), weights, op.epsilon, real(op.out), real(op.rstd));
  }
  void operator()(const RmsNormBackward& op) {
    kernels::rms_norm_backward<Real>(op.x.rows, op.x.cols, real(op.x), real(op.rstd),
                                     {real(op.gamma), nullptr, op.gamma_offset}, real(op.dy),
                                     {real(op.dx), op.accumulate_dx, real(op.dgamma), real(op.dbeta), op.accumulate});
  }
  void operator()(const LayerNorm& op) {
    const kernels::NormWeights<Real> weights{real(op.gamma), real(op.beta)};
    if (op.known)
      kernels::layer_norm_apply<Real>(op.x.rows, op.x.cols, real(op.x), real(op.mean), real(op.rstd), weights,
                                      real(op.out));
    else
      kernels::layer_norm<Real>(op.x.rows, op.x.cols, real(op.x), weights, op.epsilon, real(op.out), real(op.mean),
                                real(op.rstd));
  }
  void operator()(const LayerNormBackward& op) {
    kernels::layer_norm_backward<Real>(op.x.rows, op.x.cols, real(op.x), real(op.mean), real(op.rstd),
                                       {real(op.gamma), nullptr}, real(op.dy),
                                       {real(op.dx), op.accumulate_dx, real(op.dgamma), real(op.dbeta), op.accumulate});
  }
  void operator()(const RowMeanSquare& op) {
    kernels::row_mean_square<Real>(op.x.rows, op.x.cols, real(op.x), op.width, real(op.out));
  }
  void operator()(const RowMeanSquareBackward& op) {
    kernels::row_mean_square_backward<Real>(op.x.rows, op.x.cols, real(op.d), real(op.x), op.width, op.accumulate,
                                            real(op.dx));
  }
  void operator()(const RmsScale& op) {
    kernels::rms_scale<Real>(op.x.rows, op.x.cols, real(op.x), real(op.mean_square), real(op.gamma), op.epsilon,
                             real(op.out));
  }
  void operator()(const RmsScaleBackward& op) {
    kernels::rms_scale_backward<Real>(
        op.x.rows, op.x.cols, real(op.x), real(op.mean_square), real(op.gamma), op.epsilon, real(op.dy),
        {real(op.dx), op.accumulate_dx, real(op.dgamma), nullptr, op.accumulate}, real(op.dmean_square));
  }
  void operator()(const Rope& op) {
    const std::int64_t tokens = op.x.rows / op.batch;
    kernels::rope<Real>(rope_table(op.spec, op.width),
                        {tokens, op.batch, op.heads, op.head_width, op.x.ld,
                         op.own_sequence_part ? mesh_.coordinates().tp * tokens : 0},
                        op.inverse, real(op.x));
  }
  const kernels::RopeTable<Real>& rope_table(const RopeSpec& spec, std::int64_t width) {
    for (const auto& table : e_.rope_tables_)
      if (table->width() == width && table->spec() == spec) return *table;
    return *e_.rope_tables_.emplace_back(std::make_unique<kernels::RopeTable<Real>>(spec, width, e_.set_.step.tokens));
  }

  template <class AttentionOp>
  kernels::AttentionInputs<Real> attention_inputs(const AttentionOp& op) {
    return {matrix<const Real>(op.q), matrix<const Real>(op.k), matrix<const Real>(op.v), matrix<const Real>(op.qr),
            matrix<const Real>(op.kr)};
  }
  kernels::AttentionDropout attention_dropout(const AttentionShape& shape, double p) const {
    return {dropout(DropoutSite::kScores, p), sequences_.data(), mesh_.coordinates().tp * shape.heads,
            mesh_.shape().tp * shape.heads};
  }
  void operator()(const Attention& op) {
    kernels::attention_forward<Real>(op.shape, attention_inputs(op), attention_dropout(op.shape, op.dropout),
                                     matrix<Real>(op.out), real(op.lse), real(op.scratch));
  }
  void operator()(const AttentionBackward& op) {
    kernels::attention_backward<Real>(
        op.shape, attention_inputs(op), attention_dropout(op.shape, op.dropout), real(op.lse),
        matrix<const Real>(op.dout),
        {matrix<Real>(op.dq), matrix<Real>(op.dk), matrix<Real>(op.dv), matrix<Real>(op.dqr), matrix<Real>(op.dkr)},
        real(op.scratch));
  }
  void operator()(const Activation& op) {
    if (op.rows)
      kernels::expert_activation<Real>(expert_rows(op.rows, op.experts, op.capacity), op.kind, op.in.cols, real(op.in),
                                       real(op.out));
    else
      kernels::activation<Real>(op.kind, count(op.in), real(op.in), real(op.out));
  }
  void operator()(const ActivationBackward& op) {
    if (op.rows)
      kernels::expert_activation_backward<Real>(expert_rows(op.rows, op.experts, op.capacity), op.kind, op.in.cols,
                                                real(op.in), real(op.d), real(op.d));
    else
      kernels::activation_backward<Real>(op.kind, count(op.in), real(op.in), real(op.d), real(op.d));
  }
  void operator()(const GatedActivation& op) {
    if (op.rows)
      kernels::expert_gated_activation<Real>(expert_rows(op.rows, op.experts, op.capacity), op.kind, op.out.cols,
                                             real(op.in), real(op.out));
    else
      kernels::gated_activation<Real>(op.kind, op.out.rows, op.out.cols, real(op.in), real(op.out));
  }
  void operator()(const GatedActivationBackward& op) {
    if (op.rows)
      kernels::expert_gated_activation_backward<Real>(expert_rows(op.rows, op.experts, op.capacity), op.kind, op.d.cols,
                                                      real(op.in), real(op.d), real(op.din));
    else
      kernels::gated_activation_backward<Real>(op.kind, op.d.rows, op.d.cols, real(op.in), real(op.d), real(op.din));
  }
  template <class ResidualOp>
  kernels::Residual<Real> residual(const ResidualOp& op, const View& rows) {
    return {token_rows(rows.rows / op.batch, true), rows.cols, dropout(op.site, op.dropout), nullptr, op.bias_chunks};
  }
  void operator()(const Residual& op) {
    kernels::Residual<Real> r = residual(op, op.in);
    r.bias = real(op.bias);
    kernels::residual<Real>(r, real(op.x), real(op.in), real(op.out));
  }
  void operator()(const ResidualBackward& op) {
    kernels::residual_backward<Real>(residual(op, op.d), real(op.d), real(op.out), real(op.dbias), op.accumulate);
  }

  // ---- mixture of experts ----

  void operator()(const Sigmoid& op) { kernels::sigmoid<Real>(count(op.x), real(op.x), real(op.x)); }

  void operator()(const SigmoidBackward& op) {
    kernels::sigmoid_backward<Real>(count(op.y), real(op.y), real(op.d), real(op.d));
  }

  void operator()(const Softmax& op) { kernels::softmax<Real>(op.x.rows, op.x.cols, real(op.x)); }
  void operator()(const SoftmaxBackward& op) {
    kernels::softmax_backward<Real>(op.y.rows, op.y.cols, real(op.y), real(op.d));
  }

  void operator()(const Route& op) {
    const RouteShape& shape = op.shape;
    const kernels::Routing<Real> routing{ints(op.choice), ints(op.slot), real(op.gate), ints(op.rows),
                                         real(op.fraction)};
    double balance = 0;
    std::int64_t dropped = 0;
    std::vector<double> load(static_cast<std::size_t>(shape.experts), 0.0);
    const kernels::RoutingStatistics statistics{load.data(), &dropped, &balance};
    if (input_.replay) {
      const auto [choice, kept] = recorded(op.shape);
      kernels::replay_routing<Real>(shape, op.rule, real(op.scores), choice.data(), kept.data(), routing, statistics,
                                    scratch_.data());
    } else {
      kernels::route<Real>(shape, op.rule, real(op.scores), real(op.bias), routing, statistics, scratch_.data());
    }
    if (!op.metrics) return;  // recomputed: counted before
    if (input_.record) record(op.shape, routing);
    double* sums = metrics(op.metrics);
    const double share = 1.0 / mesh_.shape().tp;
    sums[kBalanceSum] += share * balance;
    sums[kDroppedSum] += share * static_cast<double>(dropped);
    for (std::int64_t e = 0; e < shape.experts; ++e) {
      sums[kLoadFirst + e] += share * load[static_cast<std::size_t>(e)];
      routed_rows_[static_cast<std::size_t>(call_->layer)] += routing.rows[e];
    }
  }
  void record(const RouteShape& s, const kernels::Routing<Real>& routing) {
    for (std::int64_t b = 0; b < s.batch; ++b) {
      SequenceRouting& r = (*input_.record)[{call_->layer, sequences_[static_cast<std::size_t>(b)]}];
      r.choice.clear();
      r.kept.clear();
      for (std::int64_t t = 0; t < s.tokens; ++t)
        for (std::int64_t j = 0; j < s.choices; ++j) {
          const std::int64_t i = (t * s.batch + b) * s.choices + j;
          r.choice.push_back(routing.choice[i]);
          r.kept.push_back(routing.slot[i] >= 0);
        }
    }
  }
  std::pair<std::vector<std::int32_t>, std::vector<std::uint8_t>> recorded(const RouteShape& s) const {
    std::vector<std::int32_t> choice(static_cast<std::size_t>(s.tokens * s.batch * s.choices));
    std::vector<std::uint8_t> kept(choice.size());
    for (std::int64_t b = 0; b < s.batch; ++b) {
      const SequenceRouting& r = input_.replay->at({call_->layer, sequences_[static_cast<std::size_t>(b)]});
      for (std::int64_t t = 0; t < s.tokens; ++t)
        for (std::int64_t j = 0; j < s.choices; ++j) {
          const auto to = static_cast<std::size_t>((t * s.batch + b) * s.choices + j);
          const auto from = static_cast<std::size_t>(t * s.choices + j);
          choice[to] = r.choice[from];
          kept[to] = r.kept[from];
        }
    }
    return {std::move(choice), std::move(kept)};
  }

  void operator()(const RouteBackward& op) {
    kernels::routing_backward<Real>(op.shape, op.rule, real(op.scores), ints(op.choice), real(op.gate), real(op.dgate),
                                    real(op.dscores));
    kernels::balance_backward<Real>(op.shape, op.shape.tokens, real(op.scores), real(op.fraction),
                                    static_cast<Real>(op.coefficient), real(op.dscores));
  }
  void operator()(const Dispatch& op) {
    kernels::dispatch<Real>(op.h.rows, op.shape.choices, op.h.cols, ints(op.slot), real(op.h), real(op.out));
  }
  void operator()(const DispatchBackward& op) {
    if (!op.accumulate) kernels::fill<Real>(count(op.dh), 0, real(op.dh));
    kernels::dispatch_backward<Real>(op.dh.rows, op.shape.choices, op.dh.cols, ints(op.slot), real(op.d), real(op.dh));
  }
  kernels::Combine<Real> combine(const RouteShape& s, std::int64_t width, double p, const View& choice,
                                 const View& slot, const View& gate) {
    return {token_rows(s.tokens, false),      s.experts,    s.choices,  width,
            dropout(DropoutSite::kExpert, p), ints(choice), ints(slot), real(gate)};
  }
  void operator()(const ExpertCombine& op) {
    kernels::expert_gemm<Real>(expert_rows(op.rows, op.shape.experts, op.shape.row_capacity()), Transpose::kNo,
                               op.product.cols, op.a.cols, real(op.a), op.a.ld, real(op.w), real(op.product),
                               op.product.ld);
    kernels::combine<Real>(combine(op.shape, op.out.cols, op.dropout, op.choice, op.slot, op.gate), real(op.product),
                           real(op.bias), static_cast<Real>(op.bias_scale), op.accumulate, real(op.out));
  }
  void operator()(const CombineBackward& op) {
    kernels::combine_backward<Real>(combine(op.shape, op.dout.cols, op.dropout, op.choice, op.slot, op.gate),
                                    real(op.dout), real(op.d), real(op.row_gate));
  }
  void operator()(const GateBackward& op) {
    kernels::gate_gradient<Real>(combine(op.shape, op.d.cols, 0, op.choice, op.slot, {}), op.a.cols, real(op.a),
                                 real(op.da), real(op.d), real(op.bias), static_cast<Real>(op.bias_scale),
                                 real(op.dgate));
  }
  void operator()(const RowScale& op) {
    kernels::expert_scale_rows<Real>(expert_rows(op.rows, op.shape.experts, op.shape.row_capacity()), op.x.cols,
                                     real(op.row_gate), real(op.x));
  }

  // ---- embedding and loss ----

  kernels::EmbeddingRows embedding_rows(const View& rows, std::int64_t batch, const View& tokens) {
    return {rows.rows, rows.cols, batch, mesh_.coordinates().tp * (rows.rows / batch), ints(tokens)};
  }
  void operator()(const Embed& op) {
    kernels::embedding<Real>(embedding_rows(op.out, op.batch, op.tokens), real(op.table), real(op.positions), op.scale,
                             real(op.out));
  }
  void operator()(const EmbedBackward& op) {
    kernels::embedding_backward<Real>(embedding_rows(op.d, op.batch, op.tokens), real(op.d), op.scale, op.padding,
                                      real(op.dtable), real(op.dpositions));
  }
  void operator()(const LmHead& op) {
    kernels::LmHead<Real> head{.rows = op.x.rows,
                               .width = op.x.cols,
                               .vocabulary = op.table.rows,
                               .chunk = op.logits.rows,
                               .x = real(op.x),
                               .table = real(op.table),
                               .bias = real(op.bias),
                               .targets = ints(op.targets),
                               .scratch = real(op.logits),
                               .loss_scale = static_cast<Real>(op.scale),
                               .dx = real(op.dx),
                               .dtable = real(op.dtable),
                               .dbias = real(op.dbias),
                               .accumulate_dtable = true};
    const std::function<void(std::int64_t, std::int64_t, const Real*)> watch =
        [&](std::int64_t first, std::int64_t rows, const Real* logits) {
          e_.on_logits(first, rows, op.table.rows, logits);
        };
    if (e_.on_logits) head.on_logits = &watch;
    metrics(op.metrics)[kCrossEntropySum] += kernels::lm_head<Real>(head).loss;
  }

  // ---- optimizer ----

  void operator()(const Fill& op) {
    std::memset(bytes(op.x), 0, static_cast<std::size_t>(count(op.x) * size_of(piece_->tensors[op.x.tensor].dtype)));
  }
  // Both are Real: this executor computes in the dtype of its state.
  void operator()(const Cast& op) { std::copy_n(real(op.in), count(op.in), real(op.out)); }
  void operator()(const SumSquares& op) {
    const double sum = kernels::sum_squares<Real>(count(op.x), real(op.x));
    metrics(op.metrics)[kSquaredNorm] += op.weight * sum;
  }
  void operator()(const AdamW& op) {
    const double norm = std::sqrt(metrics(op.metrics)[kSquaredNorm]);
    const AdamSpec& spec = op.spec;
    const double factor = spec.clip_norm == 0 || norm < spec.clip_norm ? 1.0 : spec.clip_norm / norm;
    kernels::adamw<Real>({.step = input_.step,
                          .learning_rate = input_.learning_rate,
                          .gradient_factor = factor,
                          .beta1 = spec.beta1,
                          .beta2 = spec.beta2,
                          .epsilon = spec.epsilon,
                          .weight_decay = spec.weight_decay},
                         count(op.grad), real(op.grad), real(op.param), real(op.m), real(op.v_));
  }

  // ---- communication ----

  void operator()(const Collective& op) {
    const MPI_Comm comm = mesh_.comm(op.group);
    if (op.algorithm == Algorithm::kDirect) {
      double* x = reinterpret_cast<double*>(bytes(op.src));
      direct_all_reduce<double>(
          comm, {x, static_cast<std::size_t>(count(op.src))},
          {reinterpret_cast<double*>(bytes(op.scratch)), static_cast<std::size_t>(count(op.scratch))});
      return;
    }
    switch (op.kind) {
      case CollectiveKind::kAllGather:
        ring_all_gather<Real>(comm, span(op.src), span(op.dst));
        break;
      case CollectiveKind::kReduceScatter:
        ring_reduce_scatter<Real>(comm, span(op.src), span(op.dst), span(op.scratch), op.accumulate);
        break;
      case CollectiveKind::kAllReduce:
        ring_all_reduce<Real>(comm, span(op.src), span(op.scratch));
        break;
    }
  }
  int neighbour(Direction d) const { return mesh_.coordinates().pp + static_cast<int>(d); }
  void operator()(const Send& op) {
    const auto x = span(op.x);
    const std::int64_t begin = reinterpret_cast<std::byte*>(x.data()) - e_.arena_.data();
    pending_.push_back({begin, begin + static_cast<std::int64_t>(x.size_bytes()),
                        isend<Real>(mesh_.comm(Group::kPp), neighbour(op.to), x)});
  }
  void operator()(const Recv& op) { recv<Real>(mesh_.comm(Group::kPp), neighbour(op.from), span(op.x)); }
  void operator()(const Free&) {}

  struct Sent {
    std::int64_t begin, end;  // bytes of the arena that are being read
    PendingSend send;
  };

  Executor& e_;
  const StepInput& input_;
  RankBeat unseen_;
  RankBeat& beat_;
  const MeshComm& mesh_;
  const Clock::time_point begin_;
  const Slot* slot_ = nullptr;
  const Call* call_ = nullptr;
  const Piece* piece_ = nullptr;
  std::vector<std::int64_t> sequences_;  // of the slot's microbatch, numbered over the step
  std::vector<std::int32_t> scratch_;
  std::vector<Sent> pending_;
  std::vector<Interval> timeline_;
  double* metrics_ = nullptr;
  std::vector<std::int64_t> routed_rows_;  // by layer
  std::int64_t high_water_ = 0;
};

template <class Real>
Executor<Real>::Executor(const ProgramSet& set, MPI_Comm comm, ExecutorOptions options)
    : set_(set),
      options_(options),
      mesh_(comm, set.mesh),
      program_(set.stages[static_cast<std::size_t>(mesh_.coordinates().pp)]),
      state_(set.state_of[static_cast<std::size_t>(mesh_.coordinates().pp)]),
      arena_(program_.arena_bytes) {
  check(set.compute == set.state && size_of(set.compute) == static_cast<std::int64_t>(sizeof(Real)),
        "executor: the program computes in {}", name(set.compute));
  for (const Region& r : program_.regions)
    if (r.name == "tokens") tokens_offset_ = r.offset;
}

template <class Real>
Executor<Real>::~Executor() = default;

template <class Real>
void Executor<Real>::load_parameters(const ParameterSource& value) {
  const auto at = [&](std::int64_t offset) { return reinterpret_cast<Real*>(arena_.data() + offset); };
  std::vector<Real> whole;
  for (const BlockState& s : state_) {
    const Block& block = set_.blocks[static_cast<std::size_t>(s.block)];
    for (const Unit& unit : block.units) {
      whole.assign(static_cast<std::size_t>(unit.padded), Real{0});
      for (const ParameterPlacement& p : unit.parameters)
        for_each_run(set_.parameters[p.parameter].shape, p.tp, set_.mesh.tp, mesh_.coordinates().tp,
                     [&](std::int64_t local, std::int64_t global, std::int64_t n) {
                       value(p.parameter, global, n, whole.data() + p.offset + local);
                     });
      const int shards = s.master_sharded ? set_.mesh.dp : 1;
      const std::int64_t n = unit.padded / shards, first = s.master_sharded ? mesh_.coordinates().dp * n : 0;
      const std::int64_t shard_offset = unit.offset / shards;
      std::copy_n(whole.data() + first, n, at(s.master) + shard_offset);
      if (s.weights >= 0 && s.weights != s.master) std::copy(whole.begin(), whole.end(), at(s.weights) + unit.offset);
      std::fill_n(at(s.moment1) + shard_offset, n, Real{0});
      std::fill_n(at(s.moment2) + shard_offset, n, Real{0});
    }
  }
}

template <class Real>
void Executor<Real>::set_losses(const double* sums, StepResult& r) const {
  const auto sequences = static_cast<double>(set_.step.sequences);
  r.cross_entropy = sums[kCrossEntropySum] / (sequences * static_cast<double>(set_.step.tokens));
  r.balance = set_.experts ? sums[kBalanceSum] / sequences * static_cast<double>(set_.experts) /
                                 static_cast<double>(set_.choices)
                           : 0;
  r.loss = r.cross_entropy + set_.balance_weight * r.balance;
  r.gradient_norm = std::sqrt(sums[kSquaredNorm]);
  r.dropped = sums[kDroppedSum];
  for (std::int64_t e = 0; e < set_.experts; ++e) r.load.push_back(sums[kLoadFirst + e] / sequences);
}

template <class Real>
void Executor<Real>::stop_diverged(std::int64_t step, const double* sums) const {
  constexpr int kFinite = std::numeric_limits<int>::max();
  std::vector<int> lowest_rank(set_.parameters.size(), kFinite);  // with an element that is not finite
  for (const BlockState& s : state_)
    for (const Unit& unit : set_.blocks[static_cast<std::size_t>(s.block)].units) {
      const int shards = s.master_sharded ? set_.mesh.dp : 1;
      const std::int64_t n = unit.padded / shards, begin = s.master_sharded ? mesh_.coordinates().dp * n : 0;
      const Real* mine = reinterpret_cast<const Real*>(arena_.data() + s.grad_shard) + unit.offset / shards;
      for (const ParameterPlacement& p : unit.parameters) {
        const std::int64_t first = std::max(begin, p.offset),
                           end = std::min(begin + n, p.offset + elements(p.local_shape));
        for (std::int64_t i = first; i < end; ++i)
          if (!std::isfinite(mine[i - begin])) {
            lowest_rank[static_cast<std::size_t>(p.parameter)] = mesh_.rank();
            break;
          }
      }
    }
  MPI_Allreduce(MPI_IN_PLACE, lowest_rank.data(), static_cast<int>(lowest_rank.size()), MPI_INT, MPI_MIN, mesh_.all());

  StepResult losses;
  set_losses(sums, losses);
  Diverged::Facts facts{.step = step,
                        .loss = losses.loss,
                        .gradient_norm = losses.gradient_norm,
                        .of_tensors = static_cast<int>(lowest_rank.size())};
  for (std::size_t parameter = 0; parameter < lowest_rank.size(); ++parameter) {
    if (lowest_rank[parameter] == kFinite) continue;
    if (facts.tensors++ > 0) continue;
    facts.tensor = set_.parameters[parameter].name;
    facts.rank = lowest_rank[parameter];
    facts.stage = facts.rank / set_.mesh.tp % set_.mesh.pp;
  }
  throw Diverged(std::move(facts));
}

template <class Real>
StepResult Executor<Real>::run_step(const StepInput& input) {
  const std::int64_t flops = kernels::flop_count();
  reset_traffic();
  Interpreter interpreter(*this, input);
  const auto begin = Clock::now();
  interpreter.run();
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();

  StepResult r;
  set_losses(interpreter.metrics(), r);
  r.routed_rows = interpreter.take_routed_rows();
  r.report.rank = mesh_.coordinates();
  r.report.end = {seconds};
  r.report.executed_flops = {kernels::flop_count() - flops};
  r.report.traffic = traffic();
  r.report.peak_bytes = {interpreter.high_water()};
  r.report.bytes_by_class = program_.bytes_by_class();
  r.report.timeline = interpreter.take_timeline();
  return r;
}

template <class Real>
std::vector<std::vector<Real>> Executor<Real>::gather(State what) {
  std::vector<std::vector<Real>> all;
  for (const Parameter& p : set_.parameters) all.emplace_back(static_cast<std::size_t>(elements(p.shape)), Real{0});
  const MPI_Datatype type = sizeof(Real) == 8 ? MPI_DOUBLE : MPI_FLOAT;
  std::vector<Real> whole;
  for (const BlockState& s : state_) {
    for (const Unit& unit : set_.blocks[static_cast<std::size_t>(s.block)].units) {
      if (unit.second_copy) continue;  // the other one is gathered
      const int shards = s.master_sharded ? set_.mesh.dp : 1;
      const std::int64_t n = unit.padded / shards;
      const std::int64_t base = what == State::kParameters ? s.master
                                : what == State::kMoment1  ? s.moment1
                                : what == State::kMoment2  ? s.moment2
                                                           : s.grad_shard;
      const Real* mine = reinterpret_cast<const Real*>(arena_.data() + base) + unit.offset / shards;
      whole.resize(static_cast<std::size_t>(unit.padded));
      if (s.master_sharded)
        MPI_Allgather(mine, static_cast<int>(n), type, whole.data(), static_cast<int>(n), type, mesh_.comm(Group::kDp));
      else
        std::copy_n(mine, n, whole.data());
      if (mesh_.coordinates().dp != 0) continue;
      for (const ParameterPlacement& p : unit.parameters) {
        if (p.tp.kind == Layout::Kind::kReplicate && mesh_.coordinates().tp != 0) continue;
        for_each_run(set_.parameters[p.parameter].shape, p.tp, set_.mesh.tp, mesh_.coordinates().tp,
                     [&](std::int64_t local, std::int64_t global, std::int64_t count) {
                       std::copy_n(whole.data() + p.offset + local, count,
                                   all[static_cast<std::size_t>(p.parameter)].data() + global);
                     });
      }
    }
  }
  for (std::vector<Real>& tensor : all)  // every element stands on one rank, the others have 0
    MPI_Allreduce(MPI_IN_PLACE, tensor.data(), static_cast<int>(tensor.size()), type, MPI_SUM, mesh_.all());
  return all;
}

template <class Real>
typename Executor<Real>::ParameterSource initial_weights(const std::vector<ParameterSpec>& parameters,
                                                         std::uint64_t seed) {
  return [&parameters, seed](int parameter, std::int64_t first, std::int64_t n, Real* out) {
    const ParameterSpec& p = parameters[static_cast<std::size_t>(parameter)];
    const kernels::TensorStream stream{seed, kernels::tensor_id(p.name)};
    switch (p.init.kind) {
      case Init::Kind::kConstant:
        std::fill_n(out, n, static_cast<Real>(p.init.scale));
        break;
      case Init::Kind::kNormal:
        kernels::normal<Real>(stream, first, n, p.init.scale, out);
        break;
      case Init::Kind::kTruncatedNormal:
        kernels::truncated_normal<Real>(stream, first, n, p.init.scale / kernels::kTruncatedNormalDeviation, out);
        break;
      case Init::Kind::kUniform:
        kernels::uniform<Real>(stream, first, n, -p.init.scale, p.init.scale, out);
        break;
    }
  };
}

template class Executor<float>;
template class Executor<double>;
template Executor<float>::ParameterSource initial_weights<float>(const std::vector<ParameterSpec>&, std::uint64_t);
template Executor<double>::ParameterSource initial_weights<double>(const std::vector<ParameterSpec>&, std::uint64_t);

}  // namespace meshwright
