// What the kernels of mixed_sum are given on a device.
#pragma once

#include <cstdint>
#include <vector>

#include "../storage.h"
#include "runtime.h"

namespace dartsfast::cuda {

// An image batch [N, H, W, C] with adjacent channels whose pixels follow each other at one pitch within an image.
template <class T>
struct Pixels {
  T* data;
  int64_t n, pitch;
};

// The same in any storage.
struct StoredPixels {
  const void* data;
  int64_t n, pitch;
  Storage storage;
};

template <class T>
struct SummedBranch {
  StoredPixels z;
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
  StoredPixels z;
  const T *mean, *rstd;     // [C]
  T *g_zhat_mean, *weight;  // [C] and the gradient of the weight; null: not asked for
};

template <class T>
struct MixedSumBackward {
  int32_t N, H, W, C;
  Pixels<const T> g;
  T* g_mean;  // [C], null: not asked for
  T* sums;    // [1 + branches, N * chunks, C], of g, then of g * zhat of each branch
  std::vector<GradientBranch<T>> branches;
};

template <class T>
void mixed_sum(const std::vector<const MixedSum<T>*>& calls, Stream stream);
template <class T>
void mixed_sum_backward(const std::vector<const MixedSumBackward<T>*>& calls, Stream stream);
template <class T>
void mixed_sum_finish(const std::vector<const MixedSumBackward<T>*>& calls, Stream stream);

}  // namespace dartsfast::cuda
