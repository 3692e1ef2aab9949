// What checks hear of a run.
#pragma once

#include <cstddef>

namespace emulator::checks {

void launch_begins();
void block_begins();
void block_synchronised();
void warp_synchronised(int warp, unsigned mask);
void fence();
void atomic(void* pointer, size_t bytes, const void* pc);
void block_ends();
void launch_ends();

}  // namespace emulator::checks
