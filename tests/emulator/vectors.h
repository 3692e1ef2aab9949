// The vector types of CUDA C++ with CUDA's sizes and alignments.
#pragma once

#include <cstdint>

#define EMULATOR_VECTOR2(name, T)      \
  struct alignas(2 * sizeof(T)) name { \
    T x, y;                            \
  };                                   \
  inline name make_##name(T x, T y) { return {x, y}; }
#define EMULATOR_VECTOR4(name, T)                           \
  struct alignas(sizeof(T) < 4 ? 4 * sizeof(T) : 16) name { \
    T x, y, z, w;                                           \
  };                                                        \
  inline name make_##name(T x, T y, T z, T w) { return {x, y, z, w}; }

EMULATOR_VECTOR2(char2, signed char)
EMULATOR_VECTOR2(uchar2, unsigned char)
EMULATOR_VECTOR2(short2, short)
EMULATOR_VECTOR2(ushort2, unsigned short)
EMULATOR_VECTOR2(int2, int)
EMULATOR_VECTOR2(uint2, unsigned)
EMULATOR_VECTOR2(longlong2, long long)
EMULATOR_VECTOR2(ulonglong2, unsigned long long)
EMULATOR_VECTOR2(float2, float)
EMULATOR_VECTOR2(double2, double)
EMULATOR_VECTOR4(char4, signed char)
EMULATOR_VECTOR4(uchar4, unsigned char)
EMULATOR_VECTOR4(short4, short)
EMULATOR_VECTOR4(ushort4, unsigned short)
EMULATOR_VECTOR4(int4, int)
EMULATOR_VECTOR4(uint4, unsigned)
EMULATOR_VECTOR4(float4, float)

#undef EMULATOR_VECTOR2
#undef EMULATOR_VECTOR4

struct uint3 {
  unsigned x, y, z;
};
struct int3 {
  int x, y, z;
};
struct float3 {
  float x, y, z;
};
inline uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
inline int3 make_int3(int x, int y, int z) { return {x, y, z}; }
inline float3 make_float3(float x, float y, float z) { return {x, y, z}; }

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
  constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
  constexpr operator uint3() const { return {x, y, z}; }
};
