// Work on torch's threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <functional>
#include <vector>

namespace dartsfast {

constexpr int64_t kWorthAThread = 200000;  // operations

// Items that depend on nothing in their section.
struct Work {
  int64_t items, cost;  // operations an item
  // `first`: what this thread ran before was not of this work, or nothing; scratch memory holds anything.
  std::function<void(int64_t item, bool first)> run;
};

// What the calls of a program share, as long as it lives, and what has to be done before they run: nothing.
struct Shared {
  std::vector<Work> first() const { return {}; }
};

// Every item of every work, in order, each on the thread that is free next.
void run_section(const std::vector<Work>& works);

// How many threads N items of `cost` operations each are worth, at least one.
int64_t worth(int64_t N, int64_t cost);

}  // namespace dartsfast
