// What a run leaves in a folder of its own, which no other run writes to.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "model/config.h"
#include "model/input/json_reader.h"
#include "model/plan.h"

namespace meshwright {

// OUTPUT_DIR/NAME/0001, 0002, ... (runs/NAME/... where output_dir is a bucket), holding
//   config.json    the configuration with all overrides
//   plan.json      the plan: id, text and the system that it was chosen for
//   command.txt    a shell script that repeats the run; in comments the program's version
//   metrics.jsonl  a line per step, as `run --json` prints it
//   summary.json   once the run is done: losses, and predicted against counted
// Every function throws InputError, naming the file, where it can't be written.
class RunRecord {
 public:
  // Makes the next folder and its first three files. Of two that do so at the same time, each gets its own.
  // `command`: the executable and its arguments.
  RunRecord(const TrainingConfig& config, const Plan& plan, const std::string& system,
            const std::vector<std::string>& command);
  // Goes on with a folder that another process has made so.
  explicit RunRecord(std::filesystem::path folder) : folder_(std::move(folder)) {}

  const std::filesystem::path& folder() const { return folder_; }
  void add_step(const OrderedJson& line) const;
  void finish(const OrderedJson& summary) const;

 private:
  std::filesystem::path folder_;
};

}  // namespace meshwright
