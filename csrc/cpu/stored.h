// Images that may be stored in 16 bits, as float32: a register of channels at a time, the same bits on every
// instruction set as csrc/storage.h makes them.
#pragma once

#include "../storage.h"
#include "vec.h"

namespace dartsfast::DARTSFAST_ISA {

// A number as it is stored.
template <Storage AS>
struct Half {
  uint16_t bits;
};

#if defined(DARTSFAST_AVX512)

inline __m256i load_bits(const void* p) { return _mm256_loadu_si256(static_cast<const __m256i*>(p)); }
inline void store_bits(__m256i bits, void* p) { _mm256_storeu_si256(static_cast<__m256i*>(p), bits); }

template <Storage AS>
Vec<float> from_bits_of(__m256i bits) {
  if constexpr (AS == Storage::float16) return {_mm512_cvtph_ps(bits)};
  else return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}

// Not AVX512_BF16, which takes subnormal numbers for 0.
template <Storage AS>
__m256i to_bits_of(Vec<float> x) {
  const __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  const __m512i bits = _mm512_castps_si512(x.v);
  if constexpr (AS == Storage::float16) {
    const __m512i number = _mm512_mask_mov_epi32(bits, nan, _mm512_set1_epi32(kHalfNaN << 13 | 0x70000000));
    return _mm512_cvtps_ph(_mm512_castsi512_ps(number), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  } else {
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i upper = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i number = _mm512_mask_mov_epi32(_mm512_srli_epi32(upper, 16), nan, _mm512_set1_epi32(kHalfNaN));
    return _mm512_cvtepi32_epi16(number);
  }
}

#elif defined(DARTSFAST_AVX2)

inline __m128i load_bits(const void* p) { return _mm_loadu_si128(static_cast<const __m128i*>(p)); }
inline void store_bits(__m128i bits, void* p) { _mm_storeu_si128(static_cast<__m128i*>(p), bits); }

template <Storage AS>
Vec<float> from_bits_of(__m128i bits) {
  if constexpr (AS == Storage::float16) return {_mm256_cvtph_ps(bits)};
  else return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}

template <Storage AS>
__m128i to_bits_of(Vec<float> x) {
  const __m256i bits = _mm256_castps_si256(x.v);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q));
  if constexpr (AS == Storage::float16) {
    const __m256i number = _mm256_blendv_epi8(bits, _mm256_set1_epi32(kHalfNaN << 13 | 0x70000000), nan);
    return _mm256_cvtps_ph(_mm256_castsi256_ps(number), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  } else {
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i upper = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i number = _mm256_blendv_epi8(_mm256_srli_epi32(upper, 16), _mm256_set1_epi32(kHalfNaN), nan);
    return _mm_packus_epi32(_mm256_castsi256_si128(number), _mm256_extracti128_si256(number, 1));
  }
}

#else

struct HalfBits {
  uint16_t lane[Vec<float>::size];
};
inline HalfBits load_bits(const void* p) {
  HalfBits bits;
  __builtin_memcpy(&bits, p, sizeof bits);
  return bits;
}
inline void store_bits(const HalfBits& bits, void* p) { __builtin_memcpy(p, &bits, sizeof bits); }

// Functions of their own: number by number they are long.
template <Storage AS>
[[gnu::noinline]] Vec<float> from_bits_of(const HalfBits& bits) {
  return Vec<float>::each([&](int i) { return from_stored(AS, bits.lane[i]); });
}
template <Storage AS>
[[gnu::noinline]] HalfBits to_bits_of(const Vec<float>& x) {
  HalfBits bits;
  for (int i = 0; i < Vec<float>::size; ++i) bits.lane[i] = to_stored(AS, x.v[i]);
  return bits;
}

#endif

// As those of numbers of the arithmetic.
template <Storage AS>
Vec<float> load_channels(const Half<AS>* p, int64_t left) {
  if (left >= Vec<float>::size) return from_bits_of<AS>(load_bits(p));
  Half<AS> lanes[Vec<float>::size] = {};
  for (int64_t i = 0; i < left; ++i) lanes[i] = p[i];
  return from_bits_of<AS>(load_bits(lanes));
}
template <Storage AS>
void store_channels(const Vec<float>& v, Half<AS>* p, int64_t left) {
  if (left >= Vec<float>::size) return store_bits(to_bits_of<AS>(v), p);
  Half<AS> lanes[Vec<float>::size];
  store_bits(to_bits_of<AS>(v), lanes);
  for (int64_t i = 0; i < left; ++i) p[i] = lanes[i];
}

// What is left of numbers where they are stored.
template <class T>
Vec<T> rounded(const Vec<T>& v, const T*) {
  return v;
}
template <Storage AS>
Vec<float> rounded(const Vec<float>& v, const Half<AS>*) {
  return from_bits_of<AS>(to_bits_of<AS>(v));
}

// An image whose numbers are stored as X.
template <class X>
Image<const X> stored_as(const StoredImage& a) {
  return {static_cast<const X*>(a.data), a.n, a.h, a.w};
}

// The same of an image whose numbers are stored as S, or are the arithmetic's own, from an element on.
template <class T, class S>
Vec<T> load_channels(const StoredImage& a, int64_t element, int64_t left) {
  if constexpr (!std::is_same_v<S, T>) {
    if (a.storage != Storage::own) return load_channels(static_cast<const S*>(a.data) + element, left);
  }
  return load_channels(static_cast<const T*>(a.data) + element, left);
}

// Ask for the line of an element.
template <class T, class S>
void prefetch_element(const StoredImage& a, int64_t element) {
  const int64_t size = a.storage == Storage::own ? sizeof(T) : sizeof(S);
  __builtin_prefetch(static_cast<const char*>(a.data) + element * size, 0, 2);
}

}  // namespace dartsfast::DARTSFAST_ISA
