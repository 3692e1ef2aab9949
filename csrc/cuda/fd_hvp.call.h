// fd_hvp on given memory of a device: nothing of it is read here, norms and scales least of all.
#pragma once

#include "../fd_hvp.h"
#include "fd_hvp.h"
#include "device_memory.h"
#include "section.h"

namespace dartsfast {

template <class T>
class FdNormCall {
 public:
  FdNormCall(const T* v, int64_t n, T* norm)
      : sums_((n + kNormChunk - 1) / kNormChunk), args_{v, n, sums_.get(), norm} {}
  FdNormCall(const FdNormCall&) = delete;

  Work parts() { return work<cuda::FdNorm<T>, cuda::fd_norm_parts<T>>(args_); }
  Work finish() { return work<cuda::FdNorm<T>, cuda::fd_norm_finish<T>>(args_); }

 private:
  Memory<double> sums_;
  cuda::FdNorm<T> args_;
};

template <class T>
class FdPerturbCall {
 public:
  FdPerturbCall(int64_t n, T* w, const T* w0, const T* v, const T* norm, T r, T sign)
      : args_{n, w, w0, v, norm, r, sign} {}
  FdPerturbCall(const FdPerturbCall&) = delete;

  Work elements() { return work<cuda::FdPerturb<T>, cuda::fd_perturb<T>>(args_); }

 private:
  cuda::FdPerturb<T> args_;
};

template <class T>
class FdVirtualStepCall {
 public:
  FdVirtualStepCall(int64_t n, T* w, const T* g, const T* momentum_buffer, const T* scale, T lr, T momentum,
                    T weight_decay)
      : args_{n, w, g, momentum_buffer, scale, lr, momentum, weight_decay} {}
  FdVirtualStepCall(const FdVirtualStepCall&) = delete;

  Work elements() { return work<cuda::FdVirtualStep<T>, cuda::fd_virtual_step<T>>(args_); }

 private:
  cuda::FdVirtualStep<T> args_;
};

template <class T>
class FdQuotientCall {
 public:
  FdQuotientCall(int64_t n, T* out, const T* plus, const T* minus, const T* norm, T r)
      : args_{n, out, plus, minus, norm, r} {}
  FdQuotientCall(const FdQuotientCall&) = delete;

  Work elements() { return work<cuda::FdQuotient<T>, cuda::fd_quotient<T>>(args_); }

 private:
  cuda::FdQuotient<T> args_;
};

}  // namespace dartsfast
