// One register of T: AVX-512, AVX2, or an array of as many lanes. Lanes are channels or columns, or elements
// whose sums are interleaved alike on all of them, so the width never shows in a result.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../order.h"

#if defined(DARTSFAST_INTRINSICS)  // a test's emulation, for processors that lack them
#include DARTSFAST_INTRINSICS
#elif defined(DARTSFAST_AVX512) || defined(DARTSFAST_AVX2)
#include <immintrin.h>
#endif

// The shape of the portable registers, AVX2's; tests compile AVX-512's too, so that its tiling runs on any machine.
#ifndef DARTSFAST_REGISTERS
#define DARTSFAST_REGISTERS 16
#define DARTSFAST_REGISTER_BYTES 32
#endif

namespace dartsfast::DARTSFAST_ISA {

#if defined(DARTSFAST_AVX512)

constexpr int kRegisters = 32;

template <class T>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int size = 16;
  using Mask = __mmask16;
  __m512 v;
  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec set(float x) { return {_mm512_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Mask lanes(int64_t n) { return static_cast<Mask>(n < size ? (1 << n) - 1 : -1); }
  static Vec load_part(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(lanes(n), p)}; }
  void store(float* p) const { _mm512_storeu_ps(p, v); }
  void store_part(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, lanes(n), v); }
  Vec operator+(Vec o) const { return {_mm512_add_ps(v, o.v)}; }
  Vec operator-(Vec o) const { return {_mm512_sub_ps(v, o.v)}; }
  Vec operator*(Vec o) const { return {_mm512_mul_ps(v, o.v)}; }
  Vec operator/(Vec o) const { return {_mm512_div_ps(v, o.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a b
  // The second operand wins where one is NaN, so NaN passes.
  Vec at_least(Vec floor) const { return {_mm512_max_ps(floor.v, v)}; }
  Vec relu() const { return at_least(zero()); }
  Vec where_positive(Vec x) const {
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_GT_OQ), v)};
  }
  // Plus `more` where a equals b; where it does not, plus nothing or 0.
  Vec plus_where_equal(Vec a, Vec b, Vec more) const {
    return {_mm512_mask_add_ps(v, _mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ), more.v, v)};
  }
  // Whether x beats this maximum: greater, or NaN.
  Mask beaten_by(Vec x) const {
    return _mm512_cmp_ps_mask(x.v, v, _CMP_GT_OQ) | _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  }
  // Where this is greater, or a NaN takes part.
  Mask exceeds(Vec o) const { return _mm512_cmp_ps_mask(v, o.v, _CMP_NLE_UQ); }
  Vec minus_abs() const {
    return {_mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(v), _mm512_set1_epi32(INT32_MIN)))};
  }
  Vec abs() const { return {_mm512_abs_ps(v)}; }
  // This value, of any sign, with that of x.
  Vec with_sign_of(Vec x) const {
    const __m512i sign = _mm512_set1_epi32(INT32_MIN);
    return {_mm512_castsi512_ps(_mm512_ternarylogic_epi32(sign, _mm512_castps_si512(x.v), _mm512_castps_si512(v), 0xca))};
  }
  // 2^n for the integer n in the low bits.
  Vec power_of_two() const {
    const __m512i bits = _mm512_add_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(127));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(bits, 23))};
  }
  static Vec select(Mask mask, Vec yes, Vec no) { return {_mm512_mask_mov_ps(no.v, mask, yes.v)}; }
  // This value in the lanes of a mask, or in the others; else 0.
  Vec where(Mask mask) const { return {_mm512_maskz_mov_ps(mask, v)}; }
  Vec where_not(Mask mask) const { return {_mm512_maskz_mov_ps(static_cast<Mask>(~mask), v)}; }
};

