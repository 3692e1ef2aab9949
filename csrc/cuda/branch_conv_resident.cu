// branch_conv's whole backward with an image in shared memory: the convolutions of a DARTS cell (3x3 and 5x5, dilation 1
// and 2, stride 1, as many channels out as in) at its three sizes, 32x32x16, 16x16x32 and 8x8x64, in float.
//
// A block has an image of a call and goes through its branches one after the other: dz, formed as it is loaded, takes the
// whole image's place; the pointwise adjoint replaces it by the gradient of the depthwise output, pixel by pixel; from
// there the adjoint depthwise adds to sums that stay in registers, and after the last branch relu's mask and all
// additions are made where the sums are. A thread has 8 pixels of a row (4 where C = 64) by 4 channels in every step, so
// that a load from shared memory serves up to 20 fma. The gradients of weights are chains over the image's pixels: the
// depthwise ones have a thread a row of taps and a channel, the pointwise ones a thread 2x2 or 4x4 of them, from
// depthwise outputs that their owners hand over four rows at a time.
//
// Against the kernels for any shape: x, g, z and dx pass through memory once, where those read g and z twice and carry the
// gradient of the depthwise output to memory and back two or three times: for four branches with gradients of weights 11
// images instead of 40, without 11 instead of 20. Beside images a block reads its branches' weights, 8, 24 and 80 KB for
// four branches against 704, 352 and 176 KB of images, and writes as much of weights' gradients: blocks share the weights
// in the second-level cache, but at 8x8x64 the gradients are half as much traffic again.
// Bound by the chains of the weights' gradients where they are asked for, else by loads from shared memory.
//
// Rows are a halo of 4 zero pixels apart, which serves both; beyond the first and the last row a row of zeros is read.
// With 16 channels, two rows are an odd number of pixels apart, so that the 8 lanes of a load of 16 bytes, 4 groups of
// channels of two rows, meet all banks. Two lanes meet in a bank where taps two rows apart are read for their gradients, and
// eight once for the sums of a norm.
#include "branch_conv_resident.h"

#include <algorithm>

#include "finish.h"

