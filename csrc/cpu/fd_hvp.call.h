// fd_hvp on given memory.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>

#include "kernels.h"
#include "packing.h"
#include "section.h"

namespace dartsfast {

constexpr int64_t kFdRange = 65536;  // elements of an item: whole registers, and few items

// f(begin, end) for ranges of n elements.
template <class F>
Work ranges(int64_t n, F f) {
  return {(n + kFdRange - 1) / kFdRange, kFdRange,
          [n, f](int64_t i, bool) { f(i * kFdRange, std::min((i + 1) * kFdRange, n)); }};
}

template <class T>
class FdNormCall {
 public:
  FdNormCall(const T* v, int64_t n, T* norm) : v_(v), n_(n), norm_(norm), sums_(memory<double>(count())) {}
  FdNormCall(const FdNormCall&) = delete;

  Work parts() {
    return {count(), kNormChunk, [this](int64_t k, bool) {
              const int64_t first = k * kNormChunk;
              sums_[k] = kernels<T>().fd_norm_chunk(v_ + first, std::min(kNormChunk, n_ - first));
            }};
  }
  Work finish() {
    return {1, count(), [this](int64_t, bool) {
              kernels<double>().tree_sum(sums_.get(), count(), 1, 1);
              *norm_ = static_cast<T>(std::sqrt(sums_[0]));
            }};
  }

 private:
  int64_t count() const { return (n_ + kNormChunk - 1) / kNormChunk; }

  const T* v_;
  int64_t n_;
  T* norm_;
  Memory<double> sums_;
};

template <class T>
class FdPerturbCall {
 public:
  FdPerturbCall(int64_t n, T* w, const T* w0, const T* v, const T* norm, T r, T sign) : n_(n) {
    const T R = r / *norm;
    steps_ = std::isfinite(R) && R != 0;  // else there is nowhere to step; v may not be finite
    args_ = {w, w0, v, sign * R};
  }
  FdPerturbCall(const FdPerturbCall&) = delete;

  Work elements() {
    return ranges(n_, [this](int64_t begin, int64_t end) {
      if (steps_) return kernels<T>().fd_perturb(args_, begin, end);
      std::memmove(args_.w + begin, args_.w0 + begin, (end - begin) * sizeof(T));
    });
  }

 private:
  int64_t n_;
  bool steps_;
  FdPerturb<T> args_;
};

template <class T>
class FdVirtualStepCall {
 public:
  FdVirtualStepCall(int64_t n, T* w, const T* g, const T* momentum_buffer, const T* scale, T lr, T momentum,
                    T weight_decay)
      : n_(n), args_{w, g, momentum_buffer, *scale, lr, momentum, weight_decay} {}
  FdVirtualStepCall(const FdVirtualStepCall&) = delete;

  Work elements() {
    return ranges(n_, [this](int64_t begin, int64_t end) { kernels<T>().fd_virtual_step(args_, begin, end); });
  }

 private:
  int64_t n_;
  FdVirtualStep<T> args_;
};

template <class T>
class FdQuotientCall {
 public:
  FdQuotientCall(int64_t n, T* out, const T* plus, const T* minus, const T* norm, T r)
      : n_(n), args_{out, plus, minus, T(2) * (r / *norm)} {}
  FdQuotientCall(const FdQuotientCall&) = delete;

  Work elements() {
    return ranges(n_, [this](int64_t begin, int64_t end) { kernels<T>().fd_quotient(args_, begin, end); });
  }

 private:
  int64_t n_;
  FdQuotient<T> args_;
};

}  // namespace dartsfast
