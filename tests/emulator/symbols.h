// Names and static memory of the library that the emulator and the kernels are in.
#pragma once

#include <cstdint>
#include <string>

namespace emulator::symbols {

struct Symbol {
  uintptr_t begin, end;
  std::string name;  // mangled
};

// The last static variable of a function, one that can be written, that begins at an address or before it, or null.
const Symbol* static_before(uintptr_t address);
// "tile" of void f<float>(float*)::tile.
std::string last_name(const Symbol& symbol);
// The function at an address, as C++ writes it.
std::string function(const void* address);
// Where the library was loaded.
uintptr_t base();
// Whether an address lies in what a library cannot write.
bool constant(uintptr_t address);

}  // namespace emulator::symbols
