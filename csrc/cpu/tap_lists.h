// Which pixels of an image a depthwise convolution takes, and its adjoint.
#pragma once

#include "../branch_conv.h"

namespace dartsfast {

// Taps of the output at (y * stride, x * stride) of an image padded by P, `width` pixels a padded row.
inline Taps forward_taps(int64_t K, int64_t D, int64_t P, int64_t width) {
  Taps taps{K, D, 0, false, {}, {}};
  const int64_t shift = P - halo(K, D);
  for (int64_t ky = 0; ky < K; ++ky) {
    for (int64_t kx = 0; kx < K; ++kx, ++taps.count) {
      taps.offset[taps.count] = (ky * D + shift) * width + kx * D + shift;
      taps.weight[taps.count] = taps.count;
    }
  }
  return taps;
}

// Taps that reach input pixels of the parity (py, px): those outputs, padded by Q, that used them.
inline Taps adjoint_taps(int64_t K, int64_t D, int64_t stride, int64_t py, int64_t px, int64_t Q, int64_t width) {
  Taps taps{K, 0, 0, true, {}, {}};
  const int64_t P = halo(K, D);
  for (int64_t ky = 0; ky < K; ++ky) {
    for (int64_t kx = 0; kx < K; ++kx) {
      const int64_t y = py + P - ky * D, x = px + P - kx * D;
      if (y % stride || x % stride) continue;
      taps.offset[taps.count] = (y / stride + Q) * width + x / stride + Q;
      taps.weight[taps.count++] = ky * K + kx;
    }
  }
  if (taps.count == K * K) taps.distance = D / stride;
  return taps;
}

}  // namespace dartsfast
