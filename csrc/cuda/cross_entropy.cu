// cross_entropy_: a block has a row, which it reads from memory once and writes once: between the two the row is in
// shared memory, where it is 10,000 classes of Penn Treebank in 40 KB, five blocks of which a multiprocessor of an A100
// holds. A row that does not fit is gone through where it is, in three passes and through the caches.
// What bounds it is memory: 8 bytes an element, and about 40 instructions; the 32 interleaved sums are the lanes of
// one warp, a chain of V / 32 additions, while the other blocks of the multiprocessor compute.
//
// Losses come from a second launch, a thread a row: their logarithm is in double, of which the kernel of the rows is
// free. It is the device's, within 1 ULP of the truth: a float32 loss is that of a CPU except where the double lies
// within 1 ULP of the middle of two floats, a float64 loss may differ from it by 1 ULP of the logarithm.
#include "cross_entropy.h"

#include <cmath>

#include "../activations.h"
#include "group.h"
#include "scalar.h"

namespace dartsfast::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr size_t kMostShared = 96 << 10;  // of a block; an A100 has 163 KiB, other devices of its kind 99

static_assert(kClassInterleave == 32);  // a warp's lanes

template <class T>
__device__ T larger(T x, T most) {
  return x > most || x != x ? x : most;  // NaN passes
}

// The largest of what the block's threads hold, NaN where one is; `warps` is shared memory of its own.
template <class T>
__device__ T largest(T most, T* warps) {
#pragma unroll
  for (int other = 1; other < 32; other *= 2) {
    const T theirs = __shfl_xor_sync(~0u, most, other);
    most = larger(theirs, most);
  }
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = most;
  __syncthreads();
  most = warps[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) most = larger(warps[w], most);
  return most;
}

// The sum of the row's elements in the documented order, by the first warp; all threads get it.
template <class T>
__device__ T ordered_sum(const T* x, int V, T* warps) {
  if (threadIdx.x < 32) {
    T sum = 0;
#pragma unroll 8
    for (int c = threadIdx.x; c < V; c += 32) sum = sum + x[c];
#pragma unroll
    for (int other = 1; other < 32; other *= 2) sum = sum + __shfl_xor_sync(~0u, sum, other);
    if (threadIdx.x == 0) warps[0] = sum;
  }
  __syncthreads();
  return warps[0];
}

template <class T>
__global__ void __launch_bounds__(kThreads) cross_entropy_kernel(const CrossEntropyRows<T> a, bool fits) {
  SHARED(T, shared);
  __shared__ T maxima[kWarps], sums[1];
  __shared__ T at_label;
  const int V = a.args.V;
  T* const row = a.rows + blockIdx.x * a.args.V;
  T* const x = fits ? shared : row;
  const int64_t label = a.labels[blockIdx.x];
  T most = -__builtin_inf();
#pragma unroll 4
  for (int c = threadIdx.x; c < V; c += kThreads) {
    const T v = a.args.bias ? row[c] + a.args.bias[c] : row[c];
    x[c] = v;
    most = larger(v, most);
  }
  most = largest(most, maxima);
  for (int c = threadIdx.x; c < V; c += kThreads) {
    const T d = x[c] - most;
    if (c == label) at_label = d;
    x[c] = Activations<Scalar<T>, T>(Scalar<T>::set(d)).e.v;
  }
  __syncthreads();
  const T sum = ordered_sum(x, V, sums), factor = a.args.scale / sum;
#pragma unroll 4
  for (int c = threadIdx.x; c < V; c += kThreads) {
    const T gradient = x[c] * factor;
    row[c] = c == label ? gradient - a.args.scale : gradient;
  }
  if (threadIdx.x == 0) a.found[blockIdx.x] = {sum, label >= 0 && label < V ? at_label : static_cast<T>(NAN)};
}

template <class T>
__global__ void __launch_bounds__(kThreads) losses_kernel(const RowLoss<T>* found, int64_t R, T* losses) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < R) losses[i] = static_cast<T>(std::log(static_cast<double>(found[i].sum))) - found[i].label;
}

}  // namespace

template <class T>
void cross_entropy(const std::vector<const CrossEntropyRows<T>*>& calls, Stream stream) {
  for (const CrossEntropyRows<T>* call : calls) {
    const size_t bytes = call->args.V * sizeof(T);
    const bool fits = bytes <= kMostShared;
    launch(cross_entropy_kernel<T>, dim3(call->R), dim3(kThreads), fits ? bytes : 0, stream, *call, fits);
    launch(losses_kernel<T>, dim3(blocks_of(call->R, kThreads)), dim3(kThreads), 0, stream, call->found, call->R,
           call->losses);
  }
}

template void cross_entropy(const std::vector<const CrossEntropyRows<float>*>&, Stream);
template void cross_entropy(const std::vector<const CrossEntropyRows<double>*>&, Stream);

}  // namespace dartsfast::cuda
