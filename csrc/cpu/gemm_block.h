// C[i, j] (+)= sum over k, ascending, of fma(A[i, k], B[k, j]): the pointwise convolution and its gradients.
#pragma once

#include "ahead.h"

namespace dartsfast::DARTSFAST_ISA {

// What multiplies from the left: a tile of pixels by channels in blocks, [channels / lanes, pixels, lanes], `next`
// elements from block to block. Constant distances in a block: as variables they would take more registers than there
// are, and a load more for every multiplication.
template <class T>
struct Tile {
  const T* data;
  int64_t next;
};

// B and C: row pitch, and elements from one register of columns to the next.
template <class T>
struct Columns {
  T* data;
  int64_t row, next;
  Columns at(int64_t i, int64_t registers) const { return {data + i * row + registers * next, row, next}; }
};

// Rows of C are pixels and k runs over channels; TRANSPOSED: they are channels of one block, k runs over pixels, and C
// is added to. Always inlined: a call takes its arguments back from the stack just after they were written there, which
// cost as much time as the 16 steps of C=16.
template <class T, int U, int V, bool TRANSPOSED>
[[gnu::always_inline]] inline void gemm_block(int64_t K, Tile<T> a, Columns<const T> b, Columns<T> c) {
  using Lane = Vec<T>;
  constexpr int row = TRANSPOSED ? 1 : Lane::size, column = TRANSPOSED ? Lane::size : 1;
  Lane acc[U][V];
#pragma GCC unroll 16
  for (int i = 0; i < U; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) {
      acc[i][j] = TRANSPOSED ? Lane::load(c.data + i * c.row + j * c.next) : Lane::zero();
    }
  }
  for (int64_t left = K; left > 0; left -= Lane::size, a.data += a.next) {
    const int64_t depth = TRANSPOSED || left < Lane::size ? left : Lane::size;
    // Not unrolled: the compiler would run out of registers and spill accumulators.
#pragma GCC unroll 1
    for (int64_t k = 0; k < depth; ++k, b.data += b.row) {
      Lane bv[V];
#pragma GCC unroll 2
      for (int j = 0; j < V; ++j) bv[j] = Lane::load(b.data + j * b.next);
#pragma GCC unroll 16
      for (int i = 0; i < U; ++i) {
        const Lane av = Lane::set(a.data[k * column + i * row]);
#pragma GCC unroll 2
        for (int j = 0; j < V; ++j) acc[i][j] = Lane::fma(av, bv[j], acc[i][j]);
      }
    }
    if constexpr (TRANSPOSED) break;
  }
#pragma GCC unroll 16
  for (int i = 0; i < U; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < V; ++j) acc[i][j].store(c.data + i * c.row + j * c.next);
  }
}

// Rows of C: `groups` times `count`, groups `apart` elements from each other; in A they follow each other.
struct Rows {
  int64_t count, groups = 1, apart = 0;
};

template <class T, int V, bool TRANSPOSED>
void gemm_columns(Rows rows, int64_t K, Tile<T> a, Columns<const T> b, Columns<T> c, Ahead& ahead) {
  constexpr int row = TRANSPOSED ? 1 : Vec<T>::size;
  for (; rows.groups > 0; --rows.groups, a.data += rows.count * row, c.data += rows.apart) {
    // 8 sums keep two units of four cycles busy. 12 on AVX2 would save loads, of which there are few, and lose a
    // fifth between two blocks at C=16.
    each_block<(kRegisters == 32 ? 16 : 8) / V>(rows.count, [&](int64_t i, auto size) {
      constexpr int U = decltype(size)::value;
      gemm_block<T, U, V, TRANSPOSED>(K, {a.data + i * row, a.next}, b, c.at(i, 0));
      ahead.some();
    });
  }
}

// `registers` columns of C, two for all rows at a time: what they take of B stays in the first cache. Between blocks
// some of what is `ahead` is asked for.
template <class T, bool TRANSPOSED = false>
void gemm(Rows rows, int64_t registers, int64_t K, Tile<T> a, Columns<const T> b, Columns<T> c, Ahead& ahead) {
  int64_t j = 0;
  for (; j + 2 <= registers; j += 2) gemm_columns<T, 2, TRANSPOSED>(rows, K, a, b.at(0, j), c.at(0, j), ahead);
  if (j < registers) gemm_columns<T, 1, TRANSPOSED>(rows, K, a, b.at(0, j), c.at(0, j), ahead);
}

}  // namespace dartsfast::DARTSFAST_ISA
