#include "executor/executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>
#include <optional>
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

// A rank's program, bound: what a step of it does is decided.
struct Executor::Bound {
  // A piece's operations, without those that only end lives.
  struct Entry {
    BoundOp run;
    const Op* op;
    int index;  // of the piece's operations
    bool communicates;
  };
  struct BoundPiece {
    const Piece* piece = nullptr;
    std::vector<Entry> ops;
  };
  // One call of one slot.
  struct PlacedCall {
    const BoundPiece* piece;
    const Slot* slot;
    const Call* call;
    std::array<std::byte*, kFrames> frames;
    const std::int64_t* sequences;
    int layer, slot_index, call_index;
  };
  // An operation that writes where a message is still being sent from waits for the send.
  struct Wait {
    std::size_t call, op;  // of `calls`, of its piece's ops
    std::size_t send;      // of the step's, in program order
  };

  Bound(const ProgramSet& set, const MeshComm& mesh, std::byte* arena, std::uint64_t seed);
  std::int64_t bytes() const;  // held beside the arena
  void fill_tokens(const StepInput& input, const MeshShape& mesh, std::byte* arena) const;
  // Loss and what it is made of, from the sums over the step.
  void set_losses(StepResult& result) const;

  const ProgramSet& set;
  const Program& program;
  BindContext context;
  std::vector<BoundPiece> pieces;       // by index in set.pieces; those that this stage calls
  std::vector<PlacedCall> calls;        // of the step, in program order
  std::vector<Wait> waits;              // in program order
  std::vector<std::int64_t> sequences;  // by microbatch, then sequence: its number in the step
  std::size_t sends = 0;
  const double* metrics = nullptr;
  std::int64_t high_water = 0;
  std::vector<std::pair<std::int64_t, std::int64_t>> sent;  // by send: bytes of the arena
  std::optional<MemoryPeak> live;                           // counted in the first step: the others do the same
  std::int64_t tokens_offset = -1;
};

// A step or an evaluation that runs.
class Executor::Run {
 public:
  Run(Executor& executor, Bound& bound, const StepInput& input)
      : e_(executor),
        b_(bound),
        beat_(executor.options_.beat ? *executor.options_.beat : unseen_),
        begin_(Clock::now()) {
    state_.step = input.step;
    state_.learning_rate = input.learning_rate;
    state_.record = input.record;
    state_.replay = input.replay;
    state_.on_logits = &executor.on_logits;
    state_.sends.resize(bound.sends);
    for (const Block& block : b_.set.blocks())
      state_.routed_rows.resize(std::max(state_.routed_rows.size(), static_cast<std::size_t>(block.layer + 1)));
  }

