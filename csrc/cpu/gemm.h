// C[i, j] (+)= sum over k, ascending, of fma(A[i, k], B[k, j]): the pointwise convolution and its gradients.
// Tiles in scratch memory are blocked: [C' / lanes, pixels, lanes], one register a pixel.
#pragma once

#include "vec.h"

namespace dartsfast::DARTSFAST_ISA {

// Where A[i, k] lies: blocked by k (a tile, pixels i) or by i (the transpose of a tile, pixels k).
template <class T>
struct Left {
  const T* data;
  int64_t block;  // elements from one block of channels to the next
};

// B and C: row pitch, and elements from one register of columns to the next.
template <class T>
struct Columns {
  T* data;
  int64_t row, next;
  Columns at(int64_t i, int64_t registers) const { return {data + i * row + registers * next, row, next}; }
};

template <class T, int U, int V, bool TRANSPOSED>
void gemm_block(int64_t K, const T* a, int64_t block, Columns<const T> b, Columns<T> c, bool accumulate) {
  using Lane = Vec<T>;
  constexpr int64_t L = Lane::size;
  Lane acc[U][V];
#pragma GCC unroll 16
  for (int i = 0; i < U; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) {
      acc[i][j] = accumulate ? Lane::load(c.data + i * c.row + j * c.next) : Lane::zero();
    }
  }
  const auto step = [&](const T* at) {
    Lane bv[V];
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) bv[j] = Lane::load(b.data + j * b.next);
#pragma GCC unroll 16
    for (int i = 0; i < U; ++i) {
      const Lane av = Lane::set(at[TRANSPOSED ? i : i * L]);
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j) acc[i][j] = Lane::fma(av, bv[j], acc[i][j]);
    }
    b.data += b.row;
  };
  if constexpr (TRANSPOSED) {
    for (int64_t k = 0; k < K; ++k) step(a + k * L);
  } else {
    int64_t k = 0;
    for (; k + L <= K; k += L, a += block) {
#pragma GCC unroll 1
      for (int64_t l = 0; l < L; ++l) step(a + l);
    }
    for (; k < K; ++k, ++a) step(a);
  }
#pragma GCC unroll 16
  for (int i = 0; i < U; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) acc[i][j].store(c.data + i * c.row + j * c.next);
  }
}

template <class T, int V, bool TRANSPOSED>
void gemm_columns(int64_t M, int64_t K, Left<T> a, Columns<const T> b, Columns<T> c, bool accumulate) {
  constexpr int64_t L = Vec<T>::size;
  const auto rows = [&](int64_t i) { return TRANSPOSED ? a.data + i / L * a.block + i % L : a.data + i * L; };
  int64_t i = 0;
  const auto blocks = [&](auto size) {
    constexpr int U = decltype(size)::value;
    for (; i + U <= M; i += U) gemm_block<T, U, V, TRANSPOSED>(K, rows(i), a.block, b, c.at(i, 0), accumulate);
  };
  // As many accumulators as there are registers for; a block of the transpose must not straddle two of a's.
  if constexpr (kRegisters == 32) {
    constexpr int U = 16 / V;
    blocks(Int<(TRANSPOSED && U > L) ? L : U>());
  } else if constexpr (!TRANSPOSED) {
    blocks(Int<6>());
  }
  blocks(Int<4>());
  blocks(Int<1>());
}

// `registers` columns of B and C.
template <class T, bool TRANSPOSED>
void gemm(int64_t M, int64_t registers, int64_t K, Left<T> a, Columns<const T> b, Columns<T> c, bool accumulate) {
  int64_t j = 0;
  for (; j + 2 <= registers; j += 2) {
    gemm_columns<T, 2, TRANSPOSED>(M, K, a, b.at(0, j), c.at(0, j), accumulate);
  }
  if (j < registers) gemm_columns<T, 1, TRANSPOSED>(M, K, a, b.at(0, j), c.at(0, j), accumulate);
}

}  // namespace dartsfast::DARTSFAST_ISA