template <>
struct Vec<double> {
  static constexpr int size = 8;
  using Mask = __mmask8;
  __m512d v;
  static Vec zero() { return {_mm512_setzero_pd()}; }
  static Vec set(double x) { return {_mm512_set1_pd(x)}; }
  static Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static Vec load(const float* p) { return {_mm512_cvtps_pd(_mm256_loadu_ps(p))}; }
  static Mask lanes(int64_t n) { return static_cast<Mask>(n < size ? (1 << n) - 1 : -1); }
  static Vec load_part(const double* p, int64_t n) { return {_mm512_maskz_loadu_pd(lanes(n), p)}; }
  void store(double* p) const { _mm512_storeu_pd(p, v); }
  void store_part(double* p, int64_t n) const { _mm512_mask_storeu_pd(p, lanes(n), v); }
  Vec operator+(Vec o) const { return {_mm512_add_pd(v, o.v)}; }
  Vec operator-(Vec o) const { return {_mm512_sub_pd(v, o.v)}; }
  Vec operator*(Vec o) const { return {_mm512_mul_pd(v, o.v)}; }
  Vec operator/(Vec o) const { return {_mm512_div_pd(v, o.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_pd(a.v, b.v, c.v)}; }
  static Vec fnma(Vec a, Vec b, Vec c) { return {_mm512_fnmadd_pd(a.v, b.v, c.v)}; }
  Vec at_least(Vec floor) const { return {_mm512_max_pd(floor.v, v)}; }
  Vec relu() const { return at_least(zero()); }
  Vec where_positive(Vec x) const {
    return {_mm512_maskz_mov_pd(_mm512_cmp_pd_mask(x.v, _mm512_setzero_pd(), _CMP_GT_OQ), v)};
  }
  // Plus `more` where a equals b; where it does not, plus nothing or 0.
  Vec plus_where_equal(Vec a, Vec b, Vec more) const {
    return {_mm512_mask_add_pd(v, _mm512_cmp_pd_mask(a.v, b.v, _CMP_EQ_OQ), more.v, v)};
  }
  Mask beaten_by(Vec x) const {
    return _mm512_cmp_pd_mask(x.v, v, _CMP_GT_OQ) | _mm512_cmp_pd_mask(x.v, x.v, _CMP_UNORD_Q);
  }
  Mask exceeds(Vec o) const { return _mm512_cmp_pd_mask(v, o.v, _CMP_NLE_UQ); }
  Vec minus_abs() const {
    return {_mm512_castsi512_pd(_mm512_or_si512(_mm512_castpd_si512(v), _mm512_set1_epi64(INT64_MIN)))};
  }
  Vec abs() const { return {_mm512_abs_pd(v)}; }
  Vec with_sign_of(Vec x) const {
    const __m512i sign = _mm512_set1_epi64(INT64_MIN);
    return {_mm512_castsi512_pd(_mm512_ternarylogic_epi64(sign, _mm512_castpd_si512(x.v), _mm512_castpd_si512(v), 0xca))};
  }
  Vec power_of_two() const {
    const __m512i bits = _mm512_add_epi64(_mm512_castpd_si512(v), _mm512_set1_epi64(1023));
    return {_mm512_castsi512_pd(_mm512_slli_epi64(bits, 52))};
  }
  static Vec select(Mask mask, Vec yes, Vec no) { return {_mm512_mask_mov_pd(no.v, mask, yes.v)}; }
  Vec where(Mask mask) const { return {_mm512_maskz_mov_pd(mask, v)}; }
  Vec where_not(Mask mask) const { return {_mm512_maskz_mov_pd(static_cast<Mask>(~mask), v)}; }
};

#elif defined(DARTSFAST_AVX2)

constexpr int kRegisters = 16;

template <class T>
struct Vec;

template <>
struct Vec<float> {
  static constexpr int size = 8;
  __m256 v;
  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec set(float x) { return {_mm256_set1_ps(x)}; }
  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static __m256i lanes(int64_t n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static Vec load_part(const float* p, int64_t n) { return {_mm256_maskload_ps(p, lanes(n))}; }
  void store(float* p) const { _mm256_storeu_ps(p, v); }
  void store_part(float* p, int64_t n) const { _mm256_maskstore_ps(p, lanes(n), v); }
  Vec operator+(Vec o) const { return {_mm256_add_ps(v, o.v)}; }
  Vec operator-(Vec o) const { return {_mm256_sub_ps(v, o.v)}; }
  Vec operator*(Vec o) const { return {_mm256_mul_ps(v, o.v)}; }
  Vec operator/(Vec o) const { return {_mm256_div_ps(v, o.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_ps(a.v, b.v, c.v)}; }  // c - a b
  Vec at_least(Vec floor) const { return {_mm256_max_ps(floor.v, v)}; }
  Vec relu() const { return at_least(zero()); }
  Vec where_positive(Vec x) const {
    return {_mm256_and_ps(_mm256_cmp_ps(x.v, _mm256_setzero_ps(), _CMP_GT_OQ), v)};
  }
  // Plus `more` where a equals b; where it does not, plus nothing or 0.
  Vec plus_where_equal(Vec a, Vec b, Vec more) const {
    return {_mm256_add_ps(_mm256_and_ps(_mm256_cmp_ps(a.v, b.v, _CMP_EQ_OQ), more.v), v)};
  }
  Vec beaten_by(Vec x) const {
    return {_mm256_or_ps(_mm256_cmp_ps(x.v, v, _CMP_GT_OQ), _mm256_cmp_ps(x.v, x.v, _CMP_UNORD_Q))};
  }
  Vec exceeds(Vec o) const { return {_mm256_cmp_ps(v, o.v, _CMP_NLE_UQ)}; }
  Vec minus_abs() const { return {_mm256_or_ps(v, _mm256_set1_ps(-0.0f))}; }
  Vec abs() const { return {_mm256_andnot_ps(_mm256_set1_ps(-0.0f), v)}; }
  Vec with_sign_of(Vec x) const {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_or_ps(_mm256_and_ps(sign, x.v), _mm256_andnot_ps(sign, v))};
  }
  Vec power_of_two() const {
    const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(v), _mm256_set1_epi32(127));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(bits, 23))};
  }
  static Vec select(Vec mask, Vec yes, Vec no) { return {_mm256_blendv_ps(no.v, yes.v, mask.v)}; }
  // This value in the lanes of a mask, or in the others; else 0.
  Vec where(Vec mask) const { return {_mm256_and_ps(mask.v, v)}; }
  Vec where_not(Vec mask) const { return {_mm256_andnot_ps(mask.v, v)}; }
};

