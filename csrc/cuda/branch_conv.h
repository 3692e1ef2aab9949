// What the kernels of branch_conv's forward are given on a device.
#pragma once

#include <cstdint>
#include <vector>

#include "../order.h"
#include "arrivals.h"
#include "runtime.h"
#include "statistic.h"

namespace dartsfast::cuda {

template <class T>
struct ConvBranch {
  int32_t kernel, dilation;  // 1 without depthwise
  const T* taps;             // [Ci, K*K], null without depthwise
  const T* pointwise;        // [Co, Ci]
  T* z;                      // [N, Ho, Wo, Co]
  int64_t z_pitch;           // elements from a pixel of z to the next, rows and images too
  Statistic<T> stat;         // of z
  Arrivals arrivals;         // for it, or for those of all branches
};

template <class T>
struct BranchConv {
  int32_t N, H, W, Ci, Co, Ho, Wo, stride;
  bool relu;
  Image<const T> x;
  const T* norm;  // [2, Ci] mean and 1/std of x, or null
  std::vector<ConvBranch<T>> branches;
};

// z of all branches, and their statistics.
template <class T>
void branch_conv(const std::vector<const BranchConv<T>*>& calls, Stream stream);

}  // namespace dartsfast::cuda
