// What the kernels of branch_conv's backward are given on a device.
#pragma once

#include <cstdint>
#include <vector>

#include "../norm_stats.h"
#include "../order.h"
#include "arrivals.h"
#include "runtime.h"

namespace dartsfast::cuda {

struct ConvShape {
  int32_t N, H, W, Ci, Co, Ho, Wo, stride;
};

// relu(norm(x)), either of them where it is asked for.
template <class T>
struct Activated {
  Image<const T> x;  // [N, H, W, Ci]
  const T* norm;     // [2, Ci] mean and 1/std, or null
  bool relu;
};

// dz of a branch: g itself where z has no data, else k * ((g - m) - (z - mu) * r).
template <class T>
struct OutputGradient {
  Image<const T> g, z;  // [N, Ho, Wo, Co]
  const T* coef;        // rows m, mu, r, k of Co channels
  int64_t step;         // elements from a row to the next
};

template <class T>
struct BackwardBranch {
  int32_t kernel, dilation;  // 1 without depthwise
  const T* taps;             // [Ci, K*K], null without depthwise
  const T* pointwise;        // [Co, Ci]
  OutputGradient<T> dz;
  T* taps_grad;       // [N, K*K, Ci], of images; null if not asked for
  T* pointwise_grad;  // [N, Ci, Co], of images; null if not asked for
};

// Channels of a pixel in scratch memory.
inline DARTSFAST_BOTH int32_t scratch_channels(int32_t C) { return (C + 3) / 4 * 4; }

// The means of the gradient of norm(x) and of its product with norm(x), and what they are for.
template <class T>
struct InputMeans {
  T* sums;                      // [count, 2, Ci] of the chunks of x; null: not asked for
  T* means;                     // [2, Ci]
  CoefficientsToMake<T> coefs;  // of the norm; null coef: none
  Arrivals arrivals;
};

template <class T>
struct BranchConvBackward {
  ConvShape shape;
  Activated<T> in;
  Image<T> dx;                // null data if not asked for
  Image<const T> base, onto;  // dx = onto + (base + v), may be the memory of either; null data: nothing
  InputMeans<T> means;
  T* dt;   // [branches, N, Ho, Wo, Ci'] gradients of the depthwise outputs, Ci' = scratch_channels; null: not needed
  T* sum;  // [N, H, W, Ci'] sum over the branches of earlier launches; null where one takes all
  std::vector<BackwardBranch<T>> branches;
};

// Whether the pointwise product of a call gives the gradient of its input.
template <class T>
bool direct(const BranchConvBackward<T>& a) {
  return a.dx.data && a.branches.size() == 1 && !a.branches[0].taps && !a.means.sums;
}

// Branches of a call that a launch of the input gradient takes.
constexpr int kAdjointBranches = 8;

// A weight's gradient: part [count, rows, columns] of images, overwritten by their sum in the order of csrc/order.h's tree,
// to out [columns, rows].
template <class T>
struct PartialSums {
  T *part, *out;
  int32_t count, rows, columns;
};

template <class T>
void branch_conv_backward(const std::vector<const BranchConvBackward<T>*>& calls, Stream stream);
// Whether a call is one for the kernels that keep an image in shared memory. They need no scratch memory.
template <class T>
bool resident(const BranchConvBackward<T>& call);
template <class T>
void branch_conv_backward_resident(const std::vector<const BranchConvBackward<T>*>& calls, Stream stream);
template <class T>
void branch_conv_weight_grads(const std::vector<const BranchConvBackward<T>*>& calls, Stream stream);
template <class T>
void add_partial_sums(const std::vector<const PartialSums<T>*>& calls, Stream stream);

template <>
bool resident(const BranchConvBackward<float>& call);
template <>
bool resident(const BranchConvBackward<double>& call);
template <>
void branch_conv_backward_resident(const std::vector<const BranchConvBackward<float>*>& calls, Stream stream);
template <>
void branch_conv_backward_resident(const std::vector<const BranchConvBackward<double>*>& calls, Stream stream);

}  // namespace dartsfast::cuda
