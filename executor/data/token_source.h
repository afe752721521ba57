// Where token ids come from: shards of a flat stream of tokens, read when they are needed.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "executor/data/cache.h"

namespace meshwright {

// Shards in the order in which they are trained on. Movable.
class TokenSource {
 public:
  struct Shard {
    std::string name;  // for messages
    std::int64_t size = 0;
    // Gives tokens from `first` on, and returns how many the shard has now; may throw InputError.
    std::function<std::int64_t(std::int64_t first, std::span<std::int32_t> tokens)> read;
    std::function<void()> check;  // throws what reading all would throw; may be empty: reading never does
  };

  explicit TokenSource(std::vector<Shard> shards);         // at least one
  explicit TokenSource(std::vector<std::int32_t> tokens);  // one shard in memory

  int shards() const { return static_cast<int>(shards_.size()); }
  std::int64_t size(int shard) const { return shards_[shard].size; }
  const std::string& name(int shard) const { return shards_[shard].name; }
  // Tokens [first, first + tokens.size()) of a shard, which has them. Throws InputError for what stands there, and if the shard
  // has no longer the size that it had.
  void read(int shard, std::int64_t first, std::span<std::int32_t> tokens) const;

  // Takes the last `tokens` off: whole shards from the end, and the end of the one that is left. A shard of which a part
  // stays here is checked here. Precondition: 0 < tokens < all of them.
  TokenSource split_off(std::int64_t tokens);
  std::int64_t all_tokens() const;  // of all shards

  // Reads every shard once, so that a long run does not end at the one that is bad. Throws InputError with a fault of each bad
  // shard. progress: called before each.
  void check(const std::function<void(int shard)>& progress = {}) const;

 private:
  std::vector<Shard> shards_;
};

// What --data names:
//   a folder      its .npy files, sorted by name, one shard each
//   FILE.npy      one shard
//   another file  UTF-8 text, encoded by a tokenizer trained on it with `vocab` entries; both kept in `cache`. A byte order
//                 mark is left out; what is not UTF-8, or holds a NUL byte, is refused.
//   ""            demo_corpus(), likewise
// Every id is below `vocab` (checked when a shard is read, and by check()). Only regular files are read. Throws InputError: for
// a folder with a fault of each bad shard.
// Ranks that open the same text do so in rank_0_first() (executor/comm), so that one makes what the others find.
TokenSource open_tokens(const std::filesystem::path& data, int vocab, const Cache& cache);

}  // namespace meshwright
