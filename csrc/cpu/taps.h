// Depthwise convolution on one block of channels: images are [height, width, lanes], one register a pixel.
// The usual kernels are unrolled with constant offsets; any other goes through a list of taps.
#pragma once

#include "../branch_conv.h"
#include "vec.h"

namespace dartsfast::DARTSFAST_ISA {

// The taps of an output pixel, in order: offsets into the image, and their places in the kernel.
struct Taps {
  int64_t kernel;
  int64_t distance;  // pixels of the image between neighbouring taps; 0 if not all are there
  int64_t count = 0;
  bool adjoint;
  int64_t offset[kMaxTaps];  // pixels
  int64_t weight[kMaxTaps];
};

// Taps of the output at (y * stride, x * stride) of an image padded by P, `width` pixels a padded row.
inline Taps forward_taps(int64_t K, int64_t D, int64_t P, int64_t width) {
  Taps taps{K, D};
  taps.adjoint = false;
  const int64_t shift = P - halo(K, D);
  for (int64_t ky = 0; ky < K; ++ky) {
    for (int64_t kx = 0; kx < K; ++kx, ++taps.count) {
      taps.offset[taps.count] = (ky * D + shift) * width + kx * D + shift;
      taps.weight[taps.count] = taps.count;
    }
  }
  return taps;
}

// Taps that reach input pixels of the parity (py, px): those outputs, padded by Q, that used them.
inline Taps adjoint_taps(int64_t K, int64_t D, int64_t stride, int64_t py, int64_t px, int64_t Q, int64_t width) {
  Taps taps{K, 0};
  taps.adjoint = true;
  const int64_t P = halo(K, D);
  for (int64_t ky = 0; ky < K; ++ky) {
    for (int64_t kx = 0; kx < K; ++kx) {
      const int64_t y = py + P - ky * D, x = px + P - kx * D;
      if (y % stride || x % stride) continue;
      taps.offset[taps.count] = (y / stride + Q) * width + x / stride + Q;
      taps.weight[taps.count++] = ky * K + kx;
    }
  }
  if (taps.count == K * K) taps.distance = D / stride;
  return taps;
}

// What a row of pixels needs: weights [K*K] with C' elements between taps.
template <class T>
struct TapsRow {
  const Taps* taps;
  int64_t width;  // of the padded image
  const T* in;
  const T* w;
  int64_t ldw;
  T* out;
  int64_t out_step;  // elements from pixel to pixel
  bool add;
};

template <class T, int U>
void finish_block(const TapsRow<T>& r, int64_t x, Vec<T> (&acc)[U]) {
  T* out = r.out + x * r.out_step;
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) {
    if (r.add) acc[u] = Vec<T>::load(out + u * r.out_step) + acc[u];
    acc[u].store(out + u * r.out_step);
  }
}

template <class T, int U, int S>
void listed_block(const TapsRow<T>& r, int64_t x) {
  using V = Vec<T>;
  V acc[U];
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) acc[u] = V::zero();
  const T* in = r.in + x * S * V::size;
  for (int64_t t = 0; t < r.taps->count; ++t) {
    const V w = V::load(r.w + r.taps->weight[t] * r.ldw);
    const T* p = in + r.taps->offset[t] * V::size;
#pragma GCC unroll 8
    for (int u = 0; u < U; ++u) acc[u] = V::fma(V::load(p + u * S * V::size), w, acc[u]);
  }
  finish_block<T, U>(r, x, acc);
}

