#include "executor/data/token_source.h"

#include <algorithm>
#include <cassert>
#include <fstream>
#include <iterator>
#include <utility>

#include "executor/data/corpus.h"
#include "executor/data/npy.h"
#include "executor/data/tokenizer.h"
#include "model/input/diagnostics.h"

namespace meshwright {
namespace {

TokenSource::Shard npy_shard(const std::filesystem::path& path, int vocab) {
  return {path.string(), read_npy_header(path).elements, [path, vocab] { return read_npy_tokens(path, vocab); }};
}

TokenSource from_text(const std::string& text, int vocab, const std::filesystem::path& cache) {
  return TokenSource(Tokenizer::trained_on(text, vocab, cache).encode_cached(text, cache));
}

}  // namespace

TokenSource::TokenSource(std::vector<Shard> shards) : shards_(std::move(shards)) { assert(!shards_.empty()); }

TokenSource::TokenSource(std::vector<std::int32_t> tokens) : current_(std::move(tokens)), current_shard_(0) {
  shards_.push_back({"tokens", static_cast<std::int64_t>(current_.size()), {}});
}

std::span<const std::int32_t> TokenSource::tokens(int shard) {
  if (shard != current_shard_) {
    current_shard_ = -1;
    current_ = {};  // not two at a time
    current_ = shards_[shard].read();
    current_shard_ = shard;
  }
  return current_;
}

TokenSource open_tokens(const std::filesystem::path& data, int vocab, const std::filesystem::path& cache) {
  if (data.empty()) return from_text(demo_corpus(), vocab, cache);

  if (std::filesystem::is_directory(data)) {
    std::vector<std::filesystem::path> files;
    for (const auto& entry : std::filesystem::directory_iterator(data)) {
      if (entry.path().extension() == ".npy") files.push_back(entry.path());
    }
    if (files.empty()) {
      throw InputError(
          Diagnostic{"--data", "", data.string(), "a folder with .npy files", "or name a text or .npy file itself"});
    }
    std::sort(files.begin(), files.end());
    std::vector<TokenSource::Shard> shards;
    for (const auto& file : files) shards.push_back(npy_shard(file, vocab));
    return TokenSource(std::move(shards));
  }

  std::ifstream file(data, std::ios::binary);
  if (!file) {
    throw InputError(Diagnostic{"--data", "", data.string(), "a text file, a .npy file, or a folder of .npy files",
                                "no such file, or it can't be read"});
  }
  if (data.extension() == ".npy") return TokenSource({npy_shard(data, vocab)});
  return from_text({std::istreambuf_iterator<char>(file), {}}, vocab, cache);
}

}  // namespace meshwright
