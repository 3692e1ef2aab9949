// Depthwise convolution on one block of channels: images are [height, width, lanes], one register a pixel.
// The usual kernels are unrolled with constant offsets; any other goes through a list of taps.
#pragma once

#include "../branch_conv.h"
#include "ahead.h"

namespace dartsfast::DARTSFAST_ISA {

// What some rows of output pixels need: weights [K*K] with ldw elements between taps.
template <class T>
struct TapsTile {
  const Taps* taps;
  int64_t width;  // of the padded image
  const T* in;
  int64_t in_row;  // elements of the image from output row to output row
  const T* w;
  int64_t ldw;
  T* out;
  int64_t out_row, out_step;  // elements from row to row, from pixel to pixel
  bool add;
  Ahead& ahead;  // what is asked for between blocks
};

template <class T, int U>
void finish_block(const TapsTile<T>& r, T* out, Vec<T> (&acc)[U]) {
  const int64_t step = r.out_step;
  if (r.add) {
#pragma GCC unroll 16
    for (int u = 0; u < U; ++u) acc[u] = Vec<T>::load(out + u * step) + acc[u];
  }
#pragma GCC unroll 16
  for (int u = 0; u < U; ++u) acc[u].store(out + u * step);
}

template <class T, int U, int S>
void listed_block(const TapsTile<T>& r, const T* in, T* out) {
  using V = Vec<T>;
  V acc[U];
#pragma GCC unroll 16
  for (int u = 0; u < U; ++u) acc[u] = V::zero();
  for (int64_t t = 0; t < r.taps->count; ++t) {
    const V w = V::load(r.w + r.taps->weight[t] * r.ldw);
    const T* p = in + r.taps->offset[t] * V::size;
#pragma GCC unroll 16
    for (int u = 0; u < U; ++u) acc[u] = V::fma(V::load(p + u * S * V::size), w, acc[u]);
  }
  finish_block<T, U>(r, out, acc);
}

// K*K taps for U pixels of a row, S apart; D is the distance between taps, negative for the adjoint.
template <class T, int U, int S, int K, int D>
void unrolled_block(const TapsTile<T>& r, const T* in, T* out) {
  using V = Vec<T>;
  V acc[U];
#pragma GCC unroll 16
  for (int u = 0; u < U; ++u) acc[u] = V::zero();
  const int64_t pitch = D * r.width * V::size, ldw = r.ldw;
  const T *p = in + r.taps->offset[0] * V::size, *w = r.w;
#pragma GCC unroll 3
  for (int ky = 0; ky < K; ++ky, p += pitch) {
#pragma GCC unroll 7
    for (int kx = 0; kx < K; ++kx, w += ldw) {
      const V wv = V::load(w);
#pragma GCC unroll 16
      for (int u = 0; u < U; ++u) acc[u] = V::fma(V::load(p + (kx * D + u * S) * V::size), wv, acc[u]);
    }
  }
  finish_block<T, U>(r, out, acc);
}

// The same for two rows of neighbouring pixels and neighbouring taps: every pixel is read once for all the
// taps that take it. Rows of the image come in the order in which both output rows take their taps.
template <class T, int U, int K, int D>
void two_row_block(const TapsTile<T>& r, const T* in, T* out) {
  using V = Vec<T>;
  static_assert(D == 1 || D == -1);
  constexpr int span = U + K - 1, first = D < 0 ? 1 - K : 0;
  V acc[2][U];
#pragma GCC unroll 16
  for (int u = 0; u < U; ++u) acc[0][u] = acc[1][u] = V::zero();
  const int64_t pitch = r.width * V::size, ldw = r.ldw;
  const T* p = in + r.taps->offset[0] * V::size + (D < 0 ? pitch : 0);
#pragma GCC unroll 8
  for (int i = 0; i <= K; ++i, p += D * pitch) {
    V pixel[span];
#pragma GCC unroll 16
    for (int s = 0; s < span; ++s) pixel[s] = V::load(p + (first + s) * V::size);
#pragma GCC unroll 2
    for (int row = 0; row < 2; ++row) {
      const int ky = i - (D > 0 ? row : 1 - row);
      if (ky < 0 || ky == K) continue;
#pragma GCC unroll 7
      for (int kx = 0; kx < K; ++kx) {
        const V wv = V::load(r.w + (ky * K + kx) * ldw);
#pragma GCC unroll 16
        for (int u = 0; u < U; ++u) acc[row][u] = V::fma(pixel[u + kx * D - first], wv, acc[row][u]);
      }
    }
  }
  finish_block<T, U>(r, out, acc[0]);
  finish_block<T, U>(r, out + r.out_row, acc[1]);
}

// `rows` x `count` pixels: out (+)= sum over taps, ascending, of in * w; inputs S apart.
template <class T, int S>
void taps_tile(const TapsTile<T>& r, int64_t rows, int64_t count) {
  constexpr int64_t L = Vec<T>::size;
  const auto blocks = [&](auto kernel, auto distance) {
    constexpr int K = decltype(kernel)::value, D = decltype(distance)::value;
    // Two rows at once where the pixels of both fit registers beside the sums.
    constexpr int pair = kRegisters == 32 ? 8 : 4;
    constexpr bool pairs = S == 1 && (D == 1 || D == -1) && 2 * pair + (pair + K - 1) + 1 <= kRegisters;
    for (int64_t y = 0; y < rows;) {
      const T* in = r.in + y * r.in_row;
      T* out = r.out + y * r.out_row;
      if constexpr (K > 0 && pairs) {
        if (y + 2 <= rows && count % pair == 0) {
          for (int64_t x = 0; x < count; x += pair) {
            two_row_block<T, pair, K, D>(r, in + x * L, out + x * r.out_step);
            r.ahead.some();
          }
          y += 2;
          continue;
        }
      }
      each_block<(kRegisters == 32 ? 16 : 8)>(count, [&](int64_t x, auto size) {
        constexpr int U = decltype(size)::value;
        if constexpr (K > 0) unrolled_block<T, U, S, K, D>(r, in + x * S * L, out + x * r.out_step);
        else listed_block<T, U, S>(r, in + x * S * L, out + x * r.out_step);
        r.ahead.some();
      });
      ++y;
    }
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

// What the gradient of the taps needs: grad[t] += sum over pixels, ascending, of x[pixel + tap t] * d[pixel].
template <class T>
struct TapsGrad {
  const Taps* taps;
  int64_t width;  // of the padded image x
  const T* x;
  const T* d;  // rows of `count` pixels
  int64_t d_row, rows, count;
  T* grad;  // [K*K], ldw elements between taps
  int64_t ldw;
};

// Taps [first, first + G), all of them at once in registers, inputs S apart.
template <class T, int G, int S>
void listed_grad(const TapsGrad<T>& r, int64_t first) {
  using V = Vec<T>;
  V acc[G];
  const T* tap[G];
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) {
    acc[g] = V::load(r.grad + (first + g) * r.ldw);
    tap[g] = r.x + r.taps->offset[first + g] * V::size;
  }
  for (int64_t y = 0; y < r.rows; ++y) {
    const int64_t row = y * S * r.width * V::size;
    for (int64_t u = 0; u < r.count; ++u) {
      const V dv = V::load(r.d + y * r.d_row + u * V::size);
#pragma GCC unroll 8
      for (int g = 0; g < G; ++g) acc[g] = V::fma(V::load(tap[g] + row + u * S * V::size), dv, acc[g]);
    }
  }
#pragma GCC unroll 8
  for (int g = 0; g < G; ++g) acc[g].store(r.grad + (first + g) * r.ldw);
}

// The same for K*K taps D pixels apart, from FIRST on, with constant offsets in a row: as many at a time as leave
// registers for d, the others in further passes.
template <class T, int S, int K, int D, int FIRST = 0>
void unrolled_grad(const TapsGrad<T>& r) {
  using V = Vec<T>;
  constexpr int left = K * K - FIRST, passes = (left + kRegisters - 4) / (kRegisters - 3);
  constexpr int G = (left + passes - 1) / passes, top = FIRST / K;
  const int64_t count = r.count, down = D * r.width * V::size, next = S * r.width * V::size, d_row = r.d_row;
  const int64_t ldw = r.ldw;
  const T *x = r.x + r.taps->offset[0] * V::size + top * down, *d = r.d;
  T* const grad = r.grad + FIRST * ldw;
  V acc[G];
#pragma GCC unroll 32
  for (int g = 0; g < G; ++g) acc[g] = V::load(grad + g * ldw);
  for (int64_t y = r.rows; y > 0; --y, x += next, d += d_row) {
    for (int64_t u = 0; u < count; ++u) {
      // Else the compiler keeps pixels for the next steps and spills sums for them.
      asm volatile("" ::: "memory");
      const V dv = V::load(d + u * V::size);
#pragma GCC unroll 32
      for (int g = 0; g < G; ++g) {
        const int64_t row = ((FIRST + g) / K - top) * down, column = (FIRST + g) % K * D;
        acc[g] = V::fma(V::load(x + row + (column + u * S) * V::size), dv, acc[g]);
      }
    }
  }
#pragma GCC unroll 32
  for (int g = 0; g < G; ++g) acc[g].store(grad + g * ldw);
  if constexpr (FIRST + G < K * K) unrolled_grad<T, S, K, D, FIRST + G>(r);
}

template <class T, int S>
void taps_grad(const TapsGrad<T>& r) {
  const int64_t K = r.taps->kernel, D = r.taps->distance;
  if (K == 3 && D == 1) return unrolled_grad<T, S, 3, 1>(r);
  if (K == 3 && D == 2) return unrolled_grad<T, S, 3, 2>(r);
  if (K == 5 && D == 1) return unrolled_grad<T, S, 5, 1>(r);
  if (K == 5 && D == 2) return unrolled_grad<T, S, 5, 2>(r);
  if (K == 7 && D == 1) return unrolled_grad<T, S, 7, 1>(r);
  // K is odd: K*K = 8n + 1.
  int64_t t = 0;
  for (; t + 8 <= r.taps->count; t += 8) listed_grad<T, 8, S>(r, t);
  listed_grad<T, 1, S>(r, t);
}

}  // namespace dartsfast::DARTSFAST_ISA
