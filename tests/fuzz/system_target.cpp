#include <cmath>
#include <map>

#include "model/config.h"
#include "model/families/jaxformer.h"
#include "model/lowering/lower.h"
#include "planner/evaluate.h"
#include "planner/system_evaluator.h"
#include "sim/system.h"
#include "tests/fuzz/support.h"

namespace meshwright::fuzz {
namespace {

constexpr int kLayers = 4, kHeads = 4;

// A small model with as many sequences as the machine has ranks along dp, twice.
Problem small_problem(int devices, const Plan& plan, DType compute) {
  const JaxformerDimensions dimensions{.model_dimension = 32,
                                       .vocab_size = 64,
                                       .n_head = kHeads,
                                       .blocks = 2,
                                       .layers_per_block = kLayers / 2,
                                       .latent_dim = 8,
                                       .dhR = 8,
                                       .dropout_rate = 0.1,
                                       .k = 2,
                                       .n_experts = 4,
                                       .n_shared = 1,
                                       .capacity_factor = 1.5};
  return {jaxformer("small", dimensions, 1e-4),
          {.sequences = std::int64_t{2} * plan.mesh.dp, .tokens = 32, .compute = compute},
          devices};
}

// A plan for that many devices with pipeline and tensor parallelism where their number allows it.
Plan some_plan(int devices) {
  const int tp = devices % 2 == 0 ? 2 : 1;
  const int pp = devices / tp % 2 == 0 ? 2 : 1;
  const int dp = devices / tp / pp;
  return {.mesh = {dp, pp, tp}, .fsdp = dp > 1 ? 3 : 0, .microbatches = 2, .schedule = Schedule::k1F1B};
}

// Programs are always the same ones, and slow to make beside all else here.
const ProgramSet& programs_of(const Problem& problem, const Plan& plan) {
  static std::map<std::pair<int, DType>, ProgramSet> all;
  const auto [found, fresh] = all.try_emplace({problem.devices, problem.shape.compute});
  if (fresh) found->second = lower(problem.model, problem.shape, plan);
  return found->second;
}

bool is_fraction(double value) { return value >= 0 && value <= 1 + 1e-9; }

void require_possible(const PlanResult& r) {
  require(std::isfinite(r.step_time_s) && r.step_time_s > 0, "a step of {} s", r.step_time_s);
  require(std::isfinite(r.tokens_per_s) && r.tokens_per_s > 0, "{} tokens/s", r.tokens_per_s);
  require(r.exposed_comm_s >= 0 && r.exposed_comm_s <= r.step_time_s * (1 + 1e-9), "exposed {} s of {} s",
          r.exposed_comm_s, r.step_time_s);
  require(is_fraction(r.bubble_fraction), "a bubble of {}", r.bubble_fraction);
  require(is_fraction(r.mfu) && is_fraction(r.hfu), "MFU {}, HFU {}", r.mfu, r.hfu);
}

}  // namespace

// A system that is read is a machine on which a small model's step has possible figures, or is refused.
void system(std::string_view input) {
  static const ScratchFolder scratch;
  const bool sliced = !input.starts_with('{') && input.find('\n') != std::string_view::npos;
  const std::string slice(sliced ? input.substr(0, input.find('\n')) : std::string_view{});
  const auto file = scratch.write("system.json", sliced ? input.substr(slice.size() + 1) : input);

  System read;
  if (!accepts([&] { read = load_system_file(file, slice); })) return;
  require(read.devices() >= 1 && read.hosts() >= 1 && read.hosts() <= read.devices(), "{} devices of {} hosts",
          read.devices(), read.hosts());
  require(read.usable_memory.value > 0 && read.usable_memory <= read.memory, "usable memory {} of {}",
          read.usable_memory.value, read.memory.value);
  require(is_printable(read.name), "a name with control bytes: {}", read.name);
  require(!read.peaks().empty(), "no peak");
  for (const auto& [dtype, peak] : read.peaks())
    require(std::isfinite(peak.value) && peak.value > 0, "a peak of {} for {}", peak.value, name(dtype));
  require(!describe(read).empty(), "no description");

  constexpr int kMostDevices = 4096;  // of a program that is worth a fuzzer's time
  if (read.devices() > kMostDevices) return;
  const DType compute = read.peaks().begin()->first;
  const Plan plan = some_plan(read.devices());
  const Problem problem = small_problem(read.devices(), plan, compute);
  PlanResult result;
  if (accepts([&] { result = evaluate_plan(problem, plan, programs_of(problem, plan), machine(read, compute)); }))
    require_possible(result);
}

}  // namespace meshwright::fuzz
