// What runs, as the parts of the emulator see it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "vectors.h"

namespace emulator {

struct Running {
  const void* kernel = nullptr;
  int thread = -1;           // of the block, in x, then y, then z; -1: none runs
  int threads = 0;           // of a block
  uint32_t block = 0;        // in the order in which blocks run, through all launches, from 1
  uint32_t first_block = 1;  // of the launch
  char* shared = nullptr;    // dynamic shared memory
  size_t shared_bytes = 0;
  const char* closure = nullptr;  // the launch's arguments
  size_t closure_bytes = 0;
  const char* stack = nullptr;  // of the thread
  size_t stack_bytes = 0;
};
extern Running running;

// A thread by its place in the block, and a block.
uint3 thread_index(int thread);
std::string words(uint3 index);

// Findings: what a kernel does wrong. With the kernel, the running thread and its block.
enum class Kind { synchronisation, bounds, uninitialised, race };
// A place in the code is found once.
bool is_new(Kind kind, const void* pc);
void found(Kind kind, const std::string& what, const void* pc = nullptr);
// Throws what was found since the last call, unless findings are collected.
void throw_found();
// Ends the launch from within a thread of it.
[[noreturn]] void abandon();

}  // namespace emulator
