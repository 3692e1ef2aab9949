// gemm_ by blocks of depth, columns and rows; lanes are columns.
#pragma once

#include "../gemm.h"
#include "transpose.h"

namespace dartsfast::DARTSFAST_ISA {

// A tile of results in registers: rows of A, and columns of B in two registers.
constexpr int64_t kTileRows = kRegisters == 32 ? 12 : 6;
template <class T>
constexpr int64_t kTileColumns = 2 * Vec<T>::size;

// Panels fill their memory exactly: the last of a block is padded, and must not reach into what follows.
static_assert(kGemmRows % kTileRows == 0 && kGemmColumns % kTileColumns<float> == 0);
static_assert(kTileRows * kTileColumns<float> <= kGemmTile);

// f(r) for every panel of `step` of the `count` rows or columns.
template <class F>
void each_panel(int64_t count, int64_t step, F f) {
  for (int64_t r = 0; r < count; r += step) f(r, r + step < count ? step : count - r);
}

// A panel [depth, SIDE] of `count` rows of which from(i) points to the first element, with zeros beyond them. The
// rows of the next panel, i < 2 SIDE, are asked for: each is too short for the processor to see where it leads.
template <int64_t SIDE, class T, class Rows>
void pack_rows(Rows from, int64_t depth, int64_t count, T* panel) {
  int64_t k = 0;
  for (; k + 8 <= depth; k += 8) {
    for (int64_t i = 0; i < SIDE && k % 16 == 0; ++i) prefetch<false>(from(SIDE + i) + k, 64);
    // Backwards: the last of a row are zeros that spill over into the next one's first.
    for (int64_t i = (SIDE - 1) / 8 * 8; i >= 0; i -= 8) {
      transpose([&](int64_t j) { return from(i + j) + k; }, count - i, panel + k * SIDE + i, SIDE);
    }
  }
  for (; k < depth; ++k) {
    for (int64_t i = 0; i < SIDE; ++i) panel[k * SIDE + i] = i < count ? from(i)[k] : T(0);
  }
}

// A panel [depth, SIDE] of the first `count` rows of `from`, [count, depth], with zeros beyond them.
template <int64_t SIDE, class T>
void pack(Matrix<const T> from, int64_t depth, int64_t count, T* panel) {
  if (from.column == 1) {
    return pack_rows<SIDE>([&](int64_t i) { return from.at(i, 0).data; }, depth, count, panel);
  }
  for (int64_t k = 0; k < depth; ++k) {
    if (from.row == 1 && count == SIDE) {
#pragma GCC unroll 32
      for (int64_t i = 0; i < SIDE; ++i) panel[k * SIDE + i] = from.data[k * from.column + i];
    } else {
      for (int64_t i = 0; i < SIDE; ++i) panel[k * SIDE + i] = i < count ? *from.at(i, k).data : T(0);
    }
  }
}

// out [kTileRows, kTileColumns] (+)= packed rows times packed columns; `row`: elements from one row to the next.
template <class T>
void gemm_tile(int64_t depth, const T* a, const T* b, T* out, int64_t row, bool add) {
  using V = Vec<T>;
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i) prefetch<true>(out + i * row, sizeof(T) * kTileColumns<T>);
  V acc[kTileRows][2];
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i) acc[i][0] = acc[i][1] = V::zero();
  // Not unrolled: the compiler would load ahead of use and spill accumulators.
#pragma GCC unroll 1
  for (int64_t k = 0; k < depth; ++k, a += kTileRows, b += kTileColumns<T>) {
    const V b0 = V::load(b), b1 = V::load(b + V::size);
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i) {
      const V av = V::set(a[i]);
      acc[i][0] = V::fma(av, b0, acc[i][0]);
      acc[i][1] = V::fma(av, b1, acc[i][1]);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i) {
#pragma GCC unroll 2
    for (int j = 0; j < 2; ++j) {
      T* to = out + i * row + j * V::size;
      (add ? V::load(to) + acc[i][j] : acc[i][j]).store(to);
    }
  }
}

// `add`: to what is in out.
template <class T>
void store_tile(const T* tile, int64_t height, int64_t width, bool add, Matrix<T> out) {
  for (int64_t i = 0; i < height; ++i, tile += kTileColumns<T>) {
    T* row = out.data + i * out.row;
    each_register<T>(width, [&](int64_t c, auto left) {
      const Vec<T> sum = Vec<T>::load(tile + c);
      store_channels(add ? load_channels(row + c, left) + sum : sum, row + c, left);
    });
  }
}

template <class T>
void gemm_part(const Gemm<T>& g, T* memory) {
  T* columns = memory;                            // [kGemmColumns / kTileColumns, depth, kTileColumns]
  T* rows = columns + kGemmColumns * kGemmDepth;  // [kGemmRows / kTileRows, depth, kTileRows]
  T* tile = rows + kGemmRows * kGemmDepth;        // [kTileRows, kTileColumns]
  each_panel(g.N, kGemmColumns, [&](int64_t n, int64_t N) {
    each_panel(g.K, kGemmDepth, [&](int64_t k, int64_t depth) {
      const bool add = g.accumulate || k > 0;
      const Matrix<const T> b = g.b.at(k, n);
      each_panel(N, kTileColumns<T>, [&](int64_t c, int64_t width) {
        pack<kTileColumns<T>>({b.at(0, c).data, b.column, b.row}, depth, width, columns + c * depth);
      });
      each_panel(g.M, kGemmRows, [&](int64_t m, int64_t M) {
        each_panel(M, kTileRows, [&](int64_t r, int64_t height) {
          pack<kTileRows>(g.a.at(m + r, k), depth, height, rows + r * depth);
        });
        each_panel(N, kTileColumns<T>, [&](int64_t c, int64_t width) {
          each_panel(M, kTileRows, [&](int64_t r, int64_t height) {
            const Matrix<T> out = g.out.at(m + r, n + c);
            const T *left = rows + r * depth, *right = columns + c * depth;
            if (height == kTileRows && width == kTileColumns<T>) {
              gemm_tile(depth, left, right, out.data, out.row, add);
            } else {
              gemm_tile(depth, left, right, tile, kTileColumns<T>, false);
              store_tile(tile, height, width, add, out);
            }
          });
        });
      });
    });
  });
}

}  // namespace dartsfast::DARTSFAST_ISA
