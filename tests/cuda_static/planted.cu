// Kernels with mistakes that only the machine code shows, and one without.
#include "pack.h"

namespace planted {

using dartsfast::cuda::Pack;

constexpr int kThreads = 256;

// A product and a sum, which must stay two; tickets are of integers.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) right_kernel(const T* x, T* y, unsigned* ticket) {
  __shared__ T shared[100];
  const int i = blockIdx.x * kThreads + threadIdx.x;
  if (threadIdx.x < 100) shared[threadIdx.x] = threadIdx.x;
  __syncthreads();
  auto v = Pack<T, V>::load(x + i * V);
  for (int k = 0; k < V; ++k) v.v[k] = v.v[k] * shared[threadIdx.x % 99] + shared[threadIdx.x % 99 + 1];
  v.store(y + i * V);
  if (threadIdx.x == 0) atomicAdd(ticket, 1u);
}

// Twice the threads that have registers for all that is alive.
__global__ void __launch_bounds__(1024, 2) spilling_kernel(const float* x, float* y, int n) {
  float all[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) all[i] = x[i * n + threadIdx.x];
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    float sum = all[i];
#pragma unroll
    for (int j = 0; j < 64; ++j) sum = sum * all[(i + j) % 64];
    y[i * n + threadIdx.x] = sum;
  }
}

// Registers have no index that is known at run time only.
__global__ void __launch_bounds__(kThreads) indexed_kernel(const float* x, float* y, int n, int k) {
  float all[32] = {};
  for (int i = 0; i < n; ++i) all[i * k % 32] += x[i];
  y[threadIdx.x] = all[threadIdx.x % 32];
}

template <class T>
__global__ void __launch_bounds__(kThreads) constant_kernel(T* x) {
  x[threadIdx.x] = x[threadIdx.x] * 0.1;
}

__global__ void __launch_bounds__(kThreads) atomic_kernel(const float* x, float* sum) { atomicAdd(sum, x[threadIdx.x]); }

__global__ void __launch_bounds__(kThreads) shared_atomic_kernel(const float* x, float* y) {
  __shared__ float sum;
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  atomicAdd(&sum, x[threadIdx.x]);
  __syncthreads();
  y[threadIdx.x] = sum;
}

// Four neighbours, of which the compiler does not know that they are aligned.
template <class T, int V>
__global__ void __launch_bounds__(kThreads) narrow_kernel(const T* x, T* y) {
  for (int k = 0; k < V; ++k) y[threadIdx.x * V + k] = x[threadIdx.x * V + k] + T(1);
}

// Rows of 16 bytes, and halves one by one.
template <class T, int V, bool HALVES>
__global__ void __launch_bounds__(kThreads) halves_kernel(const unsigned short* x, const T* y, T* z) {
  auto v = Pack<T, V>::load(y + threadIdx.x * V);
  for (int k = 0; k < V; ++k) v.v[k] = v.v[k] + static_cast<T>(x[threadIdx.x * V + k]);
  v.store(z + threadIdx.x * V);
}

template <class T, bool WIDE>
__global__ void __launch_bounds__(kThreads) wide_kernel(const T* x, T* y) {
  y[threadIdx.x] = x[threadIdx.x];
}

__global__ void unbounded_kernel(float* x) { x[threadIdx.x] = 0; }

template __global__ void right_kernel<float, 4>(const float*, float*, unsigned*);
template __global__ void right_kernel<double, 2>(const double*, double*, unsigned*);
template __global__ void constant_kernel<float>(float*);
template __global__ void constant_kernel<double>(double*);
template __global__ void narrow_kernel<float, 4>(const float*, float*);
template __global__ void narrow_kernel<double, 2>(const double*, double*);
template __global__ void narrow_kernel<float, 1>(const float*, float*);
template __global__ void halves_kernel<float, 4, true>(const unsigned short*, const float*, float*);
template __global__ void halves_kernel<float, 4, false>(const unsigned short*, const float*, float*);
template __global__ void wide_kernel<float, true>(const float*, float*);
template __global__ void wide_kernel<float, false>(const float*, float*);

}  // namespace planted
