// Several neighbouring elements, loaded and stored at once: 16 bytes where everything is aligned to them.
#pragma once

#include <cstdint>

#include "runtime.h"

namespace dartsfast::cuda {

template <class T, int N>
struct alignas(N * sizeof(T)) Pack {
  T v[N];

  __device__ static Pack load(const T* p) { return *reinterpret_cast<const Pack*>(p); }
  __device__ void store(T* p) const {
#ifdef __CUDA_ARCH__
    if constexpr (sizeof(Pack) == sizeof(uint4)) {
      uint4 bits;
      memcpy(&bits, v, sizeof bits);
      __stwb(reinterpret_cast<uint4*>(p), bits);  // an assignment may be made number by number
      return;
    }
#endif
    *reinterpret_cast<Pack*>(p) = *this;
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
