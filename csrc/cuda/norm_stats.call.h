// norm_stats on given memory of a device: what the operators and whoever else runs it share.
#pragma once

#include <vector>

#include "norm_stats.h"
#include "section.h"

namespace dartsfast {

template <class T>
class NormStatsCall {
 public:
  NormStatsCall(const NormSetting<T>& setting, const std::vector<NormToMake<T>>& norms) {
    for (const NormToMake<T>& n : norms) args_.push_back({setting, n});
  }

  Work norms() { return work<cuda::NormStats<T>, cuda::norm_stats<T>>(args_); }

 private:
  std::vector<cuda::NormStats<T>> args_;
};

template <class T>
class CoefficientsCall {
 public:
  CoefficientsCall(int64_t C, const std::vector<CoefficientsToMake<T>>& norms) {
    for (const CoefficientsToMake<T>& n : norms) args_.push_back({C, n});
  }

  Work norms() { return work<cuda::Coefficients<T>, cuda::norm_stats_backward<T>>(args_); }

 private:
  std::vector<cuda::Coefficients<T>> args_;
};

}  // namespace dartsfast
