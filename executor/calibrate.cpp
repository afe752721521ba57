#include "executor/calibrate.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <fstream>
#include <iterator>
#include <limits>
#include <map>
#include <optional>
#include <vector>

#include "executor/comm/collectives.h"
#include "executor/executor.h"
#include "executor/kernels/machine_rates.h"
#include "executor/launch/resources.h"
#include "executor/median.h"
#include "model/families/jaxformer.h"
#include "model/lowering/lower.h"
#include "model/program/check.h"
#include "model/program/op_work.h"

namespace meshwright {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point begin) { return std::chrono::duration<double>(Clock::now() - begin).count(); }

std::string processor() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown processor";
}

// One operation of one step: what it is, and how long it took.
struct Sample {
  Work work;
  double seconds;
};

// A model whose operations are timed, and in how many steps: cores and caches take a few to reach their pace.
struct Sampled {
  std::int64_t width, tokens, sequences, vocab;
  int warm_up = 4, steps = 9;
};
constexpr Sampled kLargestModel{256, 256, 4, 4096};

// Steps of a small model on this rank alone; the median time of every operation of its program.
void sample_model(MPI_Comm comm, const Sampled& sampled, DType compute, std::vector<Sample>& samples) {
  const auto [width, tokens, sequences, vocab, warm_up, steps] = sampled;
  const ModelSpec model = jaxformer("calibration",
                                    {.model_dimension = width,
                                     .vocab_size = vocab,
                                     .n_head = width / 32,
                                     .blocks = 1,
                                     .layers_per_block = 2,
                                     .latent_dim = width / 4,
                                     .dhR = 32,
                                     .dropout_rate = 0.1,
                                     .k = 2,
                                     .n_experts = 8,
                                     .n_shared = 1,
                                     .capacity_factor = 1.5},
                                    1e-2);
  const ProgramSet set = lower(model, {.sequences = sequences, .tokens = tokens, .compute = compute}, Plan{});
  Executor executor(set, MPI_COMM_SELF, {.seed = 1, .timeline = true});
  const std::vector<ParameterSpec> specs = parameters(model);
  executor.load_parameters(initial_weights(specs, 1));
  std::vector<std::vector<double>> times;
  for (int step = 0; step < warm_up + steps; ++step) {
    MPI_Barrier(comm);
    std::int32_t id = 0;
    const StepResult r = executor.run_step(
        {.step = step,
         .learning_rate = 1e-3,
         .fill = [&, sequences = sequences, tokens = tokens, vocab = vocab](int, std::int32_t* in, std::int32_t* out) {
           for (std::int64_t i = 0; i < sequences * tokens; ++i) {
             in[i] = id;
             out[i] = id = static_cast<std::int32_t>((id * 1103515245LL + 12345) % vocab);
           }
         }});
    if (step < warm_up) continue;
    times.resize(r.report.timeline.size());
    for (std::size_t i = 0; i < times.size(); ++i)
      times[i].push_back(r.report.timeline[i].end.value - r.report.timeline[i].begin.value);
  }
  std::size_t i = 0;
  for_each_op(set, set.stages.front(), [&](const Slot&, const Call&, const Piece& piece, const Op& op) {
    if (!std::holds_alternative<Free>(op)) samples.push_back({work_of(op, piece), median(times[i++])});
  });
}

constexpr double kOverhead = 2e-7;  // of an operation that multiplies matrices: a call and two clock readings

// seconds = overhead + bytes / bandwidth, least squares of relative errors; both positive.
std::pair<double, double> fit_bytes(const std::vector<Sample>& samples) {
  double sw = 0, sx = 0, sy = 0, sxx = 0, sxy = 0;
  for (const Sample& s : samples) {
    const double y = std::max(s.seconds, 1e-8), w = 1 / (y * y), x = static_cast<double>(s.work.bytes.value);
    sw += w;
    sx += w * x;
    sy += w * y;
    sxx += w * x * x;
    sxy += w * x * y;
  }
  const double d = sw * sxx - sx * sx;
  double slope = d > 0 ? (sw * sxy - sx * sy) / d : 0, overhead = (sy - slope * sx) / sw;
  if (slope <= 0 || overhead < 0) {
    slope = sxy / sxx;
    overhead = 0;
  }
  return {overhead, 1 / slope};
}

