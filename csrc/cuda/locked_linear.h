// What the kernels of locked_linear_ are given on a device.
#pragma once

#include <cstdint>
#include <vector>

#include "../locked_linear.h"
#include "runtime.h"

namespace dartsfast::cuda {

// A call, and memory for the features that each batch element keeps, ascending.
template <class T>
struct Locked {
  LockedLinear<T> args;
  int32_t *features, *counts;  // [N, H], [N]
};

template <class T>
void locked_linear(const std::vector<const Locked<T>*>& calls, Stream stream);
template <class T>
void locked_input_gradient(const std::vector<const Locked<T>*>& calls, Stream stream);
template <class T>
void locked_weight_gradient(const std::vector<const Locked<T>*>& calls, Stream stream);

}  // namespace dartsfast::cuda
