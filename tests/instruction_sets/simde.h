// The x86 intrinsics under their own names, computed by SIMDe (https://github.com/simd-everywhere/simde) on any
// processor, and the few that its release lacks.
#pragma once

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/fma.h>

#include "../storage.h"

#include <cstring>

#define _mm512_cvtps_pd(a) emulated_cvtps_pd(a)
#define _mm512_maskz_loadu_ps(k, p) emulated_load<simde__m512, float, 16>(k, p)
#define _mm512_maskz_loadu_pd(k, p) emulated_load<simde__m512d, double, 8>(k, p)
#define _mm512_mask_storeu_ps(p, k, a) emulated_store<float, 16>(p, k, a)
#define _mm512_mask_storeu_pd(p, k, a) emulated_store<double, 8>(p, k, a)
#define _mm512_cvtepu16_epi32(a) emulated_convert<simde__m512i, uint16_t, uint32_t>(a, [](uint16_t x) { return x; })
#define _mm512_cvtepi32_epi16(a) emulated_convert<simde__m256i, uint32_t, uint16_t>(a, [](uint32_t x) { return x; })
#define _mm512_cvtph_ps(a) emulated_convert<simde__m512, uint16_t, float>(a, dartsfast::from_float16)
#define _mm512_cvtps_ph(a, rounding) emulated_convert<simde__m256i, float, uint16_t>(a, dartsfast::to_float16)
#ifndef _MM_FROUND_NO_EXC
#define _MM_FROUND_TO_NEAREST_INT 0
#define _MM_FROUND_NO_EXC 8
#endif

// 16 lanes, one by one.
template <class V, class From, class To, class A, class F>
V emulated_convert(A a, F f) {
  From from[16];
  To to[16];
  std::memcpy(from, &a, sizeof(from));
  for (int i = 0; i < 16; ++i) to[i] = static_cast<To>(f(from[i]));
  V r;
  std::memcpy(&r, to, sizeof(to));
  return r;
}

inline simde__m512d emulated_cvtps_pd(simde__m256 a) {
  float from[8];
  double to[8];
  std::memcpy(from, &a, sizeof(from));
  for (int i = 0; i < 8; ++i) to[i] = from[i];
  simde__m512d r;
  std::memcpy(&r, to, sizeof(to));
  return r;
}

// Only the lanes of the mask are touched in memory: what a fault of the mask would read or write, sanitizers see.
template <class V, class T, int N>
V emulated_load(unsigned mask, const T* p) {
  T lanes[N];
  for (int i = 0; i < N; ++i) lanes[i] = mask >> i & 1 ? p[i] : T(0);
  V r;
  std::memcpy(&r, lanes, sizeof(lanes));
  return r;
}

template <class T, int N, class V>
void emulated_store(T* p, unsigned mask, V a) {
  T lanes[N];
  std::memcpy(lanes, &a, sizeof(lanes));
  for (int i = 0; i < N; ++i) {
    if (mask >> i & 1) p[i] = lanes[i];
  }
}