  void run() {
    auto wait = b_.waits.begin();
    const bool timeline = e_.options_.timeline;
    const auto freed = [this](std::int64_t begin, std::int64_t end) { poison(begin, end); };
    std::optional<LiveBytes> live;
    if (!b_.live || e_.options_.poison) live.emplace(b_.program, freed);
    for (std::size_t c = 0; c < b_.calls.size(); ++c) {
      const Bound::PlacedCall& call = b_.calls[c];
      if (live && call.call_index == 0) live->slot_begins(call.slot_index);
      if (call.slot->action == Action::kUpdate && call.call_index == 0) require_finite();
      const CallState s{call.frames.data(), call.sequences, call.layer, &state_};
      const auto& ops = call.piece->ops;
      int counted = 0;  // of the piece's operations
      for (std::size_t i = 0; i < ops.size(); ++i) {
        const Bound::Entry& entry = ops[i];
        beat_.begins(*call.slot, call.layer, *entry.op);
        if (live) count(*live, call, counted, entry.index + 1);
        for (; wait != b_.waits.end() && wait->call == c && wait->op == i; ++wait) finish(state_.sends[wait->send]);
        if (timeline)
          run_timed(call, entry, s);
        else if (entry.communicates)
          communicate(entry, s);
        else
          entry.run(s);
      }
      if (!live) continue;
      count(*live, call, counted, static_cast<int>(call.piece->piece->ops.size()));
      const Chunk& chunk = b_.program.chunks[static_cast<std::size_t>(call.slot->chunk)];
      live->call_ends(*call.slot, chunk, call.call_index);
      if (call.call_index + 1 == static_cast<int>(chunk.calls.size())) live->slot_ends(call.slot_index);
    }
    if (live) b_.live = live->peak();
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
  void count(LiveBytes& live, const Bound::PlacedCall& call, int& counted, int end) {
    const Piece& piece = *call.piece->piece;
    for (; counted < end; ++counted)
      live.executes(*call.slot, *call.call, piece, piece.ops[static_cast<std::size_t>(counted)]);
    if (e_.options_.poison) check(!live.reads_dead(), "executor: {}, which is not live", *live.reads_dead());
  }
  // What ends is still being sent now and then: it is left as it is.
  void poison(std::int64_t begin, std::int64_t end) {
    if (!e_.options_.poison) return;
    for (std::size_t i = 0; i < state_.next_send; ++i)
      if (b_.sent[i].first < end && begin < b_.sent[i].second && !state_.sends[i].done()) return;
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

  void communicate(const Bound::Entry& entry, const CallState& s) {
    message_waits().reset();
    const auto begin = Clock::now();
    entry.run(s);
    const double seconds = seconds_since(begin);
    communication_ += seconds;
    bubble_ += std::min(seconds, waited_for_stage(*entry.op));
  }

  void run_timed(const Bound::PlacedCall& call, const Bound::Entry& entry, const CallState& s) {
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
      if (std::isfinite(b_.metrics[sum])) continue;
      finish_sends();
      e_.stop_diverged(b_, state_.step);
    }
  }

  Executor& e_;
  Bound& b_;
  RankBeat unseen_;
  RankBeat& beat_;
  const Clock::time_point begin_;
  StepState state_;
  double seconds_ = 0, communication_ = 0, bubble_ = 0;
  std::vector<Interval> timeline_;
};

Executor::Bound::Bound(const ProgramSet& program_set, const MeshComm& mesh, std::byte* arena, std::uint64_t seed)
    : set(program_set), program(set.stages[static_cast<std::size_t>(mesh.coordinates().pp)]), context(set, mesh, seed) {
  for (const Region& r : program.regions)
    if (r.name == "tokens") tokens_offset = r.offset;
  const StepShape& step = set.step;
  for (std::int64_t m = 0; m < step.microbatches; ++m)
    for (std::int64_t b = 0; b < step.microbatch; ++b)
      sequences.push_back((m * mesh.shape().dp + mesh.coordinates().dp) * step.microbatch + b);

  pieces.resize(set.pieces.size());
  struct Sent {
    std::int64_t begin, end;  // bytes of the arena that are being read
    std::size_t number;
  };
  std::vector<Sent> pending;
  for (std::size_t n = 0; n < program.slots.size(); ++n) {
    const Slot& slot = program.slots[n];
    const Chunk& chunk = program.chunks[static_cast<std::size_t>(slot.chunk)];
    for (std::size_t k = 0; k < chunk.calls.size(); ++k) {
      const Call& call = chunk.calls[k];
      const Piece& piece = set.pieces[static_cast<std::size_t>(call.piece)];
      BoundPiece& bound = pieces[static_cast<std::size_t>(call.piece)];
      if (!bound.piece) {
        bound.piece = &piece;
        for (std::size_t i = 0; i < piece.ops.size(); ++i)
          if (BoundOp run = bind(piece.ops[i], piece, context))
            bound.ops.push_back({std::move(run), &piece.ops[i], static_cast<int>(i), communicates(piece.ops[i])});
      }

      PlacedCall to{&bound, &slot, &call, {}, nullptr, call.layer, static_cast<int>(n), static_cast<int>(k)};
      std::array<std::int64_t, kFrames> at{};
      for (int f = 0; f < kFrames; ++f) {
        at[f] = address(slot, call, Tensor{.frame = static_cast<Frame>(f)});
        to.frames[f] = arena + at[f];
      }
      if (slot.microbatch >= 0) to.sequences = sequences.data() + slot.microbatch * step.microbatch;
      for (std::size_t i = 0; i < bound.ops.size(); ++i) {
        for_each_operand(*bound.ops[i].op, [&](std::string_view, const View& view, Access access) {
          const Tensor& t = piece.tensors[static_cast<std::size_t>(view.tensor)];
          const std::int64_t begin = at[static_cast<int>(t.frame)] + t.offset, end = begin + t.bytes();
          high_water = std::max(high_water, end);
          if (t.frame == Frame::kMetrics && t.offset == 0)  // the sums; behind them lies scratch
            metrics = reinterpret_cast<const double*>(arena + begin);
          if (access == Access::kRead) return;
          std::erase_if(pending, [&](const Sent& p) {
            if (p.end <= begin || end <= p.begin) return false;
            waits.push_back({calls.size(), i, p.number});
            return true;
          });
        });
        if (const auto* send = std::get_if<Send>(bound.ops[i].op)) {
          const Tensor& t = piece.tensors[static_cast<std::size_t>(send->x.tensor)];
          const std::int64_t begin = at[static_cast<int>(t.frame)] + t.offset;
          pending.push_back({begin, begin + t.bytes(), sends++});
          sent.emplace_back(begin, begin + t.bytes());
        }
      }
      calls.push_back(to);
    }
  }
  check(metrics != nullptr, "executor: the program has no metrics");
}

std::int64_t Executor::Bound::bytes() const {
  const auto of = [](const auto& v) { return static_cast<std::int64_t>(v.size() * sizeof(v[0])); };
  return context.bytes() + of(sequences) + of(calls) + of(waits) + of(sent);
}

void Executor::Bound::fill_tokens(const StepInput& input, const MeshShape& mesh, std::byte* arena) const {
  if (tokens_offset < 0) return;
  const StepShape& step = set.step;
  const std::int64_t part = align_up(step.tokens / mesh.tp * step.microbatch * size_of(DType::kI32));
  for (int m = 0; m < step.microbatches; ++m) {
    std::byte* at = arena + tokens_offset + 2 * m * part;
    input.fill(m, reinterpret_cast<std::int32_t*>(at), reinterpret_cast<std::int32_t*>(at + part));
  }
}

void Executor::Bound::set_losses(StepResult& r) const {
  const auto sequences_of_step = static_cast<double>(set.step.sequences);
  r.cross_entropy = metrics[kCrossEntropySum] / (sequences_of_step * static_cast<double>(set.step.tokens));
  r.balance = set.experts ? metrics[kBalanceSum] / sequences_of_step * set.balance_factor() : 0;
  r.loss = r.cross_entropy + set.balance_weight * r.balance;
  r.gradient_norm = std::sqrt(metrics[kSquaredNorm]);
  r.dropped = metrics[kDroppedSum];
  for (std::int64_t e = 0; e < set.experts; ++e) r.load.push_back(metrics[kLoadFirst + e] / sequences_of_step);
}

namespace {

// Of a rank of this stage: the state, and the most that any program has beside it.
std::int64_t arena_bytes(const std::vector<const ProgramSet*>& sets, int stage) {
  std::int64_t bytes = 0;
  for (const ProgramSet* set : sets) bytes = std::max(bytes, set->stages[static_cast<std::size_t>(stage)].arena_bytes);
  return bytes;
}

}  // namespace

Executor::Executor(const std::vector<const ProgramSet*>& sets, MPI_Comm comm, ExecutorOptions options)
    : set_(*sets.front()),
      options_(options),
      mesh_(comm, set_.mesh),
      arena_(arena_bytes(sets, mesh_.coordinates().pp)) {
  check(set_.state == DType::kF32 || set_.state == DType::kF64, "executor: the program keeps its state in {}",
        name(set_.state));
  for (const ProgramSet* set : sets) {
    check(set->state_layout == set_.state_layout && set->mesh == set_.mesh && set->state == set_.state &&
              set->compute == set_.compute,
          "executor: programs of different states");
    bound_.push_back(std::make_unique<Bound>(*set, mesh_, arena_.data(), options.seed));
  }
}

Executor::~Executor() = default;

Executor::Bound& Executor::bound(Purpose purpose) {
  const auto found = std::ranges::find_if(bound_, [&](const auto& b) { return b->set.purpose == purpose; });
  check(found != bound_.end(), "executor: it has no program to {}",
        purpose == Purpose::kTraining ? "train" : "evaluate");
  return **found;
}

const StageState& Executor::stage_state() const {
  return set_.state_layout->stages[static_cast<std::size_t>(mesh_.coordinates().pp)];
}

void Executor::poison(std::int64_t begin, std::int64_t end) {
  std::memset(at(begin), 0xFF, static_cast<std::size_t>(end - begin));  // NaN in every floating-point type
}

std::int64_t Executor::outside_bytes() const {
  std::int64_t bytes = 0;
  for (const auto& b : bound_) bytes += b->bytes();
  return bytes;
}

void Executor::for_each_state(const std::function<void(const StateRun&)>& f) const {
  const std::int64_t size = size_of(set_.state);
  for_each_kept_run(*set_.state_layout, set_.mesh, mesh_.coordinates(), [&](const KeptRun& run) {
    const BlockState& s = stage_state().blocks[static_cast<std::size_t>(run.block)];
    for (const StateKind kind : kStateKinds) {
      const std::int64_t begin = kind == StateKind::kMaster    ? s.master
                                 : kind == StateKind::kMoment1 ? s.moment1
                                                               : s.moment2;
      f({run.parameter, set_.parameters()[static_cast<std::size_t>(run.parameter)].name, kind, run.first, run.count,
         at(begin + run.at * size), run.owned});
    }
  });
}

void Executor::load_parameters(const ParameterSource& value) {
  if (set_.state == DType::kF64)
    load<double>(value);
  else
    load<float>(value);
}

template <class Real>
void Executor::load(const ParameterSource& value) {
  std::memset(arena_.data(), 0, static_cast<std::size_t>(stage_state().bytes));  // moments, and what pads units
  for_each_state([&](const StateRun& run) {
    if (run.kind == StateKind::kMaster) value(run.parameter, run.first, run.count, static_cast<Real*>(run.data));
  });
  // Then weights, as products read them.
  const auto as_weights = [&](std::int64_t n, const Real* from, std::byte* to) {
    if constexpr (std::is_same_v<Real, float>)
      if (set_.compute == DType::kBF16) return kernels::cast<Bf16, float>(n, from, reinterpret_cast<Bf16*>(to));
    kernels::cast<Real, Real>(n, from, reinterpret_cast<Real*>(to));
  };
  const std::int64_t compute = size_of(set_.compute);
  for (const BlockState& s : stage_state().blocks)
    for (const Unit& unit : set_.blocks()[static_cast<std::size_t>(s.block)].units) {
      const int shards = s.master_sharded ? set_.mesh.dp : 1;
      const std::int64_t n = unit.padded / shards, begin = shards > 1 ? mesh_.coordinates().dp * n : 0;
      const std::int64_t offset = unit.offset / shards;
      const Real* master = reinterpret_cast<const Real*>(at(s.master)) + offset;
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

// By parameter: this rank, where it keeps a gradient with an element that is not finite.
template <class Real>
void Executor::find_not_finite(const Program& program, std::vector<int>& lowest_rank) const {
  for_each_kept_run(*set_.state_layout, set_.mesh, mesh_.coordinates(), [&](const KeptRun& run) {
    if (!run.trained) return;
    const std::int64_t begin = program.buffers[static_cast<std::size_t>(run.block)].grad_shard;
    const Real* gradients = reinterpret_cast<const Real*>(at(begin)) + run.at;
    if (!std::all_of(gradients, gradients + run.count, [](Real x) { return std::isfinite(x); }))
      lowest_rank[static_cast<std::size_t>(run.parameter)] = mesh_.rank();
  });
}

void Executor::stop_diverged(const Bound& b, std::int64_t step) const {
  constexpr int kFinite = std::numeric_limits<int>::max();
  std::vector<int> lowest_rank(set_.parameters().size(), kFinite);  // with an element that is not finite
  if (set_.state == DType::kF64)
    find_not_finite<double>(b.program, lowest_rank);
  else
    find_not_finite<float>(b.program, lowest_rank);
  MPI_Allreduce(MPI_IN_PLACE, lowest_rank.data(), static_cast<int>(lowest_rank.size()), MPI_INT, MPI_MIN, mesh_.all());

  StepResult losses;
  b.set_losses(losses);
  Diverged::Facts facts{.step = step,
                        .loss = losses.loss,
                        .gradient_norm = losses.gradient_norm,
                        .of_tensors = static_cast<int>(lowest_rank.size())};
  for (std::size_t parameter = 0; parameter < lowest_rank.size(); ++parameter) {
    if (lowest_rank[parameter] == kFinite) continue;
    if (facts.tensors++ > 0) continue;
    facts.tensor = set_.parameters()[parameter].name;
    facts.rank = lowest_rank[parameter];
    facts.stage = facts.rank / set_.mesh.tp % set_.mesh.pp;
  }
  throw Diverged(std::move(facts));
}

StepResult Executor::run(Purpose purpose, const StepInput& input) {
  if (options_.beat) options_.beat->step = input.step;
  Bound& b = bound(purpose);
  // Of one run to the next there is only the state.
  if (options_.poison) poison(stage_state().bytes, b.program.arena_bytes);
  b.fill_tokens(input, set_.mesh, arena_.data());
  const std::int64_t flops = kernels::flop_count();
  reset_traffic();
  Run run(*this, b, input);
  run.run();

  StepResult r;
  b.set_losses(r);
  run.write(r);
  r.report.rank = mesh_.coordinates();
  r.report.executed_flops = {kernels::flop_count() - flops};
  r.report.traffic = traffic();
  r.report.arena_bytes = {b.high_water};
  r.report.live = *b.live;
  r.report.outside_bytes = {outside_bytes() + static_cast<std::int64_t>(r.routed_rows.size() * sizeof(std::int64_t))};
  return r;
}

std::vector<std::vector<double>> Executor::gather(State what) {
  return set_.state == DType::kF64 ? gather_as<double>(what, true) : gather_as<float>(what, true);
}
std::vector<std::vector<double>> Executor::kept(State what) {
  return set_.state == DType::kF64 ? gather_as<double>(what, false) : gather_as<float>(what, false);
}

template <class Real>
std::vector<std::vector<double>> Executor::gather_as(State what, bool from_others) {
  std::vector<std::vector<double>> all;
  // Every element stands on one rank, the others have what adds nothing: to -0, too.
  const double elsewhere = from_others ? -0.0 : std::numeric_limits<double>::quiet_NaN();
  for (const Parameter& p : set_.parameters()) all.emplace_back(static_cast<std::size_t>(elements(p.shape)), elsewhere);
  for_each_kept_run(*set_.state_layout, set_.mesh, mesh_.coordinates(), [&](const KeptRun& run) {
    if ((from_others && !run.owned) || (what == State::kGradients && !run.trained)) return;
    const auto block = static_cast<std::size_t>(run.block);
    const BlockState& s = stage_state().blocks[block];
    const std::int64_t begin = what == State::kParameters ? s.master
                               : what == State::kMoment1  ? s.moment1
                               : what == State::kMoment2  ? s.moment2
                                                          : bound(Purpose::kTraining).program.buffers[block].grad_shard;
    std::copy_n(reinterpret_cast<const Real*>(at(begin)) + run.at, run.count,
                all[static_cast<std::size_t>(run.parameter)].data() + run.first);
  });
  if (!from_others) return all;
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