// D is the distance between taps, negative for the adjoint.
template <class T, int U, int S, int K, int D>
void unrolled_block(const TapsRow<T>& r, int64_t x) {
  using V = Vec<T>;
  V acc[U];
#pragma GCC unroll 8
  for (int u = 0; u < U; ++u) acc[u] = V::zero();
  const T* p = r.in + (x * S + r.taps->offset[0]) * V::size;
  const T* w = r.w;
  const int64_t pitch = D * r.width * V::size;
#pragma GCC unroll 3
  for (int ky = 0; ky < K; ++ky, p += pitch) {
#pragma GCC unroll 7
    for (int kx = 0; kx < K; ++kx, w += r.ldw) {
      const V wv = V::load(w);
#pragma GCC unroll 8
      for (int u = 0; u < U; ++u) acc[u] = V::fma(V::load(p + (kx * D + u * S) * V::size), wv, acc[u]);
    }
  }
  finish_block<T, U>(r, x, acc);
}

// `count` pixels: out[x] (+)= sum over taps, ascending, of in * w.
template <class T, int S>
void taps_row(const TapsRow<T>& r, int64_t count) {
  const auto blocks = [&](auto kernel, auto distance) {
    constexpr int K = decltype(kernel)::value, D = decltype(distance)::value;
    int64_t x = 0;
    const auto all = [&](auto size) {
      constexpr int U = decltype(size)::value;
      for (; x + U <= count; x += U) {
        if constexpr (K > 0) unrolled_block<T, U, S, K, D>(r, x);
        else listed_block<T, U, S>(r, x);
      }
    };
    all(Int<8>());
    all(Int<4>());
    all(Int<1>());
  };
  const auto sized = [&](auto kernel) {
    if (r.taps->adjoint) return r.taps->distance == 1 ? blocks(kernel, Int<-1>()) : blocks(kernel, Int<-2>());
    return r.taps->distance == 1 ? blocks(kernel, Int<1>()) : blocks(kernel, Int<2>());
  };
  const int64_t K = r.taps->kernel;
  const bool whole = r.taps->distance == 1 || r.taps->distance == 2;
  if (whole && K == 3) return sized(Int<3>());
  if (whole && K == 5) return sized(Int<5>());
  if (whole && K == 7) return sized(Int<7>());
  blocks(Int<0>(), Int<0>());
}

// The gradient of taps [first, first + G), all of them at once in registers.
template <class T, int G, int S>
void grad_block(const Taps& taps, int first, int64_t width, int64_t rows, int64_t count, const T* x, const T* d,
                T* grad, int64_t ldw) {
  using V = Vec<T>;
  V acc[G];
  const T* tap[G];
#pragma GCC unroll 9
  for (int g = 0; g < G; ++g) {
    acc[g] = V::load(grad + (first + g) * ldw);
    tap[g] = x + taps.offset[first + g] * V::size;
  }
  for (int64_t y = 0; y < rows; ++y) {
    const int64_t row = y * S * width * V::size;
    for (int64_t u = 0; u < count; ++u, d += V::size) {
      const V dv = V::load(d);
#pragma GCC unroll 9
      for (int g = 0; g < G; ++g) acc[g] = V::fma(V::load(tap[g] + row + u * S * V::size), dv, acc[g]);
    }
  }
#pragma GCC unroll 9
  for (int g = 0; g < G; ++g) acc[g].store(grad + (first + g) * ldw);
}

// grad[t] += sum over pixels, ascending, of x[pixel + tap t] * d[pixel]; d: [rows, count, lanes].
template <class T, int S>
void taps_grad(const Taps& taps, int64_t width, int64_t rows, int64_t count, const T* x, const T* d, T* grad,
               int64_t ldw) {
  for (int t = 0; t < taps.count;) {
    const auto group = [&](auto size) {
      constexpr int G = decltype(size)::value;
      grad_block<T, G, S>(taps, t, width, rows, count, x, d, grad, ldw);
      t += G;
    };
    // K*K = 1, or 8s until 9s are left: 9 = 9, 25 = 8 + 8 + 9, 49 = 5 * 8 + 9.
    const int64_t left = taps.count - t;
    if (left == 1) group(Int<1>());
    else if (left % 9) group(Int<8>());
    else group(Int<9>());
  }
}

}  // namespace dartsfast::DARTSFAST_ISA
