// Several neighbouring elements, loaded and stored at once: 16 bytes where everything is aligned to them.
#pragma once

#include <cstdint>
#include <type_traits>

#include "runtime.h"

namespace dartsfast::cuda {

template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T v[N];

  __device__ static Pack load(const T* p) { return *reinterpret_cast<const Pack*>(p); }
  __device__ void store(T* p) const { *reinterpret_cast<Pack*>(p) = *this; }
  // To the device's memory, by an instruction that knows no other. Left alone, the compiler makes some of these number
  // by number.
  __device__ void store_out(T* p) const {
    if constexpr (N == 4 && std::is_same_v<T, float>) {
      __stcg(reinterpret_cast<float4*>(p), make_float4(v[0], v[1], v[2], v[3]));
    } else if constexpr (N == 4 && std::is_same_v<T, uint32_t>) {
      __stcg(reinterpret_cast<uint4*>(p), make_uint4(v[0], v[1], v[2], v[3]));
    } else if constexpr (N == 2 && std::is_same_v<T, double>) {
      __stcg(reinterpret_cast<double2*>(p), make_double2(v[0], v[1]));
    } else {
      store(p);
    }
  }
  __device__ static Pack zero() {
    Pack p;
    for (int i = 0; i < N; ++i) p.v[i] = 0;
    return p;
  }
};

// Elements of 16 bytes.
template <class T>
constexpr int kWide = 16 / sizeof(T);

// Whether a pointer and distances in elements are multiples of 16 bytes.
template <class T, class... Steps>
bool wide(const void* data, Steps... steps) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0 && ((steps % kWide<T> == 0) && ...);
}

}  // namespace dartsfast::cuda
