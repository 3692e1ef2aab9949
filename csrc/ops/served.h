// How an operator is registered: with kernels for CUDA it runs on the device of the first tensor that it is given there,
// whichever is the current one; the allocator and the stream follow.
#pragma once

#include <torch/csrc/stable/library.h>

#include "tensors.h"

#ifdef DARTSFAST_ON_CUDA

#include <torch/csrc/stable/accelerator.h>

#include <optional>
#include <vector>

namespace dartsfast {

using torch::stable::accelerator::DeviceIndex;

template <class T>
std::optional<DeviceIndex> device_of(const T&) {
  return {};
}
inline std::optional<DeviceIndex> device_of(const Tensor& t) {
  return is_ours(t) ? std::optional<DeviceIndex>(t.get_device_index()) : std::nullopt;
}
template <class T>
std::optional<DeviceIndex> device_of(const std::optional<T>& given) {
  return given ? device_of(*given) : std::nullopt;
}
template <class T>
std::optional<DeviceIndex> device_of(const std::vector<T>& given) {
  std::optional<DeviceIndex> found;
  for (const T& one : given) found = found ? found : device_of(one);
  return found;
}

template <class F, F* FUNCTION>
struct OnItsDevice;
template <class R, class... A, R (*FUNCTION)(A...)>
struct OnItsDevice<R(A...), FUNCTION> {
  static R call(A... given) {
    std::optional<DeviceIndex> found;
    ((found = found ? found : device_of(given)), ...);
    if (!found) return FUNCTION(given...);  // which refuses what it is given
    const torch::stable::accelerator::DeviceGuard guard(*found);
    return FUNCTION(given...);
  }
};

}  // namespace dartsfast

#define DARTSFAST_BOX(function) TORCH_BOX(&(OnItsDevice<decltype(function), &function>::call))

#else

#define DARTSFAST_BOX(function) TORCH_BOX(&function)

#endif
