// What the kernels that copy and add images are given on a device.
#pragma once

#include <cstdint>
#include <vector>

#include "../storage.h"
#include "runtime.h"

namespace dartsfast::cuda {

// out = a, or a + b; null data of b: none.
template <class T>
struct Images {
  int64_t N, H, W, C;
  Image<const T> a, b;
  StoredImage out;
};

template <class T>
struct Zeros {
  T* out;
  int64_t count;
};

template <class T>
void images(const std::vector<const Images<T>*>& calls, Stream stream);
template <class T>
void zeros(const std::vector<const Zeros<T>*>& calls, Stream stream);

}  // namespace dartsfast::cuda
