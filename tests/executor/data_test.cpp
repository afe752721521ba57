// Data: .npy files, the tokenizer and its cache, the demonstration's text, and which tokens a step trains on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <pwd.h>
#include <rapidcheck.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <csignal>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <map>
#include <numeric>
#include <optional>
#include <string>
#include <vector>

#include "executor/data/batches.h"
#include "executor/data/cache.h"
#include "executor/data/corpus.h"
#include "executor/data/npy.h"
#include "executor/data/regular_file.h"
#include "executor/data/token_source.h"
#include "executor/data/tokenizer.h"
#include "model/input/diagnostics.h"
#include "tests/other_user.h"

namespace meshwright {
namespace {

namespace fs = std::filesystem;
using testing::ElementsAre;
using testing::HasSubstr;

class Data : public testing::Test {
 protected:
  void SetUp() override {
    folder = fs::temp_directory_path() / ("meshwright-data-" + std::to_string(getpid()) + "-" +
                                          testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::create_directories(folder);
  }
  void TearDown() override { fs::remove_all(folder); }

  fs::path write(const std::string& name, const std::string& bytes) {
    std::ofstream(folder / name, std::ios::binary) << bytes;
    return folder / name;
  }

  fs::path folder;
};
using Npy = Data;
using TokenizerTest = Data;
using BatchesTest = Data;
using Corpus = Data;

template <class T>
std::string bytes_of(const std::vector<T>& v) {
  return {reinterpret_cast<const char*>(v.data()), v.size() * sizeof(T)};
}

// A .npy file of format `version` with this dictionary and data.
std::string npy(const std::string& dictionary, const std::string& data, int version = 1) {
  std::string header = dictionary + "\n", file = "\x93NUMPY";
  file += static_cast<char>(version);
  file += '\0';
  for (int i = 0; i < (version == 1 ? 2 : 4); ++i) file += static_cast<char>(header.size() >> (8 * i));
  return file + header + data;
}

std::string dictionary(const std::string& descr, const std::string& shape, const std::string& fortran = "False") {
  return "{'descr': '" + descr + "', 'fortran_order': " + fortran + ", 'shape': " + shape + ", }";
}

void write_npy_tokens(const fs::path& path, const std::vector<std::int32_t>& tokens) {
  std::ofstream(path, std::ios::binary) << npy(dictionary("<i4", "(" + std::to_string(tokens.size()) + ",)"),
                                               bytes_of(tokens));
}

template <class F>
std::string message(F&& f) {
  try {
    f();
  } catch (const InputError& e) {
    return e.what();
  }
  return "nothing was thrown";
}

TEST_F(Npy, reads_all_integer_types_in_all_three_versions) {
  const std::vector<std::int32_t> want{0, 1, 127, 5};
  const auto check = [&]<class T>(const std::string& descr, T) {
    const std::string data = bytes_of(std::vector<T>{0, 1, 127, 5});
    for (const int version : {1, 2, 3}) {
      const fs::path path = write("a.npy", npy(dictionary(descr, "(4,)"), data, version));
      EXPECT_EQ(read_npy_tokens(path, 128), want) << descr << ", version " << version;
    }
  };
  check("|u1", std::uint8_t{});
  check("|i1", std::int8_t{});
  check("<u2", std::uint16_t{});
  check("<i2", std::int16_t{});
  check("<u4", std::uint32_t{});
  check("<i4", std::int32_t{});
  check("<u8", std::uint64_t{});
  check("<i8", std::int64_t{});
}

TEST_F(Npy, takes_c_order_arrays_of_any_shape_as_flat) {
  const std::string data = bytes_of(std::vector<std::uint16_t>{1, 2, 3, 4, 5, 6});
  EXPECT_THAT(read_npy_tokens(write("a.npy", npy(dictionary("<u2", "(2, 3)"), data)), 10),
              ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(read_npy_tokens(write("b.npy", npy(dictionary("<u2", "(6,)", "True"), data)), 10),
              ElementsAre(1, 2, 3, 4, 5, 6));
  EXPECT_THAT(read_npy_tokens(write("c.npy", npy(dictionary("<u2", "()"), data)), 10), ElementsAre(1));
  EXPECT_THAT(read_npy_tokens(write("d.npy", npy(dictionary("<u2", "(0,)"), "")), 10), ElementsAre());
}

TEST_F(Npy, reads_every_token_of_an_array_longer_than_a_block) {
  std::vector<std::int32_t> tokens(600'000);
  for (std::size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<std::int32_t>(i * 7919 % 50'000);
  write_npy_tokens(folder / "a.npy", tokens);
  EXPECT_TRUE(read_npy_tokens(folder / "a.npy", 50'000) == tokens);
  std::vector<std::int32_t> part(300'000);  // more than a block, from within one
  EXPECT_EQ(read_npy_tokens(folder / "a.npy", 50'000, 123'456, part), 600'000);
  EXPECT_TRUE(std::equal(part.begin(), part.end(), tokens.begin() + 123'456));
  tokens[599'999] = 50'000;
  write_npy_tokens(folder / "a.npy", tokens);
  EXPECT_THAT(message([&] { check_npy_tokens(folder / "a.npy", 50'000); }), HasSubstr("element 599999 = 50000"));
}

TEST_F(Npy, refuses_bad_files_by_name_and_says_what_is_allowed) {
  const std::string data(16, '\1'), good = npy(dictionary("<u4", "(4,)"), data);
  const auto refusal = [&](const std::string& bytes) {
    return message([&] { read_npy_tokens(write("bad.npy", bytes), 100'000'000); });
  };
  EXPECT_EQ(refusal(good), "nothing was thrown");
  EXPECT_THAT(refusal(""), HasSubstr("first bytes"));
  EXPECT_THAT(refusal("hello world, this is text"), HasSubstr("bad.npy"));
  EXPECT_THAT(refusal("PK\3\4 and so on, an archive"), HasSubstr("numpy.save"));
  EXPECT_THAT(refusal(npy(dictionary("<u4", "(4,)"), data, 4)), HasSubstr("4.0"));
  EXPECT_THAT(refusal(good.substr(0, 9)), HasSubstr("header length"));
  EXPECT_THAT(refusal(good.substr(0, 30)), HasSubstr("header length"));
  EXPECT_THAT(refusal(good.substr(0, good.size() - 1)), HasSubstr("16 bytes, as the shape says"));
  EXPECT_THAT(refusal(npy(dictionary("|O", "(4,)"), data)), HasSubstr("pickled"));
  EXPECT_THAT(refusal(npy(dictionary("<f4", "(4,)"), data)), HasSubstr("<f4"));
  EXPECT_THAT(refusal(npy(dictionary(">u4", "(4,)"), data)), HasSubstr(">u4"));
  EXPECT_THAT(refusal(npy("{'descr': [('a', '<u4')], 'fortran_order': False, 'shape': (4,), }", data)),
              HasSubstr("descr"));
  EXPECT_THAT(refusal(npy(dictionary("<u4", "(2, 2)", "True"), data)), HasSubstr("fortran_order"));
  EXPECT_THAT(refusal(npy(dictionary("<u4", "(-4,)"), data)), HasSubstr("header"));
  EXPECT_THAT(refusal(npy(dictionary("<u4", "(99999999999, 99999999999)"), data)), HasSubstr("2^63"));
  EXPECT_THAT(refusal(npy(dictionary("<u4", "(4611686018427387904,)"), data)), HasSubstr("data"));
  EXPECT_THAT(refusal(npy("{'descr': '<u4', 'shape': (4,)}", data)), HasSubstr("header"));
  EXPECT_THAT(refusal(npy("__import__('os')", data)), HasSubstr("header"));
  EXPECT_THAT(message([&] { read_npy_tokens(folder / "none.npy", 10); }), HasSubstr("No such file"));
  EXPECT_THAT(message([&] { read_npy_tokens(folder, 10); }), HasSubstr("folder"));
}

TEST_F(Npy, a_damaged_file_never_does_worse_than_being_refused) {
  const std::string good = npy(dictionary("<u4", "(4,)"), std::string(16, '\1'));
  rc::check([&](std::size_t at, char byte) {
    std::string bytes = good;
    bytes[at % bytes.size()] = byte;
    try {
      read_npy_tokens(write("bad.npy", bytes), 100'000'000);
    } catch (const InputError&) {
    }
  });
}

TEST_F(Npy, says_where_a_token_beyond_the_vocabulary_stands) {
  const auto path = write("a.npy", npy(dictionary("<i4", "(4,)"), bytes_of(std::vector<std::int32_t>{1, 99, 100, -1})));
  const std::string text = message([&] { read_npy_tokens(path, 100); });
  EXPECT_THAT(text, HasSubstr("element 2 = 100"));
  EXPECT_THAT(text, HasSubstr("from 0 to 99"));
  const auto negative = write("b.npy", npy(dictionary("<i8", "(2,)"), bytes_of(std::vector<std::int64_t>{1, -1})));
  EXPECT_THAT(message([&] { read_npy_tokens(negative, 100); }), HasSubstr("element 1 = -1"));
}

// ---- what is kept ----

// Lets no file of this process grow beyond `bytes`: writes then fail as on a full disk, with another word for it.
class FileSizeLimit {
 public:
  explicit FileSizeLimit(rlim_t bytes) {
    handler_ = std::signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &before_);
    rlimit limit = before_;
    limit.rlim_cur = bytes;
    setrlimit(RLIMIT_FSIZE, &limit);
  }
  ~FileSizeLimit() {
    setrlimit(RLIMIT_FSIZE, &before_);
    std::signal(SIGXFSZ, handler_);
  }

 private:
  rlimit before_{};
  void (*handler_)(int) = nullptr;
};

std::string text_of(const fs::path& file) {
  std::ifstream in(file, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::sort(names.begin(), names.end());
  return names;
}

using Files = Data;

TEST_F(Files, a_file_is_replaced_whole_or_stays_as_it_is) {
  const fs::path file = folder / "x" / "file";
  write_atomically(file, "old");
  EXPECT_EQ(text_of(file), "old");
  {
    const FileSizeLimit full(1000);
    EXPECT_THAT(message([&] { write_atomically(file, std::string(5000, 'n')); }), HasSubstr("File too large"));
    EXPECT_THAT(message([&] { expect_writable(file, 5000); }), HasSubstr("File too large"));
    EXPECT_NO_THROW(expect_writable(file, 500));
  }
  EXPECT_EQ(text_of(file), "old");
  EXPECT_THAT(names_in(folder / "x"), ElementsAre("file"));  // and nothing half-written beside it
  write_atomically(file, std::string(5000, 'n'));
  EXPECT_EQ(text_of(file).size(), 5000u);
  EXPECT_THAT(names_in(folder / "x"), ElementsAre("file"));
}

TEST_F(Files, a_place_that_cannot_be_written_is_named_with_the_cause) {
  write("not a folder", "");
  const std::string text = message([&] { write_atomically(folder / "not a folder" / "file", "x"); });
  EXPECT_THAT(text, HasSubstr("MESHWRIGHT_CACHE"));
  EXPECT_THAT(text, HasSubstr("Not a directory"));
  fs::create_directories(folder / "taken" / "x");
  EXPECT_THAT(message([&] { write_atomically(folder / "taken", "x"); }), HasSubstr("directory"));
  EXPECT_THAT(message([&] { expect_writable(folder / "taken", 1); }), HasSubstr("directory"));
}

TEST_F(Files, no_link_is_followed_and_permissions_follow_the_umask) {
  // A link in the file's own place is replaced, and what it points to stays. Names of unfinished files can't be foreseen, so
  // a link planted under the one that a process number would give is not met.
  const fs::path victim = write("victim", "precious");
  fs::create_directories(folder / "cache");
  const fs::path file = folder / "cache" / "file";
  fs::create_symlink(victim, file);
  fs::create_symlink(victim, fs::path(file.string() + ".tmp" + std::to_string(getpid())));
  const mode_t before = umask(027);
  write_atomically(file, "new");
  umask(before);
  EXPECT_EQ(text_of(victim), "precious");
  EXPECT_FALSE(fs::is_symlink(file));
  EXPECT_EQ(text_of(file), "new");
  EXPECT_EQ(static_cast<int>(fs::status(file).permissions()), 0640);
}

TEST_F(Files, what_is_kept_and_altered_is_never_used_and_said) {
  std::vector<std::string> warnings;
  const Cache cache(folder / "cache", [&](const std::string& text) { warnings.push_back(text); });
  EXPECT_EQ(cache.find("a"), std::nullopt);
  cache.keep("a", std::string("content\0 of any kind\n", 21));
  EXPECT_EQ(cache.find("a"), std::string("content\0 of any kind\n", 21));
  cache.keep("empty", "");
  EXPECT_EQ(cache.find("empty"), "");
  EXPECT_TRUE(warnings.empty());

  const fs::path file = folder / "cache" / "a";
  const std::string kept = text_of(file);
  std::size_t altered = 0;
  const auto is_refused = [&](const std::string& bytes) {
    write_atomically(file, bytes);
    EXPECT_EQ(cache.find("a"), std::nullopt) << bytes;
    EXPECT_EQ(warnings.size(), ++altered);
  };
  for (std::size_t i = 0; i < kept.size(); ++i) {
    std::string one_bit = kept;
    one_bit[i] ^= 1;
    is_refused(one_bit);
  }
  for (std::size_t i = 0; i < kept.size(); ++i) is_refused(kept.substr(0, i));
  is_refused(kept + kept);
  is_refused(text_of(folder / "cache" / "empty"));  // whole, but kept under another name
  EXPECT_THAT(warnings.back(), HasSubstr((folder / "cache" / "a").string() + " is not used, but made anew"));
  fs::remove(file);
  ASSERT_EQ(mkfifo(file.c_str(), 0600), 0);
  EXPECT_EQ(cache.find("a"), std::nullopt);
  EXPECT_THAT(warnings.back(), HasSubstr("FIFO"));
  cache.keep("a", "again");
  EXPECT_EQ(cache.find("a"), "again");
}

// Environment variables that are as before afterwards.
class Environment {
 public:
  explicit Environment(const std::map<std::string, const char*>& values) {
    for (const auto& [name, value] : values) {
      const char* before = std::getenv(name.c_str());
      before_[name] = before ? std::optional<std::string>(before) : std::nullopt;
      value ? setenv(name.c_str(), value, 1) : unsetenv(name.c_str());
    }
  }
  ~Environment() {
    for (const auto& [name, value] : before_) value ? setenv(name.c_str(), value->c_str(), 1) : unsetenv(name.c_str());
  }

 private:
  std::map<std::string, std::optional<std::string>> before_;
};

TEST_F(Files, the_cache_is_where_the_environment_says_else_in_the_home_of_the_account) {
  const auto place = [&](const char* own, const char* xdg, const char* home) {
    const Environment e(
        {{"MESHWRIGHT_CACHE", own}, {"XDG_CACHE_HOME", xdg}, {"HOME", home}, {"TMPDIR", folder.c_str()}});
    return default_cache_folder();
  };
  EXPECT_EQ(place("/own", "/xdg", "/home/me"), "/own");
  EXPECT_EQ(place(nullptr, "/xdg", "/home/me"), "/xdg/meshwright");
  EXPECT_EQ(place("", "relative", "/home/me"), "/home/me/.cache/meshwright");  // XDG: to be ignored
  const passwd* account = getpwuid(geteuid());
  if (account && fs::is_directory(account->pw_dir) && access(account->pw_dir, W_OK) == 0) {
    EXPECT_EQ(place(nullptr, nullptr, nullptr), fs::path(account->pw_dir) / ".cache" / "meshwright");
  }
}

TEST_F(Files, without_a_home_the_cache_is_a_folder_that_nobody_else_can_write_or_none) {
  fs::permissions(folder, fs::perms::all | fs::perms::sticky_bit);
  const Environment e(
      {{"MESHWRIGHT_CACHE", nullptr}, {"XDG_CACHE_HOME", nullptr}, {"HOME", nullptr}, {"TMPDIR", folder.c_str()}});
  const fs::path place = folder / ("meshwright-" + std::to_string(kUserWithoutAccount));
  const auto outcome = [&](const std::string& refusal) {
    return as_other_user([&] {
      const std::string text = message([&] {
        if (default_cache_folder() != place) throw InputError(Diagnostic{"another folder", "", "", "", ""});
      });
      return text.find(refusal) != std::string::npos ? 0 : (std::cerr << text << std::endl, 1);
    });
  };
  const int first = outcome("nothing was thrown");
  if (first < 0) GTEST_SKIP() << "only root can become another user";
  EXPECT_EQ(first, 0);
  EXPECT_EQ(static_cast<int>(fs::status(place).permissions()), 0700);
  EXPECT_EQ(outcome("nothing was thrown"), 0);  // and found again

  fs::permissions(place, fs::perms::all);
  EXPECT_EQ(outcome("permissions 777"), 0);
  fs::remove(place);
  fs::create_directory(place);  // root's
  EXPECT_EQ(outcome("owned by user 0"), 0);
  fs::remove(place);
  fs::create_directory_symlink(folder, place);
  EXPECT_EQ(outcome("a link"), 0);
  EXPECT_EQ(outcome("MESHWRIGHT_CACHE"), 0);
}

// Words of a small grammar, many times over: enough for a tokenizer to learn from.
std::string sample_text() {
  const std::vector<std::string> words{"the",    "river",      "carried", "slowly", "towards", "morning",
                                       "people", "remembered", "nothing", "else",   "1984",    "café"};
  std::string text;
  std::uint32_t x = 1;
  for (int i = 0; i < 4000; ++i) {
    x = x * 1664525 + 1013904223;
    text += words[(x >> 16) % words.size()] + ((x >> 8) % 9 == 0 ? ".\n" : " ");
  }
  return text;
}

TEST_F(TokenizerTest, gives_any_text_back_exactly) {
  const Tokenizer tokenizer = Tokenizer::trained_on(sample_text(), 400, folder);
  EXPECT_LE(tokenizer.vocab_size(), 400);
  for (const std::string& text :
       {std::string("the river"), std::string(" two  spaces \n\n\n tabs\tand\r\nnewlines\n"),
        std::string("unseen: Ωmega \xe6\xbc\xa2\xe5\xad\x97 {}[]"), std::string(), sample_text()}) {
    const auto tokens = tokenizer.encode(text);
    for (const std::int32_t t : tokens) EXPECT_TRUE(t >= 0 && t < tokenizer.vocab_size());
    EXPECT_EQ(tokenizer.decode(tokens), text);
  }
  EXPECT_LT(tokenizer.encode(sample_text()).size(), sample_text().size() / 3);  // it has learnt words
}

TEST_F(TokenizerTest, the_same_text_and_vocabulary_give_the_same_tokenizer_from_the_cache_or_anew) {
  const std::string text = sample_text();
  const Tokenizer first = Tokenizer::trained_on(text, 400, folder / "a");
  const Tokenizer cached = Tokenizer::trained_on(text, 400, folder / "a");
  const Tokenizer anew = Tokenizer::trained_on(text, 400, folder / "b");
  EXPECT_EQ(first.key(), anew.key());
  EXPECT_EQ(first.encode(text), cached.encode(text));
  EXPECT_EQ(first.encode(text), anew.encode(text));
  EXPECT_NE(Tokenizer::trained_on(text, 380, folder / "a").key(), first.key());
  EXPECT_NE(Tokenizer::trained_on(text + "more", 400, folder / "a").key(), first.key());
}

TEST_F(TokenizerTest, uses_what_is_cached_and_makes_anew_what_was_altered) {
  const std::string text = sample_text();
  std::vector<std::string> warnings;
  const Cache cache(folder, [&](const std::string& warning) { warnings.push_back(warning); });
  const Tokenizer tokenizer = Tokenizer::trained_on(text, 400, cache);
  const auto tokens = tokenizer.encode_cached(text, cache);
  EXPECT_EQ(tokens, tokenizer.encode(text));
  fs::path model, array;
  for (const auto& file : fs::directory_iterator(folder)) {
    (file.path().extension() == ".model" ? model : array) = file.path();
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 2);

  // Kept under the array's name by the cache itself: read, not made again.
  const std::string kept_array = text_of(array), kept_model = text_of(model);
  const std::vector<std::int32_t> seven{7};
  cache.keep(array.filename().string(), bytes_of(seven));
  EXPECT_THAT(tokenizer.encode_cached(text, cache), ElementsAre(7));
  EXPECT_TRUE(warnings.empty());
  // What this tokenizer has no entry for would be read outside of the model's table.
  cache.keep(array.filename().string(), bytes_of(std::vector<std::int32_t>{400}));
  EXPECT_EQ(tokenizer.encode_cached(text, cache), tokens);
  EXPECT_EQ(warnings.size(), 1u);

  // One token is another, still one of the vocabulary.
  std::string altered = kept_array;
  altered[400] ^= 1;
  write_atomically(array, altered);
  EXPECT_EQ(tokenizer.encode_cached(text, cache), tokens);
  EXPECT_EQ(warnings.size(), 2u);
  EXPECT_EQ(text_of(array), kept_array);

  // A tokenizer that loads, and is another one.
  const Tokenizer other = Tokenizer::trained_on(text + "more", 400, folder / "other");
  fs::copy_file(fs::directory_iterator(folder / "other")->path(), model, fs::copy_options::overwrite_existing);
  EXPECT_EQ(Tokenizer::trained_on(text, 400, cache).encode(text), tokens);
  EXPECT_EQ(warnings.size(), 3u);
  EXPECT_EQ(text_of(model), kept_model);
  // Whole, but nothing that can be loaded.
  cache.keep(model.filename().string(), "no model");
  EXPECT_EQ(Tokenizer::trained_on(text, 400, cache).encode_cached(text, cache), tokens);
  EXPECT_EQ(warnings.size(), 4u);
}

TEST_F(TokenizerTest, a_full_disk_leaves_no_empty_tokenizer) {
  const std::string text = sample_text();
  {
    const FileSizeLimit full(100);
    EXPECT_THAT(message([&] { Tokenizer::trained_on(text, 400, folder / "cache"); }), HasSubstr("File too large"));
  }
  EXPECT_TRUE(fs::is_empty(folder / "cache"));
}

TEST_F(TokenizerTest, text_of_more_characters_than_entries_is_learnt_by_its_most_frequent_ones) {
  // 3,000 characters beside the words, each in a line of its own: 98 % of them are more than 400 entries could hold.
  std::string text = sample_text();
  for (int c = 0x4e00; c < 0x4e00 + 3000; ++c) {
    text += {static_cast<char>(0xe0 | c >> 12), static_cast<char>(0x80 | (c >> 6 & 0x3f)),
             static_cast<char>(0x80 | (c & 0x3f)), '\n'};
  }
  const Tokenizer tokenizer = Tokenizer::trained_on(text, 400, folder);
  EXPECT_LE(tokenizer.vocab_size(), 400);
  const auto tokens = tokenizer.encode(text);
  EXPECT_EQ(tokenizer.decode(tokens), text);
  // The words are learnt as if the rest were not there; of the rest, few characters are one token and the others 3 bytes, each
  // with its newline. 400 entries are 143 beside the bytes and the unknown token.
  const std::size_t words = tokenizer.encode(sample_text()).size();
  EXPECT_LT(words, sample_text().size() / 3);
  EXPECT_LE(tokens.size(), words + 3000 * 4);
  EXPECT_GE(tokens.size(), words + 3000 * 4 - 143 * 2);
}

TEST_F(TokenizerTest, text_without_newlines_is_learnt_from_too) {
  std::string text = sample_text();
  std::replace(text.begin(), text.end(), '\n', ' ');
  while (text.size() < (3u << 20)) text += text;
  const Tokenizer tokenizer = Tokenizer::trained_on(text, 400, folder);
  EXPECT_LT(tokenizer.encode(sample_text()).size(), sample_text().size() / 3);
}

TEST_F(TokenizerTest, says_which_vocabulary_and_text_it_needs) {
  EXPECT_THAT(message([&] { Tokenizer::trained_on("text", 256, folder); }), HasSubstr("300 or more"));
  EXPECT_THAT(message([&] { Tokenizer::trained_on(" \n", 400, folder); }), HasSubstr("empty"));
}

// ---- the demonstration's text ----

// A SWORD module with one block per testament.
void write_testament(const fs::path& folder, const std::string& name, const std::string& markup) {
  std::string data(compressBound(markup.size()), '\0');
  uLongf size = data.size();
  compress(reinterpret_cast<Bytef*>(data.data()), &size, reinterpret_cast<const Bytef*>(markup.data()), markup.size());
  data.resize(size);
  std::ofstream(folder / (name + ".bzz"), std::ios::binary) << data;
  const std::uint32_t block[] = {0, static_cast<std::uint32_t>(size), static_cast<std::uint32_t>(markup.size())};
  std::ofstream(folder / (name + ".bzs"), std::ios::binary).write(reinterpret_cast<const char*>(block), sizeof block);
}

TEST_F(Corpus, is_text_without_markup_and_footnotes) {
  write_testament(folder, "ot",
                  "<title>Genesis</title> <div sID=\"g1\" type=\"x-p\"/>In the <w lemma=\"x\">beginning</w>, "
                  "God<note><reference>1:1</reference>a &amp; b</note><w>created</w>\n the   heavens<note>x</note>.");
  write_testament(folder, "nt", "<l level=\"1\"/>salt &amp; light");
  EXPECT_EQ(demo_corpus(folder), "Genesis\nIn the beginning, God created the heavens.\nsalt & light\n");
}

TEST_F(Corpus, says_which_package_to_install_or_reinstall) {
  EXPECT_THAT(message([&] { demo_corpus(folder / "none"); }), HasSubstr("apt-get install sword-text-web"));
  write_testament(folder, "ot", "text");
  write_testament(folder, "nt", "text");
  write("ot.bzz", "not zlib data at all");
  EXPECT_THAT(message([&] { demo_corpus(folder); }), HasSubstr("--reinstall"));
}

TEST(CorpusInstalled, has_megabytes_of_english_if_the_package_is_here) {
  const fs::path module = "/usr/share/sword/modules/texts/ztext/engWEB2015eb";
  if (!fs::exists(module)) GTEST_SKIP() << kDemoCorpusPackage << " is not installed";
  const std::string text = demo_corpus();
  EXPECT_GT(text.size(), 4'500'000u);
  EXPECT_THAT(text, HasSubstr("In the beginning, God created the heavens and the earth."));
  EXPECT_EQ(text.find('<'), std::string::npos);
  EXPECT_EQ(text.find("&amp;"), std::string::npos);
}

// ---- batches ----

std::vector<std::int32_t> count_to(int n) {
  std::vector<std::int32_t> v(n);
  std::iota(v.begin(), v.end(), 0);
  return v;
}

TEST(Batches, follow_the_layout_g_m_dp_b_t) {
  // M=2, dp=2, B=2, T=3: a step has 8 sequences of 3 tokens. With s[i] = i a token is its own index.
  Batches batches(TokenSource(count_to(100)), {.microbatches = 2, .dp = 2, .batch = 2, .tokens = 3});
  EXPECT_EQ(batches.steps_per_epoch(), 4);  // 99 / 24
  std::vector<std::int32_t> x(6), y(6);
  batches.read(/*step=*/1, /*m=*/1, /*d=*/1, /*t0=*/0, /*tl=*/3, x, y);
  // ((g*M + m)*dp*B + d*B + b)*T + t = (8 + 4 + 2 + b)*3 + t = 42 + 3b + t, token by token
  EXPECT_THAT(x, ElementsAre(42, 45, 43, 46, 44, 47));
  EXPECT_THAT(y, ElementsAre(43, 46, 44, 47, 45, 48));
  // The second tp rank of three.
  std::vector<std::int32_t> part(2), next(2);
  batches.read(1, 1, 1, 1, 1, part, next);
  EXPECT_THAT(part, ElementsAre(43, 46));
  EXPECT_THAT(next, ElementsAre(44, 47));
}

TEST(Batches, a_step_has_the_same_sequences_with_the_same_numbers_on_every_mesh) {
  constexpr std::int64_t kSequences = 8, kTokens = 4, kStep = 2;
  for (const std::int64_t dp : {1, 2, 4, 8}) {
    for (const std::int64_t M : {1, 2, 4, 8}) {
      for (const std::int64_t tp : {1, 2, 4}) {
        if (dp * M > kSequences) continue;
        const BatchShape shape{.microbatches = M, .dp = dp, .batch = kSequences / dp / M, .tokens = kTokens};
        Batches batches(TokenSource(count_to(1000)), shape);
        const std::int64_t B = shape.batch, Tl = kTokens / tp;
        std::vector<bool> seen(kSequences * kTokens);
        std::vector<std::int32_t> x(Tl * B), y(Tl * B);
        for (std::int64_t m = 0; m < M; ++m) {
          for (std::int64_t d = 0; d < dp; ++d) {
            for (std::int64_t r = 0; r < tp; ++r) {
              batches.read(kStep, m, d, r * Tl, Tl, x, y);
              for (std::int64_t t = 0; t < Tl; ++t) {
                for (std::int64_t b = 0; b < B; ++b) {
                  const std::int64_t at = shape.sequence(m, d, b) * kTokens + r * Tl + t;
                  EXPECT_EQ(x[t * B + b], kStep * kSequences * kTokens + at);
                  EXPECT_EQ(y[t * B + b], x[t * B + b] + 1);
                  EXPECT_FALSE(seen[at]);
                  seen[at] = true;
                }
              }
            }
          }
        }
        EXPECT_EQ(std::count(seen.begin(), seen.end(), true), kSequences * kTokens);
      }
    }
  }
}

TEST_F(BatchesTest, run_through_the_shards_by_name_drop_their_tails_and_start_again) {
  // Steps of 4 tokens: 11 tokens give 2 steps (10 / 4), 3 give none, 5 give one. Then again from the first
  // shard.
  write_npy_tokens(folder / "b.npy", std::vector<std::int32_t>{90, 91, 92});
  write_npy_tokens(folder / "c.npy", std::vector<std::int32_t>{50, 51, 52, 53, 54});
  write_npy_tokens(folder / "a.npy", count_to(11));
  write("readme.txt", "not a shard");
  Batches batches(open_tokens(folder, 100, folder), {.microbatches = 1, .dp = 1, .batch = 2, .tokens = 2});
  EXPECT_EQ(batches.steps_per_epoch(), 3);
  std::vector<std::int32_t> x(4), y(4);
  const std::vector<int> first{0, 4, 50, 0, 4, 50};
  for (int step = 0; step < 6; ++step) {
    batches.read(step, 0, 0, 0, 2, x, y);
    EXPECT_THAT(x, ElementsAre(first[step], first[step] + 2, first[step] + 1, first[step] + 3));
  }
}

// Tokens 0, 1, 2, ... in three shards of 10, 20 and 30: whatever is split off, both parts together are all of them in order.
TEST(Tokens, what_is_split_off_is_the_end_and_the_rest_is_what_was_before_it) {
  for (const std::int64_t end : {1, 29, 30, 31, 49, 50, 51, 59}) {
    std::vector<TokenSource::Shard> shards;
    int checks = 0;
    for (const std::int64_t first : {0, 10, 30}) {
      const std::int64_t size = first == 0 ? 10 : first == 10 ? 20 : 30;
      shards.push_back({std::to_string(first), size,
                        [first, size](std::int64_t at, std::span<std::int32_t> tokens) {
                          for (std::size_t i = 0; i < tokens.size(); ++i)
                            tokens[i] = static_cast<std::int32_t>(first + at + static_cast<std::int64_t>(i));
                          return size;
                        },
                        [&checks] { ++checks; }});
    }
    TokenSource front{std::move(shards)};
    EXPECT_EQ(front.all_tokens(), 60);
    const TokenSource back = front.split_off(end);
    EXPECT_EQ(front.all_tokens(), 60 - end);
    EXPECT_EQ(back.all_tokens(), end);
    std::int32_t next = 0;
    for (const TokenSource* part : {const_cast<const TokenSource*>(&front), &back})
      for (int s = 0; s < part->shards(); ++s) {
        std::vector<std::int32_t> tokens(static_cast<std::size_t>(part->size(s)));
        part->read(s, 0, tokens);
        for (const std::int32_t t : tokens) EXPECT_EQ(t, next++);
        std::vector<std::int32_t> one(1);
        part->read(s, part->size(s) - 1, one);
        EXPECT_EQ(one[0], next - 1);
      }
    EXPECT_EQ(next, 60);
    front.check();
    back.check();
    EXPECT_EQ(checks, 3);  // each shard once
  }
}

TEST_F(BatchesTest, say_how_many_tokens_a_step_needs) {
  EXPECT_THAT(message([] { Batches(TokenSource(count_to(8)), {.microbatches = 2, .dp = 2, .batch = 1, .tokens = 2}); }),
              HasSubstr("8 tokens: allowed: 9 or more"));
  EXPECT_NO_THROW(Batches(TokenSource(count_to(9)), {.microbatches = 2, .dp = 2, .batch = 1, .tokens = 2}));
  EXPECT_THAT(message([&] { open_tokens(folder, 100, folder); }), HasSubstr("a folder with .npy files"));
  EXPECT_THAT(message([&] { open_tokens(folder / "none.txt", 100, folder); }), HasSubstr("none.txt"));
  write_npy_tokens(folder / "a.npy", count_to(200));
  Batches batches(open_tokens(folder / "a.npy", 100, folder), {.microbatches = 1, .dp = 1, .batch = 1, .tokens = 4});
  std::vector<std::int32_t> x(4), y(4);
  EXPECT_NO_THROW(batches.read(0, 0, 0, 0, 4, x, y));  // reads what is asked for
  EXPECT_THAT(message([&] { batches.read(24, 0, 0, 0, 4, x, y); }), HasSubstr("element 100 = 100"));  // the last target
}

TEST_F(BatchesTest, a_shard_that_shrinks_or_grows_while_it_is_used_is_refused_where_it_is_read) {
  const BatchShape shape{.microbatches = 1, .dp = 1, .batch = 1, .tokens = 4};
  write_npy_tokens(folder / "a.npy", count_to(41));
  write_npy_tokens(folder / "b.npy", count_to(41));
  std::vector<std::int32_t> x(4), y(4);
  const auto then = [&](const std::function<void()>& change, const std::string& refusal) {
    write_npy_tokens(folder / "b.npy", count_to(41));
    Batches batches(open_tokens(folder, 100, folder), shape);
    batches.read(0, 0, 0, 0, 4, x, y);
    change();
    EXPECT_NO_THROW(batches.read(9, 0, 0, 0, 4, x, y));  // still of the first shard
    EXPECT_THAT(message([&] { batches.read(19, 0, 0, 0, 4, x, y); }), HasSubstr(refusal));
  };
  // A whole file of fewer tokens: the last step of the shard would be read beyond its end.
  then([&] { write_npy_tokens(folder / "b.npy", count_to(5)); }, "5 tokens: allowed: the 41 that it had");
  then([&] { write_npy_tokens(folder / "b.npy", count_to(50)); }, "50 tokens: allowed: the 41 that it had");
  then([&] { fs::resize_file(folder / "b.npy", fs::file_size(folder / "b.npy") - 4); }, "164 bytes, as the shape says");
  then([&] { fs::remove(folder / "b.npy"); }, "No such file");
}

TEST_F(BatchesTest, a_file_that_is_cut_between_its_header_and_its_end_is_refused_without_a_signal) {
  const fs::path path = write("a", std::string(100, 'x'));
  const RegularFile file(path, "a whole file", "copy it again");
  fs::resize_file(path, 60);
  std::string bytes(100, '\0');
  EXPECT_NO_THROW(file.read(0, bytes.data(), 60));
  EXPECT_THAT(message([&] { file.read(50, bytes.data(), 50); }), HasSubstr("byte 60 = the end of a file that had 100"));
}

TEST_F(BatchesTest, every_bad_shard_is_found_at_the_start) {
  write_npy_tokens(folder / "a.npy", count_to(41));
  write_npy_tokens(folder / "b.npy", std::vector<std::int32_t>{1, 2, 3, 4, 100, 101});
  write_npy_tokens(folder / "c.npy", std::vector<std::int32_t>{1, 2, 3, 4, 5, -1});
  const Batches batches(open_tokens(folder, 100, folder), {.microbatches = 1, .dp = 1, .batch = 1, .tokens = 4});
  std::vector<int> looked_at;
  const std::string text = message([&] { batches.check([&](int shard) { looked_at.push_back(shard); }); });
  EXPECT_THAT(text, HasSubstr("b.npy: element 4 = 100"));
  EXPECT_THAT(text, HasSubstr("c.npy: element 5 = -1"));
  EXPECT_THAT(looked_at, ElementsAre(0, 1, 2));
  // What a header says is found even before, of all shards at once.
  write("d.npy", "no array");
  write("e.npy", npy(dictionary("<f4", "(1,)"), "1234"));
  const std::string headers = message([&] { open_tokens(folder, 100, folder); });
  EXPECT_THAT(headers, HasSubstr("d.npy: first bytes"));
  EXPECT_THAT(headers, HasSubstr("e.npy: descr"));
  EXPECT_NO_THROW(Batches(TokenSource(count_to(9)), {.tokens = 2}).check());
}

TEST_F(BatchesTest, what_is_no_regular_file_is_refused_at_once) {
  const auto refusal = [&](const fs::path& path) { return message([&] { open_tokens(path, 400, folder / "cache"); }); };
  fs::create_symlink("loop.npy", folder / "loop.npy");
  fs::create_symlink("loop", folder / "loop");
  ASSERT_EQ(mkfifo((folder / "fifo").c_str(), 0600), 0);
  EXPECT_THAT(refusal(folder / "loop.npy"), HasSubstr("Too many levels of symbolic links"));
  EXPECT_THAT(refusal(folder / "loop"), HasSubstr("Too many levels of symbolic links"));
  EXPECT_THAT(refusal(folder / "fifo"), HasSubstr("a FIFO"));
  EXPECT_THAT(refusal("/dev/zero"), HasSubstr("a device"));
  EXPECT_THAT(refusal(folder / std::string(300, 'x')), HasSubstr("name too long"));

  // In a folder of shards, all of them in one pass.
  fs::remove(folder / "loop.npy");
  const fs::path shards = folder / "shards";
  fs::create_directories(shards / "d.npy");
  write_npy_tokens(shards / "a.npy", count_to(41));
  ASSERT_EQ(mkfifo((shards / "b.npy").c_str(), 0600), 0);
  fs::create_symlink("c.npy", shards / "c.npy");
  fs::create_symlink("/dev/zero", shards / "e.npy");
  fs::create_symlink("nowhere", shards / "f.npy");
  const std::string text = refusal(shards);
  for (const char* fault :
       {"b.npy = a FIFO", "c.npy = Too many levels", "d.npy = a folder", "e.npy = a device", "f.npy = No such file"})
    EXPECT_THAT(text, HasSubstr(fault));
  EXPECT_THAT(text, testing::Not(HasSubstr("a.npy")));
}

TEST_F(BatchesTest, what_may_not_be_read_is_bad_input_too) {
  const fs::path shards = folder / "shards", file = write("a.txt", sample_text());
  fs::create_directory(shards);
  fs::permissions(shards, fs::perms::none);
  fs::permissions(file, fs::perms::none);
  fs::permissions(folder, fs::perms::all);
  const int code = as_other_user([&] {
    const auto says = [](const std::string& text, const char* part) {
      if (text.find(part) == std::string::npos) std::cerr << text << std::endl;
      return text.find(part) != std::string::npos;
    };
    return says(message([&] { open_tokens(shards, 400, folder); }), "Permission denied") &&
                   says(message([&] { open_tokens(file, 400, folder); }), "Permission denied") &&
                   says(message([&] { open_tokens(shards / "a.npy", 400, folder); }), "Permission denied")
               ? 0
               : 1;
  });
  fs::permissions(shards, fs::perms::owner_all);
  if (code < 0) GTEST_SKIP() << "only root can become a user who may read less";
  EXPECT_EQ(code, 0);
}

TEST_F(BatchesTest, what_is_not_text_is_refused_with_its_line_and_byte) {
  const auto refusal = [&](const std::string& bytes) {
    return message([&] { open_tokens(write("t.txt", bytes), 400, folder / "cache"); });
  };
  const std::string two_lines = "a line of ASCII\n" + std::string(100, 'x') + "\n";
  EXPECT_THAT(refusal(two_lines + "caf\xe9 in Latin-1\n"), HasSubstr("t.txt: line 3, byte 120 = 0xE9"));
  EXPECT_THAT(refusal(two_lines + std::string("nul\0", 4)), HasSubstr("line 3, byte 120 = a NUL byte"));
  EXPECT_THAT(refusal("overlong \xc0\xaf"), HasSubstr("line 1, byte 9 = 0xC0"));
  EXPECT_THAT(refusal("surrogate \xed\xa0\x80"), HasSubstr("byte 10 = 0xED"));
  EXPECT_THAT(refusal("beyond Unicode \xf4\x90\x80\x80"), HasSubstr("byte 15 = 0xF4"));
  EXPECT_THAT(refusal("cut off \xe6\xbc"), HasSubstr("byte 8 = 0xE6"));
  EXPECT_THAT(refusal(std::string("\xff\xfeh\0i\0", 6)), HasSubstr("iconv -f UTF-16"));
  EXPECT_THAT(refusal("\x1f\x8b\x08\x00"), HasSubstr("gunzip"));
  EXPECT_THAT(refusal(npy(dictionary("<i4", "(1,)"), "1234")), HasSubstr("a name that ends in .npy"));
  EXPECT_THAT(refusal(""), HasSubstr("empty"));
}

std::vector<std::int32_t> all_of(const TokenSource& source) {
  std::vector<std::int32_t> tokens(static_cast<std::size_t>(source.size(0)));
  source.read(0, 0, tokens);
  return tokens;
}

TEST_F(BatchesTest, a_byte_order_mark_is_no_part_of_the_text) {
  TokenSource with = open_tokens(write("a.txt", "\xef\xbb\xbf" + sample_text()), 400, folder / "cache");
  TokenSource without = open_tokens(write("b.txt", sample_text()), 400, folder / "cache");
  EXPECT_EQ(all_of(with), all_of(without));
}

TEST_F(BatchesTest, text_is_tokenized_with_the_asked_vocabulary) {
  const fs::path file = write("text.txt", sample_text());
  const TokenSource source = open_tokens(file, 400, folder / "cache");
  const Tokenizer tokenizer = Tokenizer::trained_on(sample_text(), 400, folder / "cache");
  const auto tokens = all_of(source);
  EXPECT_EQ(tokenizer.decode(tokens), sample_text());
}

}  // namespace
}  // namespace meshwright
