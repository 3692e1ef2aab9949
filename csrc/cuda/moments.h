// Mean and biased variance of images from the moments of their chunks, on a device.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime.h"

namespace dartsfast::cuda {

template <class T>
struct ChunkMoments {
  T* parts;  // [N * chunks, 2, C]: mean and sum of squared deviations; overwritten
  int32_t N, H, W, C;
  T *mean, *variance;  // [C], null: not asked for
};

template <class T>
void moments(const std::vector<const ChunkMoments<T>*>& calls, Stream stream);

}  // namespace dartsfast::cuda
