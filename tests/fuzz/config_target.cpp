#include <cmath>

#include "model/accounting.h"
#include "model/config.h"
#include "model/lowering/lower.h"
#include "planner/search.h"
#include "tests/fuzz/support.h"

namespace meshwright::fuzz {
namespace {

struct Parts {
  std::string_view document;
  std::vector<std::string> overrides;
};

Parts parts_of(std::string_view input) {
  constexpr std::string_view kSet = "\n--set ";
  Parts parts{input.substr(0, input.find(kSet)), {}};
  for (auto at = input.find(kSet); at != std::string_view::npos;) {
    const auto begin = at + kSet.size();
    at = input.find(kSet, begin);
    parts.overrides.emplace_back(input.substr(begin, at == std::string_view::npos ? at : at - begin));
  }
  return parts;
}

bool same(const TrainingConfig& a, const TrainingConfig& b) {
  return a.name == b.name && a.model_dtype == b.model_dtype && a.model == b.model &&
         a.sequence_length == b.sequence_length && a.mesh == b.mesh && a.train_batch_size == b.train_batch_size &&
         a.val_batch_size == b.val_batch_size && a.microbatches == b.microbatches && a.grad_step == b.grad_step &&
         a.lr == b.lr && a.grad_clip_norm == b.grad_clip_norm && a.alpha == b.alpha && a.seed == b.seed &&
         a.training_steps == b.training_steps && a.checkpoint_steps == b.checkpoint_steps &&
         a.eval_steps == b.eval_steps && a.data == b.data && a.inference == b.inference &&
         a.output_dir == b.output_dir && a.wandb == b.wandb;
}

}  // namespace

// A configuration that is read prints as one that reads as the same, and what is computed from it first is possible.
void config(std::string_view input) {
  const Parts parts = parts_of(input);
  TrainingConfig read;
  if (!accepts([&] { read = read_config(parse_json(parts.document, "fuzz.json"), parts.overrides); })) return;
  const std::string printed = to_json(read).dump(2);
  TrainingConfig again;
  // Under the same name: a model's own file is called by it.
  require(accepts([&] { again = read_config(parse_json(printed, "fuzz.json")); }), "its own text is refused: {}",
          printed);
  require(same(read, again), "its own text is another configuration: {}", printed);
  require(to_json(again).dump(2) == printed, "two texts of one configuration: {}", printed);
  for (const std::string& note : read.notes) require(is_printable(note), "control bytes: {}", note);

  require(read.tokens_per_step() > 0 && read.evaluation_tokens() > 0, "tokens overflow");
  require(count_parameters(read.model).total() > 0, "parameters overflow");
  require(model_flops(read.model, read.sequence_length, read.sequences) > 0, "FLOPs overflow");
  for (const std::int64_t step : {std::int64_t{0}, read.lr.warmup_steps, read.lr.end_steps, read.training_steps}) {
    const double lr = learning_rate(read.lr, step);
    require(std::isfinite(lr) && lr >= 0 && lr <= read.lr.max_lr * (1 + 1e-12), "learning rate {} of step {}", lr,
            step);
  }

  if (!read.has_plan) return;
  const Plan published = published_plan(read);
  Plan parsed;
  require(accepts([&] { parsed = parse_plan(to_text(published)); }) && parsed == published,
          "its own plan is none that --plan reads: {}", to_text(published));
  illegalities(read.model, {.sequences = read.sequences, .tokens = read.sequence_length}, published);
}

}  // namespace meshwright::fuzz
