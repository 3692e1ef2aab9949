// What the kernel of gemm_ is given on a device.
#pragma once

#include <vector>

#include "../gemm.h"
#include "runtime.h"

namespace dartsfast::cuda {

template <class T>
void gemm(const std::vector<const Gemm<T>*>& calls, Stream stream);

}  // namespace dartsfast::cuda
