// branch_conv's gradients of the weights, for any shape: of each image, then added over the images by a tree.
//
// A weight's gradient of an image is one chain of fma over its pixels, so that what runs at once is weights times
// images: a few hundred thousand chains for the branches of a cell, which is why those of a section share launches.
// Depthwise: a thread has a tap and a channel and loads what it multiplies; sixteen taps that read the same pixels share
// the first-level cache, which bounds it: two loads for one fma.
// Pointwise: a block has 16 input channels by 16, 32 or 64 output channels of an image. 64 pixels at a time, the
// depthwise outputs are made again and dz is formed, both in shared memory. Bound by shared memory: two loads for the
// 1, 2 or 4 fma of a thread.
#include <algorithm>

#include "branch_conv_load.h"

namespace dartsfast::cuda {
namespace {

constexpr int kThreads = 256, kSlice = 16, kTile = 64;

// A branch.
template <class T>
struct WeightGradient {
  ConvShape shape;
  Activated<T> in;
  const T* taps;
  int32_t kernel, dilation;
  OutputGradient<T> dz;
  const T* dt;
  T *taps_grad, *pointwise_grad;
};

// blockIdx.y: 16 channels by 16 taps.
template <class T, bool HALVES>
__global__ void __launch_bounds__(kThreads) taps_grad_kernel(const __grid_constant__ Group<WeightGradient<T>> group) {
  const WeightGradient<T>& a = group.member[blockIdx.z];
  const ConvShape& s = a.shape;
  const int K = a.kernel, D = a.dilation, P = D * (K - 1) / 2, groups = (K * K + kSlice - 1) / kSlice, n = blockIdx.x;
  const int c = blockIdx.y / groups * kSlice + threadIdx.x % kSlice;
  const int tap = blockIdx.y % groups * kSlice + threadIdx.x / kSlice;
  if (n >= s.N || c >= s.Ci || tap >= K * K) return;
  const int down = tap / K * D - P, across = tap % K * D - P, Ci = scratch_channels(s.Ci);
  const T mean = a.in.norm ? a.in.norm[c] : T(0), rstd = a.in.norm ? a.in.norm[s.Ci + c] : T(1);
  const T* dt = a.dt + static_cast<int64_t>(n) * s.Ho * s.Wo * Ci + c;
  T sum = 0;
  by_storage<HALVES>(a.in.x.storage, [&](Storage as) {
    for (int oy = 0; oy < s.Ho; ++oy) {
      const int y = oy * s.stride + down;
      const bool row = y >= 0 && y < s.H;
      const int64_t x = a.in.x.at(n, row ? y : 0, 0, c);
#pragma unroll 4
      for (int ox = 0; ox < s.Wo; ++ox, dt += Ci) {
        const int u = ox * s.stride + across;
        T v = 0;
        if (row && u >= 0 && u < s.W) {
          v = read<T, 1>(a.in.x.data, as, x + u * a.in.x.w).v[0];
          if (a.in.norm) v = (v - mean) * rstd;
          if (a.in.relu) v = v < 0 ? T(0) : v;
        }
        sum = fused(v, *dt, sum);
      }
    }
  });
  a.taps_grad[(static_cast<int64_t>(n) * K * K + tap) * s.Ci + c] = sum;
}

// The depthwise output of a pixel, taps row by row.
template <class T, bool WIDE>
__device__ Four<T> depthwise_pixel(const WeightGradient<T>& a, const InputChannels<T, WIDE>& in, Storage as,
                                   const T* taps, int n, int oy, int ox) {
  const ConvShape& s = a.shape;
  const int K = a.kernel, D = a.dilation, P = D * (K - 1) / 2, y0 = oy * s.stride - P, x0 = ox * s.stride - P;
  if (!a.taps) return in.at(as, n, oy * s.stride, ox * s.stride);
  Four<T> sum{};
  for (int ky = 0; ky < K; ++ky) {
#pragma unroll 2
    for (int kx = 0; kx < K; ++kx) {
      const auto x = in.within(as, s, n, y0 + ky * D, x0 + kx * D);
      const auto w = load_four(taps + (ky * K + kx) * kSlice);
      sum = four<T>([&](int i) { return fused(x.v[i], w.v[i], sum.v[i]); });
    }
  }
  return sum;
}

// 64 depthwise outputs, a thread 4 channels of one of them; and dz [64, 16 R].
template <class T, bool WIDE>
__device__ __forceinline__ void load_outputs(const WeightGradient<T>& a, const InputChannels<T, WIDE>& in, Storage as,
                                             const T* taps, int n, int pixel, T* t) {
  const int Wo = a.shape.Wo;
  store_four(depthwise_pixel(a, in, as, taps, n, pixel / Wo, pixel % Wo), t + threadIdx.x * 4);
}
template <int R, bool WIDE, class T>
__device__ __forceinline__ void load_gradients(const WeightGradient<T>& a, Storage as, int n, int first, int count, int o0,
                                               T* dz) {
  const int Wo = a.shape.Wo;
#pragma unroll
  for (int i = threadIdx.x; i < kTile * 4 * R; i += kThreads) {
    const int p = i / (4 * R), o = i % (4 * R) * 4;
    const GradientChannels<T, WIDE> gradient(a.dz, o0 + o, a.shape.Co);
    const auto v = p < count ? gradient.at(as, n, (first + p) / Wo, (first + p) % Wo) : Four<T>{};
    store_four(v, dz + p * kSlice * R + o);
  }
}

// blockIdx.y: 16 input channels by 16 R output channels. Shared memory: t [64, 16], dz [64, 16 R], taps [K*K, 16].
template <class T, int R, bool WIDE, bool HALVES>
__global__ void __launch_bounds__(kThreads) pointwise_grad_kernel(const __grid_constant__ Group<WeightGradient<T>> group) {
  SHARED(T, t);
  T *const dz = t + kTile * kSlice, *const taps = dz + kTile * kSlice * R;
  const WeightGradient<T>& a = group.member[blockIdx.z];
  const ConvShape& s = a.shape;
  const int slices = (s.Ci + kSlice - 1) / kSlice, n = blockIdx.x, pixels = s.Ho * s.Wo;
  const int c0 = blockIdx.y % slices * kSlice, o0 = blockIdx.y / slices * kSlice * R;
  if (n >= s.N || o0 >= s.Co) return;
  if (a.taps) load_taps(a.taps, a.kernel * a.kernel, c0, s.Ci, taps);
  const int quarter = threadIdx.x % 4 * 4, c = c0 + quarter;
  const InputChannels<T, WIDE> in(a.in, c, s.Ci);
  const int row = threadIdx.x / kSlice, column = threadIdx.x % kSlice * R;
  Pack<T, R> sum = Pack<T, R>::zero();
  for (int first = 0; first < pixels; first += kTile) {
    const int count = pixels - first < kTile ? pixels - first : kTile;
    __syncthreads();
    const int pixel = first + threadIdx.x / 4;
    if (pixel < pixels && c < s.Ci) {
      if constexpr (HALVES) {
        by_storage<HALVES>(a.in.x.storage, [&](Storage as) { load_outputs(a, in, as, taps + quarter, n, pixel, t); });
      } else {
        load_outputs(a, in, Storage::own, taps + quarter, n, pixel, t);  // from a lambda it takes more registers
      }
    } else {
      store_four(Four<T>{}, t + threadIdx.x * 4);
    }
    if constexpr (HALVES) {
      by_storage<HALVES>(a.dz.z.storage, [&](Storage as) { load_gradients<R, WIDE>(a, as, n, first, count, o0, dz); });
    } else {
      load_gradients<R, WIDE>(a, Storage::own, n, first, count, o0, dz);
    }
    __syncthreads();
#pragma unroll 4
    for (int p = 0; p < count; ++p) {
      const T v = t[p * kSlice + row];
      const auto d = Pack<T, R>::load(dz + p * kSlice * R + column);
#pragma unroll
      for (int r = 0; r < R; ++r) sum.v[r] = fused(v, d.v[r], sum.v[r]);
    }
  }
  if (c0 + row >= s.Ci) return;
#pragma unroll
  for (int r = 0; r < R; ++r) {
    const int o = o0 + column + r;
    if (o < s.Co) a.pointwise_grad[(static_cast<int64_t>(n) * s.Ci + c0 + row) * s.Co + o] = sum.v[r];
  }
}

// Those that read images in 16 bits, or the others.
template <class T>
std::vector<WeightGradient<T>> branches_of(const std::vector<const BranchConvBackward<T>*>& calls, bool halves) {
  std::vector<WeightGradient<T>> all;
  for (const BranchConvBackward<T>* call : calls) {
    const ConvShape& s = call->shape;
    const T* dt = call->dt;
    for (const auto& b : call->branches) {
      const WeightGradient<T> one{s, call->in, b.taps, b.kernel, b.dilation, b.dz, dt, b.taps_grad, b.pointwise_grad};
      if (halved(call->in, b.dz) == halves) all.push_back(one);
      if (dt) dt += static_cast<int64_t>(s.N) * s.Ho * s.Wo * scratch_channels(s.Ci);
    }
  }
  return all;
}

// A grid for a group, y blocks for each image.
template <class T, class F>
dim3 grid_of(const Group<WeightGradient<T>>& group, int count, F blocks) {
  int64_t x = 0, y = 0;
  for (int i = 0; i < count; ++i) {
    const WeightGradient<T>& a = group.member[i];
    x = std::max(x, int64_t{a.shape.N}), y = std::max(y, blocks(a));
  }
  return dim3(x, y, count);
}

template <class T, bool HALVES>
void taps_grads(const std::vector<WeightGradient<T>>& branches, Stream stream) {
  std::vector<WeightGradient<T>> asked;
  for (const auto& b : branches) {
    if (b.taps_grad) asked.push_back(b);
  }
  each_kind(asked, [](const auto&) { return 0; }, [=](int, const Group<WeightGradient<T>>& group, int count) {
    const dim3 grid = grid_of(group, count, [](const WeightGradient<T>& a) {
      return blocks_of(a.shape.Ci, kSlice) * blocks_of(int64_t{a.kernel} * a.kernel, kSlice);
    });
    launch(taps_grad_kernel<T, HALVES>, grid, dim3(kThreads), 0, stream, group);
  });
}

template <class T, bool HALVES>
void pointwise_grads(const std::vector<WeightGradient<T>>& branches, Stream stream) {
  std::vector<WeightGradient<T>> asked;
  for (const auto& b : branches) {
    if (b.pointwise_grad) asked.push_back(b);
  }
  const auto kind = [](const WeightGradient<T>& a) {
    const bool aligned = wide(a.in, a.shape.Ci) && wide(a.dz, a.shape.Co);
    return (a.shape.Co <= 16 ? 0 : a.shape.Co <= 32 ? 2 : 4) + (aligned ? 1 : 0);
  };
  each_kind(asked, kind, [=](int k, const Group<WeightGradient<T>>& group, int count) {
    constexpr decltype(&pointwise_grad_kernel<T, 1, true, HALVES>) kernels[] = {
        pointwise_grad_kernel<T, 1, false, HALVES>, pointwise_grad_kernel<T, 1, true, HALVES>,
        pointwise_grad_kernel<T, 2, false, HALVES>, pointwise_grad_kernel<T, 2, true, HALVES>,
        pointwise_grad_kernel<T, 4, false, HALVES>, pointwise_grad_kernel<T, 4, true, HALVES>};
    const int R = 1 << k / 2;
    int64_t taps = 0;
    const dim3 grid = grid_of(group, count, [&](const WeightGradient<T>& a) {
      taps = std::max(taps, int64_t{a.kernel} * a.kernel);
      return blocks_of(a.shape.Ci, kSlice) * blocks_of(a.shape.Co, kSlice * R);
    });
    launch(kernels[k], grid, dim3(kThreads), (kTile * (1 + R) + taps) * kSlice * sizeof(T), stream, group);
  });
}

}  // namespace

template <class T>
void branch_conv_weight_grads(const std::vector<const BranchConvBackward<T>*>& calls, Stream stream) {
  const auto own = branches_of(calls, false);
  taps_grads<T, false>(own, stream);
  pointwise_grads<T, false>(own, stream);
  if constexpr (kServesHalves<T>) {
    const auto halves = branches_of(calls, true);
    taps_grads<T, true>(halves, stream);
    pointwise_grads<T, true>(halves, stream);
  }
}

template void branch_conv_weight_grads(const std::vector<const BranchConvBackward<float>*>&, Stream);
template void branch_conv_weight_grads(const std::vector<const BranchConvBackward<double>*>&, Stream);

}  // namespace dartsfast::cuda
