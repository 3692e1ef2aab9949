// branch_conv's gradient of the input, for any shape: what each branch's pointwise product gives back, to scratch memory,
// then the adjoint depthwise convolutions of all branches with relu's mask and all additions. A single product without
// depthwise gives the input's gradient at once, mask and additions with it: five images are moved instead of seven.
//
// Pointwise adjoint: a product [pixels, Co] x [Co, Ci], whose left side, dz, is formed as it is loaded. A block has
// 4096 outputs, a thread 4 pixels by 4 channels, slices of 16 output channels in shared memory; every output is one
// chain of fma over the output channels. Bound by memory for few channels (g and z are read once, dt written once), by
// shared memory for many: two loads of 16 bytes for 16 fma.
// Adjoint depthwise: a block has a chunk of csrc/order.h by 16 channels, a thread a pixel by 4 channels, so that the sums
// for the norm below are made where the pixels are. Bound by loads from the first-level cache, one of 16 bytes from it
// and one from shared memory for 4 fma.
#include "branch_conv_backward.h"

#include <algorithm>

#include "branch_conv_load.h"
#include "finish.h"

namespace dartsfast::cuda {
namespace {

constexpr int kThreads = 256, kSlice = 16, kPitch = kSlice + 4;  // the pitch spreads pixels over the banks

template <class T>
struct PointwiseAdjoint {
  ConvShape shape;
  OutputGradient<T> dz;
  const T* pointwise;
  T* dt;  // null: to dx at once
  Activated<T> in;
  Image<T> dx;
  Image<const T> base, onto;
};

// Relu's mask of the sum of all branches, and what dx is added to. Returns the gradient of norm(x); `x` is relu(norm(x)).
template <bool WIDE, class A, class T>
__device__ Four<T> finish_pixel(const A& a, Four<T> sum, const Four<T>& x, int n, int y, int u, int c) {
  const int left = a.shape.Ci - c;
  if (a.in.relu) sum = four<T>([&](int i) { return x.v[i] > 0 ? sum.v[i] : T(0); });
  auto v = sum;
  for (const auto* image : {&a.base, &a.onto}) {
    if (!image->data) continue;
    const auto there = load_four<WIDE>(image->at(n, y) + u * image->w + c, left);
    v = four<T>([&](int i) { return there.v[i] + v.v[i]; });
  }
  store_four<WIDE>(v, a.dx.at(n, y) + u * a.dx.w + c, left);
  return sum;
}

// What output pixel (oy, ox) gives to that of dx which it is of, and to those beside it that a stride leaves out: nothing.
// In place these stay as they are.
template <bool WIDE, bool HALVES, class T>
__device__ void finish_direct(const PointwiseAdjoint<T>& a, const Four<T>& sum, int n, int oy, int ox, int c) {
  const ConvShape& s = a.shape;
  const InputChannels<T, WIDE> in(a.in, c, s.Ci);
  const bool in_place = a.onto.data == a.dx.data && !a.base.data;
  for (int i = 0; i < (in_place ? 1 : s.stride * s.stride); ++i) {
    const int y = oy * s.stride + i / s.stride, x = ox * s.stride + i % s.stride;
    if (y >= s.H || x >= s.W) continue;
    const auto v = i ? Four<T>{} : four<T>([&](int k) { return T(0) + sum.v[k]; });
    Four<T> there{};
    if (a.in.relu && i == 0) by_storage<HALVES>(a.in.x.storage, [&](Storage as) { there = in.at(as, n, y, x); });
    finish_pixel<WIDE>(a, v, there, n, y, x, c);
  }
}

// CT input channels by PT pixels of an image.
template <class T, int CT, bool WIDE, bool HALVES>
__global__ void __launch_bounds__(kThreads)
    pointwise_adjoint_kernel(const __grid_constant__ Group<PointwiseAdjoint<T>> group) {
  constexpr int PT = kThreads * 16 / CT, ROWS = PT / 4;
  __shared__ __align__(16) T left[PT * kPitch], right[kSlice * CT];
  const PointwiseAdjoint<T>& a = group.member[blockIdx.z];
  const ConvShape& s = a.shape;
  const int pixels = s.Ho * s.Wo, tiles = (pixels + PT - 1) / PT, n = blockIdx.x / tiles;
  const int first = blockIdx.x % tiles * PT, c0 = blockIdx.y * CT;
  if (n >= s.N || c0 >= s.Ci) return;
  const int row = threadIdx.x / (CT / 4), column = threadIdx.x % (CT / 4) * 4;
  Four<T> sum[4] = {};
  for (int k0 = 0; k0 < s.Co; k0 += kSlice) {
    __syncthreads();
    const int quarter = threadIdx.x % 4 * 4;
    const GradientChannels<T, WIDE> dz(a.dz, k0 + quarter, s.Co);
    by_storage<HALVES>(a.dz.z.storage, [&](Storage as) {
      for (int p = threadIdx.x / 4; p < PT; p += kThreads / 4) {
        const int pixel = first + p;
        const auto v = pixel < pixels ? dz.at(as, n, pixel / s.Wo, pixel % s.Wo) : Four<T>{};
        store_four(v, left + p * kPitch + quarter);
      }
    });
    for (int i = threadIdx.x; i < kSlice * CT; i += kThreads) {
      const int k = k0 + i / CT, c = c0 + i % CT;
      right[i] = k < s.Co && c < s.Ci ? a.pointwise[static_cast<int64_t>(k) * s.Ci + c] : T(0);
    }
    __syncthreads();
    const int count = s.Co - k0 < kSlice ? s.Co - k0 : kSlice;
    for (int k = 0; k < count; k += 4) {
      Four<T> v[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) v[i] = load_four(left + (row + i * ROWS) * kPitch + k);
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        if (k + j >= count) break;
        const auto w = load_four(right + (k + j) * CT + column);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] = four<T>([&](int c) { return fused(v[i].v[j], w.v[c], sum[i].v[c]); });
      }
    }
  }
  const int Ci = scratch_channels(s.Ci);
  if (c0 + column >= Ci) return;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int pixel = first + row + i * ROWS;
    if (pixel < pixels && !a.dt) finish_direct<WIDE, HALVES>(a, sum[i], n, pixel / s.Wo, pixel % s.Wo, c0 + column);
    else if (pixel < pixels) store_four_out(sum[i], a.dt + (static_cast<int64_t>(n) * pixels + pixel) * Ci + c0 + column);
  }
}

