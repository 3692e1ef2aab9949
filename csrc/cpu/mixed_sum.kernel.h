// mixed_sum: all branches of a node, or of one edge on top of the others, in one pass.
#pragma once

#include "../mixed_sum.h"
#include "reduce.h"

namespace dartsfast::DARTSFAST_ISA {

template <class T, int U>
void mixed_sum_block(const MixedSum<T>& a, int64_t n, int64_t y, int64_t x, int64_t c, int64_t left) {
  using V = Vec<T>;
  const int64_t C = padded(a.C);
  const auto load = [&](const Image<const T>& image, int u) {
    const T* p = image.at(n, y) + (x + u) * image.w + c;
    return left >= V::size ? V::load(p) : V::load_part(p, left);
  };
  V acc[U];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) acc[u] = a.base.data ? load(a.base, u) : V::zero();
  for (int64_t b = 0; b < a.branches; ++b) {
    const V mean = V::load(a.mean + b * C + c), rstd = V::load(a.rstd + b * C + c), w = V::set(a.weights[b]);
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) acc[u] = V::fma(w, (load(a.z[b], u) - mean) * rstd, acc[u]);
  }
  T* out = a.out + ((n * a.H + y) * a.W + x) * a.C + c;
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) left >= V::size ? acc[u].store(out + u * a.C) : acc[u].store_part(out + u * a.C, left);
}

template <class T>
void mixed_sum_image(const MixedSum<T>& a, int64_t n, T*) {
  for (int64_t y = 0; y < a.H; ++y) {
    int64_t x = 0;
    for (; x + 4 <= a.W; x += 4) {
      for (int64_t c = 0; c < a.C; c += Vec<T>::size) mixed_sum_block<T, 4>(a, n, y, x, c, a.C - c);
    }
    for (; x < a.W; ++x) {
      for (int64_t c = 0; c < a.C; c += Vec<T>::size) mixed_sum_block<T, 1>(a, n, y, x, c, a.C - c);
    }
  }
}

template <class T>
void mixed_sum_backward_image(const MixedSum<T>& a, int64_t n, T*) {
  using V = Vec<T>;
  const int64_t C = padded(a.C), step = chunk_rows(a.W), count = chunks(a.H, a.W);
  for (int64_t k = 0; k < count; ++k) {
    const int64_t y = k * step, rows = y + step <= a.H ? step : a.H - y;
    T* part = a.sums + (n * count + k) * (1 + a.branches) * C;
    for (int64_t c = 0; c < C; c += V::size) {
      const int64_t left = a.C - c;
      const auto load = [=](const Image<const T>& image, int64_t p) {
        const T* at = image.at(n, y) + p * image.w + c;
        return left >= V::size ? V::load(at) : V::load_part(at, left);
      };
      interleaved<T>(rows * a.W, [&](int64_t p, V s) { return s + load(a.g, p); }).store(part + c);
      for (int64_t b = 0; b < a.branches; ++b) {
        const V mean = V::load(a.mean + b * C + c), rstd = V::load(a.rstd + b * C + c);
        interleaved<T>(rows * a.W, [&](int64_t p, V s) {
          return V::fma(load(a.g, p), (load(a.z[b], p) - mean) * rstd, s);
        }).store(part + (1 + b) * C + c);
      }
    }
  }
}

}  // namespace dartsfast::DARTSFAST_ISA
