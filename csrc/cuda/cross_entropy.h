// What the kernels of cross_entropy_ are given on a device.
#pragma once

#include <cstdint>
#include <vector>

#include "../cross_entropy.h"
#include "runtime.h"

namespace dartsfast::cuda {

template <class T>
struct CrossEntropyRows {
  dartsfast::CrossEntropy<T> args;
  int64_t R;
  T* rows;                // [R, V]
  const int64_t* labels;  // [R]; of one that is no class the loss is NaN, and nothing but its own row is touched
  RowLoss<T>* found;      // [R]
  T* losses;              // [R]
};

template <class T>
void cross_entropy(const std::vector<const CrossEntropyRows<T>*>& calls, Stream stream);

}  // namespace dartsfast::cuda