// Some of a call's branches.
template <class T>
struct DepthwiseAdjoint {
  ConvShape shape;
  Activated<T> in;
  Image<T> dx;
  Image<const T> base, onto;
  InputMeans<T> means;
  T* sum;
  const T* dt;  // of the first of them
  int32_t branches, largest;  // largest of their kernels
  bool first, last;
  struct {
    const T* taps;
    int32_t kernel, dilation;
  } branch[kAdjointBranches];
};

// What outputs give a pixel of the input, taps row by row.
template <class T>
__device__ Four<T> adjoint_pixel(const ConvShape& s, const T* dt, int K, int D, const T* taps, int y, int x) {
  const int P = D * (K - 1) / 2, Ci = scratch_channels(s.Ci), skip = s.stride - 1;  // a stride is 1 or 2
  Four<T> sum{};
  for (int ky = 0; ky < K; ++ky) {
    const int fine = y + P - ky * D, oy = fine >> skip;
    if (fine & skip) continue;
    const bool row = fine >= 0 && oy < s.Ho;
    for (int kx = 0; kx < K; ++kx) {
      const int across = x + P - kx * D, ox = across >> skip;
      if (across & skip) continue;
      // Beyond the border is zero, which is added, too.
      const bool there = row && across >= 0 && ox < s.Wo;
      const auto d = there ? load_four(dt + (static_cast<int64_t>(oy) * s.Wo + ox) * Ci) : Four<T>{};
      const auto w = load_four(taps + (ky * K + kx) * kSlice);
      sum = four<T>([&](int i) { return fused(d.v[i], w.v[i], sum.v[i]); });
    }
  }
  return sum;
}

// Blocks of a multiprocessor: with one more the compiler spills, left alone it asks for a third of doubles, too.
template <class T>
constexpr int kBlocks = sizeof(T) == 4 ? 3 : 2;

