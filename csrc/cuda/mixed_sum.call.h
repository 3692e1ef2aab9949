// mixed_sum on given memory of a device: what the operator and whoever else runs it share. A call must outlive the
// sections that its work runs in.
#pragma once

#include <algorithm>
#include <vector>

#include "../mixed_sum.h"
#include "../norm_stats.h"
#include "device_memory.h"
#include "mixed_sum.h"
#include "section.h"
#include "tickets.h"

namespace dartsfast {

template <class T>
cuda::Pixels<T> pixels(const Array& a) {
  const Image<T> i = image<T>(a);
  return {i.data, i.n, i.w};
}

// out [N, H, W, C] is written, an image whose pixels may lie apart; base like it, or none.
template <class T>
class MixedSumCall {
 public:
  MixedSumCall(const std::vector<NormedBranch<T>>& branches, const std::vector<const T*>& weights, const Array& base,
               const Array& out) {
    args_.N = out.size[0], args_.HW = out.size[1] * out.size[2], args_.C = out.size[3];
    args_.base = pixels<const T>(base), args_.out = pixels<T>(out);
    for (size_t b = 0; b < branches.size(); ++b) {
      args_.branches.push_back({pixels<const T>(branches[b].z), branches[b].mean, branches[b].rstd, weights[b]});
    }
  }

  Work images() { return work<cuda::MixedSum<T>, cuda::mixed_sum<T>>(args_); }

 private:
  cuda::MixedSum<T> args_;
};

// The gradient of each branch's weight, and the means [C] of g, then of g * zhat of each branch, are written; null:
// nowhere.
template <class T>
class MixedSumBackwardCall {
 public:
  MixedSumBackwardCall(const std::vector<NormedBranch<T>>& branches, const Array& g, const std::vector<T*>& d_weights,
                       const std::vector<T*>& means) {
    args_.N = g.size[0], args_.H = g.size[1], args_.W = g.size[2], args_.C = g.size[3];
    args_.g = pixels<const T>(g), args_.g_mean = means[0];
    for (size_t b = 0; b < branches.size(); ++b) {
      args_.branches.push_back(
          {pixels<const T>(branches[b].z), branches[b].mean, branches[b].rstd, means[1 + b], d_weights[b], nullptr, nullptr,
           false});
    }
    const int64_t count = args_.N * chunks(args_.H, args_.W), outputs = 1 + static_cast<int64_t>(branches.size());
    sums_ = Memory<T>(outputs * count * args_.C);
    args_.sums = sums_.get();
    const int64_t launches = static_cast<int64_t>(branches.size()) / cuda::kGradientBranches + 1;
    tickets_ = Tickets(launches * cuda::tickets_of(count));
    args_.tickets = tickets_.take(launches * cuda::tickets_of(count));
  }

  // Whether it makes the coefficients of a norm, which must be of its means; before the section runs.
  bool take(int64_t C, const CoefficientsToMake<T>& norm) {
    const auto its = [&](const cuda::GradientBranch<T>& b) {
      return b.g_zhat_mean && b.g_zhat_mean == norm.g_zhat_mean && b.mean == norm.norm && b.rstd == norm.norm + C;
    };
    const auto found = std::find_if(args_.branches.begin(), args_.branches.end(), its);
    if (found == args_.branches.end() || !args_.g_mean || args_.g_mean != norm.g_mean) return false;
    found->coef = norm.coef, found->weight = norm.weight, found->flows = norm.flows;
    return true;
  }

  Work images() { return tickets_.after(work<cuda::MixedSumBackward<T>, cuda::mixed_sum_backward<T>>(args_)); }
  Work finish() { return {}; }  // the last block does

 private:
  cuda::MixedSumBackward<T> args_;
  Memory<T> sums_;
  Tickets tickets_;
};

}  // namespace dartsfast
