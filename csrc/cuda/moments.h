// Mean and biased variance of image batches from the moments of their chunks, on a device.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime.h"

namespace dartsfast::cuda {

template <class T>
struct ChunkMoments {
  int32_t N, H, W, C;
  T* parts;            // [N * chunks, 2, C] mean and sum of squared deviations, overwritten
  T *mean, *variance;  // [C], null: nowhere
};

template <class T>
void merge_moments(const std::vector<const ChunkMoments<T>*>& calls, Stream stream);

}  // namespace dartsfast::cuda
