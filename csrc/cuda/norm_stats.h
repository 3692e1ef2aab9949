// What the kernels of norm_stats are given on a device.
#pragma once

#include <vector>

#include "../norm_stats.h"
#include "runtime.h"

namespace dartsfast::cuda {

// One norm of a call; those of many calls share a launch.
template <class T>
struct NormStats {
  NormSetting<T> setting;
  NormToMake<T> norm;
};

template <class T>
struct Coefficients {
  int64_t C;
  CoefficientsToMake<T> norm;
};

template <class T>
void norm_stats(const std::vector<const NormStats<T>*>& calls, Stream stream);
template <class T>
void norm_stats_backward(const std::vector<const Coefficients<T>*>& calls, Stream stream);

}  // namespace dartsfast::cuda
