// The backward of branch_conv on given memory of a device. A call keeps its scratch memory, and must outlive the
// sections that its work runs in.
#pragma once

#include <memory>
#include <vector>

#include "../branch_conv.h"
#include "branch_conv_backward.h"
#include "device_memory.h"
#include "section.h"
#include "tickets.h"

namespace dartsfast {

template <class T>
class BranchConvBackwardCall {
 public:
  BranchConvBackwardCall(const BranchConvInputs& in, const BranchConvGradients<T>& out) {
    cuda::ConvShape& s = args_.shape;
    s.N = in.x.size[0], s.H = in.x.size[1], s.W = in.x.size[2], s.Ci = in.x.size[3], s.Co = in.pointwise[0].size[0];
    s.stride = in.stride, s.Ho = (s.H - 1) / s.stride + 1, s.Wo = (s.W - 1) / s.stride + 1;
    args_.in = {image<const T>(in.x), static_cast<const T*>(in.norm.data), in.relu};
    args_.dx = image<T>(out.dx), args_.base = image<const T>(out.base), args_.onto = image<const T>(out.onto);
    for (size_t b = 0; b < in.pointwise.size(); ++b) args_.branches.push_back(branch(in, out, b));
    if (out.means) {
      const int64_t count = int64_t{s.N} * chunks(s.H, s.W);
      tickets_ = Tickets(cuda::tickets_of(count));
      const cuda::Arrivals arrivals{tickets_.take(cuda::tickets_of(count)), static_cast<int32_t>(count), 1};
      args_.means = {fresh(count * 2 * s.Ci), out.means, {}, arrivals};
    }
    give_scratch();
  }

  // Whether it makes the coefficients of a norm, which must be of its means; before the section runs.
  bool take(int64_t C, const CoefficientsToMake<T>& norm) {
    const T* const means = args_.means.means;
    if (!means || norm.g_mean != means || norm.g_zhat_mean != means + C) return false;
    args_.means.coefs = norm;
    return true;
  }

  Work images() { return tickets_.after(work<cuda::BranchConvBackward<T>, cuda::branch_conv_backward<T>>(args_)); }
  // The gradients of weights, which nothing of a program waits for.
  Work finish() {
    Work found = work<cuda::PartialSums<T>, cuda::add_partial_sums<T>>(sums_->args);
    found.memory = sums_;
    return found;
  }

 private:
  cuda::BackwardBranch<T> branch(const BranchConvInputs& in, const BranchConvGradients<T>& out, size_t b) {
    const cuda::ConvShape& s = args_.shape;
    cuda::BackwardBranch<T> made{1, 1, nullptr, static_cast<const T*>(in.pointwise[b].data), {}, nullptr, nullptr};
    if (!in.depthwise.empty()) {
      made.kernel = in.depthwise[b].size[2], made.dilation = in.dilation[b];
      made.taps = static_cast<const T*>(in.depthwise[b].data);
    }
    made.dz.g = image<const T>(out.g[b]);
    if (!out.z.empty()) {
      made.dz.z = image<const T>(out.z[b]);
      made.dz.coef = static_cast<const T*>(out.coef[b].data), made.dz.step = out.coef[b].stride[0];
    }
    if (b < out.pointwise.size()) made.pointwise_grad = partial(s.Ci, s.Co, out.pointwise[b]);
    if (b < out.depthwise.size()) made.taps_grad = partial(made.kernel * made.kernel, s.Ci, out.depthwise[b]);
    return made;
  }

  // Of each image [rows, columns], of a weight [columns, rows].
  T* partial(int32_t rows, int32_t columns, T* out) {
    if (!out) return nullptr;
    T* const part = sums_->kept.emplace_back(int64_t{args_.shape.N} * rows * columns).get();
    sums_->args.push_back({part, out, args_.shape.N, rows, columns});
    return part;
  }

  void give_scratch() {
    if (cuda::resident(args_) || cuda::direct(args_)) return;
    const cuda::ConvShape& s = args_.shape;
    const int64_t branches = static_cast<int64_t>(args_.branches.size()), Ci = cuda::scratch_channels(s.Ci);
    bool needed = args_.dx.data;
    for (const auto& b : args_.branches) needed |= b.taps_grad != nullptr;
    if (needed) args_.dt = fresh(branches * s.N * s.Ho * s.Wo * Ci);
    if (args_.dx.data && branches > cuda::kAdjointBranches) args_.sum = fresh(int64_t{s.N} * s.H * s.W * Ci);
  }

  T* fresh(int64_t n) { return kept_.emplace_back(n).get(); }

  cuda::BranchConvBackward<T> args_{};
  struct WeightSums {
    std::vector<cuda::PartialSums<T>> args;
    std::vector<Memory<T>> kept;
  };
  std::shared_ptr<WeightSums> sums_ = std::make_shared<WeightSums>();
  std::vector<Memory<T>> kept_;
  Tickets tickets_;
};

}  // namespace dartsfast
