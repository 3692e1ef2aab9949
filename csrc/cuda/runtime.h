// What kernels and their launchers need, the same under nvcc and, without it, under the emulator of the tests.
#pragma once

#include <cstddef>

#if defined(__CUDACC__) || defined(DARTSFAST_ON_CUDA)  // the second: host code beside kernels

#include <cuda_runtime.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

// T* name: the block's dynamic shared memory, at least on 16 bytes.
#define SHARED(T, name)                                           \
  extern __shared__ __align__(16) unsigned char dynamic_shared[]; \
  T* const name = reinterpret_cast<T*>(dynamic_shared)

namespace dartsfast {

using Stream = cudaStream_t;

inline void check(cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // which torch would find after its own next launch
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

// More than 48 KiB of dynamic shared memory are asked for, once a kernel and device.
inline void allow_shared(const void* kernel, size_t bytes) {
  constexpr size_t kGranted = 48 << 10;
  if (bytes <= kGranted) return;
  static std::mutex mutex;
  static std::map<std::pair<int, const void*>, size_t> allowed;
  int device;
  check(cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  size_t& most = allowed[{device, kernel}];
  if (bytes <= most) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes)));
  most = bytes;
}

// Throws std::runtime_error in CUDA's words where the launch is refused; what the kernel does wrong shows later.
template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, Stream stream, A&&... args) {
  const void* const function = reinterpret_cast<const void*>(kernel);
  allow_shared(function, shared);
  std::tuple<P...> values(std::forward<A>(args)...);
  std::apply(
      [&](auto&... value) {
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))..., nullptr};
        check(cudaLaunchKernel(function, grid, block, pointers, shared, stream));
      },
      values);
}

}  // namespace dartsfast

#else

#include <emulator.h>

#include <utility>

#define SHARED(T, name) T* const name = static_cast<T*>(emulator::dynamic_shared())

namespace dartsfast {

using Stream = void*;

template <class... P, class... A>
void launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t shared, Stream, A&&... args) {
  emulator::launch(kernel, grid, block, shared, std::forward<A>(args)...);
}

}  // namespace dartsfast

#endif
