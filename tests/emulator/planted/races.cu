// Two threads, one place, no order.
#include "planted.h"

namespace {

__global__ void no_barrier(const float* x, float* y) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];       // found
  y[threadIdx.x] = s[63 - threadIdx.x];  // found
}

__global__ void no_barrier_before_the_next(const float* x, float* y) {
  SHARED(float, s);
  float sum = 0;
  for (int i = 0; i < 3; ++i) {
    s[threadIdx.x] = x[threadIdx.x + i];  // found
    __syncthreads();
    sum += s[63 - threadIdx.x];  // found
  }
  y[threadIdx.x] = sum;
}

// All lanes read a place, then one writes it, which only a barrier of the warp could order.
__global__ void shuffle_as_a_barrier(const float* x, float* y) {
  __shared__ float s;
  if (threadIdx.x == 0) s = x[0];
  __syncwarp();
  float v = s;
  v = __shfl_sync(~0u, v, 3);
  if (threadIdx.x == 1) s = v;  // found
  y[threadIdx.x] = v;
}

__global__ void warp_barrier_for_a_block(const float* x, float* y) {
  __shared__ float s[64];
  s[threadIdx.x] = x[threadIdx.x];  // found
  __syncwarp();
  y[threadIdx.x] = s[threadIdx.x ^ 32];  // found
}

// The last to read is ordered before the write, the first is not.
__global__ void another_warp_reads(const float* x, float* y) {
  __shared__ float s;
  if (threadIdx.x == 0) s = x[0];
  __syncthreads();
  const float v = s;  // found
  __syncwarp();
  if (threadIdx.x == 32) s = v + 1;  // found
  y[threadIdx.x] = v;
}

__global__ void another_block_reads(const float*, float* y) {
  const float v = y[0];  // found
  __syncthreads();
  if (blockIdx.x == 1 && threadIdx.x == 0) y[0] = v + 1;  // found
}

__global__ void blocks_add(const float* x, float* y) {
  if (threadIdx.x == 0) y[0] = y[0] + x[blockIdx.x];  // found
}

__global__ void blocks_write(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }  // found

__global__ void block_writes_what_another_read(const float*, float* y) {
  y[blockIdx.x * 32 + threadIdx.x] = y[(blockIdx.x + 1) % gridDim.x * 32 + threadIdx.x];  // found
}

__global__ void threads_in_global_memory(const float* x, float* y) {
  y[threadIdx.x] = x[threadIdx.x];            // found
  y[64 + threadIdx.x] = y[63 - threadIdx.x];  // found
}

__global__ void atomic_and_not(const float* x, float* y) {
  atomicAdd(&y[0], x[threadIdx.x]);  // found
  if (threadIdx.x == 7) y[0] = 1;    // found
}

enum Fence { NONE, ONE, ALL };  // threads that execute it

// y[1023] is the ticket, an integer.
template <bool RELEASE, Fence ACQUIRE, bool BARRIER>
__global__ void ticket(const float* x, float* y) {
  __shared__ bool last;
  y[blockIdx.x * 64 + threadIdx.x] = x[threadIdx.x];
  if (RELEASE) __threadfence();
  if (BARRIER) __syncthreads();
  if (threadIdx.x == 0) last = atomicAdd(reinterpret_cast<unsigned*>(y + 1023), 1u) == gridDim.x - 1;
  __syncthreads();
  if (!last) return;
  if (ACQUIRE == ALL || (ACQUIRE == ONE && threadIdx.x == 0)) __threadfence();
  float sum = 0;
  for (unsigned block = 0; block < gridDim.x; ++block) sum += y[block * 64 + threadIdx.x];  // found
  y[512 + threadIdx.x] = sum;
}

// What all warps read in one launch a thread of the next may write, before its first barrier as they did.
__global__ void read_by_all(const float*, float* y) { y[1 + threadIdx.x] = y[0]; }
__global__ void written_by_one(const float*, float* y) {
  if (threadIdx.x == 0) y[0] = 1;
}

}  // namespace

LAUNCHER(race_no_barrier, no_barrier, 1, 64, 0)
LAUNCHER(race_no_barrier_before_the_next, no_barrier_before_the_next, 1, 64, 256)
LAUNCHER(race_shuffle_as_a_barrier, shuffle_as_a_barrier, 1, 32, 0)
LAUNCHER(race_warp_barrier_for_a_block, warp_barrier_for_a_block, 1, 64, 0)
LAUNCHER(race_another_warp_reads, another_warp_reads, 1, 64, 0)
LAUNCHER(race_another_block_reads, another_block_reads, 2, 64, 0)
LAUNCHER(race_blocks_add, blocks_add, 3, 32, 0)
LAUNCHER(race_blocks_write, blocks_write, 2, 32, 0)
LAUNCHER(race_block_writes_what_another_read, block_writes_what_another_read, 3, 32, 0)
LAUNCHER(race_threads_in_global_memory, threads_in_global_memory, 1, 64, 0)
LAUNCHER(race_atomic_and_not, atomic_and_not, 1, 32, 0)
LAUNCHER(race_ticket_without_release, (ticket<false, ALL, true>), 4, 64, 0)
LAUNCHER(race_ticket_without_acquire, (ticket<true, NONE, true>), 4, 64, 0)
LAUNCHER(race_ticket_acquired_by_one, (ticket<true, ONE, true>), 4, 64, 0)
LAUNCHER(race_ticket_without_barrier, (ticket<true, ALL, false>), 4, 64, 0)
LAUNCHER(right_ticket, (ticket<true, ALL, true>), 4, 64, 0)
// LAUNCHER(right_launches), of two kernels
extern "C" void right_launches(const float* x, float* y) {
  launch(read_by_all, 1, 128, 0, Stream{}, x, y);
  launch(written_by_one, 1, 128, 0, Stream{}, x, y);
}
