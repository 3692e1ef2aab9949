// Images that may be stored in 16 bits: V neighbouring numbers at once, as the arithmetic's. Kernels have HALVES where
// any of their images is stored so; which is, and how, is the same for all threads of a block.
#pragma once

#include <algorithm>

#include "../storage.h"
#include "pack.h"

namespace dartsfast::cuda {

// Whether images in 16 bits go with arithmetic in T.
template <class T>
constexpr bool kServesHalves = sizeof(T) == sizeof(float);

constexpr int kWideHalves = 8;  // elements of 16 bytes

// 16 bits of each of two numbers, the first in the lower half.
__device__ __forceinline__ uint32_t to_stored(Storage as, float first, float second) {
#ifdef __CUDA_ARCH__
  uint32_t both;
  if (as == Storage::bfloat16) asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  else asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(second), "f"(first));
  return both;
#else
  return static_cast<uint32_t>(dartsfast::to_stored(as, second)) << 16 | dartsfast::to_stored(as, first);
#endif
}

__device__ __forceinline__ float from_stored(Storage as, uint32_t stored) {
#ifdef __CUDA_ARCH__
  if (as == Storage::bfloat16) return from_bfloat16(static_cast<uint16_t>(stored));
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(static_cast<uint16_t>(stored)));
  return x;
#else
  return dartsfast::from_stored(as, static_cast<uint16_t>(stored));
#endif
}

// Numbers in 16 bits, two in each word; a last one alone in the lower half of its word.
template <int V>
struct Halves {
  static constexpr int words = (V + 1) / 2;
  uint32_t word[words];

  Halves() = default;
  __device__ __forceinline__ Halves(Storage as, const Pack<float, V>& v) {
#pragma unroll
    for (int i = 0; i < words; ++i) word[i] = to_stored(as, v.v[2 * i], 2 * i + 1 < V ? v.v[2 * i + 1] : 0.f);
  }
  __device__ __forceinline__ Pack<float, V> numbers(Storage as) const {
    Pack<float, V> v;
#pragma unroll
    for (int i = 0; i < V; ++i) v.v[i] = from_stored(as, word[i / 2] >> i % 2 * 16);
    return v;
  }
  __device__ __forceinline__ static Halves load(const uint16_t* p) {
    Halves h;
    if constexpr (V == 1) {
      h.word[0] = *p;
    } else {
      const auto all = Pack<uint32_t, words>::load(reinterpret_cast<const uint32_t*>(p));
#pragma unroll
      for (int i = 0; i < words; ++i) h.word[i] = all.v[i];
    }
    return h;
  }
  __device__ __forceinline__ void store(uint16_t* p) const {
    if constexpr (V == 1) {
      *p = static_cast<uint16_t>(word[0]);
    } else {
      Pack<uint32_t, words> all;
#pragma unroll
      for (int i = 0; i < words; ++i) all.v[i] = word[i];
      all.store_out(reinterpret_cast<uint32_t*>(p));
    }
  }
};

// Numbers of the arithmetic, at most 16 bytes at a time.
template <int V, class T>
__device__ __forceinline__ Pack<T, V> read_own(const T* p) {
  if constexpr (V <= kWide<T>) {
    return Pack<T, V>::load(p);
  } else {
    Pack<T, V> v;
#pragma unroll
    for (int i = 0; i < V; i += kWide<T>) {
      const auto part = Pack<T, kWide<T>>::load(p + i);
#pragma unroll
      for (int k = 0; k < kWide<T>; ++k) v.v[i + k] = part.v[k];
    }
    return v;
  }
}
// f(pack, place of its first number), for the parts of `v` that are moved at once.
template <class T, int V, class F>
__device__ __forceinline__ void each_wide(const Pack<T, V>& v, F f) {
  if constexpr (V <= kWide<T>) {
    f(v, 0);
  } else {
#pragma unroll
    for (int i = 0; i < V; i += kWide<T>) {
      Pack<T, kWide<T>> part;
#pragma unroll
      for (int k = 0; k < kWide<T>; ++k) part.v[k] = v.v[i + k];
      f(part, i);
    }
  }
}
template <class T, int V>
__device__ __forceinline__ void write_own(const Pack<T, V>& v, T* p) {
  each_wide(v, [p](const auto& part, int at) { part.store(p + at); });
}
// To the device's memory.
template <class T, int V>
__device__ __forceinline__ void write_out(const Pack<T, V>& v, T* p) {
  each_wide(v, [p](const auto& part, int at) { part.store_out(p + at); });
}

// f(storage) with the storage as a constant, so that what f does with it has no branches. HALVES: whether it may be
// another than the arithmetic's own.
template <bool HALVES, class F>
__device__ __forceinline__ void by_storage(Storage as, F f) {
  if constexpr (HALVES) {
    if (as == Storage::bfloat16) return f(Storage::bfloat16);
    if (as == Storage::float16) return f(Storage::float16);
  }
  f(Storage::own);
}

// The numbers from element `at` of memory on.
template <class T, int V>
__device__ __forceinline__ Pack<T, V> read(const void* data, Storage as, int64_t at) {
  if constexpr (kServesHalves<T>) {
    if (as != Storage::own) return Halves<V>::load(static_cast<const uint16_t*>(data) + at).numbers(as);
  }
  return read_own<V>(static_cast<const T*>(data) + at);
}
template <class T, int V>
__device__ __forceinline__ void write(const Pack<T, V>& v, void* data, Storage as, int64_t at) {
  if constexpr (kServesHalves<T>) {
    if (as != Storage::own) return Halves<V>(as, v).store(static_cast<uint16_t*>(data) + at);
  }
  write_out(v, static_cast<T*>(data) + at);
}

// What is left of numbers where they are stored.
template <class T, int V>
__device__ __forceinline__ Pack<T, V> rounded(const Pack<T, V>& v, Storage as) {
  if constexpr (kServesHalves<T>) {
    if (as != Storage::own) return Halves<V>(as, v).numbers(as);
  }
  return v;
}

// Whether V neighbouring numbers can be moved at once wherever in memory they begin; 16 bytes at most.
template <int V, class T, class... Steps>
bool wide(const void* data, Storage as, Steps... steps) {
  const uintptr_t bytes = std::min<uintptr_t>(16, V * (as == Storage::own ? sizeof(T) : 2));
  return reinterpret_cast<uintptr_t>(data) % bytes == 0 && ((steps % V == 0) && ...);
}
template <int V, class T>
bool wide(const StoredImage& a) {
  return !a.data || wide<V, T>(a.data, a.storage, a.n, a.h, a.w);
}

}  // namespace dartsfast::cuda
