// Calls that share a launch: their argument structs are a parameter of the kernel, by value, so that nothing is copied
// to the device and a captured graph holds them. blockIdx.z says which one a block works for.
#pragma once

#include <algorithm>
#include <utility>
#include <vector>

#include "runtime.h"

namespace dartsfast::cuda {

constexpr size_t kParameterBytes = 4000;  // of a kernel; every driver takes 4 KiB

template <class A>
struct Group {
  static constexpr int most = kParameterBytes / sizeof(A);
  static_assert(most > 0, "an argument struct is too large for a kernel's parameters");
  A member[most];
};

// launch(group, count) for the calls, as many at a time as a launch takes.
template <class A, class F>
void each_group(const std::vector<const A*>& calls, F launch) {
  for (size_t first = 0; first < calls.size(); first += Group<A>::most) {
    Group<A> group;
    const int count = static_cast<int>(std::min<size_t>(calls.size() - first, Group<A>::most));
    for (int i = 0; i < count; ++i) group.member[i] = *calls[first + i];
    launch(group, count);
  }
}

// Those of which `which` is true, and the others.
template <class A, class F>
std::pair<std::vector<const A*>, std::vector<const A*>> parted(const std::vector<const A*>& calls, F which) {
  std::pair<std::vector<const A*>, std::vector<const A*>> found;
  for (const A* call : calls) (which(*call) ? found.first : found.second).push_back(call);
  return found;
}

inline int64_t blocks_of(int64_t work, int64_t block) { return (work + block - 1) / block; }

}  // namespace dartsfast::cuda
