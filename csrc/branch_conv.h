// What the kernels of branch_conv are given; the contract is in dartsfast/ops/branch_conv.py.
#pragma once

#include <vector>

#include "array.h"

namespace dartsfast {

constexpr int kMaxTaps = 15 * 15;

// The taps of an output pixel, in order: offsets into the image, and their places in the kernel.
struct Taps {
  int64_t kernel;
  int64_t distance;  // pixels of the image between neighbouring taps; 0 if not all are there
  int64_t count;
  bool adjoint;
  int64_t offset[kMaxTaps];  // pixels
  int64_t weight[kMaxTaps];
};

// One branch. Packed arrays have their channels padded with zeros to a multiple of 16: Ci' and Co'.
template <class T>
struct Branch {
  int64_t kernel, dilation;  // 1 without depthwise
  const T* taps;             // [K*K, Ci'], null without depthwise
  const Taps* forward;       // of the depthwise output
  const Taps* adjoint;       // [stride, stride], of an input pixel by its place in the stride, backward
  const T* pointwise;        // [Ci, Co']
  const T* transposed;       // [Co, Ci'], backward
  void* z;                   // [N, Ho, Wo, Co] as it is stored, forward
  int64_t z_pitch;           // elements from a pixel of z to the next, rows and images too
  T* moments;                // [N * chunks, 2, Co'], forward
  Image<const T> g;          // backward
  StoredImage saved;         // z of the forward, backward; null data: g is dz itself
  const T* coef;             // [4, Co']: m, mu, r, k of dz = k * ((g - m) - (z - mu) * r)
  T* taps_grad;              // [N, K*K, Ci'], null if not asked for
  T* pointwise_grad;         // [N, Ci, Co'], null if not asked for
};

template <class T>
struct BranchConv {
  int64_t N, H, W, Ci, Co, Ho, Wo, stride;
  int64_t next;  // images from one that a thread has to what is likely its next
  StoredImage x;
  const T* norm;  // [2, Ci'] mean and 1/std of x, or null
  bool relu;
  int64_t branches;
  const Branch<T>* branch;
  // Backward only.
  Image<T> dx;                // null data if not asked for
  Image<const T> base, onto;  // dx = onto + (base + v), may be the memory of either; null data: nothing
  T* norm_sums;               // [N * chunks of x, 2, Ci'], null if not asked for

  // Whether dx is on top of itself, where nothing is added to pixels that a stride leaves out.
  bool in_place() const { return onto.data && onto.data == dx.data && !base.data && !branch[0].taps; }
};

inline int64_t halo(int64_t kernel, int64_t dilation) { return dilation * (kernel - 1) / 2; }

// Zero pixels around the image that serve every branch.
template <class T>
int64_t border(const BranchConv<T>& a) {
  int64_t P = 0;
  for (int64_t b = 0; b < a.branches; ++b) {
    const int64_t p = halo(a.branch[b].kernel, a.branch[b].dilation);
    P = p > P ? p : P;
  }
  return P;
}

// Zero pixels around a gradient of the output that serve every tap that reaches an input pixel.
template <class T>
int64_t output_border(const BranchConv<T>& a) {
  return border(a) / a.stride + 1;
}

// Elements of scratch memory that a thread needs for one image; the places in it are Scratch's.
template <class T>
int64_t scratch_size(const BranchConv<T>& a) {
  const int64_t Ci = padded(a.Ci), Co = padded(a.Co), P = border(a), Q = output_border(a);
  const int64_t tile = chunk_rows(a.Wo) * a.Wo;
  return (a.H + 2 * P) * (a.W + 2 * P) * Ci + a.branches * (a.Ho + 2 * Q) * (a.Wo + 2 * Q) * Ci + tile * (Ci + Co) +
         a.H * a.W * Ci;
}

// What forward and backward are both given.
struct BranchConvInputs {
  Array x;                        // [N, H, W, Ci], adjacent channels
  Array norm;                     // [2, Ci] mean and 1/std of x, dense, or none
  std::vector<Array> depthwise;   // [Ci, 1, K, K] of each branch, dense; empty: no depthwise
  std::vector<Array> pointwise;   // [Co, Ci, 1, 1] of each branch, dense
  std::vector<int64_t> dilation;  // of each depthwise
  int64_t stride = 1;
  bool relu = false;
};

// What backward is given beside, and what it writes: null and empty where something is not asked for.
template <class T>
struct BranchConvGradients {
  std::vector<Array> g, z;     // [N, Ho, Wo, Co] of each branch, adjacent channels; no z: g is dz itself
  std::vector<Array> coef;     // [4, Co] of each branch with z, adjacent channels
  Array dx;                    // [N, H, W, Ci], adjacent channels
  Array base, onto;            // like dx, or its very memory: dx = onto + (base + v)
  T* means = nullptr;          // [2, Ci], only with dx and norm
  std::vector<T*> depthwise, pointwise;  // dense, as the weights
};

}  // namespace dartsfast
