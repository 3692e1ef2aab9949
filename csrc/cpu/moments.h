// Mean and biased variance of an image batch from the moments of its chunks.
#pragma once

#include <vector>

#include "kernels.h"
#include "packing.h"

namespace dartsfast {

// part: [N * chunks, 2, C'], overwritten.
template <class T>
void moments(T* part, int64_t N, int64_t H, int64_t W, int64_t C, const Moments<T>& out) {
  const int64_t count = chunks(H, W), rows = chunk_rows(W);
  std::vector<int64_t> pixels(N * count, rows * W);
  for (int64_t n = 0; n < N; ++n) pixels[(n + 1) * count - 1] = (H - (count - 1) * rows) * W;
  kernels<T>().tree_moments(part, pixels.data(), N * count, padded(C));
  for (int64_t c = 0; c < C; ++c) {
    out.mean[c] = part[c];
    out.variance[c] = part[padded(C) + c] / static_cast<T>(N * H * W);
  }
}

}  // namespace dartsfast