// Of products by the dtype of what they multiply; of the rest whatever the dtype, by the bytes that they touch.
Json fit_kind(const std::vector<Sample>& samples, const Json& source) {
  const auto quantity = [&](double v) { return Json{{"value", v}, {"source", source}}; };
  std::map<DType, std::map<std::int64_t, std::pair<double, double>>> by_type;  // by size: FLOPs, seconds
  for (const Sample& s : samples)
    if (s.work.flops.value > 0) {
      auto& [flops, seconds] = by_type[s.work.dtype][std::min({s.work.m, s.work.n, s.work.k})];
      flops += static_cast<double>(s.work.flops.value);
      seconds += std::max(s.seconds - kOverhead, 1e-9);
    }
  if (by_type.empty()) {
    const auto [overhead, bandwidth] = fit_bytes(samples);
    return {{"overhead_us", quantity(overhead * 1e6)}, {"bytes_per_s", quantity(bandwidth)}};
  }
  Json rates = Json::object();
  for (const auto& [type, by_size] : by_type) {
    Json points = Json::array();
    for (const auto& [size, sum] : by_size)
      points.push_back({{"smallest_dimension", size}, {"flops_per_s", sum.first / sum.second}});
    rates[std::string(name(type))] = {{"source", source}, {"points", points}};
  }
  return {{"overhead_us", quantity(kOverhead * 1e6)}, {"flops_per_s", rates}};
}

// Median seconds of run() on the slowest rank of `comm`, after a warm-up.
template <class F>
double timed(MPI_Comm comm, F&& run) {
  std::vector<double> seconds;
  for (int i = 0; i < 9; ++i) {
    MPI_Barrier(comm);
    const auto begin = Clock::now();
    run();
    double s = seconds_since(begin);
    MPI_Allreduce(MPI_IN_PLACE, &s, 1, MPI_DOUBLE, MPI_MAX, comm);
    if (i >= 2) seconds.push_back(s);
  }
  return median(seconds);
}

Json measure_network(MPI_Comm comm, const Json& source) {
  int rank = 0, ranks = 0;
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &ranks);
  constexpr std::int64_t kLargest = std::int64_t{16} << 20;
  std::vector<float> x(kLargest / 4, 1.0f), y(x.size()), scratch(x.size());
  Json collectives = Json::array();
  for (int p = 2; p <= ranks; ++p) {
    if (ranks % p) continue;
    MPI_Comm group = MPI_COMM_NULL;
    MPI_Comm_split(comm, rank / p, rank, &group);
    const auto curve = [&](const char* kind, std::int64_t smallest, std::int64_t largest, auto&& run) {
      Json points = Json::array();
      for (std::int64_t bytes = smallest; bytes <= largest; bytes *= 8) {
        const std::int64_t n = bytes / 4 / p * p;
        points.push_back(
            {{"bytes", n * 4}, {"us", std::max(1e-3, 1e6 * timed(comm, [&] { run(static_cast<std::size_t>(n)); }))}});
      }
      collectives.push_back({{"kind", kind}, {"members", p}, {"source", source}, {"points", points}});
    };
    const auto part = static_cast<std::size_t>(p);
    curve("all-gather", 4096, kLargest, [&](std::size_t n) {
      ring_all_gather<float>(group, {x.data(), n / part}, {y.data(), n});
    });
    curve("reduce-scatter", 4096, kLargest, [&](std::size_t n) {
      ring_reduce_scatter<float>(group, {x.data(), n}, {y.data(), n / part}, {scratch.data(), n / part});
    });
    curve("all-reduce", 4096, kLargest, [&](std::size_t n) {
      ring_all_reduce<float>(group, {x.data(), n}, {scratch.data(), n / part});
    });
    curve("direct all-reduce", 64, 4096, [&](std::size_t n) {
      direct_all_reduce<double>(group, {reinterpret_cast<double*>(x.data()), n / 2},
                                {reinterpret_cast<double*>(scratch.data()), n / 2 * part});
    });
    std::fill(x.begin(), x.end(), 1.0f);
    MPI_Comm_free(&group);
  }
  Json network{{"model", "measured"},
               {"overlaps_compute", {{"value", false}, {"source", "communication is blocking in this executor"}}}};
  network["collectives"] = collectives;  // none on one core, but the key is needed
  Json points = Json::array();
  for (std::int64_t bytes = 64; bytes <= kLargest; bytes *= 16) {
    const auto n = static_cast<std::size_t>(bytes / 4);
    double s = 1e-7;
    if (ranks > 1)
      s = timed(comm,
                [&] {  // there and back
                  for (int turn = 0; turn < 2; ++turn) {
                    if (rank == turn) isend<float>(comm, 1 - turn, {x.data(), n}).wait();
                    if (rank == 1 - turn) recv<float>(comm, turn, {y.data(), n});
                  }
                }) /
          2;
    points.push_back({{"bytes", bytes}, {"us", s * 1e6}});
  }
  network["message"] = {{"source", source}, {"points", points}};
  return network;
}

