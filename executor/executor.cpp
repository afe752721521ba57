#include "executor/executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <utility>

#include "executor/comm/byte_counter.h"
#include "executor/comm/collectives.h"
#include "executor/kernels/elementwise.h"
#include "executor/kernels/flop_count.h"
#include "executor/kernels/initial_weights.h"
#include "executor/launch/heartbeat.h"
#include "executor/live_bytes.h"
#include "model/program/check.h"
#include "model/program/layout.h"
#include "model/program/op_work.h"

namespace meshwright {
namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

bool communicates(const Op& op) {
  return std::holds_alternative<Collective>(op) || std::holds_alternative<Send>(op) || std::holds_alternative<Recv>(op);
}

// Of the time that a communication operation took on its rank: how much the rank waited for another stage. A rank works on
// one operation at a time, so all of it is time in which nothing is computed. What it waits for tp and dp is
// communication: their members do the same work.
double waited_for_stage(const Op& op) {
  const MessageWaits& waits = message_waits();
  if (std::holds_alternative<Recv>(op)) return waits.all;  // until the neighbour had begun to send
  const auto* collective = std::get_if<Collective>(&op);
  if (!collective || (collective->group != Group::kPp && collective->group != Group::kPpEnds)) return 0;
  // kDirect hears of every member once. Around a ring the first message says that the other is there; those after it come at
  // the pace of the ring.
  return collective->algorithm == Algorithm::kDirect ? waits.all : waits.first;
}

}  // namespace

// One step that runs.
class Executor::Run {
 public:
  Run(Executor& executor, const StepInput& input)
      : e_(executor), beat_(executor.options_.beat ? *executor.options_.beat : unseen_), begin_(Clock::now()) {
    state_.step = input.step;
    state_.learning_rate = input.learning_rate;
    state_.record = input.record;
    state_.replay = input.replay;
    state_.on_logits = &executor.on_logits;
    state_.sends.resize(executor.sends_);
    for (const Block& block : e_.set_.blocks)
      state_.routed_rows.resize(std::max(state_.routed_rows.size(), static_cast<std::size_t>(block.layer + 1)));
  }

  void run() {
    auto wait = e_.waits_.begin();
    const bool timeline = e_.options_.timeline;
    const auto freed = [this](std::int64_t begin, std::int64_t end) { poison(begin, end); };
    std::optional<LiveBytes> live;
    if (!e_.live_ || e_.options_.poison) live.emplace(e_.program_, freed);
    for (std::size_t c = 0; c < e_.calls_.size(); ++c) {
      const BoundCall& call = e_.calls_[c];
      if (live && call.call_index == 0) live->slot_begins(call.slot_index);
      if (call.slot->action == Action::kUpdate && call.call_index == 0) require_finite();
      const CallState s{call.frames.data(), call.sequences, call.layer, &state_};
      const auto& ops = call.piece->ops;
      int counted = 0;  // of the piece's operations
      for (std::size_t i = 0; i < ops.size(); ++i) {
        const BoundPiece::Entry& entry = ops[i];
        beat_.begins(*call.slot, call.layer, *entry.op);
        if (live) count(*live, call, counted, entry.index + 1);
        for (; wait != e_.waits_.end() && wait->call == c && wait->op == i; ++wait) finish(state_.sends[wait->send]);
        if (timeline)
          run_timed(call, entry, s);
        else if (entry.communicates)
          communicate(entry, s);
        else
          entry.run(s);
      }
      if (!live) continue;
      count(*live, call, counted, static_cast<int>(call.piece->piece->ops.size()));
      const Chunk& chunk = e_.program_.chunks[static_cast<std::size_t>(call.slot->chunk)];
      live->call_ends(*call.slot, chunk, call.call_index);
      if (call.call_index + 1 == static_cast<int>(chunk.calls.size())) live->slot_ends(call.slot_index);
    }
    if (live) e_.live_ = live->peak();
    finish_sends();
    beat_.now(Activity::kEndOfStep);
    seconds_ = seconds_since(begin_);
  }

  void write(StepResult& r) {
    r.routed_rows = std::move(state_.routed_rows);
    r.report.end = {seconds_};
    r.report.bubble = {bubble_};
    r.report.exposed_comm = {std::max(0.0, communication_ - bubble_)};
    r.report.compute = {std::max(0.0, seconds_ - communication_)};
    r.report.timeline = std::move(timeline_);
  }

