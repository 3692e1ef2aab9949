// What the kernels of fd_hvp are given on a device. Scalars that come from tensors stay on the device.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime.h"

namespace dartsfast::cuda {

template <class T>
struct FdNorm {
  const T* v;
  int64_t n;
  double* sums;  // [chunks]
  T* norm;
};

template <class T>
struct FdPerturb {
  int64_t n;
  T* w;
  const T *w0, *v, *norm;
  T r, sign;
};

template <class T>
struct FdVirtualStep {
  int64_t n;
  T* w;
  const T *g, *momentum_buffer;  // null buffer: none
  const T* scale;
  T lr, momentum, weight_decay;
};

template <class T>
struct FdQuotient {
  int64_t n;
  T* out;
  const T *plus, *minus, *norm;
  T r;
};

template <class T>
void fd_norm_parts(const std::vector<const FdNorm<T>*>& calls, Stream stream);
template <class T>
void fd_norm_finish(const std::vector<const FdNorm<T>*>& calls, Stream stream);
template <class T>
void fd_perturb(const std::vector<const FdPerturb<T>*>& calls, Stream stream);
template <class T>
void fd_virtual_step(const std::vector<const FdVirtualStep<T>*>& calls, Stream stream);
template <class T>
void fd_quotient(const std::vector<const FdQuotient<T>*>& calls, Stream stream);

}  // namespace dartsfast::cuda
