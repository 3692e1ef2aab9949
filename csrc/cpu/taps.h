// Depthwise convolution on one block of channels: images are [height, width, lanes], one register a pixel.
// The usual kernels are unrolled with constant offsets; any other goes through a list of taps.
#pragma once

#include "../branch_conv.h"
#include "vec.h"

namespace dartsfast::DARTSFAST_ISA {

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
  const int64_t step = r.out_step;
  T* out = r.out + x * step;
  if (r.add) {
#pragma GCC unroll 16
    for (int u = 0; u < U; ++u) acc[u] = Vec<T>::load(out + u * step) + acc[u];
  }
#pragma GCC unroll 16
  for (int u = 0; u < U; ++u) acc[u].store(out + u * step);
}

template <class T, int U, int S>
void listed_block(const TapsRow<T>& r, int64_t x) {
  using V = Vec<T>;
  V acc[U];
#pragma GCC unroll 16
  for (int u = 0; u < U; ++u) acc[u] = V::zero();
  const T* in = r.in + x * S * V::size;
  for (int64_t t = 0; t < r.taps->count; ++t) {
    const V w = V::load(r.w + r.taps->weight[t] * r.ldw);
    const T* p = in + r.taps->offset[t] * V::size;
#pragma GCC unroll 16
    for (int u = 0; u < U; ++u) acc[u] = V::fma(V::load(p + u * S * V::size), w, acc[u]);
  }
  finish_block<T, U>(r, x, acc);
}

// A row of K taps for U pixels; D is the distance between taps, negative for the adjoint.
template <class T, int U, int S, int K, int D>
void add_taps(const T* p, const T* w, int64_t ldw, Vec<T> (&acc)[U]) {
  using V = Vec<T>;
  constexpr int first = D < 0 ? (K - 1) * D : 0, span = (U - 1) * S + (K - 1) * (D < 0 ? -D : D) + 1;
  if constexpr (S == 1 && U > 1 && U + span + 1 <= kRegisters) {
    // Every pixel is read once for all the taps that take it.
    V in[span];
#pragma GCC unroll 32
    for (int i = 0; i < span; ++i) in[i] = V::load(p + (first + i) * V::size);
#pragma GCC unroll 7
    for (int kx = 0; kx < K; ++kx) {
      const V wv = V::load(w + kx * ldw);
#pragma GCC unroll 16
      for (int u = 0; u < U; ++u) acc[u] = V::fma(in[u + kx * D - first], wv, acc[u]);
    }
  } else {
#pragma GCC unroll 7
    for (int kx = 0; kx < K; ++kx) {
      const V wv = V::load(w + kx * ldw);
#pragma GCC unroll 16
      for (int u = 0; u < U; ++u) acc[u] = V::fma(V::load(p + (kx * D + u * S) * V::size), wv, acc[u]);
    }
  }
}

template <class T, int U, int S, int K, int D>
void unrolled_block(const TapsRow<T>& r, int64_t x) {
  using V = Vec<T>;
  V acc[U];
#pragma GCC unroll 16
  for (int u = 0; u < U; ++u) acc[u] = V::zero();
  const int64_t pitch = D * r.width * V::size, ldw = r.ldw;
  const T* p = r.in + (x * S + r.taps->offset[0]) * V::size;
  const T* w = r.w;
#pragma GCC unroll 3
  for (int ky = 0; ky < K; ++ky, p += pitch, w += K * ldw) add_taps<T, U, S, K, D>(p, w, ldw, acc);
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
    if constexpr (kRegisters == 32) all(Int<16>());
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
