// Kernels without a fault.
#include <algorithm>

#include "planted.h"

namespace {

// Sums of a block's 256 elements; one result a block.
template <class T>
__device__ T block_sum(T value) {
  __shared__ T of_warp[8];
  for (int lanes = 16; lanes; lanes /= 2) value += __shfl_down_sync(~0u, value, lanes);
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
  __syncthreads();
  value = threadIdx.x < 8 ? of_warp[threadIdx.x] : 0;
  if (threadIdx.x < 32) {
    for (int lanes = 4; lanes; lanes /= 2) value += __shfl_xor_sync(~0u, value, lanes, 8);
  }
  return value;
}

template <class T>
__global__ void __launch_bounds__(256) sums(const T* x, T* y) {
  const T sum = block_sum(x[blockIdx.x * 256 + threadIdx.x]);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

// A 3 x 3 box over an image [H, W] with zeros around, by tiles of 8 x 8 with their halo.
__global__ void box(const float* __restrict__ x, float* __restrict__ y, int H, int W) {
  constexpr int kTile = 8, kHalo = kTile + 2;
  SHARED(float, tile);
  const int top = blockIdx.y * kTile - 1, left = blockIdx.x * kTile - 1;
  for (int i = threadIdx.y * kTile + threadIdx.x; i < kHalo * kHalo; i += kTile * kTile) {
    const int h = top + i / kHalo, w = left + i % kHalo;
    tile[i] = h >= 0 && h < H && w >= 0 && w < W ? __ldg(&x[h * W + w]) : 0;
  }
  __syncthreads();
  const int h = blockIdx.y * kTile + threadIdx.y, w = blockIdx.x * kTile + threadIdx.x;
  if (h >= H || w >= W) return;
  float sum = 0;
  for (int i = 0; i < 3; ++i) {
    for (int j = 0; j < 3; ++j) sum += tile[(threadIdx.y + i) * kHalo + threadIdx.x + j];
  }
  y[h * W + w] = sum;
}

// The last block adds what the blocks have left, in their order. The fence before the ticket is every thread's or its
// own.
template <bool EVERY_THREAD>
__global__ void total(const float* x, float* partial, unsigned* ticket, float* y) {
  __shared__ bool last;
  partial[blockIdx.x * 256 + threadIdx.x] = 2 * x[blockIdx.x * 256 + threadIdx.x];
  if (EVERY_THREAD) __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    if (!EVERY_THREAD) __threadfence();
    last = atomicInc(ticket, gridDim.x - 1) == gridDim.x - 1;
    if (!EVERY_THREAD) __threadfence();
  }
  __syncthreads();
  if (!last) return;
  if (EVERY_THREAD) __threadfence();
  float sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) sum += partial[block * 256 + threadIdx.x];
  sum = block_sum(sum);
  if (threadIdx.x == 0) *y = sum;
}

// Tickets of rows of blocks, then one of the rows: what the last block of all reads went through two tickets.
__global__ void two_tickets(const float* x, float* partial, unsigned* tickets, float* y) {
  const unsigned row = blockIdx.y, rows = gridDim.y, columns = gridDim.x;
  if (threadIdx.x) return;
  partial[row * columns + blockIdx.x] = x[row * columns + blockIdx.x];
  __threadfence();
  if (atomicAdd(&tickets[row], 1) != columns - 1) return;
  __threadfence();
  if (atomicAdd(&tickets[rows], 1) != rows - 1) return;
  __threadfence();
  *y = 0;
  for (unsigned i = 0; i < rows * columns; ++i) *y += partial[i];
}

// Lanes give one another values through shared memory.
__global__ void turned(const float* x, float* y) {
  __shared__ float lanes[4][32];
  float* mine = lanes[threadIdx.x / 32];
  const int lane = threadIdx.x % 32;
  for (int i = 0; i < 3; ++i) {
    mine[lane] = x[threadIdx.x] + i;
    __syncwarp();
    y[i * 128 + threadIdx.x] = mine[31 - lane];
    __syncwarp();
  }
}

__global__ void scale(float4* x, float k, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float4 v = x[i];
  x[i] = make_float4(v.x * k, v.y * k, v.z * k, v.w * k);
}

__global__ void histogram(const int* x, int* counts, int n) {
  __shared__ int local[8];
  if (threadIdx.x < 8) local[threadIdx.x] = 0;
  __syncthreads();
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) atomicAdd(&local[x[i]], 1);
  __syncthreads();
  if (threadIdx.x < 8) atomicAdd(&counts[threadIdx.x], local[threadIdx.x]);
}

// y [8]: sums and votes of lanes of a warp by each of the instructions.
__global__ void warp_operations(const double* x, double* y) {
  const int lane = threadIdx.x;
  const double v = x[lane];
  y[lane] = __shfl_sync(~0u, v, lane + 5, 8);
  y[32 + lane] = __shfl_up_sync(~0u, v, 3, 16);
  y[64 + lane] = __shfl_down_sync(~0u, v, 3, 16);
  y[96 + lane] = __shfl_xor_sync(~0u, v, 9, 32);
  y[128 + lane] = __popc(__ballot_sync(~0u, lane % 3 == 0));
  y[160 + lane] = __any_sync(~0u, lane == 40) * 2 + __all_sync(~0u, lane < 32);
  y[192 + lane] = lane < 16 ? __shfl_xor_sync(0x0000ffffu, v, 1) : __shfl_xor_sync(0xffff0000u, v, 2);
}

// When each thread comes, of all.
__global__ void arrivals(int* count, int* y) { y[blockIdx.x * blockDim.x + threadIdx.x] = atomicAdd(count, 1); }

// Parameters by value, and an array of the thread's own.
struct Table {
  float values[64];
};
__global__ void by_value(const __grid_constant__ Table table, float* y) {
  float local[64];
  for (int i = 0; i < 64; ++i) local[i] = table.values[i] * 2;
  y[threadIdx.x] = local[63 - threadIdx.x];
}

}  // namespace

extern "C" {
void block_sums_float(const float* x, float* y, int blocks) { launch(sums<float>, blocks, 256, 0, Stream{}, x, y); }
void block_sums_double(const double* x, double* y, int blocks) { launch(sums<double>, blocks, 256, 0, Stream{}, x, y); }
void box_blur(const float* x, float* y, int H, int W) {
  launch(box, dim3((W + 7) / 8, (H + 7) / 8), dim3(8, 8), 400, Stream{}, x, y, H, W);
}
void ticket_total(const float* x, float* partial, unsigned* ticket, float* y, int blocks, int every_thread) {
  launch(every_thread ? total<true> : total<false>, blocks, 256, 0, Stream{}, x, partial, ticket, y);
}
void ticket_rows(const float* x, float* partial, unsigned* tickets, float* y) {
  launch(two_tickets, dim3(5, 3), 32, 0, Stream{}, x, partial, tickets, y);
}
void turned_lanes(const float* x, float* y) { launch(turned, 1, 128, 0, Stream{}, x, y); }
void scaled(float4* x, float k, int n) { launch(scale, (n + 63) / 64, 64, 0, Stream{}, x, k, n); }
void counted(const int* x, int* counts, int n) { launch(histogram, (n + 63) / 64, 64, 0, Stream{}, x, counts, n); }
void arrived(int* count, int* y) { launch(arrivals, 3, 50, 0, Stream{}, count, y); }
void parameters(const float* x, float* y) {
  Table table;
  std::copy_n(x, 64, table.values);
  launch(by_value, 1, 64, 0, Stream{}, table, y);
}
void warp_values(const double* x, double* y) { launch(warp_operations, 1, 32, 0, Stream{}, x, y); }
}
