// What checks hear of a run. They do nothing without memory that was registered, nor where no code is checked.
#pragma once

#include <cstddef>
#include <string>

namespace emulator::checks {

void on();  // there is checked code
bool are_on();
void launch_begins();
void block_begins();
void block_synchronised();
void warp_synchronised(int warp, unsigned mask);
void fence();
void atomic(void* pointer, size_t bytes, const void* pc);
void block_ends();
void launch_ends();

enum class Access { read, write, atomic };
// Of the running thread, if one runs.
void access(const void* pointer, size_t bytes, Access access, const void* pc);
// What must not be done ends the launch.
[[noreturn]] void out_of_bounds(const std::string& what, const void* pc);

}  // namespace emulator::checks
