// gemm_: product.h's tiles over a matrix of results. A block sum of csrc/gemm.h is a chain in a register, and is added to
// another register where its 320 products end: K is never shared between blocks, so that nothing is left to chance.
//
// Tiles are 64 x 64 of float32, where there are enough of them to fill a device of 108 or 132 multiprocessors, else 32 x 32: an
// RNN's time step has [256, 300] x [300, 600], 40 tiles of the first and 152 of the second kind. Bound: float32
// arithmetic for large K; at these sizes how many blocks there are.
#include "gemm.h"

#include "group.h"
#include "product.h"

namespace dartsfast::cuda {
namespace {

constexpr int64_t kEnough = 128;  // blocks

// Results of a thread along either side of a large tile: as many as registers hold.
template <class T>
constexpr int kLarge = sizeof(T) == 4 ? 4 : 2;

// One side of the product: element i along the side, k in depth.
template <class T, bool BY_DEPTH>
struct Side {
  static constexpr bool by_depth = BY_DEPTH;
  const T* data;
  int64_t step, depth_step, count;  // elements between neighbours along the side, and in depth; elements of the side
  __device__ T operator()(int i, int64_t k) const { return i < count ? data[i * step + k * depth_step] : T(0); }
};

template <class T, int N, bool A_BY_DEPTH, bool B_BY_DEPTH>
__global__ void __launch_bounds__(256, 2) gemm_kernel(const __grid_constant__ Gemm<T> g) {
  using Tile = Product<T, N, N>;
  __shared__ typename Tile::Shared shared;
  const int64_t across = (g.N + Tile::kColumns - 1) / Tile::kColumns;
  const int64_t i = blockIdx.x / across * Tile::kRows, j = blockIdx.x % across * Tile::kColumns;
  const Side<T, A_BY_DEPTH> a{g.a.data + i * g.a.row, g.a.row, g.a.column, g.M - i};
  const Side<T, B_BY_DEPTH> b{g.b.data + j * g.b.column, g.b.column, g.b.row, g.N - j};
  T* const out = g.out.data + i * g.out.row + j;
  Tile tile;
  tile.clear();
  BlockSums<T, N, N> sums;
  sums.add = g.accumulate;
  if (sums.add) {
    Tile::each([&](int r, int c, int row, int column) {
      if (row < a.count && column < b.count) sums.total[r][c] = out[row * g.out.row + column];
    });
  }
  tile.chain(shared, a, b, g.K, kAllRows, [&](int64_t k) { sums.after(tile, k, g.K); });
  Tile::each([&](int r, int c, int row, int column) {
    if (row < a.count && column < b.count) out[row * g.out.row + column] = sums.total[r][c];
  });
}

template <class T, int N>
int64_t tiles(const Gemm<T>& g) {
  return blocks_of(g.M, Product<T, N, N>::kRows) * blocks_of(g.N, Product<T, N, N>::kColumns);
}

// The kernel that reads both sides as they lie in memory.
template <class T, int N>
void launch_tiles(const Gemm<T>& g, Stream stream) {
  const bool a = g.a.column == 1, b = g.b.row == 1;
  const auto kernel = a ? (b ? gemm_kernel<T, N, true, true> : gemm_kernel<T, N, true, false>)
                        : (b ? gemm_kernel<T, N, false, true> : gemm_kernel<T, N, false, false>);
  launch(kernel, dim3(tiles<T, N>(g)), dim3(256), 0, stream, g);
}

}  // namespace

template <class T>
void gemm(const std::vector<const Gemm<T>*>& calls, Stream stream) {
  for (const Gemm<T>* call : calls) {
    if (tiles<T, kLarge<T>>(*call) >= kEnough) {
      launch_tiles<T, kLarge<T>>(*call, stream);
    } else {
      launch_tiles<T, 2>(*call, stream);
    }
  }
}

template void gemm(const std::vector<const Gemm<float>*>&, Stream);
template void gemm(const std::vector<const Gemm<double>*>&, Stream);

}  // namespace dartsfast::cuda
