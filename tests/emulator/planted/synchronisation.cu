// Barriers that not all threads reach, and masks that are not those of the lanes that come.
#include <stdexcept>
#include <string>

#include "planted.h"

namespace {

__global__ void half_exits(const float*, float* y) {
  if (threadIdx.x >= 32) return;
  __syncthreads();  // found
  y[threadIdx.x] = 1;
}

__global__ void two_barriers(const float*, float* y) {
  if (threadIdx.x < 32) {
    __syncthreads();  // found
    y[threadIdx.x] = 1;
  } else {
    __syncthreads();  // found
    y[threadIdx.x] = 2;
  }
}

__global__ void barrier_and_warp(const float* x, float* y) {
  if (threadIdx.x < 16) {
    __syncthreads();
  } else {
    y[threadIdx.x] = __shfl_xor_sync(~0u, x[threadIdx.x], 1);  // found
    __syncthreads();
  }
}

__global__ void exited_lanes(const float* x, float* y) {
  if (threadIdx.x >= 20) return;
  y[threadIdx.x] = __shfl_xor_sync(~0u, x[threadIdx.x], 1);  // found
}

__global__ void not_in_its_mask(const float* x, float* y) {
  y[threadIdx.x] = __shfl_sync(0xffu, x[threadIdx.x], 0);  // found
}

__global__ void source_not_in_mask(const float* x, float* y) {
  if (threadIdx.x < 16) y[threadIdx.x] = __shfl_down_sync(0xffffu, x[threadIdx.x], 1);  // found
}

__global__ void source_does_not_exist(const float* x, float* y) {
  y[threadIdx.x] = __shfl_down_sync(~0u, x[threadIdx.x], 1);  // found
}

__global__ void different_masks(const float* x, float* y) {
  y[threadIdx.x] = __shfl_xor_sync(threadIdx.x < 16 ? ~0u : 0xffff0000u, x[threadIdx.x], 1);  // found
}

__global__ void vote_and_shuffle(const float* x, float* y) {
  if (threadIdx.x < 16) {
    y[threadIdx.x] = __any_sync(~0u, x[threadIdx.x] > 0);  // found
  } else {
    y[threadIdx.x] = __shfl_sync(~0u, x[threadIdx.x], 0);  // found
  }
}

}  // namespace

// What a launch throws; "" for nothing.
extern "C" const char* thrown(int blocks, int threads, int shared, float* y) {
  static std::string text;
  text.clear();
  try {
    launch(half_exits, blocks, threads, shared, Stream{}, y, y);
  } catch (const std::runtime_error& error) {
    text = error.what();
  }
  return text.c_str();
}

LAUNCHER(barrier_half_exits, half_exits, 1, 64, 0)
LAUNCHER(barrier_two_barriers, two_barriers, 1, 64, 0)
LAUNCHER(mask_barrier_and_warp, barrier_and_warp, 1, 32, 0)
LAUNCHER(mask_exited_lanes, exited_lanes, 1, 32, 0)
LAUNCHER(mask_not_in_its_mask, not_in_its_mask, 1, 32, 0)
LAUNCHER(mask_source_not_in_mask, source_not_in_mask, 1, 32, 0)
LAUNCHER(mask_source_does_not_exist, source_does_not_exist, 1, 20, 0)
LAUNCHER(mask_different_masks, different_masks, 1, 32, 0)
LAUNCHER(mask_vote_and_shuffle, vote_and_shuffle, 1, 32, 0)
