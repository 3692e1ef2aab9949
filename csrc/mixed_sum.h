// What the kernels of mixed_sum are given; the contract is in dartsfast/ops/mixed_sum.py.
#pragma once

#include "array.h"

namespace dartsfast {

template <class T>
struct MixedSum {
  int64_t N, H, W, C, branches;
  int64_t next;          // images from one that a thread has to what is likely its next
  const StoredImage* z;  // [branches]
  const T* mean;         // [branches, C']
  const T* rstd;         // [branches, C']
  const T* weights;      // [branches]
  Image<const T> base;   // null data: zero
  Image<T> out;
  // Backward.
  Image<const T> g;
  T* sums;  // [N * chunks, 1 + branches, C']: sum of g, then of g * zhat of each branch
};

// What a call is given. Images have adjacent channels, and one pitch from pixel to pixel through all rows.
template <class T>
struct NormedBranch {
  Array z;               // [N, H, W, C]
  const T *mean, *rstd;  // [C]
};

}  // namespace dartsfast
