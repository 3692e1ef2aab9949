// The device that this library's operators serve: that of the kernels it was built with. Kernels for CUDA that are
// emulated serve tensors on the CPU.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstddef>

namespace dartsfast {

#ifdef DARTSFAST_ON_CUDA
#define DARTSFAST_KEY CUDA
constexpr const char* kDevice = "CUDA";
inline bool is_ours(const torch::stable::Tensor& t) { return t.is_cuda(); }
#else
#define DARTSFAST_KEY CPU
constexpr const char* kDevice = "CPU";
inline bool is_ours(const torch::stable::Tensor& t) { return t.is_cpu(); }
#endif

// Where kernels are emulated: memory that they may use from now on.
#ifdef DARTSFAST_EMULATED
void note(const void* data, size_t bytes, bool initialised);
#else
inline void note(const void*, size_t, bool) {}
#endif

}  // namespace dartsfast
