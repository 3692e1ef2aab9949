#include "symbols.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <elf.h>
#include <link.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iterator>
#include <vector>

namespace emulator::symbols {

namespace {

struct Table {
  uintptr_t base = 0;
  std::vector<Symbol> functions, objects;  // by address
};

// The symbol table of a file lists what the dynamic one does not: functions and variables that are not exported.
void read(const std::string& file, Table& table) {
  std::ifstream stream(file, std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(stream)), {});
  const auto* header = reinterpret_cast<const ElfW(Ehdr)*>(bytes.data());
  if (bytes.size() < sizeof *header || std::memcmp(header->e_ident, ELFMAG, SELFMAG)) return;
  const auto* sections = reinterpret_cast<const ElfW(Shdr)*>(bytes.data() + header->e_shoff);
  for (int i = 0; i < header->e_shnum; ++i) {
    if (sections[i].sh_type != SHT_SYMTAB) continue;
    const auto* symbol = reinterpret_cast<const ElfW(Sym)*>(bytes.data() + sections[i].sh_offset);
    const char* names = bytes.data() + sections[sections[i].sh_link].sh_offset;
    for (const auto* end = symbol + sections[i].sh_size / sizeof *symbol; symbol != end; ++symbol) {
      if (symbol->st_shndx == SHN_UNDEF || symbol->st_shndx >= header->e_shnum) continue;
      const char* name = names + symbol->st_name;
      const uintptr_t begin = table.base + symbol->st_value;
      const int type = symbol->st_info & 15;
      const bool writable = sections[symbol->st_shndx].sh_flags & SHF_WRITE;
      if (type == STT_FUNC) table.functions.push_back({begin, begin + symbol->st_size, name});
      if (type == STT_OBJECT && writable && !std::strncmp(name, "_ZZ", 3)) {
        table.objects.push_back({begin, begin + symbol->st_size, name});
      }
    }
  }
}

const Table& table() {
  static const Table made = [] {
    Table t;
    Dl_info info;
    if (!dladdr(reinterpret_cast<const void*>(&table), &info)) return t;
    // Of a program that is not loaded elsewhere than it says, the base is 0.
    ElfW(Ehdr) header;
    std::memcpy(&header, info.dli_fbase, sizeof header);
    t.base = header.e_type == ET_EXEC ? 0 : reinterpret_cast<uintptr_t>(info.dli_fbase);
    read(info.dli_fname, t);
    for (auto* symbols : {&t.functions, &t.objects}) {
      std::sort(symbols->begin(), symbols->end(), [](const Symbol& a, const Symbol& b) { return a.begin < b.begin; });
    }
    return t;
  }();
  return made;
}

const Symbol* last_before(const std::vector<Symbol>& symbols, uintptr_t address) {
  auto after = std::upper_bound(symbols.begin(), symbols.end(), address,
                                [](uintptr_t a, const Symbol& s) { return a < s.begin; });
  return after != symbols.begin() ? &after[-1] : nullptr;
}

std::string demangled(const std::string& name) {
  int status;
  char* text = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  const std::string result = status ? name : text;
  std::free(text);
  return result;
}

}  // namespace

const Symbol* static_before(uintptr_t address) { return last_before(table().objects, address); }

std::string last_name(const Symbol& symbol) {
  const std::string name = demangled(symbol.name);
  const size_t colons = name.rfind("::");
  return colons == std::string::npos ? name : name.substr(colons + 2);
}

std::string function(const void* address) {
  const Symbol* symbol = last_before(table().functions, reinterpret_cast<uintptr_t>(address));
  return symbol ? demangled(symbol->name) : "a kernel";
}

uintptr_t base() { return table().base; }

bool constant(uintptr_t address) {
  const auto holds = [](dl_phdr_info* info, size_t, void* a) {
    for (int i = 0; i < info->dlpi_phnum; ++i) {
      const ElfW(Phdr)& segment = info->dlpi_phdr[i];
      const uintptr_t begin = info->dlpi_addr + segment.p_vaddr, address = *static_cast<uintptr_t*>(a);
      if (segment.p_type == PT_LOAD && !(segment.p_flags & PF_W) && address >= begin &&
          address < begin + segment.p_memsz)
        return 1;
    }
    return 0;
  };
  return dl_iterate_phdr(holds, &address) != 0;
}

}  // namespace emulator::symbols
