// locked_linear_: products of rows wherever they lie; lanes are columns.
#pragma once

#include "../locked_linear.h"
#include "gemm.kernel.h"

namespace dartsfast::DARTSFAST_ISA {

// Of `left` columns those from `first` on; of a whole tile, where `left` is a constant, a register's.
inline int64_t columns_from(int64_t left, int64_t first) { return left > first ? left - first : 0; }
template <class Whole>
Whole columns_from(Whole, int64_t) {
  return {};
}

// A tile of kTileRows rows and two registers of columns, `left` of them there, from v on; `a` is packed.
template <class T, class Left>
void row_tile(int64_t depth, const T* a, const T* const* b, int64_t v, T* const* out, bool add, Left left) {
  using V = Vec<T>;
  const auto second = columns_from(left, V::size);
  V acc[kTileRows][2];
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i) {
    acc[i][0] = add ? load_channels(out[i], left) : V::zero();
    acc[i][1] = add ? load_channels(out[i] + V::size, second) : V::zero();
  }
#pragma GCC unroll 1
  for (int64_t k = 0; k < depth; ++k, a += kTileRows) {
    const T* row = b[k] + v;
    const V b0 = load_channels(row, left), b1 = load_channels(row + V::size, second);
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i) {
      const V av = V::set(a[i]);
      acc[i][0] = V::fma(av, b0, acc[i][0]);
      acc[i][1] = V::fma(av, b1, acc[i][1]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i) {
    store_channels(acc[i][0], out[i], left);
    store_channels(acc[i][1], out[i] + V::size, second);
  }
}

// Columns [begin, end) of the results.
template <class T>
void row_product(const RowProduct<T>& p, int64_t begin, int64_t end, T* memory) {
  constexpr int64_t step = kTileColumns<T>;
  T *spare = memory, *packed = memory + 32;  // a row that nobody reads, [rows / kTileRows, depth, kTileRows]
  each_panel(p.rows, kTileRows, [&](int64_t r, int64_t height) {
    pack<kTileRows>(p.a.at(r, 0), p.depth, height, packed + r * p.depth);
  });
  each_panel(end - begin, step, [&](int64_t c, int64_t width) {
    const int64_t v = begin + c;
    each_panel(p.rows, kTileRows, [&](int64_t r, int64_t height) {
      T* out[kTileRows];
      for (int64_t i = 0; i < kTileRows; ++i) out[i] = i < height ? p.out[r + i] + v : spare;
      // The next columns, a tile's share at a time: so many rows that the processor does not see where they lead.
      for (int64_t k = r * p.depth / p.rows; k < (r + height) * p.depth / p.rows; ++k) prefetch<false>(p.b[k] + v + step, 64);
      for (int64_t i = 0; i < height; ++i) prefetch<true>(out[i] + step, 64);
      const T* a = packed + r * p.depth;
      if (width == step) {
        row_tile(p.depth, a, p.b, v, out, p.add, Int<step>());
      } else {
        row_tile(p.depth, a, p.b, v, out, p.add, width);
      }
    });
  });
}

template <class T>
void row_dots(const RowDots<T>& p, T* memory) {
  constexpr int64_t R = kTileRows, C = kTileColumns<T>;
  const int64_t rows = (p.rows + R - 1) / R * R, others = (p.others + C - 1) / C * C;
  // [rows, others]; panels of A [rows / R, depth, R] and of B [others / C, depth, C].
  T *sums = memory, *left = sums + rows * others, *right = left + rows * kGemmDepth;
  each_panel(p.columns, kGemmDepth, [&](int64_t v, int64_t depth) {
    each_panel(p.rows, R, [&](int64_t r, int64_t height) {
      pack_rows<R>([&](int64_t i) { return p.a[r + i < p.rows ? r + i : r] + v; }, depth, height, left + r * depth);
    });
    each_panel(p.others, C, [&](int64_t k, int64_t width) {
      pack_rows<C>([&](int64_t i) { return p.b[k + i < p.others ? k + i : k] + v; }, depth, width, right + k * depth);
    });
    for (int64_t k = 0; k < others; k += C) {
      for (int64_t r = 0; r < rows; r += R) {
        gemm_tile(depth, left + r * depth, right + k * depth, sums + r * others + k, others, v > 0);
      }
    }
  });
  for (int64_t i = 0; i < p.rows; ++i) {
    for (int64_t k = 0; k < p.others; ++k) p.out[i * p.others + k] = sums[i * others + k];
  }
}

}  // namespace dartsfast::DARTSFAST_ISA
