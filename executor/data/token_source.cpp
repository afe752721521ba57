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
  return {path.string(), read_npy_header(path).elements,
          [path, vocab](std::int64_t first, std::span<std::int32_t> tokens) {
            return read_npy_tokens(path, vocab, first, tokens);
          },
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

TokenSource::TokenSource(std::vector<std::int32_t> tokens) {
  const auto size = static_cast<std::int64_t>(tokens.size());
  shards_.push_back({"tokens",
                     size,
                     [all = std::make_shared<const std::vector<std::int32_t>>(std::move(tokens)), size](
                         std::int64_t first, std::span<std::int32_t> to) {
                       std::copy_n(all->begin() + first, to.size(), to.begin());
                       return size;
                     },
                     {}});
}

void TokenSource::read(int shard, std::int64_t first, std::span<std::int32_t> tokens) const {
  const Shard& s = shards_[static_cast<std::size_t>(shard)];
  meshwright::check(first >= 0 && first + static_cast<std::int64_t>(tokens.size()) <= s.size,
                    "token source: no tokens {} to {} of {}", first, first + static_cast<std::int64_t>(tokens.size()),
                    s.size);
  // Where a step begins was decided by the size that it had.
  if (const std::int64_t now = s.read(first, tokens); now != s.size) {
    throw InputError(Diagnostic{s.name, "", std::to_string(now) + " tokens",
                                "the " + std::to_string(s.size) + " that it had when the run began",
                                "it was changed while it was used: let it be, and run again"});
  }
}

std::int64_t TokenSource::all_tokens() const {
  std::int64_t all = 0;
  for (const Shard& s : shards_) all += s.size;
  return all;
}

TokenSource TokenSource::split_off(std::int64_t tokens) {
  meshwright::check(0 < tokens && tokens < all_tokens(), "token source: {} of {} tokens split off", tokens,
                    all_tokens());
  std::vector<Shard> end;
  while (shards_.back().size <= tokens) {
    tokens -= shards_.back().size;
    end.insert(end.begin(), std::move(shards_.back()));
    shards_.pop_back();
  }
  if (tokens > 0) {
    Shard& cut = shards_.back();
    const std::int64_t whole = cut.size;
    cut.size -= tokens;
    // What read() compares is the size of a part.
    const auto part = [whole, read = cut.read](std::int64_t begin, std::int64_t size) {
      return [=](std::int64_t first, std::span<std::int32_t> to) { return read(begin + first, to) - whole + size; };
    };
    end.insert(end.begin(), {cut.name, tokens, part(cut.size, tokens), {}});
    cut.read = part(0, cut.size);
  }
  return TokenSource(std::move(end));
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
