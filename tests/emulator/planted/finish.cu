// csrc/cuda/finish.h without one of what orders its accesses: the one that stands at place MISSING, if any does.
#include "arrivals.h"
#include "branch_conv_backward.h"
#include "planted.h"
#include "statistic.h"
#include "tree.h"

#ifndef MISSING
#define MISSING -1
#endif

namespace {
constexpr int kFirst = __COUNTER__ + 1;
}

// A macro's own name within it is the function's.
#define __threadfence() (__COUNTER__ == kFirst + MISSING ? void() : __threadfence())
#define __syncthreads() (__COUNTER__ == kFirst + MISSING ? void() : __syncthreads())
#include "finish.h"
#undef __threadfence
#undef __syncthreads

namespace {

constexpr int kColumns = 40, kCount = 19, kTickets = 1000;  // chunks; where y has tickets

// Sums of columns, of a chunk a block: three blocks are the last of theirs, one of them of all.
__global__ void finish_kernel(const float* x, float* y) {
  const int chunk = blockIdx.x;
  for (int i = threadIdx.x; i < kColumns; i += blockDim.x) y[chunk * kColumns + i] = x[i];
  const dartsfast::cuda::Arrivals arrivals{reinterpret_cast<unsigned*>(y + kTickets), kCount, 1};
  const auto column = [&](int i) { return dartsfast::cuda::Sums<float>{y + i, kColumns}; };
  dartsfast::cuda::finish(arrivals, chunk, chunk + 1, kColumns, column, [&] {
    y[kCount * kColumns + threadIdx.x] = y[kColumns - 1 - threadIdx.x % kColumns];
  });
}

}  // namespace

LAUNCHER(right_finish, finish_kernel, kCount, 64, 0)
