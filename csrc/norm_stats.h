// norm_stats: one implementation of its arithmetic, so that every backend gives the same bits.
#pragma once

#include <cmath>
#include <cstdint>

#include "alpha_softmax.h"

namespace dartsfast {

// The shares that a batch over `pixels` values has in the running statistics: of the mean, of the variance.
template <class T>
struct RunningShare {
  T mean, variance;
  DARTSFAST_BOTH RunningShare(T share, int64_t pixels)
      : mean(share), variance(share * (static_cast<T>(pixels) / static_cast<T>(pixels - 1))) {}
};

template <class T>
DARTSFAST_BOTH T moved(T running, T now, T keep, T share) {
  return fused(now, share, running * keep);
}

template <class T>
DARTSFAST_BOTH T reciprocal_deviation(T variance, T eps) {
  return T(1) / std::sqrt(variance + eps);
}

}  // namespace dartsfast
