// fd_hvp: passes over flat buffers at the rate of a copy, 16 bytes at a time where all are aligned to them; a norm.
//
// The norm: a warp has a chunk of 4096 elements, a lane the interleaved sum of every 32nd, in double, whose dependent
// chain of 128 fma waits for neither memory (8 loads are in flight) nor other lanes; five shuffles fold the lanes. A
// block adds the chunks up in a second launch: the order is a tree over all of them. Two million weights are 472
// warps: memory takes 3 us on an A100, double arithmetic 1 us, so that launches cost as much as work.
// The passes: a thread has 16 bytes of each buffer, 2 to 4 loads in flight; factors are worked out by every thread from
// scalars on the device, a division that nothing waits for.
#include "fd_hvp.h"

#include <cmath>

#include "../alpha_softmax.h"
#include "../fd_hvp.h"
#include "group.h"
#include "pack.h"
#include "tree.h"

namespace dartsfast::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

static_assert(kNormInterleave == 32);  // a warp's lanes

int64_t norm_chunks(int64_t n) { return blocks_of(n, kNormChunk); }

template <class T>
__global__ void __launch_bounds__(kThreads) fd_norm_kernel(const T* v, int64_t n, double* sums) {
  const int lane = threadIdx.x % 32;
  const int64_t chunk = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / 32, first = chunk * kNormChunk;
  if (first >= n) return;
  const int count = static_cast<int>(first + kNormChunk < n ? kNormChunk : n - first);
  double sum = 0;
#pragma unroll 8
  for (int i = lane; i < count; i += 32) {
    const double x = v[first + i];
    sum = fused(x, x, sum);
  }
#pragma unroll
  for (int other = 1; other < 32; other *= 2) sum = sum + __shfl_xor_sync(~0u, sum, other);
  if (lane == 0) sums[chunk] = sum;
}

template <class T>
__global__ void __launch_bounds__(kThreads) fd_norm_finish_kernel(double* sums, int32_t count, T* norm) {
  tree(Sums<double>{sums, 1}, true, count, threadIdx.x, kThreads);
  if (threadIdx.x == 0) *norm = static_cast<T>(std::sqrt(sums[0]));
}

// What becomes of the elements of `V` from i on: one function a pass, of packs.
template <class T, int V>
struct Elements {
  using P = Pack<T, V>;

  __device__ static void work(const FdPerturb<T>& a, int64_t i) {
    const T R = a.r / *a.norm;
    auto w = P::load(a.w0 + i);
    if (std::isfinite(R) && R != 0) {  // else there is nowhere to step; v may not be finite
      const T step = a.sign * R;
      const auto v = P::load(a.v + i);
#pragma unroll
      for (int k = 0; k < V; ++k) w.v[k] = fused(step, v.v[k], w.v[k]);
    }
    w.store_out(a.w + i);
  }

  __device__ static void work(const FdVirtualStep<T>& a, int64_t i) {
    const T scale = *a.scale, back = -a.lr;
    auto w = P::load(a.w + i);
    const auto g = P::load(a.g + i), buffer = a.momentum_buffer ? P::load(a.momentum_buffer + i) : P::zero();
#pragma unroll
    for (int k = 0; k < V; ++k) {
      T step = fused(a.weight_decay, w.v[k], scale * g.v[k]);
      if (a.momentum_buffer) step = fused(a.momentum, buffer.v[k], step);
      w.v[k] = fused(back, step, w.v[k]);
    }
    w.store_out(a.w + i);
  }

  __device__ static void work(const FdQuotient<T>& a, int64_t i) {
    const T width = T(2) * (a.r / *a.norm);
    auto plus = P::load(a.plus + i);
    const auto minus = P::load(a.minus + i);
#pragma unroll
    for (int k = 0; k < V; ++k) plus.v[k] = (plus.v[k] - minus.v[k]) / width;
    plus.store_out(a.out + i);
  }
};

template <class T>
bool whole(const FdPerturb<T>& a) {
  return wide<T>(a.w) && wide<T>(a.w0) && wide<T>(a.v);
}
template <class T>
bool whole(const FdVirtualStep<T>& a) {
  return wide<T>(a.w) && wide<T>(a.g) && wide<T>(a.momentum_buffer);
}
template <class T>
bool whole(const FdQuotient<T>& a) {
  return wide<T>(a.out) && wide<T>(a.plus) && wide<T>(a.minus);
}

// Whole packs, and one by one what is left of them. At least 4 blocks: for 8 ptxas spills what doubles divide by.
template <class T, int V, class A>
__global__ void __launch_bounds__(kThreads, 4) elements_kernel(const __grid_constant__ A a) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x, i = thread * V;
  if (i + V <= a.n) return Elements<T, V>::work(a, i);
  for (int64_t k = i; k < a.n; ++k) Elements<T, 1>::work(a, k);
}

template <class T, class A>
void each_element(const std::vector<const A*>& calls, Stream stream) {
  for (const A* call : calls) {
    const bool all = whole(*call);
    const auto kernel = all ? elements_kernel<T, kWide<T>, A> : elements_kernel<T, 1, A>;
    launch(kernel, dim3(blocks_of(call->n, kThreads * (all ? kWide<T> : 1))), dim3(kThreads), 0, stream, *call);
  }
}

}  // namespace

template <class T>
void fd_norm_parts(const std::vector<const FdNorm<T>*>& calls, Stream stream) {
  for (const FdNorm<T>* call : calls) {
    const dim3 grid(blocks_of(norm_chunks(call->n), kWarps));
    launch(fd_norm_kernel<T>, grid, dim3(kThreads), 0, stream, call->v, call->n, call->sums);
  }
}

template <class T>
void fd_norm_finish(const std::vector<const FdNorm<T>*>& calls, Stream stream) {
  for (const FdNorm<T>* call : calls) {
    const int32_t count = static_cast<int32_t>(norm_chunks(call->n));
    launch(fd_norm_finish_kernel<T>, dim3(1), dim3(kThreads), 0, stream, call->sums, count, call->norm);
  }
}

template <class T>
void fd_perturb(const std::vector<const FdPerturb<T>*>& calls, Stream stream) {
  each_element<T>(calls, stream);
}
template <class T>
void fd_virtual_step(const std::vector<const FdVirtualStep<T>*>& calls, Stream stream) {
  each_element<T>(calls, stream);
}
template <class T>
void fd_quotient(const std::vector<const FdQuotient<T>*>& calls, Stream stream) {
  each_element<T>(calls, stream);
}

template void fd_norm_parts(const std::vector<const FdNorm<float>*>&, Stream);
template void fd_norm_parts(const std::vector<const FdNorm<double>*>&, Stream);
template void fd_norm_finish(const std::vector<const FdNorm<float>*>&, Stream);
template void fd_norm_finish(const std::vector<const FdNorm<double>*>&, Stream);
template void fd_perturb(const std::vector<const FdPerturb<float>*>&, Stream);
template void fd_perturb(const std::vector<const FdPerturb<double>*>&, Stream);
template void fd_virtual_step(const std::vector<const FdVirtualStep<float>*>&, Stream);
template void fd_virtual_step(const std::vector<const FdVirtualStep<double>*>&, Stream);
template void fd_quotient(const std::vector<const FdQuotient<float>*>&, Stream);
template void fd_quotient(const std::vector<const FdQuotient<double>*>&, Stream);

}  // namespace dartsfast::cuda
