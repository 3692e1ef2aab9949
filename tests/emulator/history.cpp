#include "history.h"

#include <algorithm>
#include <bit>
#include <iterator>
#include <map>
#include <unordered_map>
#include <vector>

#include "running.h"

namespace emulator::history {

namespace {

// Of a lane, up to which time it has seen what each lane of its warp did.
struct WarpClock {
  uint32_t time = 1, seen[32][32] = {};
};

struct Fence {
  Event event;
  uint32_t seen[32];  // by its lane
};
struct ThreadFences {
  Fence last{}, earlier{};  // earlier: the last one of an epoch before
  uint16_t count = 0;
};

struct Variable;
using Known = std::map<const Variable*, size_t>;  // how many releases of each variable

// What an atomic publishes of its block: what came before a fence that came before it. All of epochs before `epoch`,
// and of `epoch` what is before one of `fences`, which are in order of their threads.
struct Release {
  uint32_t block, epoch;
  std::vector<Fence> fences;
  Known known;
};
struct Variable {
  std::vector<Release> releases;
};

struct Acquired {
  Event event;  // the atomic or the fence
  Known known;
};

std::unordered_map<uintptr_t, Variable> variables;  // of the launch
// Of the block:
uint32_t epoch;
std::vector<WarpClock> warps;
std::vector<ThreadFences> fences;
bool any_fence;
std::vector<Acquired> pending, acquired;  // by an atomic; by a fence after it

bool in_block_before(const Event& event) {
  if (event.block != running.block) return false;
  if (event.thread == running.thread || event.epoch < epoch) return true;
  return event.thread / 32 == running.thread / 32 &&
         event.time <= warps[running.thread / 32].seen[running.thread % 32][event.thread % 32];
}

bool published(const Release& release, const Event& event) {
  if (event.epoch != release.epoch) return event.epoch < release.epoch;
  auto fence = std::lower_bound(release.fences.begin(), release.fences.end(), event.thread / 32,
                                [](const Fence& f, int warp) { return f.event.thread / 32 < warp; });
  for (; fence != release.fences.end() && fence->event.thread / 32 == event.thread / 32; ++fence) {
    if (fence->event.thread == event.thread ? event.fences < fence->event.fences
                                            : event.time <= fence->seen[event.thread % 32]) {
      return true;
    }
  }
  return false;
}

// Whether the running thread knows of a release that is the one asked for.
template <class Condition>
bool knows_release(Condition condition) {
  for (const Acquired& a : acquired) {
    if (!in_block_before(a.event)) continue;
    for (const auto& [variable, count] : a.known) {
      if (std::any_of(variable->releases.begin(), variable->releases.begin() + static_cast<int64_t>(count), condition))
        return true;
    }
  }
  return false;
}

void join(Known& known, const Known& more) {
  for (const auto& [variable, count] : more) known[variable] = std::max(known[variable], count);
}

void release(Variable& variable) {
  Release made{running.block, 0, {}, {}};
  std::vector<const Fence*> before;
  for (const ThreadFences& thread : fences) {
    for (const Fence* fence : {&thread.last, &thread.earlier}) {
      if (!fence->event.block || !in_block_before(fence->event)) continue;
      before.push_back(fence);
      made.epoch = std::max(made.epoch, fence->event.epoch);
      break;
    }
  }
  if (before.empty()) return;
  for (const Fence* fence : before) {
    if (fence->event.epoch == made.epoch) made.fences.push_back(*fence);
  }
  for (const Acquired& a : acquired) {
    if (in_block_before(a.event)) join(made.known, a.known);
  }
  variable.releases.push_back(std::move(made));
}

}  // namespace

void launch_begins() { variables.clear(); }

void block_begins() {
  epoch = 1;
  warps.assign(static_cast<size_t>(running.threads + 31) / 32, {});
  fences.assign(static_cast<size_t>(running.threads), {});
  any_fence = false;
  pending.clear(), acquired.clear();
}

void block_synchronised() { ++epoch; }

void warp_synchronised(int warp, unsigned mask) {
  WarpClock& clock = warps[warp];
  uint32_t joined[32] = {};
  for (unsigned m = mask; m; m &= m - 1) {
    for (int lane = 0; lane < 32; ++lane) joined[lane] = std::max(joined[lane], clock.seen[std::countr_zero(m)][lane]);
  }
  for (unsigned m = mask; m; m &= m - 1) joined[std::countr_zero(m)] = clock.time;
  for (unsigned m = mask; m; m &= m - 1) std::copy_n(joined, 32, clock.seen[std::countr_zero(m)]);
  ++clock.time;
}

void fence() {
  ThreadFences& mine = fences[running.thread];
  if (mine.last.event.epoch < epoch) mine.earlier = mine.last;
  ++mine.count;
  mine.last.event = now();
  std::copy_n(warps[running.thread / 32].seen[running.thread % 32], 32, mine.last.seen);
  any_fence = true;
  for (const Acquired& a : pending) {
    const auto same = [&](const Acquired& b) { return in_block_before(b.event) && b.known == a.known; };
    if (in_block_before(a.event) && std::none_of(acquired.begin(), acquired.end(), same))
      acquired.push_back({now(), a.known});
  }
}

void atomic(uintptr_t address) {
  if (any_fence) release(variables[address]);
  const auto found = variables.find(address);
  if (found == variables.end()) return;
  Known known{{&found->second, found->second.releases.size()}};
  for (const Release& r : found->second.releases) join(known, r.known);
  std::erase_if(pending,
                [&](const Acquired& a) { return a.event.thread == running.thread && a.known.count(&found->second); });
  pending.push_back({now(), std::move(known)});
}

Event now() {
  return {running.block, static_cast<uint16_t>(running.thread), fences[running.thread].count, epoch,
          warps[running.thread / 32].time};
}

bool before(const Event& event) {
  if (event.block < running.first_block || in_block_before(event)) return true;
  return knows_release([&](const Release& r) { return r.block == event.block && published(r, event); });
}

unsigned lanes_beside(const Event& event, unsigned lanes) {
  const uint32_t* seen = warps[running.thread / 32].seen[running.thread % 32];
  unsigned beside = lanes & ~(1u << (running.thread % 32));
  for (unsigned m = beside; m; m &= m - 1) {
    if (event.time <= seen[std::countr_zero(m)]) beside &= ~(m & -m);
  }
  return beside;
}

bool knows(uint32_t block) {
  return block < running.first_block || knows_release([&](const Release& r) { return r.block == block; });
}

}  // namespace emulator::history
