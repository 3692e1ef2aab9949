// What the kernels of mixed_sum are given on a device.
#pragma once

#include <cstdint>
#include <vector>

#include "arrivals.h"
#include "runtime.h"

namespace dartsfast::cuda {

// An image batch [N, H, W, C] with adjacent channels whose pixels follow each other at one pitch within an image.
template <class T>
struct Pixels {
  T* data;
  int64_t n, pitch;
};

template <class T>
struct SummedBranch {
  Pixels<const T> z;
  const T *mean, *rstd;  // [C]
  const T* weight;
};

template <class T>
struct MixedSum {
  int32_t N, HW, C;
  Pixels<const T> base;  // null data: zero
  Pixels<T> out;
  std::vector<SummedBranch<T>> branches;
};

template <class T>
struct GradientBranch {
  Pixels<const T> z;
  const T *mean, *rstd;       // [C]
  T *g_zhat_mean, *d_weight;  // [C] and the gradient of the weight; null: not asked for
  T* coef;                    // [4, C] of dz, made of both means; null: not asked for
  const T* weight;            // of the branch; null: 1
  bool flows;
};

template <class T>
struct MixedSumBackward {
  int32_t N, H, W, C;
  Pixels<const T> g;
  T* g_mean;  // [C], null: not asked for
  T* sums;    // [1 + branches, N * chunks, C], of g, then of g * zhat of each branch
  unsigned* tickets;  // tickets_of(N * chunks) for each launch
  std::vector<GradientBranch<T>> branches;
};

// Branches that a launch of the backward takes of a call.
constexpr int kGradientBranches = 40;

template <class T>
void mixed_sum(const std::vector<const MixedSum<T>*>& calls, Stream stream);
template <class T>
void mixed_sum_backward(const std::vector<const MixedSumBackward<T>*>& calls, Stream stream);

}  // namespace dartsfast::cuda
