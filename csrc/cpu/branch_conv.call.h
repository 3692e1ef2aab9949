// branch_conv on given memory: what the operator and whoever else runs it share. A call keeps what it packs, and
// must outlive the sections that its work runs in.
#pragma once

#include <utility>
#include <vector>

#include "kernels.h"
#include "moments.h"
#include "section.h"
#include "tap_lists.h"

namespace dartsfast {

// The argument struct and everything that it points to.
template <class T>
class BranchConvArguments {
 public:
  explicit BranchConvArguments(const BranchConvInputs& in) : branch_(in.pointwise.size()) {
    BranchConv<T>& a = args_;
    a.N = in.x.size[0], a.H = in.x.size[1], a.W = in.x.size[2], a.Ci = in.x.size[3], a.Co = in.pointwise[0].size[0];
    a.stride = in.stride, a.Ho = (a.H - 1) / a.stride + 1, a.Wo = (a.W - 1) / a.stride + 1;
    a.x = stored_image(in.x), a.relu = in.relu;
    a.norm = in.norm.data ? keep(packed<T>(in.norm, a.Ci)) : nullptr;
    a.branches = static_cast<int64_t>(branch_.size()), a.branch = branch_.data();
    for (size_t b = 0; b < branch_.size(); ++b) {
      branch_[b] = {};
      branch_[b].kernel = branch_[b].dilation = 1;
      if (in.depthwise.empty()) continue;
      const int64_t K = in.depthwise[b].size[2];
      branch_[b].kernel = K, branch_[b].dilation = in.dilation[b];
      branch_[b].taps = keep(packed<T, true>(in.depthwise[b], K * K));
    }
    a.next = worth(a.N, cost());
    taps_.reserve(branch_.size() * (1 + a.stride * a.stride));
    const int64_t P = border(a);
    for (Branch<T>& b : branch_) {
      if (b.taps) b.forward = &taps_.emplace_back(forward_taps(b.kernel, b.dilation, P, a.W + 2 * P));
    }
  }
  BranchConvArguments(const BranchConvArguments&) = delete;

 protected:
  // Multiplications of an image.
  int64_t cost() const {
    int64_t taps = 0;
    for (const Branch<T>& b : branch_) taps += b.kernel * b.kernel;
    return args_.Ho * args_.Wo * args_.Ci * (taps + args_.branches * args_.Co);
  }
  const T* keep(Memory<T> one) { return kept_.emplace_back(std::move(one)).get(); }
  T* fresh(int64_t n) { return kept_.emplace_back(memory<T>(n)).get(); }

  BranchConv<T> args_{};
  std::vector<Branch<T>> branch_;
  std::vector<Taps> taps_;  // of every branch; never moved

 private:
  std::vector<Memory<T>> kept_;
};

// z [N, Ho, Wo, Co], whose pixels may lie apart at one pitch, and the moments of each branch are written.
template <class T>
class BranchConvCall : BranchConvArguments<T> {
 public:
  BranchConvCall(const BranchConvInputs& in, const std::vector<Array>& z, const std::vector<Moments<T>>& stats)
      : BranchConvArguments<T>(in), stored_(z[0].storage), stats_(stats) {
    const BranchConv<T>& a = args_;
    for (size_t b = 0; b < branch_.size(); ++b) {
      branch_[b].pointwise = this->keep(packed<T, true>(in.pointwise[b], a.Ci));
      branch_[b].z = z[b].data, branch_[b].z_pitch = image<T>(z[b]).w;
      branch_[b].moments = this->fresh(a.N * chunks(a.Ho, a.Wo) * 2 * padded(a.Co));
    }
  }

  Work images() {
    return {args_.N, this->cost(), [this, size = scratch_size(args_)](int64_t n, bool first) {
              kernels<T>().of(stored_).branch_conv[args_.x.storage == stored_](args_, n, scratch<T>(size), first);
            }};
  }

  // An item a branch.
  Work finish() {
    const BranchConv<T>& a = args_;
    return {a.branches, a.N * chunks(a.Ho, a.Wo) * 20 * padded(a.Co), [this](int64_t b, bool) {
              moments<T>(branch_[b].moments, args_.N, args_.Ho, args_.Wo, args_.Co, stats_[b]);
            }};
  }

