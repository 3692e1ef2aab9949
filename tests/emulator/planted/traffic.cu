// Kernels whose traffic can be counted by hand.
#include "planted.h"

namespace {

__global__ void copy(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }

__global__ void copy_four(const float* x, float* y) {
  reinterpret_cast<float4*>(y)[threadIdx.x] = reinterpret_cast<const float4*>(x)[threadIdx.x];
}

__global__ void strided(const float* x, float* y) { y[threadIdx.x] = x[8 * threadIdx.x]; }

__global__ void broadcast(const float* x, float* y) { y[threadIdx.x] = x[0]; }

// Rows of `PITCH` words, read down the columns.
template <int PITCH>
__global__ void transposed(const float* x, float* y) {
  __shared__ float s[32 * PITCH];
  for (int row = 0; row < 32; ++row) s[row * PITCH + threadIdx.x] = x[row * 32 + threadIdx.x];
  __syncwarp();
  for (int row = 0; row < 32; ++row) y[row * 32 + threadIdx.x] = s[threadIdx.x * PITCH + row];
}

// 16 bytes a lane, in a row: four passes without a conflict.
__global__ void wide_shared(const float* x, float* y) {
  __shared__ float4 s[32];
  s[threadIdx.x] = reinterpret_cast<const float4*>(x)[threadIdx.x];
  __syncwarp();
  reinterpret_cast<float4*>(y)[threadIdx.x] = s[31 - threadIdx.x];
}

}  // namespace

LAUNCHER(traffic_copy, copy, 1, 64, 0)
LAUNCHER(traffic_copy_four, copy_four, 1, 64, 0)
LAUNCHER(traffic_strided, strided, 1, 32, 0)
LAUNCHER(traffic_broadcast, broadcast, 1, 32, 0)
LAUNCHER(traffic_transposed, transposed<32>, 1, 32, 0)
LAUNCHER(traffic_transposed_padded, transposed<33>, 1, 32, 0)
LAUNCHER(traffic_wide_shared, wide_shared, 1, 32, 0)
