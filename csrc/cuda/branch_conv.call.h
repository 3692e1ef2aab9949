// branch_conv on given memory of a device: what the operator and whoever else runs it share. A call must outlive the
// sections that its work runs in.
#pragma once

#include <vector>

#include "../branch_conv.h"
#include "branch_conv.h"
#include "device_memory.h"
#include "moments.h"
#include "section.h"

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
    a.relu = in.relu, a.x = stored_image(in.x), a.norm = static_cast<const T*>(in.norm.data);
    const int64_t branches = static_cast<int64_t>(z.size()), part = a.N * chunks(a.Ho, a.Wo) * 2 * a.Co;
    parts_ = Memory<T>(branches * part);
    for (int64_t b = 0; b < branches; ++b) {
      cuda::ConvBranch<T> branch{1, 1, nullptr, static_cast<const T*>(in.pointwise[b].data)};
      if (!in.depthwise.empty()) {
        branch.kernel = in.depthwise[b].size[2], branch.dilation = in.dilation[b];
        branch.taps = static_cast<const T*>(in.depthwise[b].data);
      }
      branch.z = z[b].data, branch.z_pitch = image<T>(z[b]).w, branch.z_storage = z[b].storage;
      if (stats[b].mean || stats[b].variance) {
        branch.parts = parts_.get() + b * part;
        moments_.push_back({a.N, a.Ho, a.Wo, a.Co, branch.parts, stats[b].mean, stats[b].variance});
      }
      a.branches.push_back(branch);
    }
  }

  Work images() { return work<cuda::BranchConv<T>, cuda::branch_conv<T>>(args_); }
  Work finish() { return work<cuda::ChunkMoments<T>, cuda::merge_moments<T>>(moments_); }

 private:
  cuda::BranchConv<T> args_;
  std::vector<cuda::ChunkMoments<T>> moments_;
  Memory<T> parts_;
};

}  // namespace dartsfast

#include "branch_conv_backward.call.h"
