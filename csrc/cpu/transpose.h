// Up to 8 rows of 8 elements, transposed.
#pragma once

#include "vec.h"

namespace dartsfast::DARTSFAST_ISA {

// to[k * to_pitch + i] = from(i)[k] for i, k < 8, with zeros for i from `count` on; k ascending.
template <class T, class Rows>
void transpose(Rows from, int64_t count, T* to, int64_t to_pitch) {
  for (int64_t k = 0; k < 8; ++k) {
    for (int64_t i = 0; i < 8; ++i) to[k * to_pitch + i] = i < count ? from(i)[k] : T(0);
  }
}

#if defined(DARTSFAST_AVX512) || defined(DARTSFAST_AVX2)

template <class Rows>
void transpose(Rows from, int64_t count, float* to, int64_t to_pitch) {
  __m256 r[8], s[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = i < count ? _mm256_loadu_ps(from(i)) : _mm256_setzero_ps();
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {  // pairs of rows: elements 0 1 4 5, then 2 3 6 7
    s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {  // four rows: elements 0 4, 1 5, 2 6, 3 7
    r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) _mm256_storeu_ps(to + k * to_pitch, _mm256_permute2f128_ps(r[k], r[k + 4], 0x20));
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) _mm256_storeu_ps(to + (k + 4) * to_pitch, _mm256_permute2f128_ps(r[k], r[k + 4], 0x31));
}

#endif

}  // namespace dartsfast::DARTSFAST_ISA
