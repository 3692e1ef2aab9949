// Blocks, threads and what they wait for.
#include "emulator.h"

#include <sys/mman.h>

#include <memory>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "checks.h"
#include "fiber.h"
#include "regions.h"
#include "running.h"

namespace emulator {

Position position;
Running running;

namespace {

constexpr size_t kStack = 256 << 10, kMostShared = 163 << 10;  // bytes; shared memory of sm_80
constexpr int kMostThreads = 1024;

enum Order { forward, reverse, random_order };
enum class State { ready, at_block_barrier, in_warp, exited };

struct Thread {
  Fiber fiber;
  State state = State::exited;
  uint3 index;
  bool prepared = false;  // the fiber is at its beginning, or where a thread has exited
  Where where;            // it waits
  Warp operation;         // it waits for, with what follows
  unsigned mask;
  uint64_t value, result;
  int source;
};

// SplitMix64: the same numbers everywhere, which std::shuffle does not promise.
struct Random {
  uint64_t state = 1;
  uint64_t operator()() {
    uint64_t z = state += 0x9e3779b97f4a7c15;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  template <class V>
  void shuffle(V& v) {
    for (size_t i = v.size(); i > 1; --i) std::swap(v[i - 1], v[((*this)() >> 32) * i >> 32]);
  }
};

std::mutex busy;  // one launch at a time, whichever thread of the CPU it is from
Order order = forward;
Random generator;
Fiber scheduler;
std::unique_ptr<Thread[]> threads;
std::vector<int> ready;               // threads that may go on in the next round
int waiting, first_waiting, exited;   // at the block's barrier; of the block
unsigned in_warp[kMostThreads / 32];  // the lanes that wait there
bool stopped;                         // the launch ends
void (*body)(void*);
alignas(128) char dynamic[kMostShared];

Thread& current() { return threads[running.thread]; }

void leave() { current().fiber.switch_to(scheduler); }

[[noreturn]] void stop(const std::string& what) {
  found(Kind::synchronisation, what);
  abandon();
}

std::string at(Where where) {
  const std::string file = where.file_name();
  return file.substr(file.rfind('/') + 1) + ":" + std::to_string(where.line());
}

const char* name(Warp operation) {
  return operation == Warp::sync ? "__syncwarp" : operation == Warp::shuffle ? "a shuffle" : "a vote";
}

// A fiber runs the same thread of one block after the other.
void fiber_main() {
  while (true) {
    body(const_cast<char*>(running.closure));
    current().state = State::exited;
    ++exited;
    leave();
  }
}

char* stacks() {
  static char* const memory = [] {
    void* p = mmap(nullptr, kStack * kMostThreads, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                   -1, 0);
    if (p == MAP_FAILED) throw std::bad_alloc();
    for (int t = 0; t < kMostThreads; ++t) mprotect(static_cast<char*>(p) + t * kStack, 4096, PROT_NONE);
    return static_cast<char*>(p);
  }();
  return memory;
}

void prepare(int t) {
  Thread& thread = threads[t];
  if (thread.prepared) return;
  // Tops of stacks lie on different cache sets.
  char* bottom = stacks() + t * kStack;
  thread.fiber.prepare(bottom, bottom + kStack - t % 32 * 256, fiber_main);
  thread.prepared = true;
}

void run_round() {
  static std::vector<int> round;
  round.swap(ready);
  ready.clear();
  if (order == random_order) {
    generator.shuffle(round);
  } else if (order == forward) {
    if (!std::is_sorted(round.begin(), round.end())) std::sort(round.begin(), round.end());
  } else {
    std::sort(round.begin(), round.end(), std::greater<>());
  }
  for (int t : round) {
    running.thread = t;
    threadIdx = threads[t].index;
    running.stack = stacks() + t * kStack, running.stack_bytes = kStack;
    scheduler.switch_to(threads[t].fiber);
    if (stopped) return;
  }
}

// Why a thread waits for ever, or nothing where it waits only for others that do.
std::string blocked(const Thread& me, int warp) {
  if (me.state == State::at_block_barrier) {
    return exited ? "divergent barrier: waits in __syncthreads at " + at(me.where) +
                        ", and threads of the block have exited"
                  : "";
  }
  for (unsigned m = me.state == State::in_warp ? me.mask : 0; m; m &= m - 1) {
    const int t = warp + std::countr_zero(m);
    const Thread& other = threads[t];
    if (other.state == State::in_warp && other.mask == me.mask && other.operation == me.operation) continue;
    const std::string what = other.state == State::exited ? "has exited"
                             : other.state == State::at_block_barrier
                                 ? "waits in __syncthreads at " + at(other.where)
                                 : std::string("waits in ") + name(other.operation) +
                                       " with another mask or operation at " + at(other.where);
    return std::string("wrong mask: waits in ") + name(me.operation) + " at " + at(me.where) + " for thread " +
           words(other.index) + ", which " + what;
  }
  return "";
}

// No thread can go on, and not all have exited.
void find_deadlock() {
  stopped = true;
  for (int t = 0; t < running.threads; ++t) {
    running.thread = t;
    const std::string why = blocked(threads[t], t / 32 * 32);
    if (!why.empty()) return found(Kind::synchronisation, why);
  }
  found(Kind::synchronisation, "deadlock");
}

void run_block(uint32_t index) {
  blockIdx = {index % gridDim.x, index / gridDim.x % gridDim.y, index / gridDim.x / gridDim.y};
  ++running.block;
  if (running.shared_bytes) std::memset(running.shared, 0xff, running.shared_bytes);  // NaN, -1
  checks::block_begins();
  waiting = exited = 0;
  std::fill(std::begin(in_warp), std::end(in_warp), 0);
  ready.resize(running.threads);
  std::iota(ready.begin(), ready.end(), 0);
  for (int t : ready) prepare(t), threads[t].state = State::ready;
  while (!ready.empty() && !stopped) run_round();
  if (!stopped && exited < running.threads) find_deadlock();
  running.thread = -1;
  if (stopped) {  // in the middle of a kernel
    for (int t = 0; t < running.threads; ++t) threads[t].prepared = false;
  }
  checks::block_ends();
}

void check_launch(dim3 grid, dim3 block, size_t shared) {
  const size_t T = size_t{block.x} * block.y * block.z;
  if (T == 0 || T > kMostThreads || block.z > 64)
    throw std::runtime_error("invalid configuration argument: block " + words(block));
  if (size_t{grid.x} * grid.y * grid.z == 0 || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    throw std::runtime_error("invalid configuration argument: grid " + words(grid));
  }
  if (shared > kMostShared) {
    throw std::runtime_error("invalid argument: " + std::to_string(shared) + " bytes of shared memory, not at most " +
                             std::to_string(kMostShared));
  }
}

void run_blocks() {
  std::vector<uint32_t> blocks(size_t{gridDim.x} * gridDim.y * gridDim.z);
  std::iota(blocks.begin(), blocks.end(), 0);
  if (order == reverse) std::reverse(blocks.begin(), blocks.end());
  if (order == random_order) generator.shuffle(blocks);
  for (uint32_t block : blocks) {
    if (!stopped) run_block(block);
  }
}

}  // namespace

void run(void (*thread)(void*), void* closure, size_t closure_bytes, const void* kernel, dim3 grid, dim3 block,
         size_t shared) {
  check_launch(grid, block, shared);
  const std::lock_guard lock(busy);
  if (!threads) threads = std::make_unique<Thread[]>(kMostThreads);
  gridDim = grid, blockDim = block, body = thread, stopped = false;
  running.kernel = kernel, running.threads = static_cast<int>(block.x * block.y * block.z);
  running.shared = dynamic, running.shared_bytes = shared;
  running.closure = static_cast<const char*>(closure), running.closure_bytes = closure_bytes;
  running.first_block = running.block + 1;
  for (int t = 0; t < running.threads; ++t) threads[t].index = thread_index(t);
  checks::launch_begins();
  run_blocks();
  checks::launch_ends();
  throw_found();
}

uint3 thread_index(int thread) {
  const unsigned t = static_cast<unsigned>(thread);
  return {t % blockDim.x, t / blockDim.x % blockDim.y, t / blockDim.x / blockDim.y};
}

void abandon() {
  stopped = true;
  leave();
  __builtin_unreachable();
}

void* dynamic_shared() { return running.shared; }

void device_memory(const void* pointer, Where where) {
  const auto within = [pointer](const char* begin, size_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) - reinterpret_cast<uintptr_t>(begin) < bytes;
  };
  const Region* region = regions::any() ? regions::at(reinterpret_cast<uintptr_t>(pointer)) : nullptr;
  if (within(running.shared, running.shared_bytes) || within(running.stack, running.stack_bytes) ||
      (region && region->shared)) {
    found(Kind::bounds, "out of bounds: an instruction of the device's memory at an address of another, at " + at(where));
  }
}

int lane() { return running.thread % 32; }

void block_barrier(Where where) {
  Thread& me = current();
  if (waiting == 0) first_waiting = running.thread;
  me.where = where;
  const Where first = threads[first_waiting].where;
  const bool same_file = first.file_name() == where.file_name() || !std::strcmp(first.file_name(), where.file_name());
  if (first.line() != where.line() || !same_file) {
    stop("divergent barrier: __syncthreads at " + at(where) + ", and thread " + words(threads[first_waiting].index) +
         " waits in another at " + at(first));
  }
  me.state = State::at_block_barrier;
  if (++waiting == running.threads) {
    waiting = 0;
    checks::block_synchronised();
    for (int t = 0; t < running.threads; ++t) threads[t].state = State::ready, ready.push_back(t);
  }
  leave();
}

namespace {

// The lanes of the mask have come: each gets what it asked for.
void exchange_among(int warp, unsigned mask) {
  uint64_t votes = 0;
  in_warp[warp / 32] &= ~mask;
  for (unsigned m = mask; m; m &= m - 1) votes |= threads[warp + std::countr_zero(m)].value << std::countr_zero(m);
  for (unsigned m = mask; m; m &= m - 1) {
    const int t = warp + std::countr_zero(m);
    Thread& thread = threads[t];
    thread.result = thread.operation == Warp::vote ? votes : threads[warp + thread.source].value;
    thread.state = State::ready;
    if (t != running.thread) ready.push_back(t);
  }
}

void check_mask(Warp operation, unsigned mask, unsigned there, int source, Where where) {
  const auto wrong = [&](const std::string& what) {
    char hex[16];
    std::snprintf(hex, sizeof hex, "0x%08x", mask);
    stop(std::string("wrong mask: ") + name(operation) + " at " + at(where) + " with mask " + hex + " " + what);
  };
  if (!(mask >> lane() & 1)) wrong("that is without its own lane " + std::to_string(lane()));
  if (operation == Warp::shuffle && !((mask & there) >> source & 1)) {
    wrong("reads from lane " + std::to_string(source) +
          (mask >> source & 1 ? ", which does not exist" : ", which is not in it"));
  }
}

// Whether all lanes of the mask wait with this thread.
bool all_there(int warp, unsigned mask) {
  if (mask & ~in_warp[warp / 32]) return false;
  for (unsigned m = mask; m; m &= m - 1) {
    const Thread& other = threads[warp + std::countr_zero(m)];
    if (other.mask != mask || other.operation != current().operation) return false;
  }
  return true;
}

}  // namespace

uint64_t exchange(Warp operation, unsigned mask, uint64_t value, int source, Where where) {
  const int warp = running.thread / 32 * 32, lanes = std::min(32, running.threads - warp);
  const unsigned there = lanes == 32 ? ~0u : (1u << lanes) - 1;  // a block's last warp may have fewer lanes
  check_mask(operation, mask, there, source, where);
  Thread& me = current();
  me.operation = operation, me.mask = mask & there, me.value = value, me.source = source, me.where = where;
  me.state = State::in_warp;
  in_warp[warp / 32] |= 1u << lane();
  if (all_there(warp, me.mask)) {
    if (operation == Warp::sync) checks::warp_synchronised(warp / 32, me.mask);
    exchange_among(warp, me.mask);
  } else {
    leave();
  }
  return me.result;
}

void fence() { checks::fence(); }

void atomic(void* pointer, size_t bytes) { checks::atomic(pointer, bytes, __builtin_return_address(0)); }

extern "C" {

// Order of threads and of blocks: 0 as they are numbered, 1 from the last, 2 at random.
void emulator_order(int which, uint64_t seed) { order = static_cast<Order>(which), generator.state = seed; }
}

}  // namespace emulator
