#include "cli/version.h"

#include <elf.h>
#include <fmt/format.h>
#include <link.h>

#include <cstring>

#include "generated/version_values.h"
#include "model/program/check.h"

namespace meshwright {
namespace {

// Of the first loaded object, which is the program itself.
int read_build_id(dl_phdr_info* object, std::size_t, void* out) {
  const auto aligned = [](std::size_t n) { return (n + 3) / 4 * 4; };
  for (int i = 0; i < object->dlpi_phnum; ++i) {
    const ElfW(Phdr)& header = object->dlpi_phdr[i];
    if (header.p_type != PT_NOTE) continue;
    const auto* at = reinterpret_cast<const unsigned char*>(object->dlpi_addr + header.p_vaddr);
    for (const unsigned char* end = at + header.p_memsz; at + sizeof(ElfW(Nhdr)) <= end;) {
      ElfW(Nhdr) note;
      std::memcpy(&note, at, sizeof note);
      const unsigned char *name = at + sizeof note, *content = name + aligned(note.n_namesz);
      if (note.n_type == NT_GNU_BUILD_ID && note.n_namesz == 4 && std::memcmp(name, "GNU", 4) == 0)
        for (std::size_t b = 0; b < note.n_descsz; ++b)
          *static_cast<std::string*>(out) += fmt::format("{:02x}", content[b]);
      at = content + aligned(note.n_descsz);
    }
  }
  return 1;
}

}  // namespace

std::string build_id() {
  std::string id;
  dl_iterate_phdr(read_build_id, &id);
  check(!id.empty(), "the program was linked without a build id");
  return id;
}

std::string version_text() {
  constexpr std::size_t kShort = 12;
  return fmt::format("meshwright {}\ncommit {}\nbuild {}, {}", kVersion, kCommit, kBuild, build_id().substr(0, kShort));
}

}  // namespace meshwright