// Shared memory: the taps of a branch [K*K, 16], then two tiles [64, 16] for the sums.
template <class T, bool WIDE, bool HALVES>
__global__ void __launch_bounds__(kThreads, kBlocks<T>)
    depthwise_adjoint_kernel(const __grid_constant__ Group<DepthwiseAdjoint<T>> group) {
  SHARED(T, taps);
  const DepthwiseAdjoint<T>& a = group.member[blockIdx.z];
  const ConvShape& s = a.shape;
  const int count = chunks(s.H, s.W), n = blockIdx.x / count, chunk = blockIdx.x % count, c0 = blockIdx.y * kSlice;
  if (n >= s.N || c0 >= s.Ci) return;
  const int rows = chunk_rows(s.W), y0 = chunk * rows, pixels = (y0 + rows <= s.H ? rows : s.H - y0) * s.W;
  const int Ci = scratch_channels(s.Ci), quarter = threadIdx.x % 4 * 4, c = c0 + quarter;
  const int64_t outputs = static_cast<int64_t>(s.Ho) * s.Wo;
  const InputChannels<T, WIDE> in(a.in, c, s.Ci);
  // Of the sums: a thread's partial sum of a channel, first of the gradient, then of its product with norm(x).
  const int summed = threadIdx.x % 128, product = threadIdx.x / 128;
  T partial = 0;
  for (int first = 0; first < pixels; first += kThreads / 4) {
    const int p = first + threadIdx.x / 4, y = y0 + p / s.W, x = p % s.W;
    const bool here = p < pixels && c < s.Ci;
    T* const kept = a.sum ? a.sum + ((static_cast<int64_t>(n) * s.H + y) * s.W + x) * Ci + c : nullptr;
    Four<T> sum{};
    if (here && !a.first) sum = load_four(kept);
    for (int b = 0; b < a.branches; ++b) {
      const auto& branch = a.branch[b];
      const T* const dt = a.dt + (static_cast<int64_t>(b) * s.N + n) * outputs * Ci + c;
      const int K = branch.kernel;
      __syncthreads();
      if (branch.taps) load_taps(branch.taps, K * K, c0, s.Ci, taps);
      __syncthreads();
      if (!here) continue;
      if (branch.taps) {
        const auto v = adjoint_pixel(s, dt, K, branch.dilation, taps + quarter, y, x);
        sum = b == 0 && a.first ? v : four<T>([&](int i) { return sum.v[i] + v.v[i]; });
      } else if (y % s.stride == 0 && x % s.stride == 0) {
        const auto v = load_four(dt + (static_cast<int64_t>(y / s.stride) * s.Wo + x / s.stride) * Ci);
        sum = four<T>([&](int i) { return sum.v[i] + v.v[i]; });
      }
    }
    if (!a.last) {
      if (here) store_four_out(sum, kept);
      continue;
    }
    Four<T> v{};
    if (here && (a.in.relu || a.means.sums)) {
      by_storage<HALVES>(a.in.x.storage, [&](Storage as) { v = in.at(as, n, y, x); });
    }
    if (here) sum = finish_pixel<WIDE>(a, sum, v, n, y, x, c);
    if (!a.means.sums) continue;
    T* const tile = taps + a.largest * a.largest * kSlice;
    __syncthreads();
    store_four(sum, tile + threadIdx.x * 4);
    store_four(v, tile + kThreads * 4 + threadIdx.x * 4);
    __syncthreads();
    for (int i = summed; i < kThreads * 4 && first + i / kSlice < pixels; i += 128) {
      const T d = tile[i];
      partial = product ? fused(d, tile[kThreads * 4 + i], partial) : partial + d;
    }
  }
  if (!a.last || !a.means.sums) return;
  __syncthreads();
  taps[threadIdx.x] = partial;
  __syncthreads();
  const int half = threadIdx.x / kSlice, channel = threadIdx.x % kSlice;
  if (half < 2 && c0 + channel < s.Ci) {
    const auto part = [&](int k) { return taps[half * 128 + k * kSlice + channel]; };
    const T total = ((part(0) + part(1)) + (part(2) + part(3))) + ((part(4) + part(5)) + (part(6) + part(7)));
    a.means.sums[(static_cast<int64_t>(blockIdx.x) * 2 + half) * s.Ci + c0 + channel] = total;
  }
  finish_means(a.means, s, blockIdx.x, blockIdx.x + 1);
}

template <class A>
bool aligned(const A& a) {
  return wide(a.in, a.shape.Ci) && wide(a.dx) && wide(a.base) && wide(a.onto);
}

template <class T, bool HALVES>
void launch_pointwise(const std::vector<PointwiseAdjoint<T>>& all, Stream stream) {
  const auto kind = [](const PointwiseAdjoint<T>& a) {
    const bool all = wide(a.dz, a.shape.Co) && (a.dt || aligned(a));
    return (a.shape.Ci <= 16 ? 0 : a.shape.Ci <= 32 ? 2 : 4) + (all ? 1 : 0);
  };
  each_kind(all, kind, [=](int k, const Group<PointwiseAdjoint<T>>& group, int count) {
    constexpr decltype(&pointwise_adjoint_kernel<T, 16, true, HALVES>) kernels[] = {
        pointwise_adjoint_kernel<T, 16, false, HALVES>, pointwise_adjoint_kernel<T, 16, true, HALVES>,
        pointwise_adjoint_kernel<T, 32, false, HALVES>, pointwise_adjoint_kernel<T, 32, true, HALVES>,
        pointwise_adjoint_kernel<T, 64, false, HALVES>, pointwise_adjoint_kernel<T, 64, true, HALVES>};
    const int CT = 16 << k / 2, PT = kThreads * 16 / CT;
    int64_t x = 0, y = 0;
    for (int i = 0; i < count; ++i) {
      const ConvShape& s = group.member[i].shape;
      x = std::max(x, s.N * blocks_of(int64_t{s.Ho} * s.Wo, PT)), y = std::max(y, blocks_of(s.Ci, CT));
    }
    launch(kernels[k], dim3(x, y, count), dim3(kThreads), 0, stream, group);
  });
}

