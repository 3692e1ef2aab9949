// Every access of checked code, through the functions that -fsanitize=thread and -fsanitize=bounds call.
#include "checks.h"

#include <cstdio>
#include <cstdlib>

#include "emulator.h"
#include "history.h"
#include "regions.h"
#include "running.h"
#include "traffic.h"

namespace emulator {

namespace {

enum class Access { read, write, atomic };

constexpr const char* kWhat[] = {"reads", "writes", "atomic on"};

[[noreturn]] void out_of_bounds(const std::string& what, const void* pc) {
  found(Kind::bounds, "out of bounds: " + what, pc);
  abandon();  // before it is done
}

template <class T>
bool lies_in(uintptr_t address, const T* begin, size_t bytes) {
  return address - reinterpret_cast<uintptr_t>(begin) < bytes;
}

// The region of an access; null where there is nothing to check, in memory of the thread itself and constants.
Region* region_of(uintptr_t address, size_t bytes, Access access, const void* pc) {
  if (lies_in(address, running.stack, running.stack_bytes) || lies_in(address, &position, sizeof position)) return nullptr;
  Region* region = regions::at(address);
  if (region && bytes <= region->end - address) return region;
  if (lies_in(address, running.closure, running.closure_bytes)) return nullptr;
  if (access == Access::read && regions::constant(address)) return nullptr;
  const uintptr_t first = region ? region->end : address;  // that is outside
  out_of_bounds(std::string(kWhat[static_cast<int>(access)]) + " " + std::to_string(bytes) + " bytes, " + regions::place(first), pc);
}

struct Checked {
  Region& region;
  Cell& cell;
  uintptr_t address;
  Access access;
  const void* pc;

  void say(Kind kind, const std::string& what) const {
    if (is_new(kind, pc)) found(kind, what + " " + regions::place(address), pc);
  }

  void race(const char* earlier, const Event& event) const {
    const bool other_block = event.block != running.block;
    const std::string who = other_block ? "another block" : "thread " + words(thread_index(event.thread));
    const char* hint = other_block ? "; no ticket with a __threadfence on both sides orders them" : "; no barrier is between them";
    if (is_new(Kind::race, pc)) {
      found(Kind::race, std::string("race: ") + kWhat[static_cast<int>(access)] + " what " + who + " " + earlier + ", " +
                            regions::place(address) + hint, pc);
    }
  }

  // Events of other blocks say nothing about memory that is a block's own.
  bool before(const Event& event) const {
    return (region.shared && event.block != running.block) || history::before(event);
  }

  void check_initialised() const {
    if (cell.initialised) return;
    say(Kind::uninitialised, "uninitialised: reads");
    cell.initialised = true;
  }

  void check_write() const {
    if (!before(cell.write)) race("writes", cell.write);
  }

  void check_readers() const {
    const Event& read = cell.read;
    if (read.block == running.block && read.epoch == history::now().epoch) {
      const bool same_warp = read.thread / 32 == running.thread / 32;
      const bool ordered = cell.several_warps ? false : same_warp ? history::lanes_before(read, cell.readers) : history::before(read);
      if (!ordered) race("reads", read);
    } else if (!before(read)) {
      race("reads", read);
    }
    if (!region.shared && cell.foreign_reader != running.block && !history::knows(cell.foreign_reader)) {
      race("reads", Event{cell.foreign_reader});
    }
  }

  void note_read() const {
    const Event now = history::now(), read = cell.read;
    const unsigned me = 1u << (running.thread % 32);
    if (read.block == now.block && read.epoch == now.epoch) {
      const bool same_warp = read.thread / 32 == running.thread / 32;
      if (!same_warp) cell.several_warps = true;
      cell.readers = same_warp && !history::lanes_before(read, cell.readers) ? cell.readers | me : me;
    } else {
      if (read.block != now.block && read.block >= running.first_block) cell.foreign_reader = read.block;
      cell.readers = me, cell.several_warps = false;
    }
    cell.read = now;
  }