 private:
  // Counts what lives before the piece's operations [counted, end).
  void count(LiveBytes& live, const BoundCall& call, int& counted, int end) {
    const Piece& piece = *call.piece->piece;
    for (; counted < end; ++counted)
      live.executes(*call.slot, *call.call, piece, piece.ops[static_cast<std::size_t>(counted)]);
    if (e_.options_.poison) check(!live.reads_dead(), "executor: {}, which is not live", *live.reads_dead());
  }
  // What ends is still being sent now and then: it is left as it is.
  void poison(std::int64_t begin, std::int64_t end) {
    if (!e_.options_.poison) return;
    for (std::size_t i = 0; i < state_.next_send; ++i)
      if (e_.sent_[i].first < end && begin < e_.sent_[i].second && !state_.sends[i].done()) return;
    e_.poison(begin, end);
  }

  // The receiver, a neighbouring stage, has yet to take it.
  void finish(PendingSend& send) {
    const auto begin = Clock::now();
    send.wait();
    const double seconds = seconds_since(begin);
    communication_ += seconds;
    bubble_ += seconds;
  }
  void finish_sends() {
    for (PendingSend& send : state_.sends) finish(send);
  }

  void communicate(const BoundPiece::Entry& entry, const CallState& s) {
    message_waits().reset();
    const auto begin = Clock::now();
    entry.run(s);
    const double seconds = seconds_since(begin);
    communication_ += seconds;
    bubble_ += std::min(seconds, waited_for_stage(*entry.op));
  }

  void run_timed(const BoundCall& call, const BoundPiece::Entry& entry, const CallState& s) {
    const auto begin = Clock::now();
    const std::int64_t flops = kernels::flop_count();
    if (entry.communicates)
      communicate(entry, s);
    else
      entry.run(s);
    const auto seconds = [&](Clock::time_point t) {
      return Seconds{std::chrono::duration<double>(t - begin_).count()};
    };
    timeline_.push_back({stream_of(*entry.op), seconds(begin), seconds(Clock::now()), op_name(*entry.op),
                         OpPlace{call.slot_index, call.call_index, entry.index},
                         bytes_sent(*entry.op, *call.piece->piece, e_.mesh_.shape()),
                         Flops{kernels::flop_count() - flops}});
  }

  // The sums are complete here, and the same on every rank: all go on, or all stop.
  void require_finite() {
    for (const Metric sum : {kSquaredNorm, kCrossEntropySum, kBalanceSum}) {
      if (std::isfinite(e_.metrics_[sum])) continue;
      finish_sends();
      e_.stop_diverged(state_.step, e_.metrics_);
    }
  }

  Executor& e_;
  RankBeat unseen_;
  RankBeat& beat_;
  const Clock::time_point begin_;
  StepState state_;
  double seconds_ = 0, communication_ = 0, bubble_ = 0;
  std::vector<Interval> timeline_;
};

Executor::Executor(const ProgramSet& set, MPI_Comm comm, ExecutorOptions options)
    : set_(set),
      options_(options),
      mesh_(comm, set.mesh),
      program_(set.stages[static_cast<std::size_t>(mesh_.coordinates().pp)]),
      state_(set.state_of[static_cast<std::size_t>(mesh_.coordinates().pp)]),
      arena_(program_.arena_bytes),
      context_(set, mesh_, options.seed) {
  check(set.state == DType::kF32 || set.state == DType::kF64, "executor: the program keeps its state in {}",
        name(set.state));
  for (const Region& r : program_.regions)
    if (r.name == "tokens") tokens_offset_ = r.offset;
  bind_step();
  if (options_.poison)
    for (const Region& r : program_.regions)
      if (!lives_throughout(r.memory_class)) poison(r.offset, r.offset + r.bytes);
}

Executor::~Executor() = default;

void Executor::poison(std::int64_t begin, std::int64_t end) {
  std::memset(arena_.data() + begin, 0xFF, static_cast<std::size_t>(end - begin));  // NaN in every floating-point type
}

std::int64_t Executor::outside_bytes() const {
  const auto bytes = [](const auto& v) { return static_cast<std::int64_t>(v.size() * sizeof(v[0])); };
  return context_.bytes() + bytes(sequences_) + bytes(calls_) + bytes(waits_) + bytes(sent_);
}

