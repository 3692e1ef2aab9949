// mixed_sum on given memory: what the operator and whoever else runs it share. A call keeps what it packs, and must
// outlive the sections that its work runs in.
#pragma once

#include <vector>

#include "kernels.h"
#include "packing.h"
#include "section.h"

namespace dartsfast {

// The argument struct and everything that it points to.
template <class T>
class MixedSumArguments {
 public:
  explicit MixedSumArguments(const std::vector<NormedBranch<T>>& branches) {
    std::vector<const T*> mean, rstd;
    for (const NormedBranch<T>& b : branches) {
      z_.push_back(stored_image(b.z)), mean.push_back(b.mean), rstd.push_back(b.rstd);
    }
    const Array& first = branches[0].z;
    args_.N = first.size[0], args_.H = first.size[1], args_.W = first.size[2], args_.C = first.size[3];
    mean_ = packed_rows<T>(mean, args_.C), rstd_ = packed_rows<T>(rstd, args_.C);
    args_.branches = static_cast<int64_t>(z_.size()), args_.z = z_.data();
    args_.mean = mean_.get(), args_.rstd = rstd_.get(), args_.next = worth(args_.N, cost());
  }
  MixedSumArguments(const MixedSumArguments&) = delete;

 protected:
  const ImageKernels<T>& image_kernels() const {
    Storage stored = Storage::own;
    for (const StoredImage& z : z_) stored = z.storage == Storage::own ? stored : z.storage;
    return kernels<T>().of(stored);
  }
  int64_t cost() const { return args_.H * args_.W * args_.C * args_.branches * 4; }  // of an image

  MixedSum<T> args_{};

 private:
  std::vector<StoredImage> z_;
  Memory<T> mean_, rstd_;  // [branches, C']
};

// out [N, H, W, C] is written, an image whose pixels may lie apart; base like it, or none.
template <class T>
class MixedSumCall : MixedSumArguments<T> {
 public:
  MixedSumCall(const std::vector<NormedBranch<T>>& branches, const std::vector<const T*>& weights, const Array& base,
               const Array& out)
      : MixedSumArguments<T>(branches) {
    for (const T* w : weights) weights_.push_back(*w);
    args_.weights = weights_.data(), args_.base = image<const T>(base), args_.out = image<T>(out);
  }

  Work images() {
    return {args_.N, this->cost(), [this](int64_t n, bool) { this->image_kernels().mixed_sum(args_, n, nullptr); }};
  }

 private:
  using MixedSumArguments<T>::args_;
  std::vector<T> weights_;
};

// The gradient of each branch's weight, and the means [C] of g, then of g * zhat of each branch, are written; null:
// nowhere.
template <class T>
class MixedSumBackwardCall : MixedSumArguments<T> {
 public:
  MixedSumBackwardCall(const std::vector<NormedBranch<T>>& branches, const Array& g, const std::vector<T*>& d_weights,
                       const std::vector<T*>& means)
      : MixedSumArguments<T>(branches), d_weights_(d_weights), means_(means), sums_(memory<T>(count() * width())) {
    args_.g = image<const T>(g), args_.sums = sums_.get();
  }

  Work images() {
    return {args_.N, this->cost(), [this](int64_t n, bool) { this->image_kernels().mixed_sum_backward(args_, n, nullptr); }};
  }

  // An item for g and one for each branch.
  Work finish() {
    return {1 + args_.branches, count() * padded(args_.C), [this](int64_t row, bool) {
              T* sum = args_.sums + row * padded(args_.C);
              kernels<T>().tree_sum(sum, count(), width(), padded(args_.C));
              const T pixels = static_cast<T>(args_.N * args_.H * args_.W);
              for (int64_t c = 0; means_[row] && c < args_.C; ++c) means_[row][c] = sum[c] / pixels;
              if (row == 0 || !d_weights_[row - 1]) return;
              kernels<T>().tree_sum(sum, args_.C, 1, 1);
              *d_weights_[row - 1] = sum[0];
            }};
  }

 private:
  using MixedSumArguments<T>::args_;
  int64_t count() const { return args_.N * chunks(args_.H, args_.W); }
  int64_t width() const { return (1 + args_.branches) * padded(args_.C); }

  std::vector<T*> d_weights_, means_;
  Memory<T> sums_;  // [N * chunks, 1 + branches, C']
};

}  // namespace dartsfast
