#include "executor/data/token_source.h"

#include <algorithm>
#include <string_view>
#include <system_error>
#include <utility>

#include "executor/data/corpus.h"
#include "executor/data/npy.h"
#include "executor/data/regular_file.h"
#include "executor/data/tokenizer.h"
#include "executor/data/utf8.h"
#include "model/input/diagnostics.h"
#include "model/program/check.h"

namespace meshwright {
namespace {

constexpr const char* kAllowed = "a text file, a .npy file, or a folder of .npy files";
constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

TokenSource::Shard npy_shard(const std::filesystem::path& path, int vocab) {
  return {path.string(), read_npy_header(path).elements, [path, vocab] { return read_npy_tokens(path, vocab); },
          [path, vocab] { check_npy_tokens(path, vocab); }};
}

TokenSource from_text(std::string_view text, int vocab, const Cache& cache) {
  return TokenSource(Tokenizer::trained_on(text, vocab, cache).encode_cached(text, cache));
}

// f(i) for each i below n; one InputError with the faults of all that throw one.
template <class F>
void with_all_faults(std::size_t n, F&& f) {
  std::vector<Diagnostic> faults;
  for (std::size_t i = 0; i < n; ++i) {
    try {
      f(i);
    } catch (const InputError& error) {
      faults.insert(faults.end(), error.diagnostics().begin(), error.diagnostics().end());
    }
  }
  if (!faults.empty()) throw InputError(std::move(faults));
}

// The .npy files of a folder, sorted by name.
std::vector<std::filesystem::path> npy_files(const std::filesystem::path& folder) {
  std::vector<std::filesystem::path> files;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->path().extension() == ".npy") files.push_back(entry->path());
  }
  if (error) throw InputError(Diagnostic{"--data", folder.string(), error.message(), "a folder that can be read", ""});
  if (files.empty()) {
    throw InputError(
        Diagnostic{"--data", "", folder.string(), "a folder with .npy files", "or name a text or .npy file itself"});
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

TokenSource::TokenSource(std::vector<Shard> shards) : shards_(std::move(shards)) {
  meshwright::check(!shards_.empty(), "token source: no shards");
}

TokenSource::TokenSource(std::vector<std::int32_t> tokens) : current_(std::move(tokens)), current_shard_(0) {
  shards_.push_back({"tokens", static_cast<std::int64_t>(current_.size()), {}});
}

std::span<const std::int32_t> TokenSource::tokens(int shard) {
  if (shard != current_shard_) {
    current_shard_ = -1;
    current_ = {};  // not two at a time
    current_ = shards_[shard].read();
    // Where a step begins was decided by the size that it had.
    if (static_cast<std::int64_t>(current_.size()) != size(shard)) {
      throw InputError(Diagnostic{name(shard), "", std::to_string(current_.size()) + " tokens",
                                  "the " + std::to_string(size(shard)) + " that it had when the run began",
                                  "it was changed while it was used: let it be, and run again"});
    }
    current_shard_ = shard;
  }
  return current_;
}

void TokenSource::check(const std::function<void(int shard)>& progress) const {
  with_all_faults(shards_.size(), [&](std::size_t i) {
    if (progress) progress(static_cast<int>(i));
    if (shards_[i].check) shards_[i].check();
  });
}

TokenSource open_tokens(const std::filesystem::path& data, int vocab, const Cache& cache) {
  if (data.empty()) return from_text(demo_corpus(), vocab, cache);

  std::error_code error;
  if (std::filesystem::is_directory(data, error)) {
    const std::vector<std::filesystem::path> files = npy_files(data);
    std::vector<TokenSource::Shard> shards;
    with_all_faults(files.size(), [&](std::size_t i) { shards.push_back(npy_shard(files[i], vocab)); });
    return TokenSource(std::move(shards));
  }
  if (data.extension() == ".npy") return TokenSource({npy_shard(data, vocab)});
  const std::string text = RegularFile(data, kAllowed, "name one with --data").all();
  require_utf8(text, data.string());
  std::string_view content = text;
  if (content.starts_with(kByteOrderMark)) content.remove_prefix(kByteOrderMark.size());
  return from_text(content, vocab, cache);
}

}  // namespace meshwright