void Executor::bind_step() {
  const StepShape& step = set_.step;
  for (std::int64_t m = 0; m < step.microbatches; ++m)
    for (std::int64_t b = 0; b < step.microbatch; ++b)
      sequences_.push_back((m * mesh_.shape().dp + mesh_.coordinates().dp) * step.microbatch + b);

  pieces_.resize(set_.pieces.size());
  struct Sent {
    std::int64_t begin, end;  // bytes of the arena that are being read
    std::size_t number;
  };
  std::vector<Sent> pending;
  for (std::size_t n = 0; n < program_.slots.size(); ++n) {
    const Slot& slot = program_.slots[n];
    const Chunk& chunk = program_.chunks[static_cast<std::size_t>(slot.chunk)];
    for (std::size_t k = 0; k < chunk.calls.size(); ++k) {
      const Call& call = chunk.calls[k];
      const Piece& piece = set_.pieces[static_cast<std::size_t>(call.piece)];
      BoundPiece& bound = pieces_[static_cast<std::size_t>(call.piece)];
      if (!bound.piece) {
        bound.piece = &piece;
        for (std::size_t i = 0; i < piece.ops.size(); ++i)
          if (BoundOp run = bind(piece.ops[i], piece, context_))
            bound.ops.push_back({std::move(run), &piece.ops[i], static_cast<int>(i), communicates(piece.ops[i])});
      }

      BoundCall to{&bound, &slot, &call, {}, nullptr, call.layer, static_cast<int>(n), static_cast<int>(k)};
      std::array<std::int64_t, kFrames> at{};
      for (int f = 0; f < kFrames; ++f) {
        at[f] = address(slot, call, Tensor{.frame = static_cast<Frame>(f)});
        to.frames[f] = arena_.data() + at[f];
      }
      if (slot.microbatch >= 0) to.sequences = sequences_.data() + slot.microbatch * step.microbatch;
      for (std::size_t i = 0; i < bound.ops.size(); ++i) {
        for_each_operand(*bound.ops[i].op, [&](std::string_view field, const View& view, Access access) {
          const Tensor& t = piece.tensors[static_cast<std::size_t>(view.tensor)];
          const std::int64_t begin = at[static_cast<int>(t.frame)] + t.offset, end = begin + t.bytes();
          high_water_ = std::max(high_water_, end);
          if (t.frame == Frame::kMetrics && field == "metrics")
            metrics_ = reinterpret_cast<const double*>(arena_.data() + begin);
          if (access == Access::kRead) return;
          std::erase_if(pending, [&](const Sent& sent) {
            if (sent.end <= begin || end <= sent.begin) return false;
            waits_.push_back({calls_.size(), i, sent.number});
            return true;
          });
        });
        if (const auto* send = std::get_if<Send>(bound.ops[i].op)) {
          const Tensor& t = piece.tensors[static_cast<std::size_t>(send->x.tensor)];
          const std::int64_t begin = at[static_cast<int>(t.frame)] + t.offset;
          pending.push_back({begin, begin + t.bytes(), sends_++});
          sent_.emplace_back(begin, begin + t.bytes());
        }
      }
      calls_.push_back(to);
    }
  }
  check(metrics_ != nullptr, "executor: the program has no metrics");
}

void Executor::fill_tokens(const StepInput& input) {
  if (tokens_offset_ < 0) return;
  const StepShape& step = set_.step;
  const std::int64_t part = align_up(step.tokens / mesh_.shape().tp * step.microbatch * size_of(DType::kI32));
  for (int m = 0; m < step.microbatches; ++m) {
    std::byte* at = arena_.data() + tokens_offset_ + 2 * m * part;
    input.fill(m, reinterpret_cast<std::int32_t*>(at), reinterpret_cast<std::int32_t*>(at + part));
  }
}

void Executor::load_parameters(const ParameterSource& value) {
  if (set_.state == DType::kF64)
    load<double>(value);
  else
    load<float>(value);
}

