// Mean and biased variance of an image batch, and the norms that are made of them.
#pragma once

#include <cstdint>

#include "../norm_stats.h"
#include "../order.h"

namespace dartsfast::cuda {

template <class T>
struct Norm {
  NormSetting<T> setting;
  NormToMake<T> norm;
};

// Of some channels; MOST: norms, which may be of more channels than these.
template <class T, int MOST = 1>
struct Statistic {
  T* parts;            // [chunks, 2, C] mean and sum of squared deviations, overwritten; null: not asked for
  T *mean, *variance;  // [C], null: nowhere
  int32_t C, norms;
  Norm<T> norm[MOST];

  // How many channels of a norm it makes from now on, or can make; 0: it is not of this statistic.
  int64_t take(const NormSetting<T>& setting, const NormToMake<T>& its, bool really) {
    if (!parts || its.mean != mean || its.variance != variance || norms == MOST) return 0;
    if (really) norm[norms++] = {setting, its};
    return C;
  }
};

}  // namespace dartsfast::cuda
