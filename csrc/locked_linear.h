// What the kernels of locked_linear_ are given; the contract is in dartsfast/ops/locked_linear.py.
// Matrices are given by pointers to their rows, so that those of dropped features are never touched.
#pragma once

#include "gemm.h"

namespace dartsfast {

// out[i][v] (+)= a[i, k] * b[k][v], a chain over k.
template <class T>
struct RowProduct {
  int64_t rows, depth;
  Matrix<const T> a;  // [rows, depth]
  const T* const* b;  // `depth` rows
  T* const* out;      // `rows` rows
  bool add;           // to what is there
};

// out[i, k] = a[i][v] * b[k][v], chains over v in blocks of kGemmDepth.
template <class T>
struct RowDots {
  int64_t rows, others, columns;
  const T* const* a;  // `rows` rows
  const T* const* b;  // `others` rows
  T* out;             // [rows, others]
};

// What a call is given: x [T, N, H], inputs or their gradient, and mask [N, H], of any strides; weight [H, V] or its
// gradient, and y [N, T, V], results or their gradient, dense.
template <class T>
struct LockedLinear {
  int64_t steps, batch, features, columns;
  T* x;
  int64_t x_stride[3];
  const T* mask;
  int64_t mask_stride[2];
  T *weight, *y;
};

// Elements of scratch memory: A by panels and a spare row; A and B by panels and the sums.
constexpr int64_t row_product_scratch(int64_t rows, int64_t depth) { return (rows + 12) * depth + 32; }
constexpr int64_t row_dots_scratch(int64_t rows, int64_t others) {
  return (rows + 12) * (others + 32) + (rows + 12 + others + 32) * kGemmDepth;
}

}  // namespace dartsfast