template <class Real>
void Executor::load(const ParameterSource& value) {
  const auto at = [&](std::int64_t offset) { return arena_.data() + offset; };
  const auto as_weights = [&](std::int64_t n, const Real* from, std::byte* to) {
    if constexpr (std::is_same_v<Real, float>)
      if (set_.compute == DType::kBF16) return kernels::cast<Bf16, float>(n, from, reinterpret_cast<Bf16*>(to));
    kernels::cast<Real, Real>(n, from, reinterpret_cast<Real*>(to));
  };
  const std::int64_t compute = size_of(set_.compute);
  for (const BlockState& s : state_) {
    const Block& block = set_.blocks[static_cast<std::size_t>(s.block)];
    for (const Unit& unit : block.units) {
      const int shards = s.master_sharded ? set_.mesh.dp : 1;
      const std::int64_t n = unit.padded / shards, begin = s.master_sharded ? mesh_.coordinates().dp * n : 0;
      const std::int64_t offset = unit.offset / shards;
      Real* master = reinterpret_cast<Real*>(at(s.master)) + offset;
      std::fill_n(master, n, Real{0});
      for (const ParameterPlacement& p : unit.parameters)
        for_each_run(set_.parameters[static_cast<std::size_t>(p.parameter)].shape, p.tp, set_.mesh.tp,
                     mesh_.coordinates().tp, [&](std::int64_t local, std::int64_t global, std::int64_t run) {
                       const std::int64_t first = p.offset + local, from = std::max(first, begin),
                                          to = std::min(first + run, begin + n);
                       if (from < to) value(p.parameter, global + from - first, to - from, master + from - begin);
                     });
      std::fill_n(reinterpret_cast<Real*>(at(s.moment1)) + offset, n, Real{0});
      std::fill_n(reinterpret_cast<Real*>(at(s.moment2)) + offset, n, Real{0});
      if (s.weight_shard >= 0 && s.weight_shard != s.master)
        as_weights(n, master, at(s.weight_shard) + offset * compute);
      if (s.weights < 0 || s.weights == s.master) continue;
      std::byte* weights = at(s.weights) + unit.offset * compute;
      as_weights(n, master, weights + begin * compute);
      if (shards > 1) {
        const MPI_Datatype type = compute == 2 ? MPI_UINT16_T : compute == 4 ? MPI_FLOAT : MPI_DOUBLE;
        MPI_Allgather(MPI_IN_PLACE, 0, type, weights, static_cast<int>(n), type, mesh_.comm(Group::kDp));
      }
    }
  }
}

void Executor::set_losses(const double* sums, StepResult& r) const {
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

// By parameter: this rank, where it keeps a gradient with an element that is not finite.
template <class Real>
void Executor::find_not_finite(std::vector<int>& lowest_rank) const {
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
}

void Executor::stop_diverged(std::int64_t step, const double* sums) const {
  constexpr int kFinite = std::numeric_limits<int>::max();
  std::vector<int> lowest_rank(set_.parameters.size(), kFinite);  // with an element that is not finite
  if (set_.state == DType::kF64)
    find_not_finite<double>(lowest_rank);
  else
    find_not_finite<float>(lowest_rank);
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

StepResult Executor::run_step(const StepInput& input) {
  if (options_.beat) options_.beat->step = input.step;
  fill_tokens(input);
  const std::int64_t flops = kernels::flop_count();
  reset_traffic();
  Run run(*this, input);
  run.run();

  StepResult r;
  set_losses(metrics_, r);
  run.write(r);
  r.report.rank = mesh_.coordinates();
  r.report.executed_flops = {kernels::flop_count() - flops};
  r.report.traffic = traffic();
  r.report.arena_bytes = {high_water_};
  r.report.live = *live_;
  r.report.outside_bytes = {outside_bytes() + static_cast<std::int64_t>(r.routed_rows.size() * sizeof(std::int64_t))};
  return r;
}

std::vector<std::vector<double>> Executor::gather(State what) {
  return set_.state == DType::kF64 ? gather_as<double>(what) : gather_as<float>(what);
}

template <class Real>
std::vector<std::vector<double>> Executor::gather_as(State what) {
  std::vector<std::vector<double>> all;
  // Every element stands on one rank, the others have what adds nothing: to -0, too.
  for (const Parameter& p : set_.parameters) all.emplace_back(static_cast<std::size_t>(elements(p.shape)), -0.0);
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
        for_each_run(set_.parameters[static_cast<std::size_t>(p.parameter)].shape, p.tp, set_.mesh.tp,
                     mesh_.coordinates().tp, [&](std::int64_t local, std::int64_t global, std::int64_t count) {
                       std::copy_n(whole.data() + p.offset + local, count,
                                   all[static_cast<std::size_t>(p.parameter)].data() + global);
                     });
      }
    }
  }
  for (std::vector<double>& tensor : all)
    MPI_Allreduce(MPI_IN_PLACE, tensor.data(), static_cast<int>(tensor.size()), MPI_DOUBLE, MPI_SUM, mesh_.all());
  return all;
}

ParameterSource initial_weights(const std::vector<ParameterSpec>& parameters, std::uint64_t seed) {
  return [&parameters, seed]<class Real>(int parameter, std::int64_t first, std::int64_t n, Real* out) {
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

}  // namespace meshwright