template <class T>
void pointwise_adjoint(const std::vector<const BranchConvBackward<T>*>& calls, Stream stream) {
  std::vector<PointwiseAdjoint<T>> own, halves;
  for (const BranchConvBackward<T>* call : calls) {
    const ConvShape& s = call->shape;
    T* dt = call->dt;
    for (const auto& b : call->branches) {
      auto& all = direct(*call) ? (halved(call->in, b.dz) ? halves : own) : b.dz.z.storage == Storage::own ? own : halves;
      if (direct(*call)) all.push_back({s, b.dz, b.pointwise, nullptr, call->in, call->dx, call->base, call->onto});
      else if (call->dx.data || b.taps_grad) all.push_back({s, b.dz, b.pointwise, dt, {}, {}, {}, {}});
      if (dt) dt += static_cast<int64_t>(s.N) * s.Ho * s.Wo * scratch_channels(s.Ci);
    }
  }
  launch_pointwise<T, false>(own, stream);
  if constexpr (kServesHalves<T>) launch_pointwise<T, true>(halves, stream);
}

// Of the branches from `first` on.
template <class T>
DepthwiseAdjoint<T> depthwise_adjoint_of(const BranchConvBackward<T>& call, size_t first) {
  const ConvShape& s = call.shape;
  DepthwiseAdjoint<T> made{s, call.in, call.dx, call.base, call.onto, call.means, call.sum};
  made.dt = call.dt + first * s.N * s.Ho * s.Wo * scratch_channels(s.Ci);
  made.branches = static_cast<int32_t>(std::min<size_t>(call.branches.size() - first, kAdjointBranches));
  made.means.arrivals.each = static_cast<int32_t>(blocks_of(s.Ci, kSlice));
  made.first = first == 0, made.last = first + made.branches == call.branches.size();
  for (int b = 0; b < made.branches; ++b) {
    const BackwardBranch<T>& branch = call.branches[first + b];
    made.branch[b] = {branch.taps, branch.kernel, branch.dilation};
    made.largest = std::max(made.largest, branch.kernel);
  }
  return made;
}

template <class T, bool HALVES>
void launch_depthwise(const std::vector<DepthwiseAdjoint<T>>& all, Stream stream) {
  const auto kind = [](const DepthwiseAdjoint<T>& a) { return aligned(a) ? 1 : 0; };
  each_kind(all, kind, [=](int k, const Group<DepthwiseAdjoint<T>>& group, int count) {
    int64_t x = 0, y = 0, taps = 0;
    for (int i = 0; i < count; ++i) {
      const DepthwiseAdjoint<T>& a = group.member[i];
      const ConvShape& s = a.shape;
      x = std::max(x, s.N * chunks(s.H, s.W)), y = std::max(y, blocks_of(s.Ci, kSlice));
      taps = std::max(taps, int64_t{a.largest} * a.largest);
    }
    const auto kernel = k ? depthwise_adjoint_kernel<T, true, HALVES> : depthwise_adjoint_kernel<T, false, HALVES>;
    launch(kernel, dim3(x, y, count), dim3(kThreads), (taps * kSlice + kThreads * 8) * sizeof(T), stream, group);
  });
}

template <class T>
void depthwise_adjoint(const std::vector<const BranchConvBackward<T>*>& calls, Stream stream) {
  for (size_t first = 0;; first += kAdjointBranches) {
    std::vector<DepthwiseAdjoint<T>> own, halves;
    for (const BranchConvBackward<T>* call : calls) {
      auto& all = call->in.x.storage == Storage::own ? own : halves;
      if (call->dx.data && !direct(*call) && first < call->branches.size()) all.push_back(depthwise_adjoint_of(*call, first));
    }
    if (own.empty() && halves.empty()) return;
    launch_depthwise<T, false>(own, stream);
    if constexpr (kServesHalves<T>) launch_depthwise<T, true>(halves, stream);
  }
}

}  // namespace

template <class T>
void branch_conv_backward(const std::vector<const BranchConvBackward<T>*>& calls, Stream stream) {
  std::vector<const BranchConvBackward<T>*> small, others;
  for (const auto* call : calls) (resident(*call) ? small : others).push_back(call);
  branch_conv_backward_resident(small, stream);
  pointwise_adjoint(others, stream);
  depthwise_adjoint(others, stream);
  branch_conv_weight_grads(others, stream);
}

template void branch_conv_backward(const std::vector<const BranchConvBackward<float>*>&, Stream);
template void branch_conv_backward(const std::vector<const BranchConvBackward<double>*>&, Stream);

}  // namespace dartsfast::cuda
