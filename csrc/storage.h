// Images whose numbers take 16 bits in memory: arithmetic is in float32, and what is stored is rounded to nearest, ties
// to even. Torch-free, for all backends.
#pragma once

#include <cstdint>
#include <cstring>

#include "order.h"

namespace dartsfast {

// How an image's numbers are stored: as those of the arithmetic, or in 16 bits.
enum class Storage : int32_t { own, bfloat16, float16 };

DARTSFAST_BOTH inline uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}
DARTSFAST_BOTH inline float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}

constexpr uint16_t kHalfNaN = 0x7fff;  // any NaN as NVIDIA's GPUs store it

DARTSFAST_BOTH inline float from_bfloat16(uint16_t stored) { return from_bits(static_cast<uint32_t>(stored) << 16); }
DARTSFAST_BOTH inline uint16_t to_bfloat16(float x) {
  const uint32_t bits = bits_of(x);
  if (x != x) return kHalfNaN;
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

DARTSFAST_BOTH inline float from_float16(uint16_t stored) {
  const uint32_t sign = static_cast<uint32_t>(stored & 0x8000) << 16, magnitude = stored & 0x7fff;
  if (magnitude >= 0x7c00) return from_bits(sign | 0x7f800000 | magnitude << 13);  // infinity, NaN
  // The exponent's bias differs by 112; subnormal numbers become normal ones.
  return from_bits(sign | bits_of(from_bits(magnitude << 13) * 0x1p112f));
}
DARTSFAST_BOTH inline uint16_t to_float16(float x) {
  const uint32_t bits = bits_of(x), magnitude = bits & 0x7fffffff;
  const auto signed_as_x = [bits](uint32_t stored) { return static_cast<uint16_t>((bits >> 16 & 0x8000) | stored); };
  if (x != x) return kHalfNaN;
  if (magnitude >= bits_of(65520.f)) return signed_as_x(0x7c00);  // nearer to 2^16 than to the largest number
  // Below the smallest normal number the unit is 2^-24, that of 0.5 in float32: its addition rounds.
  if (magnitude < bits_of(0x1p-14f)) return signed_as_x(bits_of(from_bits(magnitude) + 0.5f) - bits_of(0.5f));
  return signed_as_x((magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13);
}

DARTSFAST_BOTH inline float from_stored(Storage as, uint16_t stored) {
  return as == Storage::bfloat16 ? from_bfloat16(stored) : from_float16(stored);
}
DARTSFAST_BOTH inline uint16_t to_stored(Storage as, float x) {
  return as == Storage::bfloat16 ? to_bfloat16(x) : to_float16(x);
}

// An image batch as csrc/order.h's Image, in any storage; n, h, w are strides in elements.
struct StoredImage {
  void* data;
  int64_t n, h, w;
  Storage storage;
  // The element that channel c of a pixel is.
  DARTSFAST_BOTH int64_t at(int64_t image, int64_t y, int64_t x, int64_t c) const { return image * n + y * h + x * w + c; }
  // A pixel of numbers that are the arithmetic's own.
  template <class T>
  DARTSFAST_BOTH const T* own(int64_t image, int64_t y, int64_t x) const {
    return static_cast<const T*>(data) + image * n + y * h + x * w;
  }
};

}  // namespace dartsfast
