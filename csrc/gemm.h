// What the kernel of gemm_ is given; the contract is in dartsfast/ops/gemm.py.
#pragma once

#include <cstdint>

namespace dartsfast {

constexpr int64_t kGemmDepth = 320;  // products that one chain adds up: part of the contract

// Blocks that stay in a core's caches; the bits do not depend on them.
constexpr int64_t kGemmRows = 48;
constexpr int64_t kGemmColumns = 1024;

// Elements from one row to the next and from one column to the next.
template <class T>
struct Matrix {
  T* data;
  int64_t row, column;
  Matrix at(int64_t i, int64_t j) const { return {data + i * row + j * column, row, column}; }
};

template <class T>
struct Gemm {
  int64_t M, N, K;
  Matrix<const T> a, b;  // [M, K], [K, N]
  Matrix<T> out;         // [M, N], columns adjacent
  bool accumulate;
};

// Elements of scratch memory: packed B and A, and the largest tile of results.
constexpr int64_t kGemmTile = 12 * 32;
constexpr int64_t kGemmScratch = (kGemmColumns + kGemmRows) * kGemmDepth + kGemmTile;

}  // namespace dartsfast
