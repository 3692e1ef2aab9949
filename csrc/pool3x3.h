// What the kernels of pool3x3 are given; the contract is in dartsfast/ops/pool3x3.py.
#pragma once

#include <array>

#include "array.h"

namespace dartsfast {

template <class T>
struct Pool3x3 {
  int64_t N, H, W, C, Ho, Wo, stride;
  StoredImage x;
  bool with[2];  // whether there is the maximum, and the average
  void* z[2];    // [N, Ho, Wo, C] of each, stored alike, forward
  T* moments;    // [2, N * chunks, 2, C'], forward; null: not asked for
  // Backward.
  Image<const T> g[2];      // gradient of the node, or of z itself
  Image<const T> saved[2];  // z of the forward, null data: made again where there is coef
  const T* coef[2];         // [4, C'], null: g is dz itself
  const T* skip;            // what the node's g is multiplied by and added to base; null: nothing
  Image<T> dx;
  Image<const T> base;  // what dx is added to, may be its memory; null data: nothing
};

// Maximum, then average.
template <class T>
using Both = std::array<T, 2>;

// What backward is given beside x, and what it writes. Images have adjacent channels.
template <class T>
struct Pool3x3Gradients {
  Both<bool> with = {true, true};
  Both<Array> g, z;          // [N, Ho, Wo, C]; no z: made again where there is coef
  Both<const T*> coef = {};  // [4, C]; none: g is dz itself
  const T* skip = nullptr;   // the weight of a skip at stride 1, whose gradient is added to base; or none
  Array dx;                  // [N, H, W, C]
  Array base;                // what dx is added to, may be its very memory; or none
};

}  // namespace dartsfast
