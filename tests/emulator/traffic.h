// What warps move: accesses of the lanes of a warp that the GPU makes at once are taken together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace emulator::traffic {

// Of the launches since they were cleared. Sectors are 32 bytes of global memory that an instruction of a warp touches;
// a bank conflict is a further pass that an instruction of a warp needs in shared memory.
struct Counters {
  uint64_t launches, bytes_read, bytes_written, sectors_read, sectors_written, shared_accesses, bank_conflicts, atomics;
};
extern Counters counters;

// The same of every kernel, in the order of their first launches.
struct OfKernel {
  const void* kernel;
  Counters counters;
};
extern std::vector<OfKernel> kernels;
void clear();

void launch_begins();
void launch_ends();
void access(uintptr_t offset, size_t bytes, bool shared, bool write, const void* pc);
void block_begins();
void block_ends();

}  // namespace emulator::traffic
