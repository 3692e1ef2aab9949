// What the blocks of a launch leave of their chunks, finished by those that come last: no launch of its own, and nobody
// waits. Eight neighbours share a ticket: whichever block is the last of them adds them up, as the tree of csrc/order.h
// does, and goes on with seven others, so that the order is fixed and the work is spread. The last block of all is left
// with one result a column. A ticket counts once; tickets are zero before the launch.
#pragma once

#include <type_traits>

#include "arrivals.h"
#include "branch_conv_backward.h"
#include "statistic.h"
#include "tree.h"

namespace dartsfast::cuda {

// To be called by all threads of a block that has left what it has of the chunks from `first` to before `end`. at(i):
// one of the columns, without data: none. done() is called by all threads of the last block, when the results of all
// columns are in their places 0, which every thread may read.
template <class At, class Done>
__device__ void finish(const Arrivals& a, int first, int end, int columns, At at, Done done) {
  if (!a.tickets) return;
  __shared__ bool last;
  while (first < end) {
    int node = first, count = a.count, span = 1;
    first = first / 8 * 8 + 8 < end ? first / 8 * 8 + 8 : end;
    unsigned come = first - node, each = a.each, *tickets = a.tickets;
    do {
      node = node / 8 * 8;
      const unsigned children = count - node < 8 ? count - node : 8;
      __threadfence();
      __syncthreads();
      if (threadIdx.x == 0) {
        last = atomicAdd(tickets + node / 8, come) + come == children * each;
        __threadfence();
      }
      __syncthreads();
      if (!last) break;
      for (int i = threadIdx.x; i < columns; i += blockDim.x) {
        const auto column = at(i);
        if (column.data) column.store(node, span, branch<3>(column, node, count, span));
      }
      node /= 8, count = (count + 7) / 8, span *= 8, tickets += count, come = each = 1;
    } while (count > 1);
    __syncthreads();
    if (last && count == 1) done();
  }
}

// The same; returns whether this block is the last. What follows then, behind the loop, has registers for itself.
template <class At>
__device__ bool finish(const Arrivals& a, int first, int end, int columns, At at) {
  bool mine = false;
  finish(a, first, end, columns, at, [&] { mine = true; });
  return mine;
}

// Channel c of a statistic's partial results, of `count` chunks of images of H rows of W.
template <class S>
__device__ auto moments_of(const S& s, int c, int H, int W, int count) {
  using T = std::remove_reference_t<decltype(*s.mean)>;
  const Chunks image{H, W, static_cast<int32_t>(chunk_rows(W)), static_cast<int32_t>(chunks(H, W))};
  return Moments<T>{s.parts ? s.parts + c : nullptr, 2 * s.C, s.C, image, count};
}

// What a statistic is for, once its moments are in place; by all threads of a block.
template <class S, class T>
__device__ void make_statistic(const S& s, T pixels) {
  if (!s.parts) return;
  for (int c = threadIdx.x; c < s.C; c += blockDim.x) {
    if (s.mean) s.mean[c] = s.parts[c];
    if (s.variance) s.variance[c] = s.parts[s.C + c] / pixels;
  }
  for (int i = 0; i < s.norms; ++i) {
    const auto& [setting, norm] = s.norm[i];
    const int64_t seen = norm.batches ? *norm.batches + 1 : 0;
    __syncthreads();  // every thread has read the count before one moves it
    if (norm.batches && threadIdx.x == 0) *norm.batches = seen;
    for (int c = threadIdx.x; c < s.C; c += blockDim.x) make_norm(setting, norm, c, batch_share(setting, seen));
  }
}

// The means of a convolution's backward, by all threads of a block that has left its sums of the chunks from `first` on.
template <class T>
__device__ void finish_means(const InputMeans<T>& a, const ConvShape& s, int first, int end) {
  const auto at = [&](int i) { return Sums<T>{a.sums + i, 2 * s.Ci}; };
  // Within the loop: behind it the image kernel at 16 channels would spill a register.
  finish(a.arrivals, first, end, 2 * s.Ci, at, [&] {
    const T pixels = static_cast<T>(static_cast<int64_t>(s.N) * s.H * s.W);
    for (int i = threadIdx.x; i < 2 * s.Ci; i += blockDim.x) a.means[i] = a.sums[i] / pixels;
    __syncthreads();
    for (int c = threadIdx.x; c < (a.coefs.coef ? s.Ci : 0); c += blockDim.x) make_coefficients<T>(a.coefs, s.Ci, c);
  });
}

}  // namespace dartsfast::cuda