// Seconds that the fastest of `attempts` took on its slowest rank.
template <class F>
double fastest(MPI_Comm comm, int attempts, F&& run) {
  double best = std::numeric_limits<double>::infinity();
  for (int i = 0; i < attempts; ++i) {
    MPI_Barrier(comm);
    const auto begin = Clock::now();
    run();
    double s = seconds_since(begin);
    MPI_Allreduce(MPI_IN_PLACE, &s, 1, MPI_DOUBLE, MPI_MAX, comm);
    best = std::min(best, s);
  }
  return best;
}

// Of a buffer that no cache keeps, as far as memory allows.
std::size_t copied_bytes(int ranks) {
  constexpr std::int64_t kLeast = std::int64_t{64} << 20, kMost = std::int64_t{512} << 20;
  const std::int64_t cache = std::max(sysconf(_SC_LEVEL2_CACHE_SIZE), sysconf(_SC_LEVEL3_CACHE_SIZE));  // 0: unknown
  return static_cast<std::size_t>(
      std::min(std::clamp(2 * cache, kLeast, kMost), available_memory() / (8 * std::int64_t{ranks})));
}

}  // namespace

MachineRates measure_machine(MPI_Comm comm) {
  int ranks = 0;
  MPI_Comm_size(comm, &ranks);
  constexpr int kAttempts = 10;
  constexpr std::int64_t kRounds = 2'000'000;  // some 10 ms
  MachineRates rates;
  float result = 0;
  double flops = 0;
  const double products = fastest(comm, kAttempts, [&] { flops = kernels::multiply_add_rounds(kRounds, &result); });
  check(std::isfinite(result), "the multiply-adds of the peak are not finite");
  rates.flops_per_s = flops / products;
  const double narrow = fastest(comm, kAttempts, [&] { flops = kernels::bf16_multiply_add_rounds(kRounds, &result); });
  check(std::isfinite(result), "the multiply-adds of the peak in bf16 are not finite");
  rates.bf16_flops_per_s = flops / narrow;

  const std::size_t bytes = copied_bytes(ranks);
  const std::vector<std::byte> from(bytes, std::byte{1});
  std::vector<std::byte> to(bytes);
  double moved = 0;
  const double copy = fastest(comm, kAttempts, [&] { moved = kernels::copy_bytes(bytes, from.data(), to.data()); });
  check(to.back() == std::byte{1}, "the copy that measures memory did not copy");
  rates.bytes_per_s = moved / copy;
  return rates;
}

