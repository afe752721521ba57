#include "executor/data/corpus.h"

#include <zlib.h>

#include <cctype>
#include <cstdint>
#include <cstring>
#include <string_view>
#include <utility>

#include "executor/data/regular_file.h"
#include "model/input/diagnostics.h"

namespace meshwright {
namespace {

// A .bzs file is a table of blocks, one a book: three little-endian 32-bit numbers each.
struct Block {
  std::uint32_t offset, compressed, size;  // bytes in the .bzz file, there, and inflated
};
static_assert(sizeof(Block) == 12);

std::string read(const std::filesystem::path& path) {
  return RegularFile(
             path, std::string("the file of Debian's package ") + kDemoCorpusPackage,
             std::string("apt-get install ") + kDemoCorpusPackage + ", or give a text of your own with --data FILE")
      .all();
}

[[noreturn]] void damaged(const std::filesystem::path& path, const std::string& value) {
  throw InputError(Diagnostic{.source = path.string(),
                              .path = "",
                              .value = value,
                              .allowed = "a SWORD zText module, compressed with zlib",
                              .hint = std::string("apt-get install --reinstall ") + kDemoCorpusPackage +
                                      ", or give a text of your own with --data FILE"});
}

// The OSIS markup of all books of a testament.
std::string inflate_testament(const std::filesystem::path& module, const std::string& testament) {
  const std::filesystem::path table_path = module / (testament + ".bzs"), data_path = module / (testament + ".bzz");
  const std::string table = read(table_path), data = read(data_path);
  std::string markup;
  for (std::size_t at = 0; at + sizeof(Block) <= table.size(); at += sizeof(Block)) {
    Block block;
    std::memcpy(&block, table.data() + at, sizeof block);
    if (std::uint64_t{block.offset} + block.compressed > data.size() || block.size > (std::uint32_t{1} << 28)) {
      damaged(table_path, "a block outside of the file");
    }
    const std::size_t before = markup.size();
    markup.resize(before + block.size);
    uLongf size = block.size;
    if (uncompress(reinterpret_cast<Bytef*>(markup.data() + before), &size,
                   reinterpret_cast<const Bytef*>(data.data() + block.offset), block.compressed) != Z_OK ||
        size != block.size) {
      damaged(data_path, "a block that can't be inflated");
    }
  }
  return markup;
}

bool starts_line(std::string_view tag) {
  for (const std::string_view name : {"div", "chapter", "title", "l ", "l/", "lg", "lb", "item", "/title", "/item"}) {
    if (tag.starts_with(name) && tag.find("x-preverse") == std::string_view::npos) return true;
  }
  return false;
}

// Text between tags, without footnotes; a line for each paragraph, verse line, heading and list item; single
// spaces.
std::string strip(std::string_view markup) {
  std::string text;
  bool line_ended = true, space = false;
  bool after_note = false;  // the module omits the space between words on either side of some footnotes
  const auto put = [&](std::string_view part) {
    if (after_note && std::isalnum(static_cast<unsigned char>(part[0]))) space = true;
    if (line_ended && !text.empty()) text += '\n';
    if (!line_ended && space) text += ' ';
    text += part;
    line_ended = space = after_note = false;
  };
  constexpr std::pair<std::string_view, std::string_view> kEntities[] = {
      {"&amp;", "&"}, {"&lt;", "<"}, {"&gt;", ">"}, {"&quot;", "\""}, {"&apos;", "'"}};
  for (std::size_t at = 0; at < markup.size();) {
    if (markup[at] == '<') {
      const std::size_t end = markup.find('>', at);
      if (end == std::string_view::npos) break;
      const std::string_view tag = markup.substr(at + 1, end - at - 1);
      at = end + 1;
      if (tag.starts_with("note") && !tag.ends_with("/")) {
        const std::size_t close = markup.find("</note>", at);
        at = close == std::string_view::npos ? markup.size() : close + 7;
        after_note = true;
      } else if (starts_line(tag)) {
        line_ended = true;
      }
    } else if (markup[at] == ' ' || markup[at] == '\n' || markup[at] == '\r' || markup[at] == '\t') {
      space = true;
      ++at;
    } else {
      std::string_view part = markup.substr(at, 1), source = part;
      if (markup[at] == '&') {
        for (const auto& [entity, character] : kEntities) {
          if (markup.substr(at).starts_with(entity)) source = entity, part = character;
        }
      }
      put(part);
      at += source.size();
    }
  }
  text += '\n';
  return text;
}

}  // namespace

std::string demo_corpus(const std::filesystem::path& module) {
  std::string markup = inflate_testament(module, "ot");
  markup += inflate_testament(module, "nt");
  return strip(markup);
}

}  // namespace meshwright
