// The text that demonstrations train on when no --data is given: the World English Bible (2020 stable text
// edition, in the public domain; modern English, about 4.9 MB of prose), from Debian's package sword-text-web
// in main. Not for: reading SWORD modules in general; this reads a compressed text (zText, CompressType=ZIP)
// in module order.
#pragma once

#include <filesystem>
#include <string>

namespace meshwright {

constexpr const char* kDemoCorpusPackage = "sword-text-web";

// UTF-8, one paragraph or heading a line, without markup or footnotes. `module`: the folder that holds
// ot.bzs, ot.bzz, nt.bzs, nt.bzz. The same files give the same text. Throws InputError if the package is not
// installed (naming it, and
// --data) or its files are damaged.
std::string demo_corpus(const std::filesystem::path& module = "/usr/share/sword/modules/texts/ztext/engWEB2015eb");

}  // namespace meshwright
