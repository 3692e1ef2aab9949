// locked_linear_: products of what locked dropout left. Which features those are is a batch element's own affair, and is
// known on the device only: a first launch lists them, ascending; then come product.h's tiles with rows and columns
// looked up in the list. Grids are those of all features: a tile beyond what is left has nothing to do. Neighbouring
// blocks are different batch elements at the same columns, which take most rows of the weight from one another's caches.
//
// Forward and the inputs' gradient, a batch element a product: what is dropped costs nothing, as on a CPU.
// Gradient of the weight: a tile is 32 features by 64 columns, whose chains go on through batch elements and time
// steps; of a batch element those rows of the tile take part that it keeps. Other rows wait for them: at a rate of 0.75
// a quarter of a tile's work is useful, and each gradient is read once a tile, not once a feature.
// Bound: float32 arithmetic, of [35, 212] x [212, 10000] 64 times for Penn Treebank 2 x 4.7 G of them forward.
#include "locked_linear.h"

#include "group.h"
#include "product.h"

namespace dartsfast::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
// Of a thread: time steps or features, and columns of the results.
constexpr int kAlong = 2;
template <class T>
constexpr int kAcross = sizeof(T) == 4 ? 4 : 2;
template <class T>
using Tile = Product<T, kAlong, kAcross<T>>;

template <class T>
__device__ T factor(const LockedLinear<T>& a, int64_t n, int64_t k) {
  return a.mask[n * a.mask_stride[0] + k * a.mask_stride[1]];
}

template <class T>
__device__ T* input(const LockedLinear<T>& a, int64_t t, int64_t n, int64_t k) {
  return a.x + t * a.x_stride[0] + n * a.x_stride[1] + k * a.x_stride[2];
}

// The features of batch element blockIdx.x that its mask keeps.
template <class T>
__global__ void __launch_bounds__(kThreads) locked_features_kernel(const __grid_constant__ Locked<T> call) {
  __shared__ int warps[kWarps];
  const LockedLinear<T>& a = call.args;
  const int n = blockIdx.x, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int32_t* const list = call.features + n * a.features;
  int found = 0;
  for (int64_t first = 0; first < a.features; first += kThreads) {
    const int64_t k = first + threadIdx.x;
    const bool keeps = k < a.features && factor(a, n, k) != 0;
    const unsigned votes = __ballot_sync(~0u, keeps);
    if (lane == 0) warps[warp] = __popc(votes);
    __syncthreads();
    int place = found + __popc(votes & ((1u << lane) - 1));
    for (int w = 0; w < kWarps; ++w) {
      place += w < warp ? warps[w] : 0;
      found += warps[w];
    }
    if (keeps) list[place] = k;
    __syncthreads();  // the counts have been read
  }
  if (threadIdx.x == 0) call.counts[n] = found;
}

// x * mask of a batch element's time steps from t0 on, by the features that it keeps.
template <class T>
struct KeptInputs {
  static constexpr bool by_depth = true;
  const LockedLinear<T>& a;
  int64_t n, t0;
  const int32_t* list;
  __device__ T operator()(int i, int64_t k) const {
    return t0 + i < a.steps ? *input(a, t0 + i, n, list[k]) * factor(a, n, list[k]) : T(0);
  }
};

