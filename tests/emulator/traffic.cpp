#include "traffic.h"

#include <algorithm>
#include <unordered_map>
#include <vector>

#include "running.h"

namespace emulator::traffic {

Counters counters;
std::vector<OfKernel> kernels;

namespace {

Counters before;  // the launch

constexpr uint64_t Counters::*kNumbers[] = {
    &Counters::launches,        &Counters::bytes_read,      &Counters::bytes_written,  &Counters::sectors_read,
    &Counters::sectors_written, &Counters::shared_accesses, &Counters::bank_conflicts, &Counters::atomics};

// An instruction as a warp executes it once: the sectors or the words that its lanes touch. Threads run one by one, so
// instructions are those that stand at the same place of the code and that their threads come to the same number of
// times.
struct Instruction {
  std::vector<uint32_t> touched;
};
struct Place {
  bool shared, write;
  std::vector<uint32_t> times;                    // by thread
  std::vector<std::vector<Instruction>> of_warp;  // by warp, then in the order of time
};
std::unordered_map<const void*, Place> places;  // of the block

constexpr uint32_t kSector = 32, kBanks = 32, kPassShift = 28;

// Lanes of 8 bytes pass in two halves, of 16 bytes in four quarters.
uint32_t pass(size_t bytes) {
  const uint32_t lane = static_cast<uint32_t>(running.thread % 32);
  return bytes <= 4 ? 0 : bytes <= 8 ? lane / 16 : lane / 8;
}

uint64_t conflicts(const std::vector<uint32_t>& words) {
  uint64_t sum = 0;
  for (size_t i = 0; i < words.size();) {
    uint32_t banks[kBanks] = {}, most = 0;
    const uint32_t of = words[i] >> kPassShift;
    for (; i < words.size() && words[i] >> kPassShift == of; ++i) most = std::max(most, ++banks[words[i] % kBanks]);
    sum += most - 1;
  }
  return sum;
}

void count(const Place& place, Instruction& instruction) {
  auto& touched = instruction.touched;
  std::sort(touched.begin(), touched.end());
  touched.erase(std::unique(touched.begin(), touched.end()), touched.end());
  if (place.shared) {
    ++counters.shared_accesses;
    counters.bank_conflicts += conflicts(touched);
  } else {
    (place.write ? counters.sectors_written : counters.sectors_read) += touched.size();
  }
}

}  // namespace

void clear() { counters = {}, kernels.clear(); }

void launch_begins() {
  before = counters;
  ++counters.launches;
}

void launch_ends() {
  const auto same = [](const OfKernel& one) { return one.kernel == running.kernel; };
  auto found = std::find_if(kernels.begin(), kernels.end(), same);
  if (found == kernels.end()) found = kernels.insert(found, {running.kernel, {}});
  for (auto number : kNumbers) found->counters.*number += counters.*number - before.*number;
}

void access(uintptr_t offset, size_t bytes, bool shared, bool write, const void* pc) {
  if (!shared) (write ? counters.bytes_written : counters.bytes_read) += bytes;
  Place& place = places[pc];
  if (place.times.empty()) {
    place.shared = shared, place.write = write;
    place.times.resize(static_cast<size_t>(running.threads));
    place.of_warp.resize(static_cast<size_t>(running.threads + 31) / 32);
  }
  auto& instructions = place.of_warp[running.thread / 32];
  const uint32_t time = place.times[running.thread]++;
  if (time >= instructions.size()) instructions.resize(time + 1);
  auto& touched = instructions[time].touched;
  const uint32_t unit = shared ? 4 : kSector, mark = shared ? pass(bytes) << kPassShift : 0;
  for (uintptr_t i = offset / unit; i <= (offset + bytes - 1) / unit; ++i)
    touched.push_back(static_cast<uint32_t>(i) | mark);
}

void block_begins() { places.clear(); }

void block_ends() {
  for (auto& [pc, place] : places) {
    for (auto& instructions : place.of_warp) {
      for (Instruction& instruction : instructions) count(place, instruction);
    }
  }
  places.clear();
}

}  // namespace emulator::traffic
