// Accesses outside of memory, and of what nobody wrote. x has 1024 elements, of which 100 are registered, y too.
#include "planted.h"

namespace {

__global__ void global_write(const float*, float* y) { y[blockIdx.x * 64 + threadIdx.x] = 1; }  // found

__global__ void global_read(const float* x, float* y) {
  y[threadIdx.x] = x[static_cast<int>(threadIdx.x) - 1];  // found
}

__global__ void wide_read(const float* x, float* y) {
  const float4 v = reinterpret_cast<const float4*>(x)[threadIdx.x];  // found: the last one is half outside
  y[threadIdx.x] = v.x + v.y + v.z + v.w;
}

__global__ void dynamic_write(const float*, float*) {
  SHARED(float, s);
  s[threadIdx.x + 1] = 1;  // found
}

__global__ void dynamic_read(const float*, float* y) {
  SHARED(float, s);
  s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[2 * threadIdx.x];  // found
}

template <class T>
__global__ void static_write(const T*, T*) {
  __shared__ T s[60];
  s[threadIdx.x] = 1;  // found
}

template <class T>
__global__ void static_row(const T*, T* y) {
  __shared__ T s[8][8];
  s[threadIdx.x / 8][threadIdx.x % 8] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x / 16][threadIdx.x % 16];  // found
}

__global__ void static_pointer(const float*, float* y) {
  __shared__ float s[60];
  float* p = s;        // of no size that the compiler knows
  p[threadIdx.x] = 1;  // found
  y[threadIdx.x] = p[0];
}

__global__ void another_threads_local(const float*, float* y) {
  __shared__ float* local;
  float mine = 1;
  if (threadIdx.x == 0) local = &mine;
  __syncthreads();
  y[threadIdx.x] = *local;  // found
  __syncthreads();
}

// Addresses of shared memory, dynamic and static, and of a thread's own, for instructions of the device's memory.
__global__ void store_of_the_devices_in_dynamic(const float*, float* y) {
  SHARED(float4, s);
  __stcg(s + threadIdx.x, make_float4(1, 2, 3, 4));  // found
  y[threadIdx.x] = s[threadIdx.x].x;
}

__global__ void store_of_the_devices_in_static(const float*, float* y) {
  __shared__ float s[64];
  __stcs(s + threadIdx.x, 1.f);  // found
  y[threadIdx.x] = s[threadIdx.x];
}

__global__ void load_of_the_devices_from_local(const float*, float* y) {
  float mine[2] = {1, 2};
  y[threadIdx.x] = __ldcg(mine + threadIdx.x % 2);  // found
}

__global__ void uninitialised_dynamic(const float*, float* y) {
  SHARED(float, s);
  if (threadIdx.x < 63) s[threadIdx.x] = 1;
  __syncthreads();
  y[threadIdx.x] = s[threadIdx.x];  // found
}

// Shared memory does not last from block to block.
__global__ void uninitialised_static(const float* x, float* y) {
  __shared__ float s[64];
  if (blockIdx.x == 0) s[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  y[blockIdx.x * 32 + threadIdx.x] = s[threadIdx.x];  // found
}

__global__ void uninitialised_global(const float*, float* y) { y[threadIdx.x] += 1; }  // found

__global__ void half_of_a_word(const float*, float* y) {
  unsigned short* halves = reinterpret_cast<unsigned short*>(y);
  halves[2 * threadIdx.x] = 1;
  halves[256 + threadIdx.x] = halves[2 * threadIdx.x + 1];  // found
}

}  // namespace

LAUNCHER(bounds_global_write, global_write, 2, 64, 0)
LAUNCHER(bounds_global_read, global_read, 1, 64, 0)
LAUNCHER(bounds_wide_read, wide_read, 1, 25, 0)
LAUNCHER(bounds_dynamic_write, dynamic_write, 1, 64, 256)
LAUNCHER(bounds_dynamic_read, dynamic_read, 1, 64, 256)
LAUNCHER(bounds_static_write, static_write<float>, 1, 64, 0)
LAUNCHER(bounds_static_row, static_row<float>, 1, 64, 0)
LAUNCHER(bounds_static_pointer, static_pointer, 1, 64, 0)
LAUNCHER(bounds_another_threads_local, another_threads_local, 1, 64, 0)
LAUNCHER(bounds_store_in_dynamic, store_of_the_devices_in_dynamic, 1, 64, 1024)
LAUNCHER(bounds_store_in_static, store_of_the_devices_in_static, 1, 64, 0)
LAUNCHER(bounds_load_from_local, load_of_the_devices_from_local, 1, 64, 0)
LAUNCHER(uninitialised_in_dynamic, uninitialised_dynamic, 1, 64, 256)
LAUNCHER(uninitialised_in_static, uninitialised_static, 2, 32, 0)
LAUNCHER(uninitialised_in_global, uninitialised_global, 1, 64, 0)
LAUNCHER(uninitialised_half_of_a_word, half_of_a_word, 1, 32, 0)
