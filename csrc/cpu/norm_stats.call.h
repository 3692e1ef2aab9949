// norm_stats on given memory: what the operators and whoever else runs it share. A few hundred elements: no kernel
// needed.
#pragma once

#include <vector>

#include "../norm_stats.h"
#include "section.h"

namespace dartsfast {

template <class T>
class NormStatsCall {
 public:
  NormStatsCall(const NormSetting<T>& setting, std::vector<NormToMake<T>> norms) : setting_(setting), norms_(norms) {}

  Work norms() {
    return {static_cast<int64_t>(norms_.size()), 20 * setting_.C, [this](int64_t k, bool) {
              const NormToMake<T>& n = norms_[k];
              const T share = n.running_mean ? batch_share(setting_, ++*n.batches) : T(0);
              for (int64_t c = 0; c < setting_.C; ++c) make_norm(setting_, n, c, share);
            }};
  }

 private:
  NormSetting<T> setting_;
  std::vector<NormToMake<T>> norms_;
};

template <class T>
class CoefficientsCall {
 public:
  CoefficientsCall(int64_t C, std::vector<CoefficientsToMake<T>> norms) : C_(C), norms_(norms) {}

  Work norms() {
    return {static_cast<int64_t>(norms_.size()), 20 * C_, [this](int64_t k, bool) {
              for (int64_t c = 0; c < C_; ++c) make_coefficients(norms_[k], C_, c);
            }};
  }

 private:
  int64_t C_;
  std::vector<CoefficientsToMake<T>> norms_;
};

}  // namespace dartsfast
