// Pieces of the kernels of branch_conv_resident.cu: where things are in shared memory, and what is made of images there.
#pragma once

#include <type_traits>

#include "branch_conv_load.h"

namespace dartsfast::cuda {
namespace {

constexpr int kMost = 4;  // branches

struct ResidentBranch {
  OutputGradient<float> dz;
  const float *taps, *pointwise;
  float *taps_grad, *pointwise_grad;
  int32_t kernel, dilation;
};

struct ResidentImages {
  Activated<float> in;
  Image<float> dx;
  Image<const float> base, onto;
  InputMeans<float> means;
  int32_t N, H, branches;
  bool weights;  // whether gradients of any are asked for
  ResidentBranch branch[kMost];

  size_t bytes() const { return sizeof *this - (kMost - branches) * sizeof(ResidentBranch); }
};

template <int CHANNELS, int WIDTH>
struct Size {
  static constexpr int C = CHANNELS, W = WIDTH, G = C / 4, U = C == 64 ? 4 : 8;  // groups of channels; pixels of a thread
  static constexpr int threads = W * W / U * G, blocks = threads == 512 ? 1 : 2;  // of a multiprocessor
  static constexpr int halo = 4, pitch = (W + halo + (C == 16 ? 1 : 0)) * C, rows = 4;  // rows of t handed over
  static constexpr int image = halo * C + W * pitch, zeros = (W + 2 * halo) * C, taps = 25 * C, product = C * C;
  static constexpr int bytes(bool weights) {
    return (2 * image + zeros + taps + product + (weights ? rows * W * C : 0)) * sizeof(float);
  }
};

// What a block has in shared memory; images and zeros from pixel 0 on.
template <class S>
struct Room {
  float *x, *d, *zeros, *taps, *product, *t;
  __device__ explicit Room(float* all)
      : x(all + S::halo * S::C),
        d(x + S::image),
        zeros(all + 2 * S::image + S::halo * S::C),
        taps(all + 2 * S::image + S::zeros),
        product(taps + S::taps),
        t(product + S::product) {}
};

// A thread's pixels (y, x) to (y, x + U - 1) and channels q to q + 3.
template <class S>
struct Place {
  int y, x, q;
  __device__ Place() {
    const int i = threadIdx.x / S::G, across = S::W / S::U;
    q = threadIdx.x % S::G * 4;
    // Neighbouring rows where two of them fill a load.
    if (S::C == 16) y = i / (2 * across) * 2 + i % 2, x = i / 2 % across * S::U;
    else y = i / across, x = i % across * S::U;
  }
  __device__ int offset() const { return y * S::pitch + x * S::C + q; }
};

template <class F>
__device__ __forceinline__ void each_kernel(const ResidentBranch& b, F f) {
  if (b.kernel == 3) b.dilation == 1 ? f(std::integral_constant<int, 3>(), std::integral_constant<int, 1>())
                                     : f(std::integral_constant<int, 3>(), std::integral_constant<int, 2>());
  else b.dilation == 1 ? f(std::integral_constant<int, 5>(), std::integral_constant<int, 1>())
                       : f(std::integral_constant<int, 5>(), std::integral_constant<int, 2>());
}

template <class S>
using Pixels = Four<float>[S::U];

// The depthwise convolution of a thread's pixels, or its adjoint. A pixel that is loaded goes to all sums that it
// reaches, in the order in which each takes its taps.
template <class S, int K, int D, bool ADJOINT>
__device__ __forceinline__ void depthwise(const float* image, const Room<S>& room, const Place<S>& at, int H,
                                          Four<float> (&sum)[S::U]) {
  constexpr int P = D * (K - 1) / 2, span = S::U + 2 * P;
#pragma unroll
  for (int u = 0; u < S::U; ++u) sum[u] = Four<float>{};
#pragma unroll 1
  for (int ky = 0; ky < K; ++ky) {
    const int y = at.y + (ADJOINT ? P - ky * D : ky * D - P);
    const float* const row = (y >= 0 && y < H ? image + y * S::pitch : room.zeros) + (at.x - P) * S::C + at.q;
    Four<float> w[K];
#pragma unroll
    for (int kx = 0; kx < K; ++kx) w[kx] = load_four(room.taps + (ky * K + kx) * S::C + at.q);
#pragma unroll
    for (int i = 0; i < span; ++i) {
      const int j = ADJOINT ? span - 1 - i : i;
      const auto v = load_four(row + j * S::C);
#pragma unroll
      for (int kx = 0; kx < K; ++kx) {
        const int u = ADJOINT ? j - 2 * P + kx * D : j - kx * D;
        if (u >= 0 && u < S::U) sum[u] = four<float>([&](int c) { return fused(v.v[c], w[kx].v[c], sum[u].v[c]); });
      }
    }
  }
}

// The gradients of the taps, a thread a row of taps and a channel.
template <class S, int K, int D>
__device__ __forceinline__ void taps_grad(const Room<S>& room, int H, float* to) {
  constexpr int P = D * (K - 1) / 2, step = S::W % 8 ? S::W : 8;
  for (int task = threadIdx.x; task < K * S::C; task += S::threads) {
    const int c = task % S::C, ky = task / S::C;
    float sum[K] = {};
#pragma unroll 1
    for (int oy = 0; oy < H; ++oy) {
      const int y = oy + ky * D - P;
      const float* x = (y >= 0 && y < H ? room.x + y * S::pitch : room.zeros) + c - P * S::C;
      const float* d = room.d + oy * S::pitch + c;
#pragma unroll 1
      for (int u = 0; u < S::W; u += step, x += step * S::C, d += step * S::C) {
        float v[step + 2 * P];
#pragma unroll
        for (int i = 0; i < step + 2 * P; ++i) v[i] = x[i * S::C];
#pragma unroll
        for (int i = 0; i < step; ++i) {
          const float dv = d[i * S::C];
#pragma unroll
          for (int kx = 0; kx < K; ++kx) sum[kx] = fused(v[i + kx * D], dv, sum[kx]);
        }
      }
    }
#pragma unroll
    for (int kx = 0; kx < K; ++kx) to[(ky * K + kx) * S::C + c] = sum[kx];
  }
}

// The gradient of the pointwise product from dz and the depthwise outputs `t`.
template <class S>
__device__ __forceinline__ void pointwise_grad(const Room<S>& room, const Place<S>& at, int H, const Four<float> (&t)[S::U],
                                               float* to) {
  constexpr int B = S::C == 64 ? 4 : 2, across = S::C / B;
  const int i = threadIdx.x / across * B, o = threadIdx.x % across * B;
  float sum[B][B] = {};
  for (int y0 = 0; y0 < H; y0 += S::rows) {
    if (at.y >= y0 && at.y < y0 + S::rows) {
#pragma unroll
      for (int u = 0; u < S::U; ++u) store_four(t[u], room.t + ((at.y - y0) * S::W + at.x + u) * S::C + at.q);
    }
    __syncthreads();
    const int rows = H - y0 < S::rows ? H - y0 : S::rows;
    for (int y = 0; y < (i < S::C ? rows : 0); ++y) {
      const float *const left = room.t + y * S::W * S::C + i, *const right = room.d + (y0 + y) * S::pitch + o;
#pragma unroll 4
      for (int x = 0; x < S::W; ++x) {
        const auto a = Pack<float, B>::load(left + x * S::C), b = Pack<float, B>::load(right + x * S::C);
#pragma unroll
        for (int k = 0; k < B * B; ++k) sum[k / B][k % B] = fused(a.v[k / B], b.v[k % B], sum[k / B][k % B]);
      }
    }
    __syncthreads();
  }
  if (i >= S::C) return;
#pragma unroll
  for (int k = 0; k < B * B; ++k) to[(i + k / B) * S::C + o + k % B] = sum[k / B][k % B];
}

}  // namespace
}  // namespace dartsfast::cuda
