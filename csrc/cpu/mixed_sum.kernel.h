// mixed_sum: all branches of a node, or of one edge on top of the others, in one pass.
#pragma once

#include "../mixed_sum.h"
#include "reduce.h"
#include "stored.h"

namespace dartsfast::DARTSFAST_ISA {

// Where a thread's next rows are if `row` is the first after those of an image that it is at: there, at the top of what
// is likely its next image, or at the last row again.
struct Following {
  int64_t n, y;
  template <class T>
  Following(const MixedSum<T>& a, int64_t image, int64_t row) : n(image), y(row < a.H ? row : 0) {
    if (row < a.H) return;
    if (n + a.next < a.N) n += a.next;
    else y = a.H - 1;
  }
};

// Pixels of row y. Those of the next row are asked for line by line between the additions: all at once, they would hold
// up what is added now.
template <class T, class S, int U, class Left>
void mixed_sum_block(const MixedSum<T>& a, int64_t n, int64_t y, int64_t x, int64_t c, Left left, Following next) {
  using V = Vec<T>;
  const int64_t C = padded(a.C);
  const auto load = [&](const Image<const T>& image, int u) {
    return load_channels(image.at(n, y) + (x + u) * image.w + c, left);
  };
  V acc[U];
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) acc[u] = a.base.data ? load(a.base, u) : V::zero();
  for (int64_t b = 0; b < a.branches; ++b) {
    const V mean = V::load(a.mean + b * C + c), rstd = V::load(a.rstd + b * C + c), w = V::set(a.weights[b]);
#pragma GCC unroll 4
    for (int u = 0; u < U; ++u) {
      const V z = load_channels<T, S>(a.z[b], a.z[b].at(n, y, x + u, c), left);
      acc[u] = V::fma(w, (z - mean) * rstd, acc[u]);
      prefetch_element<T, S>(a.z[b], a.z[b].at(next.n, next.y, x + u, c));
    }
  }
  T* out = a.out.at(n, y) + x * a.out.w + c;
#pragma GCC unroll 4
  for (int u = 0; u < U; ++u) store_channels(acc[u], out + u * a.out.w, left);
}

// Every z is stored as S, or as the arithmetic's own numbers.
template <class T, class S>
void mixed_sum_image(const MixedSum<T>& a, int64_t n, T*) {
  for (int64_t y = 0; y < a.H; ++y) {
    const Following next(a, n, y + 1);
    int64_t x = 0;
    for (; x + 4 <= a.W; x += 4) {
      each_register<T>(a.C, [&](int64_t c, auto left) { mixed_sum_block<T, S, 4>(a, n, y, x, c, left, next); });
    }
    for (; x < a.W; ++x) {
      each_register<T>(a.C, [&](int64_t c, auto left) { mixed_sum_block<T, S, 1>(a, n, y, x, c, left, next); });
    }
  }
}

template <class T, class S>
void mixed_sum_backward_image(const MixedSum<T>& a, int64_t n, T*) {
  using V = Vec<T>;
  const int64_t C = padded(a.C), step = chunk_rows(a.W), count = chunks(a.H, a.W);
  for (int64_t k = 0; k < count; ++k) {
    const int64_t y = k * step, pixels = (y + step <= a.H ? step : a.H - y) * a.W;
    T* part = a.sums + (n * count + k) * (1 + a.branches) * C;
    const Following next(a, n, y + step);
    for (int64_t i = 0; i < (1 + a.branches) * C; ++i) part[i] = 0;
    each_register<T>(a.C, [&](int64_t c, auto left) {
      const T* g = a.g.at(n, y) + c;
      const T* const next_g = a.g.at(next.n, next.y) + c;
      const int64_t g_step = a.g.w;
      interleaved<T>(pixels, [=](int64_t p, V s) {
        __builtin_prefetch(next_g + p * g_step, 0, 2);
        return s + load_channels(g + p * g_step, left);
      }).store(part + c);
      for (int64_t b = 0; b < a.branches; ++b) {
        const StoredImage z = a.z[b];
        const int64_t first = z.at(n, y, 0, c), then = z.at(next.n, next.y, 0, c);
        const V mean = V::load(a.mean + b * C + c), rstd = V::load(a.rstd + b * C + c);
        interleaved<T>(pixels, [=](int64_t p, V s) {
          prefetch_element<T, S>(z, then + p * z.w);
          const V stored = load_channels<T, S>(z, first + p * z.w, left);
          return V::fma(load_channels(g + p * g_step, left), (stored - mean) * rstd, s);
        }).store(part + (1 + b) * C + c);
      }
    });
  }
}

}  // namespace dartsfast::DARTSFAST_ISA
