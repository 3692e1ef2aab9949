// What the kernels of pool3x3 are given on a device.
#pragma once

#include <cstdint>
#include <vector>

#include "../storage.h"
#include "arrivals.h"
#include "runtime.h"
#include "statistic.h"

namespace dartsfast::cuda {

template <class T>
struct PoolSize {
  int32_t N, H, W, C, Ho, Wo, stride;
  StoredImage x;
};

template <class T>
struct Pool3x3 {
  PoolSize<T> size;
  void* z[2];               // [N, Ho, Wo, C], maximum and average
  Storage storage;          // of z
  Statistic<T, 4> stat[2];  // of either, for the edges that read x
  Arrivals arrivals;        // for both
};

template <class T>
struct Pool3x3Backward {
  PoolSize<T> size;
  Image<const T> g[2];   // gradient of the node, or of z itself
  Image<const T> z[2];   // null data: made again where there is coef
  const T* coef[2];      // [4, C], null: g is dz itself
  const T* skip;         // what g is multiplied by and added to base; null: nothing
  Image<T> dx;
  Image<const T> base;  // what dx is added to, may be its memory; null data: nothing
};

template <class T>
void pool3x3(const std::vector<const Pool3x3<T>*>& calls, Stream stream);
template <class T>
void pool3x3_backward(const std::vector<const Pool3x3Backward<T>*>& calls, Stream stream);

}  // namespace dartsfast::cuda