ProductRate product_rate(MPI_Comm comm) {
  Sampled few = kLargestModel;
  few.warm_up = 2;
  few.steps = 3;
  std::vector<Sample> samples;
  sample_model(comm, few, DType::kF32, samples);
  ProductRate rate;
  double flops = 0, seconds = 0;
  for (const Sample& s : samples) {
    const auto size = static_cast<double>(std::min({s.work.m, s.work.n, s.work.k}));
    if (s.work.kind != kind_of(Gemm{}) || size < rate.smallest_dimension) continue;
    if (size > rate.smallest_dimension) flops = seconds = 0;
    rate.smallest_dimension = size;
    flops += static_cast<double>(s.work.flops.value);
    seconds += std::max(s.seconds - kOverhead, 1e-9);
  }
  rate.flops_per_s = flops / seconds;
  MPI_Allreduce(MPI_IN_PLACE, &rate.flops_per_s, 1, MPI_DOUBLE, MPI_MIN, comm);
  return rate;
}

std::string this_device() { return "a core of " + processor(); }

Json calibrate(MPI_Comm comm, const std::function<void(const std::string&)>& progress) {
  int rank = 0, ranks = 0;
  MPI_Comm_rank(comm, &rank);
  MPI_Comm_size(comm, &ranks);
  const auto say = [&](const std::string& what) {
    if (rank == 0 && progress) progress(what);
  };
  const Json source = fmt::format("measured by `meshwright calibrate` on {}, {} ranks at once", processor(), ranks);
  const auto quantity = [&](auto v) { return Json{{"value", v}, {"source", source}}; };

  say("peaks of arithmetic and memory");
  MachineRates peak = measure_machine(comm);
  std::vector<Sample> samples;
  for (const Sampled& sampled : {Sampled{64, 64, 4, 512}, Sampled{128, 128, 4, 2048}, kLargestModel}) {
    say(fmt::format("operations of a model of width {}", sampled.width));
    sample_model(comm, sampled, DType::kF32, samples);
    std::vector<Sample> narrow;  // of which only products have rates of their own
    sample_model(comm, sampled, DType::kBF16, narrow);
    std::ranges::copy_if(narrow, std::back_inserter(samples), [](const Sample& s) { return s.work.flops.value > 0; });
  }
  say("collectives and messages");
  Json network = measure_network(comm, source);
  if (rank != 0) return nullptr;

  std::map<OpKind, std::vector<Sample>> by_kind;
  for (const Sample& s : samples) by_kind[s.work.kind].push_back(s);
  Json kinds = Json::object();
  std::vector<Sample> light;
  for (const auto& [kind, of_kind] : by_kind) {
    const Json& fitted = kinds[std::string(kind_name(kind))] = fit_kind(of_kind, source);
    // A disturbed measurement of the peak: what products reached was possible.
    for (const auto& [type, most] : {std::pair{"f32", &peak.flops_per_s}, std::pair{"bf16", &peak.bf16_flops_per_s}})
      if (fitted.contains("flops_per_s") && fitted["flops_per_s"].contains(type))
        for (const Json& point : fitted["flops_per_s"][type]["points"])
          *most = std::max(*most, point["flops_per_s"].get<double>());
    if (of_kind.front().work.flops.value == 0) light.insert(light.end(), of_kind.begin(), of_kind.end());
  }
  kinds["other"] = fit_kind(light, source);
  const std::int64_t memory = available_memory() / ranks;
  return {{"name", "local"},
          {"device", this_device()},
          {"memory", {{"bytes", quantity(memory)}, {"usable_bytes", quantity(memory / 100 * 85)}}},
          {"compute",
           {{"model", "measured"},
            {"peak_flops_per_s", {{"f32", quantity(peak.flops_per_s)}, {"bf16", quantity(peak.bf16_flops_per_s)}}},
            {"memory_bytes_per_s", quantity(peak.bytes_per_s)},
            {"kinds", kinds}}},
          {"topology", {{"kind", "shared_memory"}, {"devices", quantity(ranks)}}},
          {"network", network}};
}

}  // namespace meshwright
