// Matrix products in the order of csrc/gemm.h: tiles of both sides in shared memory, sums in registers, a chain of fma a
// result. Float32 without tensor cores, whose products have other bits.
#pragma once

#include <cstdint>

#include "../alpha_softmax.h"
#include "../gemm.h"
#include "pack.h"
#include "runtime.h"

namespace dartsfast::cuda {

// A block is 16 x 16 threads; each has R x C neighbouring results of the tile of 16 R x 16 C. Of the products' depth 8
// are in shared memory at a time, while the next 8 are on their way into registers (16 of them need more registers than
// a thread has at 4 x 4). Per thread and depth R x C fma
// stand against two loads from shared memory: at 4 x 4 the loads of a warp take 3 of the 16 x 32 / 128 = 4 cycles
// that its fma take.
template <class T, int R, int C>
class Product {
  static_assert(R % 2 == 0 && C % 2 == 0);  // each thread brings R / 2 and C / 2 elements at a time

 public:
  static constexpr int kThreads = 256, kRows = 16 * R, kColumns = 16 * C, kDepth = 8;

  // A row of one side is 4 elements longer than the tile: 8 neighbours in depth times 4 along the side, which a warp
  // stores at once, are in different banks.
  struct Shared {
    alignas(4 * sizeof(T)) T a[2][kDepth][kRows + 4], b[2][kDepth][kColumns + 4];
  };

  T sum[R][C];

  __device__ void clear() {
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = 0; c < C; ++c) sum[r][c] = 0;
    }
  }
  // Of the tile's rows and columns, this thread's first.
  __device__ static int row() { return threadIdx.x / 16 * R; }
  __device__ static int column() { return threadIdx.x % 16 * C; }
  // f(r, c, row, column) for each of the thread's results.
  template <class F>
  __device__ static void each(F f) {
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = 0; c < C; ++c) f(r, c, row() + r, column() + c);
    }
  }

  // Go on with the chains by the products of `depth`: a(i, k) and b(j, k) are elements of the sides, 0 where i or j is
  // beyond the matrix, and by_depth says whether neighbours in depth are neighbours in memory. Of the thread's rows those take
  // part whose bits are set. after(k) follows the products before k, at every multiple of 8 and at the end.
  template <class A, class B, class After>
  __device__ void chain(Shared& shared, const A& a, const B& b, int64_t depth, unsigned rows, After after) {
    T next_a[R / 2], next_b[C / 2];
    fetch(a, 0, depth, next_a), fetch(b, 0, depth, next_b);
    keep(a, next_a, shared.a[0]), keep(b, next_b, shared.b[0]);
    __syncthreads();
    int stage = 0;
#pragma unroll 1
    for (int64_t k = 0; k < depth; k += kDepth, stage ^= 1) {
      const bool more = k + kDepth < depth;
      if (more) fetch(a, k + kDepth, depth, next_a), fetch(b, k + kDepth, depth, next_b);
      if (k + kDepth <= depth) {
#pragma unroll 2  // all of them would have all their loads in registers
        for (int i = 0; i < kDepth; ++i) step(shared.a[stage][i], shared.b[stage][i], rows);
      } else {
        const int left = static_cast<int>(depth - k);
#pragma unroll 1
        for (int i = 0; i < left; ++i) step(shared.a[stage][i], shared.b[stage][i], rows);
      }
      after(more ? k + kDepth : depth);
      if (more) keep(a, next_a, shared.a[stage ^ 1]), keep(b, next_b, shared.b[stage ^ 1]);
      __syncthreads();
    }
  }

 private:
  // Where element `slot` of a thread stands in a tile of SIDE elements by the depth.
  template <int SIDE, bool BY_DEPTH>
  struct Place {
    int side, depth;
    __device__ explicit Place(int slot) {
      const int i = slot * kThreads + threadIdx.x;
      side = BY_DEPTH ? i / 8 : i % SIDE;
      depth = BY_DEPTH ? i % 8 : i / SIDE;
    }
  };

  template <class Side, int N>
  __device__ static void fetch(const Side& side, int64_t k, int64_t depth, T (&next)[N]) {
#pragma unroll
    for (int slot = 0; slot < N; ++slot) {
      const Place<32 * N, Side::by_depth> place(slot);
      next[slot] = k + place.depth < depth ? side(place.side, k + place.depth) : T(0);
    }
  }
  template <class Side, int N, int PITCH>
  __device__ static void keep(const Side&, const T (&next)[N], T (&tile)[kDepth][PITCH]) {
#pragma unroll
    for (int slot = 0; slot < N; ++slot) {
      const Place<32 * N, Side::by_depth> place(slot);
      tile[place.depth][place.side] = next[slot];
    }
  }
  __device__ void step(const T* a, const T* b, unsigned rows) {
    const auto left = Pack<T, R>::load(a + row());
    const auto right = Pack<T, C>::load(b + column());
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = 0; c < C; ++c) {
        if (rows >> r & 1) sum[r][c] = fused(left.v[r], right.v[c], sum[r][c]);
      }
    }
  }
};

constexpr unsigned kAllRows = ~0u;

// The block sums of csrc/gemm.h of a thread's results, added up in order; `add` where there was something before.
template <class T, int R, int C>
struct BlockSums {
  T total[R][C];
  bool add = false;

  __device__ BlockSums() {
#pragma unroll
    for (int r = 0; r < R; ++r) {
#pragma unroll
      for (int c = 0; c < C; ++c) total[r][c] = 0;
    }
  }
  // After the products before k of K: a block's sum goes over where it ends, and the next begins.
  __device__ void after(Product<T, R, C>& tile, int64_t k, int64_t K) {
    if (k % kGemmDepth != 0 && k != K) return;
    tile.each([&](int r, int c, int, int) { total[r][c] = add ? total[r][c] + tile.sum[r][c] : tile.sum[r][c]; });
    tile.clear();
    add = true;
  }
};

}  // namespace dartsfast::cuda
