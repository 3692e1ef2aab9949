// The tree of csrc/order.h over the partial results of chunks, pairwise, neighbours first, eight leaves at a time. What a
// node comes to takes the place of its first leaf.
#pragma once

#include "../alpha_softmax.h"
#include "runtime.h"

namespace dartsfast::cuda {

// Partial sums of a column, `step` elements apart; they are overwritten. Node i of those of `span` leaves.
template <class T>
struct Sums {
  using Value = T;
  T* data;
  int64_t step;

  __device__ T load(int i, int span) const { return data[i * (span * step)]; }
  __device__ void store(int i, int span, T sum) const { data[i * (span * step)] = sum; }
  __device__ static T join(T a, T b) { return a + b; }
};

// Mean and sum of squared deviations of some pixels.
template <class T>
struct Spread {
  T mean, squares;
  uint32_t pixels;  // of more there would be spills
};

// How many pixels the chunks before one have, image after image.
struct Chunks {
  int32_t H, W, rows, count;  // rows of a chunk, chunks of an image
  __device__ int64_t before(int64_t chunk) const {
    const int64_t y = chunk % count * rows;
    return (chunk / count * H + (y < H ? y : H)) * W;
  }
};

// Moments of a column of chunks, mean and sum of squared deviations `apart` elements from each other, chunks `step`
// elements; they are overwritten. Chan et al. 1979, as tree_moments in csrc/cpu/reduce.h.
template <class T>
struct Moments {
  using Value = Spread<T>;
  T* data;
  int64_t step, apart;
  Chunks chunks;
  int64_t all;  // chunks

  __device__ Value load(int64_t i, int64_t span) const {
    const int64_t first = i * span, end = first + span < all ? first + span : all;
    const T* p = data + i * (span * step);
    return {p[0], p[apart], static_cast<uint32_t>(chunks.before(end) - chunks.before(first))};
  }
  __device__ void store(int64_t i, int64_t span, const Value& v) const {
    T* const p = data + i * (span * step);
    p[0] = v.mean, p[apart] = v.squares;
  }
  __device__ static Value join(const Value& a, const Value& b) {
    const uint32_t pixels = a.pixels + b.pixels;
    const T share = static_cast<T>(b.pixels) / static_cast<T>(pixels), w = static_cast<T>(a.pixels) * share;
    const T d = b.mean - a.mean;
    return {fused(d, share, a.mean), fused(d * d, w, a.squares + b.squares), pixels};
  }
};

// What the leaves from i on, at most 2^LEVELS of `count`, come to.
template <int LEVELS, class Column>
__device__ typename Column::Value branch(const Column& column, int i, int count, int span) {
  if constexpr (LEVELS == 0) {
    return column.load(i, span);
  } else {
    const auto left = branch<LEVELS - 1>(column, i, count, span);
    const int next = i + (1 << (LEVELS - 1));
    return next < count ? Column::join(left, branch<LEVELS - 1>(column, next, count, span)) : left;
  }
}

// Leave in a column's place 0 what its `count` leaves come to. The `lanes` threads that share a column are numbered by
// `lane`; all threads of the block call it, with the same count, `here` where their column is one.
template <class Column>
__device__ void tree(const Column& column, bool here, int count, int lane, int lanes) {
  for (int span = 1; count > 1; span *= 8) {
    for (int i = 8 * lane; here && i < count; i += 8 * lanes) column.store(i, span, branch<3>(column, i, count, span));
    __syncthreads();
    count = (count + 7) / 8;
  }
}

}  // namespace dartsfast::cuda
