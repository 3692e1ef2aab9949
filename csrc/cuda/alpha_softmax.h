// What the kernel of alpha_softmax is given on a device.
#pragma once

#include <vector>

#include "../alpha_softmax.h"
#include "runtime.h"

namespace dartsfast::cuda {

template <class T>
void alpha_softmax(const std::vector<const SoftmaxRows<T>*>& calls, Stream stream);

}  // namespace dartsfast::cuda
