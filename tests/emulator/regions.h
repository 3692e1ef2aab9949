// Memory that kernels may use, and what is known of every few bytes of it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulator {

// Something that a thread did, for the question what comes before what: history.h.
struct Event {
  uint32_t block = 0;   // as Running counts; 0: never
  uint16_t thread = 0;  // of the block
  uint16_t fences = 0;  // that the thread had executed
  uint32_t epoch = 0;   // barriers of the block before it
  uint32_t time = 0;    // of its warp
};

struct Cell {
  Event write, read;            // the last of each
  uint32_t readers = 0;         // lanes of the last reader's warp that read as it did, none before another
  uint32_t foreign_reader = 0;  // another block that read
  bool initialised = false, atomic = false /* the last write */, several_warps = false /* read between two barriers */;
};

struct Region {
  uintptr_t begin, end;
  std::string name;
  bool shared;         // between threads of a block, not of the grid
  bool of_launch;      // forgotten at its end
  unsigned shift = 2;  // a cell is of 1 << shift bytes
  std::vector<Cell> cells;

  Region(const void* pointer, size_t bytes, std::string name, bool initialised, bool shared, bool of_launch);
  // The cells of an access inside of the region. The first one that is not of whole cells makes every cell a byte.
  Cell* cells_of(uintptr_t address, size_t bytes) {
    if (shift && ((address - begin) | bytes) & 3) refine();
    return &cells[(address - begin) >> shift];
  }
  size_t count(size_t bytes) const { return shift ? bytes >> shift : bytes; }

 private:
  void refine();
};

namespace regions {

bool any();
// The region that an address lies in, or null. Static memory of kernels becomes one at its first use in a launch.
Region* at(uintptr_t address);
// Whether code may read there: constants of any library.
bool constant(uintptr_t address);
// "8 bytes after x (1024 bytes)".
std::string place(uintptr_t address);

void launch_begins();
void block_begins();
void launch_ends();

}  // namespace regions

}  // namespace emulator
