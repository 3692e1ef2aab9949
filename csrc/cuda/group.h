// Calls that share a launch: their argument structs are a parameter of the kernel, by value, so that nothing is copied
// to the device and a captured graph holds them. blockIdx.z says which one a block works for.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
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

// The same of structs that end in an array of which they need a part: bytes() of each.
template <class A>
struct PackedGroup {
  static constexpr int most = 16, room = (kParameterBytes - most * sizeof(uint16_t)) / 8 * 8;
  static_assert(sizeof(A) <= room, "an argument struct is too large for a kernel's parameters");
  uint16_t place[most];
  alignas(8) unsigned char bytes[room];

  __device__ const A& member(int i) const { return *reinterpret_cast<const A*>(bytes + place[i]); }
};

// launch(group, first, count) for the calls, as many at a time as a launch takes: those from `first` on.
template <class A, class F>
void each_packed_group(const std::vector<const A*>& calls, F launch) {
  for (size_t first = 0, next = 0; first < calls.size(); first = next) {
    PackedGroup<A> group;
    size_t used = 0;
    for (; next < calls.size() && next - first < group.most && used + calls[next]->bytes() <= group.room; ++next) {
      std::memcpy(group.bytes + used, calls[next], calls[next]->bytes());
      group.place[next - first] = used, used += calls[next]->bytes();
    }
    launch(group, first, static_cast<int>(next - first));
  }
}

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

inline int64_t blocks_of(int64_t work, int64_t block) { return (work + block - 1) / block; }

}  // namespace dartsfast::cuda
