// C[i, j] (+)= sum over k, ascending, of fma(A[i, k], B[k, j]): the pointwise convolution and its gradients.
#pragma once

#include "vec.h"

namespace dartsfast::DARTSFAST_ISA {

// A: elements from A[i, k] to A[i + 1, k], and to A[i, k + 1].
template <class T>
struct Left {
  const T* data;
  int64_t row, column;
};

// B and C: row pitch, and elements from one register of columns to the next.
template <class T>
struct Columns {
  T* data;
  int64_t row, next;
  Columns at(int64_t i, int64_t registers) const { return {data + i * row + registers * next, row, next}; }
};

template <class T, int U, int V>
void gemm_block(int64_t K, Left<T> a, Columns<const T> b, Columns<T> c, bool accumulate) {
  using Lane = Vec<T>;
  Lane acc[U][V];
#pragma GCC unroll 16
  for (int i = 0; i < U; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) {
      acc[i][j] = accumulate ? Lane::load(c.data + i * c.row + j * c.next) : Lane::zero();
    }
  }
  // Not unrolled: the compiler would run out of registers and spill accumulators.
#pragma GCC unroll 1
  for (int64_t k = 0; k < K; ++k, a.data += a.column, b.data += b.row) {
    Lane bv[V];
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) bv[j] = Lane::load(b.data + j * b.next);
#pragma GCC unroll 16
    for (int i = 0; i < U; ++i) {
      const Lane av = Lane::set(a.data[i * a.row]);
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j) acc[i][j] = Lane::fma(av, bv[j], acc[i][j]);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < U; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) acc[i][j].store(c.data + i * c.row + j * c.next);
  }
}

template <class T, int V>
void gemm_columns(int64_t M, int64_t K, Left<T> a, Columns<const T> b, Columns<T> c, bool accumulate) {
  int64_t i = 0;
  const auto block = [&](auto size) {
    constexpr int U = decltype(size)::value;
    gemm_block<T, U, V>(K, {a.data + i * a.row, a.row, a.column}, b, c.at(i, 0), accumulate);
    i += U;
  };
  // As many accumulators as there are registers for; 8 rows are better two fours than six and two.
  constexpr int most = kRegisters == 32 ? 16 / V : 6;
  while (M - i >= most && (most != 6 || M - i != 8)) block(Int<most>());
  while (M - i >= 4) block(Int<4>());
  if (M - i >= 2) block(Int<2>());
  if (M - i >= 1) block(Int<1>());
}

// M rows and `registers` columns of C.
template <class T>
void gemm(int64_t M, int64_t registers, int64_t K, Left<T> a, Columns<const T> b, Columns<T> c, bool accumulate) {
  int64_t j = 0;
  for (; j + 2 <= registers; j += 2) gemm_columns<T, 2>(M, K, a, b.at(0, j), c.at(0, j), accumulate);
  if (j < registers) gemm_columns<T, 1>(M, K, a, b.at(0, j), c.at(0, j), accumulate);
}

}  // namespace dartsfast::DARTSFAST_ISA
