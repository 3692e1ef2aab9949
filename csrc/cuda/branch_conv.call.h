// branch_conv on given memory of a device: what the operator and whoever else runs it share. A call must outlive the
// sections that its work runs in.
#pragma once

#include <algorithm>
#include <vector>

#include "../branch_conv.h"
#include "branch_conv.h"
#include "device_memory.h"
#include "section.h"
#include "tickets.h"

namespace dartsfast {

// z [N, Ho, Wo, Co], whose pixels may lie apart at one pitch, and the moments of each branch are written; null:
// nowhere.
template <class T>
class BranchConvCall {
 public:
  BranchConvCall(const BranchConvInputs& in, const std::vector<Array>& z, const std::vector<Moments<T>>& stats) {
    cuda::BranchConv<T>& a = args_;
    a.N = in.x.size[0], a.H = in.x.size[1], a.W = in.x.size[2], a.Ci = in.x.size[3], a.Co = in.pointwise[0].size[0];
    a.stride = in.stride, a.Ho = (a.H - 1) / a.stride + 1, a.Wo = (a.W - 1) / a.stride + 1;
    a.relu = in.relu, a.x = image<const T>(in.x), a.norm = static_cast<const T*>(in.norm.data);
    const int64_t branches = static_cast<int64_t>(z.size()), count = a.N * chunks(a.Ho, a.Wo), part = count * 2 * a.Co;
    parts_ = Memory<T>(branches * part);
    const int64_t asked = std::count_if(stats.begin(), stats.end(), [](const auto& s) { return s.mean || s.variance; });
    if (asked) tickets_ = Tickets(asked * cuda::tickets_of(count));
    for (int64_t b = 0; b < branches; ++b) {
      cuda::ConvBranch<T> branch{1, 1, nullptr, static_cast<const T*>(in.pointwise[b].data)};
      if (!in.depthwise.empty()) {
        branch.kernel = in.depthwise[b].size[2], branch.dilation = in.dilation[b];
        branch.taps = static_cast<const T*>(in.depthwise[b].data);
      }
      branch.z = static_cast<T*>(z[b].data), branch.z_pitch = image<T>(z[b]).w;
      if (stats[b].mean || stats[b].variance) {
        branch.stat = {parts_.get() + b * part, stats[b].mean, stats[b].variance, a.Co, 0, {}};
        branch.arrivals = {tickets_.take(cuda::tickets_of(count)), static_cast<int32_t>(count), 1};
      }
      a.branches.push_back(branch);
    }
  }

  // How many channels of a norm of its statistics it makes, or can make; to be asked before the section runs.
  int64_t take(const NormSetting<T>& setting, const NormToMake<T>& norm, bool really) {
    for (cuda::ConvBranch<T>& branch : args_.branches) {
      if (const int64_t channels = branch.stat.take(setting, norm, really)) return channels;
    }
    return 0;
  }

  Work images() { return tickets_.after(work<cuda::BranchConv<T>, cuda::branch_conv<T>>(args_)); }
  Work finish() { return {}; }  // the last block does

 private:
  cuda::BranchConv<T> args_;
  Memory<T> parts_;
  Tickets tickets_;
};

}  // namespace dartsfast

#include "branch_conv_backward.call.h"
