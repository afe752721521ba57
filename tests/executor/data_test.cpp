// Data: .npy files, the tokenizer and its cache, the demonstration's text, and which tokens a step trains on.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <unistd.h>
#include <zlib.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "executor/data/batches.h"
#include "executor/data/cache.h"
#include "executor/data/corpus.h"
#include "executor/data/npy.h"
#include "executor/data/token_source.h"
#include "executor/data/tokenizer.h"
#include "model/input/diagnostics.h"

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

TEST_F(Npy, reads_back_what_it_writes) {
  rc::check([&](const std::vector<std::uint16_t>& values) {
    const std::vector<std::int32_t> tokens(values.begin(), values.end());
    write_npy_tokens(folder / "a.npy", tokens);
    RC_ASSERT(read_npy_tokens(folder / "a.npy", 65536) == tokens);
    RC_ASSERT(read_npy_header(folder / "a.npy").data_offset % 64 == 0);
  });
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

TEST_F(Data, a_write_that_fails_leaves_nothing_behind) {
  EXPECT_THROW(write_atomically(folder / "x" / "file",
                                [](const fs::path& temporary) {
                                  std::ofstream(temporary) << "half";
                                  throw std::runtime_error("stop");
                                }),
               std::runtime_error);
  EXPECT_TRUE(fs::is_empty(folder / "x"));
  write("not a folder", "");
  EXPECT_THAT(message([&] { write_atomically(folder / "not a folder" / "file", [](const fs::path&) {}); }),
              HasSubstr("MESHWRIGHT_CACHE"));
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

TEST_F(TokenizerTest, uses_what_is_cached_and_replaces_what_is_damaged) {
  const std::string text = sample_text();
  const Tokenizer tokenizer = Tokenizer::trained_on(text, 400, folder);
  const auto tokens = tokenizer.encode_cached(text, folder);
  EXPECT_EQ(tokens, tokenizer.encode(text));
  fs::path model, array;
  for (const auto& file : fs::directory_iterator(folder)) {
    (file.path().extension() == ".model" ? model : array) = file.path();
  }
  EXPECT_EQ(std::distance(fs::directory_iterator(folder), {}), 2);

  write_npy_tokens(array, std::vector<std::int32_t>{7});
  EXPECT_THAT(tokenizer.encode_cached(text, folder), ElementsAre(7));  // read, not made again
  std::ofstream(array) << "damaged";
  std::ofstream(model) << "damaged";
  const Tokenizer again = Tokenizer::trained_on(text, 400, folder);
  EXPECT_EQ(again.encode_cached(text, folder), tokens);
  EXPECT_EQ(read_npy_tokens(array, 400), tokens);
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

TEST_F(BatchesTest, say_how_many_tokens_a_step_needs) {
  EXPECT_THAT(message([] { Batches(TokenSource(count_to(8)), {.microbatches = 2, .dp = 2, .batch = 1, .tokens = 2}); }),
              HasSubstr("8 tokens: allowed: 9 or more"));
  EXPECT_NO_THROW(Batches(TokenSource(count_to(9)), {.microbatches = 2, .dp = 2, .batch = 1, .tokens = 2}));
  EXPECT_THAT(message([&] { open_tokens(folder, 100, folder); }), HasSubstr("a folder with .npy files"));
  EXPECT_THAT(message([&] { open_tokens(folder / "none.txt", 100, folder); }), HasSubstr("none.txt"));
  write_npy_tokens(folder / "a.npy", count_to(200));
  Batches batches(open_tokens(folder / "a.npy", 100, folder), {.microbatches = 1, .dp = 1, .batch = 1, .tokens = 4});
  std::vector<std::int32_t> x(4), y(4);
  EXPECT_THAT(message([&] { batches.read(0, 0, 0, 0, 4, x, y); }), HasSubstr("element 100 = 100"));
}

TEST_F(BatchesTest, text_is_tokenized_with_the_asked_vocabulary) {
  const fs::path file = write("text.txt", sample_text());
  TokenSource source = open_tokens(file, 400, folder / "cache");
  const Tokenizer tokenizer = Tokenizer::trained_on(sample_text(), 400, folder / "cache");
  const auto tokens = source.tokens(0);
  EXPECT_EQ(tokenizer.decode(tokens), sample_text());
}

}  // namespace
}  // namespace meshwright
