#include "checks.h"

#include "emulator.h"
#include "history.h"
#include "regions.h"
#include "running.h"
#include "traffic.h"

namespace emulator {

using checks::Access;

namespace {

bool checked_code = false;

bool checks_run() { return checked_code && regions::any(); }

constexpr const char* kWhat[] = {"reads", "writes", "atomic on"};

template <class T>
bool lies_in(uintptr_t address, const T* begin, size_t bytes) {
  return address - reinterpret_cast<uintptr_t>(begin) < bytes;
}

// The region of an access; null where there is nothing to check, in memory of the thread itself and constants.
Region* region_of(uintptr_t address, size_t bytes, Access access, const void* pc) {
  if (lies_in(address, running.stack, running.stack_bytes) || lies_in(address, &position, sizeof position))
    return nullptr;
  Region* region = regions::at(address);
  if (region && bytes <= region->end - address) return region;
  if (lies_in(address, running.closure, running.closure_bytes)) return nullptr;
  if (access == Access::read && regions::constant(address)) return nullptr;
  const uintptr_t first = region ? region->end : address;  // that is outside
  checks::out_of_bounds(
      std::string(kWhat[static_cast<int>(access)]) + " " + std::to_string(bytes) + " bytes, " + regions::place(first),
      pc);
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
    const char* hint =
        other_block ? "; no ticket with a __threadfence on both sides orders them" : "; no barrier is between them";
    if (is_new(Kind::race, pc)) {
      found(Kind::race,
            std::string("race: ") + kWhat[static_cast<int>(access)] + " what " + who + " " + earlier + ", " +
                regions::place(address) + hint,
            pc);
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

  static bool in_same_epoch(const Event& event) {
    return event.block == running.block && event.epoch == history::now().epoch;
  }

  void check_readers() const {
    Event read = cell.read;
    if (in_same_epoch(read) && !cell.several_warps && read.thread / 32 == running.thread / 32) {
      const unsigned beside = history::lanes_beside(read, cell.readers);
      read.thread = static_cast<uint16_t>(running.thread / 32 * 32 + std::countr_zero(beside));
      if (beside) race("reads", read);
    } else if (!before(read) || (cell.several_warps && in_same_epoch(read))) {
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
      cell.readers = same_warp && history::lanes_beside(read, cell.readers) ? cell.readers | me : me;
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

}  // namespace

namespace checks {

void access(const void* pointer, size_t bytes, Access access, const void* pc) {
  if (running.thread < 0 || !checks_run()) return;
  const uintptr_t address = reinterpret_cast<uintptr_t>(pointer);
  Region* region = region_of(address, bytes, access, pc);
  if (!region) return;
  if (access == Access::atomic) {
    ++traffic::counters.atomics;
  } else {
    traffic::access(address - region->begin, bytes, region->shared, access == Access::write, pc);
  }
  Cell* cells = region->cells_of(address, bytes);
  for (size_t i = 0; i < region->count(bytes); ++i)
    Checked{*region, cells[i], address + (i << region->shift), access, pc}();
}

void out_of_bounds(const std::string& what, const void* pc) {
  found(Kind::bounds, "out of bounds: " + what, pc);
  abandon();  // before it is done
}

void on() { checked_code = true; }

bool are_on() { return checked_code; }

void launch_begins() {
  traffic::launch_begins();
  if (!checks_run()) return;
  history::launch_begins();
  regions::launch_begins();
}

void block_begins() {
  if (!checks_run()) return;
  history::block_begins();
  regions::block_begins();
}

void block_synchronised() {
  if (checks_run()) history::block_synchronised();
}

void warp_synchronised(int warp, unsigned mask) {
  if (checks_run()) history::warp_synchronised(warp, mask);
}

void fence() {
  if (checks_run()) history::fence();
}

void atomic(void* pointer, size_t bytes, const void* pc) {
  if (!checks_run()) return;
  access(pointer, bytes, Access::atomic, pc);
  history::atomic(reinterpret_cast<uintptr_t>(pointer));
}

void block_ends() { traffic::block_ends(); }

void launch_ends() {
  traffic::launch_ends();
  regions::launch_ends();
}

}  // namespace checks

}  // namespace emulator