 private:
  using BranchConvArguments<T>::args_, BranchConvArguments<T>::branch_;
  Storage stored_;  // z
  std::vector<Moments<T>> stats_;
};

template <class T>
class BranchConvBackwardCall : BranchConvArguments<T> {
 public:
  BranchConvBackwardCall(const BranchConvInputs& in, const BranchConvGradients<T>& out)
      : BranchConvArguments<T>(in), coef_(packed_rows<T>(coefficients(out), args_.Co)), means_(out.means) {
    BranchConv<T>& a = args_;
    a.dx = image<T>(out.dx), a.base = image<const T>(out.base), a.onto = image<const T>(out.onto);
    const int64_t Ci = padded(a.Ci);
    if (means_) a.norm_sums = this->fresh(a.N * chunks(a.H, a.W) * 2 * Ci);
    for (size_t b = 0; b < branch_.size(); ++b) {
      Branch<T>& branch = branch_[b];
      branch.g = image<const T>(out.g[b]);
      branch.transposed = this->keep(packed<T>(in.pointwise[b], a.Ci));
      if (!out.z.empty()) branch.saved = stored_image(out.z[b]), branch.coef = coef_.get() + 4 * b * padded(a.Co);
      if (b < out.pointwise.size()) branch.pointwise_grad = partial(a.Ci, a.Co, out.pointwise[b]);
      if (b < out.depthwise.size()) branch.taps_grad = partial(branch.kernel * branch.kernel, a.Ci, out.depthwise[b]);
    }
    if (a.dx.data && !in.depthwise.empty()) list_adjoint_taps();
  }

  Work images() {
    return {args_.N, 3 * this->cost(), [this, size = scratch_size(args_)](int64_t n, bool first) {
              const Storage stored = branch_[0].saved.storage;
              kernels<T>().of(stored).branch_conv_backward[args_.x.storage == stored](args_, n, scratch<T>(size), first);
            }};
  }

  // An item a weight, and one for the means.
  Work finish() {
    const int64_t sums = static_cast<int64_t>(sums_.size()), items = sums + (means_ ? 1 : 0);
    int64_t cost = means_ ? args_.N * chunks(args_.H, args_.W) * 2 * padded(args_.Ci) : 0;
    for (const Sum& sum : sums_) cost += args_.N * sum.rows * padded(sum.width);
    return {items, items ? cost / items : 0, [this, sums](int64_t i, bool) { i < sums ? add(sums_[i]) : average(); }};
  }

 private:
  using BranchConvArguments<T>::args_, BranchConvArguments<T>::branch_, BranchConvArguments<T>::taps_;

  // A weight's gradient: part [N, rows, width'] to out [width, rows], the layout of the weight.
  struct Sum {
    T* part;
    int64_t rows, width;
    T* out;
  };

  // The four rows of every branch.
  std::vector<const T*> coefficients(const BranchConvGradients<T>& out) const {
    std::vector<const T*> rows;
    for (const Array& k : out.coef) {
      for (int64_t i = 0; i < 4; ++i) rows.push_back(static_cast<const T*>(k.data) + i * k.stride[0]);
    }
    return rows;
  }

  T* partial(int64_t rows, int64_t width, T* out) {
    if (!out) return nullptr;
    return sums_.emplace_back(Sum{this->fresh(args_.N * rows * padded(width)), rows, width, out}).part;
  }

  void list_adjoint_taps() {
    const int64_t Q = output_border(args_), S = args_.stride;
    for (Branch<T>& b : branch_) {
      b.adjoint = taps_.data() + taps_.size();
      for (int64_t i = 0; i < S * S; ++i) {
        taps_.push_back(adjoint_taps(b.kernel, b.dilation, S, i / S, i % S, Q, args_.Wo + 2 * Q));
      }
    }
  }

  void add(const Sum& sum) const {
    const int64_t P = padded(sum.width);
    kernels<T>().tree_sum(sum.part, args_.N, sum.rows * P, sum.rows * P);
    for (int64_t r = 0; r < sum.rows; ++r) {
      for (int64_t c = 0; c < sum.width; ++c) sum.out[c * sum.rows + r] = sum.part[r * P + c];
    }
  }

  void average() const {
    const BranchConv<T>& a = args_;
    const int64_t Ci = padded(a.Ci);
    kernels<T>().tree_sum(a.norm_sums, a.N * chunks(a.H, a.W), 2 * Ci, 2 * Ci);
    const T pixels = static_cast<T>(a.N * a.H * a.W);
    for (int64_t c = 0; c < a.Ci; ++c) {
      means_[c] = a.norm_sums[c] / pixels;
      means_[a.Ci + c] = a.norm_sums[Ci + c] / pixels;
    }
  }

  Memory<T> coef_;  // [branches, 4, Co']
  T* means_;
  std::vector<Sum> sums_;
};

}  // namespace dartsfast