namespace dartsfast::cuda {
namespace {

// Unrolled, places and numbers of later taps would be kept for all branches and spilled.
template <class S>
__device__ __forceinline__ void load_weights(const ResidentBranch& b, const Room<S>& room) {
  const int count = b.kernel * b.kernel, c = threadIdx.x % S::C;
#pragma unroll 1
  for (int tap = threadIdx.x / S::C; tap < count; tap += S::threads / S::C) {
    room.taps[tap * S::C + c] = b.taps[c * count + tap];
  }
#pragma unroll 1
  for (int k = threadIdx.x; k < S::product; k += S::threads) room.product[k] = b.pointwise[k];
}

// dz of a thread's pixels to their place.
template <class S>
__device__ __forceinline__ void load_gradient(const OutputGradient<float>& dz, Storage as, const Room<S>& room,
                                              const Place<S>& at, int n) {
  const GradientChannels<float, true, true> gradient(dz, at.q, S::C);
  // Two at a time: more would not fit registers beside the sums.
#pragma unroll 1
  for (int first = 0; first < S::U; first += 2) {
    Four<float> v[2];
#pragma unroll
    for (int u = 0; u < 2; ++u) v[u] = gradient.at(as, n, at.y, at.x + first + u);
#pragma unroll
    for (int u = 0; u < 2; ++u) store_four(v[u], room.d + at.offset() + (first + u) * S::C);
  }
}

// dz to what the pointwise adjoint makes of it, in place: the lanes that share a pixel are of one warp.
template <class S>
__device__ __forceinline__ void pointwise_adjoint(const Room<S>& room, const Place<S>& at, bool here) {
  float* const mine = room.d + at.offset() - at.q;
  Pixels<S> sum = {};
#pragma unroll 1
  for (int o = 0; o < (here ? S::C : 0); o += 4) {
    Four<float> w[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) w[j] = load_four(room.product + (o + j) * S::C + at.q);
#pragma unroll
    for (int u = 0; u < S::U; ++u) {
      const auto v = load_four(mine + u * S::C + o);
#pragma unroll
      for (int j = 0; j < 4; ++j) sum[u] = four<float>([&](int c) { return fused(v.v[j], w[j].v[c], sum[u].v[c]); });
    }
  }
  __syncwarp();
#pragma unroll
  for (int u = 0; u < S::U; ++u) {
    if (here) store_four(sum[u], mine + u * S::C + at.q);
  }
}

// Zeros wherever no pixel will be, and relu(norm(x)).
template <class S, bool HALVES>
__device__ __forceinline__ void load_image(const ResidentImages& a, const Room<S>& room, const Place<S>& at, int n,
                                           bool here) {
  const int gap = S::pitch - S::W * S::C;
  for (int i = threadIdx.x; i < S::zeros; i += S::threads) room.zeros[i - S::halo * S::C] = 0;
  for (int i = threadIdx.x; i < S::halo * S::C; i += S::threads) {
    room.x[i - S::halo * S::C] = room.d[i - S::halo * S::C] = 0;
  }
  for (int i = threadIdx.x; i < a.H * gap; i += S::threads) {
    const int to = i / gap * S::pitch + S::W * S::C + i % gap;
    room.x[to] = room.d[to] = 0;
  }
  if (!here) return;
  const InputChannels<float, true> in(a.in, at.q, S::C);
  by_storage<HALVES>(a.in.x.storage, [&](Storage as) {
    // Where there are halves, some of several at once would be spilled.
#pragma unroll(HALVES ? 1 : S::U)
    for (int u = 0; u < S::U; ++u) store_four(in.at(as, n, at.y, at.x + u), room.x + at.offset() + u * S::C);
  });
}

// relu's mask, which stays in `sum`, and what dx is added to.
template <class S>
__device__ __forceinline__ void finish(const ResidentImages& a, const Room<S>& room, const Place<S>& at, int n,
                                       Four<float> (&sum)[S::U]) {
#pragma unroll
  for (int u = 0; u < S::U; ++u) {
    if (a.in.relu) {
      const auto x = load_four(room.x + at.offset() + u * S::C);
      sum[u] = four<float>([&](int c) { return x.v[c] > 0 ? sum[u].v[c] : 0.f; });
    }
    auto v = sum[u];
    for (const auto* image : {&a.base, &a.onto}) {
      const bool added = image->data;
      Four<float> there{};
      if (added) there = load_four(image->at(n, at.y) + (at.x + u) * image->w + at.q);
      v = four<float>([&](int c) { return added ? there.v[c] + v.v[c] : v.v[c]; });
    }
    store_four<true>(v, a.dx.at(n, at.y) + (at.x + u) * a.dx.w + at.q, 4);
  }
}

// The sums over chunks of the gradient of norm(x), which lies where d was, and of its product with norm(x): 8 lanes
// have every eighth pixel.
template <class S>
__device__ __forceinline__ void norm_sums(const ResidentImages& a, const Room<S>& room, int n) {
  constexpr int rows = 64 / S::W;
  const int count = (a.H + rows - 1) / rows, q = threadIdx.x / 8 % S::G * 4, chunk = threadIdx.x / 8 / S::G;
  const int first = chunk * rows, end = first + rows < a.H ? first + rows : a.H;
  Four<float> sum{}, product{};
  for (int y = first; y < end; ++y) {
    for (int x = threadIdx.x % 8; x < S::W; x += 8) {
      const int from = y * S::pitch + x * S::C + q;
      const auto s = load_four(room.d + from), v = load_four(room.x + from);
      sum = four<float>([&](int c) { return sum.v[c] + s.v[c]; });
      product = four<float>([&](int c) { return fused(s.v[c], v.v[c], product.v[c]); });
    }
  }
#pragma unroll
  for (int other = 1; other < 8; other *= 2) {
    sum = four<float>([&](int c) { return sum.v[c] + __shfl_xor_sync(~0u, sum.v[c], other); });
    product = four<float>([&](int c) { return product.v[c] + __shfl_xor_sync(~0u, product.v[c], other); });
  }
  if (threadIdx.x % 8 == 0 && chunk < count) {
    float* const to = a.means.sums + (static_cast<int64_t>(n) * count + chunk) * 2 * S::C + q;
    store_four_out(sum, to), store_four_out(product, to + S::C);
  }
  finish_means(a.means, {a.N, a.H, S::W, S::C, S::C, a.H, S::W, 1}, n * count, (n + 1) * count);
}

template <class S>
__device__ __forceinline__ void branch_taps(const ResidentBranch& b, const Room<S>& room, int H, int n) {
  if (!b.taps_grad) return;
  float* const to = b.taps_grad + static_cast<int64_t>(n) * b.kernel * b.kernel * S::C;
  each_kernel(b, [&](auto K, auto D) { taps_grad<S, decltype(K)::value, decltype(D)::value>(room, H, to); });
}

template <class S>
__device__ __forceinline__ void branch_product(const ResidentBranch& b, const Room<S>& room, const Place<S>& at, int H,
                                               int n, bool here) {
  if (!b.pointwise_grad) return;
  Pixels<S> t = {};
  if (here) {
    each_kernel(b, [&](auto K, auto D) {
      depthwise<S, decltype(K)::value, decltype(D)::value, false>(room.x, room, at, H, t);
    });
  }
  pointwise_grad(room, at, H, t, b.pointwise_grad + static_cast<int64_t>(n) * S::C * S::C);
}

template <class S, bool WEIGHTS, bool HALVES>
__global__ void __launch_bounds__(S::threads, S::blocks)
    resident_kernel(const __grid_constant__ PackedGroup<ResidentImages> group) {
  SHARED(float, all);
  const ResidentImages& a = group.member(blockIdx.y);
  const int n = blockIdx.x;
  if (n >= a.N) return;
  const Room<S> room(all);
  const Place<S> at;
  const bool here = at.y < a.H;
  load_image<S, HALVES>(a, room, at, n, here);
  // What -0 is added to keeps its bits, as the first branch must.
  Pixels<S> sum;
#pragma unroll
  for (int u = 0; u < S::U; ++u) sum[u] = four<float>([](int) { return -0.f; });
  for (int i = 0; i < a.branches; ++i) {
    const ResidentBranch& b = a.branch[i];
    __syncthreads();
    load_weights(b, room);
    if (here) by_storage<HALVES>(b.dz.z.storage, [&](Storage as) { load_gradient(b.dz, as, room, at, n); });
    __syncthreads();
    if constexpr (WEIGHTS) branch_product(b, room, at, a.H, n, here);
    pointwise_adjoint(room, at, here);
    __syncthreads();
    if constexpr (WEIGHTS) branch_taps(b, room, a.H, n);
    if (!a.dx.data || !here) continue;
    each_kernel(b, [&](auto K, auto D) {
      Pixels<S> v;
      depthwise<S, decltype(K)::value, decltype(D)::value, true>(room.d, room, at, a.H, v);
#pragma unroll
      for (int u = 0; u < S::U; ++u) {
        sum[u] = four<float>([&](int c) { return sum[u].v[c] + v[u].v[c]; });
      }
    });
  }
  if (a.dx.data && here) finish(a, room, at, n, sum);
  if (!a.means.sums) return;
  __syncthreads();
#pragma unroll
  for (int u = 0; u < S::U; ++u) {
    if (here) store_four(sum[u], room.d + at.offset() + u * S::C);
  }
  __syncthreads();
  norm_sums(a, room, n);
}

// Most shared memory of a block.
int shared_limit() {
#ifdef __CUDACC__
  int device, bytes;
  check(cudaGetDevice(&device));
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  return bytes;
#else
  return 163 << 10;  // of an A100
#endif
}

bool asked_for_weights(const BranchConvBackward<float>& a) {
  return std::any_of(a.branches.begin(), a.branches.end(), [](const auto& b) { return b.taps_grad || b.pointwise_grad; });
}

bool halved(const ResidentImages& a) {
  return std::any_of(a.branch, a.branch + a.branches, [&](const auto& b) { return cuda::halved(a.in, b.dz); });
}

template <class S>
void launch_resident(const std::vector<const BranchConvBackward<float>*>& calls, Stream stream) {
  std::vector<ResidentImages> all;
  for (const auto* call : calls) {
    if (call->shape.Ci != S::C) continue;
    ResidentImages& images = all.emplace_back(ResidentImages{call->in, call->dx, call->base, call->onto, call->means});
    images.N = call->shape.N, images.H = call->shape.H, images.weights = asked_for_weights(*call);
    for (const auto& b : call->branches) {
      images.branch[images.branches++] = {b.dz, b.taps, b.pointwise, b.taps_grad, b.pointwise_grad, b.kernel, b.dilation};
    }
  }
  constexpr decltype(&resident_kernel<S, true, true>) kernels[] = {
      resident_kernel<S, false, false>, resident_kernel<S, true, false>, resident_kernel<S, false, true>,
      resident_kernel<S, true, true>};
  for (int kind = 0; kind < 4; ++kind) {
    std::vector<const ResidentImages*> some;
    for (const ResidentImages& one : all) {
      if ((one.weights ? 1 : 0) + (halved(one) ? 2 : 0) == kind) some.push_back(&one);
    }
    each_packed_group(some, [&](const PackedGroup<ResidentImages>& group, size_t first, int count) {
      int32_t images = 0;
      for (int i = 0; i < count; ++i) images = std::max(images, some[first + i]->N);
      launch(kernels[kind], dim3(images, count), dim3(S::threads), S::bytes(kind % 2), stream, group);
    });
  }
}

}  // namespace

template <>
bool resident(const BranchConvBackward<float>& a) {
  const ConvShape& s = a.shape;
  const bool sized = (s.Ci == 16 && s.W == 32) || (s.Ci == 32 && s.W == 16) || (s.Ci == 64 && s.W == 8);
  if (!sized || s.Co != s.Ci || s.stride != 1 || s.H > s.W || a.branches.size() > kMost) return false;
  if (!a.dx.data && !asked_for_weights(a)) return false;
  if (!wide(a.in, s.Ci) || !wide(a.dx) || !wide(a.base) || !wide(a.onto)) return false;
  for (const auto& b : a.branches) {
    const bool known = (b.kernel == 3 || b.kernel == 5) && (b.dilation == 1 || b.dilation == 2);
    if (!b.taps || !known || !b.dz.z.data || !wide(b.dz, s.Co)) return false;
  }
  const int most = s.Ci == 16   ? Size<16, 32>::bytes(true)
                   : s.Ci == 32 ? Size<32, 16>::bytes(true)
                                : Size<64, 8>::bytes(true);
  return most <= shared_limit();
}
template <>
bool resident(const BranchConvBackward<double>&) {
  return false;
}

template <>
void branch_conv_backward_resident(const std::vector<const BranchConvBackward<float>*>& calls, Stream stream) {
  launch_resident<Size<16, 32>>(calls, stream);
  launch_resident<Size<32, 16>>(calls, stream);
  launch_resident<Size<64, 8>>(calls, stream);
}
template <>
void branch_conv_backward_resident(const std::vector<const BranchConvBackward<double>*>&, Stream) {}

}  // namespace dartsfast::cuda