// Rows of the weight that a batch element keeps, columns from v0 on.
template <class T>
struct KeptWeights {
  static constexpr bool by_depth = false;
  const LockedLinear<T>& a;
  int64_t v0;
  const int32_t* list;
  __device__ T operator()(int j, int64_t k) const {
    return v0 + j < a.columns ? a.weight[list[k] * a.columns + v0 + j] : T(0);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2) locked_linear_kernel(const __grid_constant__ Locked<T> call) {
  __shared__ typename Tile<T>::Shared shared;
  const LockedLinear<T>& a = call.args;
  const int64_t across = (a.columns + Tile<T>::kColumns - 1) / Tile<T>::kColumns;
  const int64_t n = blockIdx.x % a.batch, place = blockIdx.x / a.batch;
  const int64_t v0 = place % across * Tile<T>::kColumns, t0 = place / across * Tile<T>::kRows;
  const int32_t* const list = call.features + n * a.features;
  Tile<T> tile;
  tile.clear();
  tile.chain(shared, KeptInputs<T>{a, n, t0, list}, KeptWeights<T>{a, v0, list}, call.counts[n], kAllRows,
             [](int64_t) {});
  Tile<T>::each([&](int r, int c, int row, int column) {
    const int64_t t = t0 + row, v = v0 + column;
    if (t < a.steps && v < a.columns) a.y[(n * a.steps + t) * a.columns + v] = tile.sum[r][c];
  });
}

// A batch element's gradients of the results, time steps from t0 on, by columns.
template <class T>
struct StepGradients {
  static constexpr bool by_depth = true;
  const LockedLinear<T>& a;
  int64_t n, t0;
  __device__ T operator()(int i, int64_t v) const {
    return t0 + i < a.steps ? a.y[(n * a.steps + t0 + i) * a.columns + v] : T(0);
  }
};

// The rows of the weight in a batch element's list from j0 on, by columns.
template <class T>
struct ListedWeights {
  static constexpr bool by_depth = true;
  const LockedLinear<T>& a;
  const int32_t* list;
  int64_t j0, count;
  __device__ T operator()(int j, int64_t v) const {
    return j0 + j < count ? a.weight[list[j0 + j] * a.columns + v] : T(0);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2) locked_input_gradient_kernel(const __grid_constant__ Locked<T> call) {
  using Square = Product<T, kAlong, kAlong>;
  __shared__ typename Square::Shared shared;
  const LockedLinear<T>& a = call.args;
  const int64_t across = (a.features + Square::kColumns - 1) / Square::kColumns;
  const int64_t n = blockIdx.x % a.batch, place = blockIdx.x / a.batch;
  const int64_t j0 = place % across * Square::kColumns, t0 = place / across * Square::kRows;
  const int32_t* const list = call.features + n * a.features;
  const int64_t count = call.counts[n];
  // The dropped ones of as many features as the tile has columns.
  Square::each([&](int, int, int row, int column) {
    const int64_t t = t0 + row, k = j0 + column;
    if (t < a.steps && k < a.features && factor(a, n, k) == 0) *input(a, t, n, k) = 0;
  });
  if (j0 >= count) return;
  Square tile;
  BlockSums<T, kAlong, kAlong> sums;
  tile.clear();
  tile.chain(shared, StepGradients<T>{a, n, t0}, ListedWeights<T>{a, list, j0, count}, a.columns, kAllRows,
             [&](int64_t v) { sums.after(tile, v, a.columns); });
  Square::each([&](int r, int c, int row, int column) {
    const int64_t t = t0 + row, j = j0 + column;
    if (t < a.steps && j < count) *input(a, t, n, list[j]) = sums.total[r][c] * factor(a, n, list[j]);
  });
}

// x * mask of features from k0 on by a batch element's time steps; what is dropped is not read.
template <class T>
struct FeatureInputs {
  static constexpr bool by_depth = false;
  const LockedLinear<T>& a;
  int64_t n, k0;
  __device__ T operator()(int i, int64_t t) const {
    const T f = k0 + i < a.features ? factor(a, n, k0 + i) : T(0);
    return f != 0 ? *input(a, t, n, k0 + i) * f : T(0);
  }
};

// A batch element's gradients of the results, columns from v0 on, by time steps.
template <class T>
struct ColumnGradients {
  static constexpr bool by_depth = false;
  const LockedLinear<T>& a;
  int64_t n, v0;
  __device__ T operator()(int j, int64_t t) const {
    return v0 + j < a.columns ? a.y[(n * a.steps + t) * a.columns + v0 + j] : T(0);
  }
};

template <class T>
__global__ void __launch_bounds__(kThreads, 2) locked_weight_gradient_kernel(const __grid_constant__ LockedLinear<T> a) {
  __shared__ typename Tile<T>::Shared shared;
  const int64_t across = (a.columns + Tile<T>::kColumns - 1) / Tile<T>::kColumns;
  const int64_t v0 = blockIdx.x % across * Tile<T>::kColumns, k0 = blockIdx.x / across * Tile<T>::kRows;
  const auto place = [&](int row, int column) {
    return k0 + row < a.features && v0 + column < a.columns ? a.weight + (k0 + row) * a.columns + v0 + column : nullptr;
  };
  Tile<T> tile;
  Tile<T>::each([&](int r, int c, int row, int column) {
    const T* const at = place(row, column);
    tile.sum[r][c] = at ? *at : T(0);
  });
  for (int64_t n = 0; n < a.batch; ++n) {
    unsigned rows = 0;
#pragma unroll
    for (int r = 0; r < kAlong; ++r) {
      const int64_t k = k0 + Tile<T>::row() + r;
      if (k < a.features && factor(a, n, k) != 0) rows |= 1u << r;
    }
    tile.chain(shared, FeatureInputs<T>{a, n, k0}, ColumnGradients<T>{a, n, v0}, a.steps, rows, [](int64_t) {});
  }
  Tile<T>::each([&](int r, int c, int row, int column) {
    if (T* const at = place(row, column)) *at = tile.sum[r][c];
  });
}

// The lists of a call, which its next launch reads.
template <class T>
void list_features(const Locked<T>& call, Stream stream) {
  launch(locked_features_kernel<T>, dim3(call.args.batch), dim3(kThreads), 0, stream, call);
}

}  // namespace

template <class T>
void locked_linear(const std::vector<const Locked<T>*>& calls, Stream stream) {
  for (const Locked<T>* call : calls) {
    const LockedLinear<T>& a = call->args;
    list_features(*call, stream);
    const int64_t tiles = blocks_of(a.columns, Tile<T>::kColumns) * blocks_of(a.steps, Tile<T>::kRows);
    launch(locked_linear_kernel<T>, dim3(tiles * a.batch), dim3(kThreads), 0, stream, *call);
  }
}

template <class T>
void locked_input_gradient(const std::vector<const Locked<T>*>& calls, Stream stream) {
  for (const Locked<T>* call : calls) {
    const LockedLinear<T>& a = call->args;
    list_features(*call, stream);
    const int64_t side = Product<T, kAlong, kAlong>::kRows;
    const dim3 grid(blocks_of(a.features, side) * blocks_of(a.steps, side) * a.batch);
    launch(locked_input_gradient_kernel<T>, grid, dim3(kThreads), 0, stream, *call);
  }
}

template <class T>
void locked_weight_gradient(const std::vector<const Locked<T>*>& calls, Stream stream) {
  for (const Locked<T>* call : calls) {
    const LockedLinear<T>& a = call->args;
    const dim3 grid(blocks_of(a.columns, Tile<T>::kColumns) * blocks_of(a.features, Tile<T>::kRows));
    launch(locked_weight_gradient_kernel<T>, grid, dim3(kThreads), 0, stream, a);
  }
}

template void locked_linear(const std::vector<const Locked<float>*>&, Stream);
template void locked_linear(const std::vector<const Locked<double>*>&, Stream);
template void locked_input_gradient(const std::vector<const Locked<float>*>&, Stream);
template void locked_input_gradient(const std::vector<const Locked<double>*>&, Stream);
template void locked_weight_gradient(const std::vector<const Locked<float>*>&, Stream);
template void locked_weight_gradient(const std::vector<const Locked<double>*>&, Stream);

}  // namespace dartsfast::cuda
