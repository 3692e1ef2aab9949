// What comes before what: barriers order the threads of a block, __syncwarp lanes of a warp (a shuffle does not: CUDA
// promises no order of memory for it), and atomics with fences everything else.
//
// A write of one block comes before a read of another where both saw the same variable of atomics (a ticket):
// the write, then a __threadfence, then the atomic of the one; the atomic, then a __threadfence, then the read of the
// other. "Then" is program order, a barrier or a __syncwarp, so the fences may be those of all threads or of the one
// with the ticket.
#pragma once

#include <cstdint>

#include "regions.h"

namespace emulator::history {

void launch_begins();
void block_begins();
void block_synchronised();
void warp_synchronised(int warp, unsigned mask);
void fence();
void atomic(uintptr_t address);

// What the running thread does now.
Event now();
// Whether what happened comes before what the running thread does now.
bool before(const Event& event);
// Of lanes of the running thread's warp, of the last of which `event` is, in the same epoch: those not before it.
unsigned lanes_beside(const Event& event, unsigned lanes);
// Whether the running thread knows of something that a block has released.
bool knows(uint32_t block);

}  // namespace emulator::history