template <>
struct Vec<double> {
  static constexpr int size = 4;
  __m256d v;
  static Vec zero() { return {_mm256_setzero_pd()}; }
  static Vec set(double x) { return {_mm256_set1_pd(x)}; }
  static Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static Vec load(const float* p) { return {_mm256_cvtps_pd(_mm_loadu_ps(p))}; }
  static __m256i lanes(int64_t n) {
    return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
  }
  static Vec load_part(const double* p, int64_t n) { return {_mm256_maskload_pd(p, lanes(n))}; }
  void store(double* p) const { _mm256_storeu_pd(p, v); }
  void store_part(double* p, int64_t n) const { _mm256_maskstore_pd(p, lanes(n), v); }
  Vec operator+(Vec o) const { return {_mm256_add_pd(v, o.v)}; }
  Vec operator-(Vec o) const { return {_mm256_sub_pd(v, o.v)}; }
  Vec operator*(Vec o) const { return {_mm256_mul_pd(v, o.v)}; }
  Vec operator/(Vec o) const { return {_mm256_div_pd(v, o.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_pd(a.v, b.v, c.v)}; }
  static Vec fnma(Vec a, Vec b, Vec c) { return {_mm256_fnmadd_pd(a.v, b.v, c.v)}; }
  Vec at_least(Vec floor) const { return {_mm256_max_pd(floor.v, v)}; }
  Vec relu() const { return at_least(zero()); }
  Vec where_positive(Vec x) const {
    return {_mm256_and_pd(_mm256_cmp_pd(x.v, _mm256_setzero_pd(), _CMP_GT_OQ), v)};
  }
  // Plus `more` where a equals b; where it does not, plus nothing or 0.
  Vec plus_where_equal(Vec a, Vec b, Vec more) const {
    return {_mm256_add_pd(_mm256_and_pd(_mm256_cmp_pd(a.v, b.v, _CMP_EQ_OQ), more.v), v)};
  }
  Vec beaten_by(Vec x) const {
    return {_mm256_or_pd(_mm256_cmp_pd(x.v, v, _CMP_GT_OQ), _mm256_cmp_pd(x.v, x.v, _CMP_UNORD_Q))};
  }
  Vec exceeds(Vec o) const { return {_mm256_cmp_pd(v, o.v, _CMP_NLE_UQ)}; }
  Vec minus_abs() const { return {_mm256_or_pd(v, _mm256_set1_pd(-0.0))}; }
  Vec abs() const { return {_mm256_andnot_pd(_mm256_set1_pd(-0.0), v)}; }
  Vec with_sign_of(Vec x) const {
    const __m256d sign = _mm256_set1_pd(-0.0);
    return {_mm256_or_pd(_mm256_and_pd(sign, x.v), _mm256_andnot_pd(sign, v))};
  }
  Vec power_of_two() const {
    const __m256i bits = _mm256_add_epi64(_mm256_castpd_si256(v), _mm256_set1_epi64x(1023));
    return {_mm256_castsi256_pd(_mm256_slli_epi64(bits, 52))};
  }
  static Vec select(Vec mask, Vec yes, Vec no) { return {_mm256_blendv_pd(no.v, yes.v, mask.v)}; }
  Vec where(Vec mask) const { return {_mm256_and_pd(mask.v, v)}; }
  Vec where_not(Vec mask) const { return {_mm256_andnot_pd(mask.v, v)}; }
};

#else

constexpr int kRegisters = DARTSFAST_REGISTERS;

inline float fma1(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fma1(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float power_of_two1(float x) { return __builtin_bit_cast(float, (__builtin_bit_cast(uint32_t, x) + 127) << 23); }
inline double power_of_two1(double x) {
  return __builtin_bit_cast(double, (__builtin_bit_cast(uint64_t, x) + 1023) << 52);
}

template <class T>
struct Vec {
  static constexpr int size = DARTSFAST_REGISTER_BYTES / sizeof(T);
  T v[size];

  template <class F>
  static Vec each(F f) {
    Vec r;
    for (int i = 0; i < size; ++i) r.v[i] = f(i);
    return r;
  }
  static Vec zero() { return set(0); }
  static Vec set(T x) { return each([=](int) { return x; }); }
  template <class U>
  static Vec load(const U* p) {
    return each([=](int i) { return static_cast<T>(p[i]); });
  }
  static Vec load_part(const T* p, int64_t n) { return each([=](int i) { return i < n ? p[i] : T(0); }); }
  void store(T* p) const { store_part(p, size); }
  void store_part(T* p, int64_t n) const {
    for (int i = 0; i < size && i < n; ++i) p[i] = v[i];
  }
  Vec operator+(const Vec& o) const { return each([&](int i) { return v[i] + o.v[i]; }); }
  Vec operator-(const Vec& o) const { return each([&](int i) { return v[i] - o.v[i]; }); }
  Vec operator*(const Vec& o) const { return each([&](int i) { return v[i] * o.v[i]; }); }
  Vec operator/(const Vec& o) const { return each([&](int i) { return v[i] / o.v[i]; }); }
  static Vec fma(const Vec& a, const Vec& b, const Vec& c) {
    return each([&](int i) { return fma1(a.v[i], b.v[i], c.v[i]); });
  }
  static Vec fnma(const Vec& a, const Vec& b, const Vec& c) {
    return each([&](int i) { return fma1(-a.v[i], b.v[i], c.v[i]); });
  }
  Vec at_least(const Vec& floor) const { return each([&](int i) { return v[i] < floor.v[i] ? floor.v[i] : v[i]; }); }
  Vec relu() const { return at_least(zero()); }
  Vec where_positive(const Vec& x) const { return each([&](int i) { return x.v[i] > 0 ? v[i] : T(0); }); }
  Vec plus_where_equal(const Vec& a, const Vec& b, const Vec& more) const {
    return each([&](int i) { return (a.v[i] == b.v[i] ? more.v[i] : T(0)) + v[i]; });
  }
  Vec beaten_by(const Vec& x) const {
    return each([&](int i) { return T(x.v[i] > v[i] || x.v[i] != x.v[i]); });
  }
  Vec exceeds(const Vec& o) const {
    return each([&](int i) { return T(!(v[i] <= o.v[i])); });
  }
  Vec minus_abs() const {
    return each([&](int i) { return -(sizeof(T) == 4 ? __builtin_fabsf(v[i]) : __builtin_fabs(v[i])); });
  }
  Vec abs() const {
    return each([&](int i) { return sizeof(T) == 4 ? __builtin_fabsf(v[i]) : __builtin_fabs(v[i]); });
  }
  Vec with_sign_of(const Vec& x) const {
    return each([&](int i) { return T(sizeof(T) == 4 ? __builtin_copysignf(v[i], x.v[i]) : __builtin_copysign(v[i], x.v[i])); });
  }
  Vec power_of_two() const {
    return each([&](int i) { return power_of_two1(v[i]); });
  }
  static Vec select(const Vec& mask, const Vec& yes, const Vec& no) {
    return each([&](int i) { return mask.v[i] != 0 ? yes.v[i] : no.v[i]; });
  }
  Vec where(const Vec& mask) const { return select(mask, *this, zero()); }
  Vec where_not(const Vec& mask) const { return select(mask, zero(), *this); }
};

#endif

template <int I>
using Int = std::integral_constant<int, I>;

// block(i, Int<U>()) for blocks of U = MOST, MOST / 2, ... 1 that follow each other and together are [0, count),
// whatever the count and MOST: the last U is always 1.
template <int MOST, class F>
void each_block(int64_t count, F block, int64_t i = 0) {
  static_assert(MOST >= 1);
  for (; i + MOST <= count; i += MOST) block(i, Int<MOST>());
  if constexpr (MOST > 1) each_block<MOST / 2>(count, block, i);
}

// Ask for the lines of [p, p + bytes) ahead of their use; beyond the end of an array it does nothing.
template <bool WRITE>
inline void prefetch(const void* p, int64_t bytes) {
  asm volatile("");  // else the compiler takes callers that do nothing else for pure, and leaves them out
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(static_cast<const char*>(p) + i, WRITE, 2);
}

// A register's worth of the `left` channels from p on; lanes beyond them are 0.
template <class T>
Vec<T> load_channels(const T* p, int64_t left) {
  return left >= Vec<T>::size ? Vec<T>::load(p) : Vec<T>::load_part(p, left);
}

template <class T>
void store_channels(const Vec<T>& v, T* p, int64_t left) {
  left >= Vec<T>::size ? v.store(p) : v.store_part(p, left);
}

// Registers that hold C channels.
template <class T>
int64_t registers(int64_t C) {
  return (C + Vec<T>::size - 1) / Vec<T>::size;
}

// f(c, left) for every register of the C channels, where left is how many there are from c on: a constant
// for whole registers, so that loads and stores of the inner loops need no test.
template <class T, class F>
void each_register(int64_t C, F f) {
  int64_t c = 0;
  for (; c + Vec<T>::size <= C; c += Vec<T>::size) f(c, std::integral_constant<int64_t, Vec<T>::size>());
  if (c < C) f(c, C - c);
}

}  // namespace dartsfast::DARTSFAST_ISA
