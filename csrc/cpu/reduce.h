// Reductions over pixels and chunks in the order of csrc/order.h; channels are lanes.
#pragma once

#include "../order.h"
#include "vec.h"

namespace dartsfast::DARTSFAST_ISA {

// Fold 8 interleaved partial sums.
template <class T>
Vec<T> fold(const Vec<T> (&s)[kInterleave]) {
  return ((s[0] + s[1]) + (s[2] + s[3])) + ((s[4] + s[5]) + (s[6] + s[7]));
}

// Sum f(pixel) over the pixels of a chunk; f adds its term to the accumulator that it is handed.
template <class T, class F>
Vec<T> interleaved(int64_t pixels, F f) {
  Vec<T> s[kInterleave];
#pragma GCC unroll 8
  for (int k = 0; k < kInterleave; ++k) s[k] = Vec<T>::zero();
  int64_t p = 0;
  for (; p + kInterleave <= pixels; p += kInterleave) {
#pragma GCC unroll 8
    for (int k = 0; k < kInterleave; ++k) s[k] = f(p + k, s[k]);
  }
  if (p == pixels) return fold<T>(s);
#pragma GCC unroll 8
  for (int k = 0; k < kInterleave; ++k) {
    if (p + k < pixels) s[k] = f(p + k, s[k]);
  }
  return fold<T>(s);
}

// The same where f takes the pixel, its row and its column.
template <class T, class F>
Vec<T> interleaved_rows(int64_t rows, int64_t width, F f) {
  if (width % kInterleave) {
    int64_t y = 0, u = 0;
    return interleaved<T>(rows * width, [&](int64_t p, Vec<T> v) {
      if (u == width) u = 0, ++y;
      return f(p, y, u++, v);
    });
  }
  Vec<T> s[kInterleave];
#pragma GCC unroll 8
  for (int k = 0; k < kInterleave; ++k) s[k] = Vec<T>::zero();
  for (int64_t y = 0; y < rows; ++y) {
    for (int64_t u = 0; u < width; u += kInterleave) {
#pragma GCC unroll 8
      for (int k = 0; k < kInterleave; ++k) s[k] = f(y * width + u + k, y, u + k, s[k]);
    }
  }
  return fold<T>(s);
}

// Pairwise tree over `count` rows of `width` values, in place; the sum ends in row 0.
template <class T>
void tree_sum(T* rows, int64_t count, int64_t stride, int64_t width) {
  for (; count > 1; count = (count + 1) / 2) {
    for (int64_t i = 0; i < count / 2; ++i) {
      const T *a = rows + 2 * i * stride, *b = a + stride;
      T* out = rows + i * stride;
      for (int64_t c = 0; c < width; ++c) out[c] = a[c] + b[c];
    }
    if (count % 2) {
      const T* last = rows + (count - 1) * stride;
      T* out = rows + count / 2 * stride;
      for (int64_t c = 0; c < width; ++c) out[c] = last[c];
    }
  }
}

// Mean and sum of squared deviations of the pixels of a chunk, tile [pixels, ld], to part [2, C].
template <class T>
void chunk_moments(const T* tile, int64_t ld, int64_t pixels, int64_t C, T* part) {
  using V = Vec<T>;
  // One pass after the other, so that a register's sum need not wait for the mean of the one before.
  for (int64_t c = 0; c < C; c += V::size) {
    const T* z = tile + c;
    const V sum = interleaved<T>(pixels, [=](int64_t p, V s) { return s + V::load(z + p * ld); });
    (sum / V::set(static_cast<T>(pixels))).store(part + c);
  }
  for (int64_t c = 0; c < C; c += V::size) {
    const T* z = tile + c;
    const V mean = V::load(part + c);
    const V squares = interleaved<T>(pixels, [=](int64_t p, V s) {
      const V d = V::load(z + p * ld) - mean;
      return V::fma(d, d, s);
    });
    squares.store(part + C + c);
  }
}

// Combine the moments of chunks [count, 2, C] pairwise (Chan et al. 1979), in place, into chunk 0.
// pixels[i] is the number of pixels of chunk i and is overwritten.
template <class T>
void tree_moments(T* part, int64_t* pixels, int64_t count, int64_t C) {
  using V = Vec<T>;
  for (; count > 1; count = (count + 1) / 2) {
    for (int64_t i = 0; i < count / 2; ++i) {
      const T *a = part + 4 * i * C, *b = a + 2 * C;
      T* out = part + 2 * i * C;
      const int64_t na = pixels[2 * i], nb = pixels[2 * i + 1];
      const T share = static_cast<T>(nb) / static_cast<T>(na + nb);
      const V r = V::set(share), w = V::set(static_cast<T>(na) * share);
      for (int64_t c = 0; c < C; c += V::size) {
        const V mean = V::load(a + c), d = V::load(b + c) - mean;
        const V squares = V::fma(d * d, w, V::load(a + C + c) + V::load(b + C + c));
        V::fma(d, r, mean).store(out + c);
        squares.store(out + C + c);
      }
      pixels[i] = na + nb;
    }
    if (count % 2) {
      const T* last = part + 2 * (count - 1) * C;
      T* out = part + 2 * (count / 2) * C;
      for (int64_t c = 0; c < 2 * C; ++c) out[c] = last[c];
      pixels[count / 2] = pixels[count - 1];
    }
  }
}

}  // namespace dartsfast::DARTSFAST_ISA