  void note_write() const {
    cell.write = history::now();
    cell.initialised = true, cell.atomic = access == Access::atomic;
  }

  void operator()() const {
    if (access != Access::write) check_initialised();
    if (access != Access::atomic || !cell.atomic) check_write();
    if (access == Access::read) return note_read();
    check_readers();
    note_write();
  }
};

void check(const void* pointer, size_t bytes, Access access, const void* pc) {
  if (running.thread < 0 || !regions::any()) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  Region* region = region_of(address, bytes, access, pc);
  if (!region) return;
  if (access == Access::atomic) {
    ++traffic::counters.atomics;
  } else {
    traffic::access(address - region->begin, bytes, region->shared, access == Access::write, pc);
  }
  Cell* cells = region->cells_of(address, bytes);
  for (size_t i = 0; i < region->count(bytes); ++i) Checked{*region, cells[i], address + (i << region->shift), access, pc}();
}

}  // namespace

namespace checks {

void launch_begins() {
  ++traffic::counters.launches;
  history::launch_begins();
  regions::launch_begins();
}

void block_begins() {
  history::block_begins();
  regions::block_begins();
}

void block_synchronised() { history::block_synchronised(); }

void warp_synchronised(int warp, unsigned mask) { history::warp_synchronised(warp, mask); }

void fence() { history::fence(); }

void atomic(void* pointer, size_t bytes, const void* pc) {
  if (!regions::any()) return;
  check(pointer, bytes, Access::atomic, pc);
  history::atomic(reinterpret_cast<uintptr_t>(pointer));
}

void block_ends() { traffic::block_ends(); }

void launch_ends() { regions::launch_ends(); }

}  // namespace checks

extern "C" {

#define EMULATOR_PC __builtin_return_address(0)
#define EMULATOR_HOOKS(bytes)                                                                               \
  void __tsan_read##bytes(void* p) { check(p, bytes, Access::read, EMULATOR_PC); }                          \
  void __tsan_write##bytes(void* p) { check(p, bytes, Access::write, EMULATOR_PC); }                        \
  void __tsan_unaligned_read##bytes(void* p) { check(p, bytes, Access::read, EMULATOR_PC); }                \
  void __tsan_unaligned_write##bytes(void* p) { check(p, bytes, Access::write, EMULATOR_PC); }              \
  void __tsan_volatile_read##bytes(void* p) { check(p, bytes, Access::read, EMULATOR_PC); }                 \
  void __tsan_volatile_write##bytes(void* p) { check(p, bytes, Access::write, EMULATOR_PC); }
EMULATOR_HOOKS(1)
EMULATOR_HOOKS(2)
EMULATOR_HOOKS(4)
EMULATOR_HOOKS(8)
EMULATOR_HOOKS(16)
void __tsan_read_range(void* p, size_t bytes) { check(p, bytes, Access::read, EMULATOR_PC); }
void __tsan_write_range(void* p, size_t bytes) { check(p, bytes, Access::write, EMULATOR_PC); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
void __tsan_vptr_read(void**) {}
void __tsan_vptr_update(void**, void*) {}
void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  if (bytes) check(from, bytes, Access::read, EMULATOR_PC), check(to, bytes, Access::write, EMULATOR_PC);
  return std::memcpy(to, from, bytes);
}
void* __tsan_memset(void* to, int value, size_t bytes) {
  if (bytes) check(to, bytes, Access::write, EMULATOR_PC);
  return std::memset(to, value, bytes);
}

struct SourceLocation {
  const char* file;
  uint32_t line, column;
};
void __ubsan_handle_out_of_bounds(SourceLocation* where, void* index) {
  const std::string what = "index " + std::to_string(static_cast<long>(reinterpret_cast<uintptr_t>(index))) + " of an array, " +
                           where->file + ":" + std::to_string(where->line);
  if (running.thread >= 0) out_of_bounds(what, EMULATOR_PC);
  std::fprintf(stderr, "out of bounds: %s\n", what.c_str());
  std::abort();
}
}

}  // namespace emulator
