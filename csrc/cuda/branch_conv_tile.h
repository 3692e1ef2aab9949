// Branches of branch_conv that share a tile of their input in shared memory, at the sizes that there are kernels for.
#pragma once

#include <cstdint>
#include <vector>

#include "branch_conv.h"
#include "runtime.h"

namespace dartsfast::cuda {

struct TileBranch {
  const float *taps, *pointwise;  // [C, K*K], [C, C]
  void* z;
  int64_t z_pitch;
  Storage z_storage;
  float* parts;
};

// Branches of one call, at most one of each kernel and dilation.
struct TileCall {
  int32_t N, H;
  bool relu;
  StoredImage x;
  const float* norm;
  uint32_t there;           // bits of the branches that there are
  TileBranch branch[2][2];  // by dilation 1 and 2, kernels of 3 and 5

  static DARTSFAST_BOTH uint32_t bit(int dilation, int half) { return 1u << (2 * (dilation - 1) + half); }
};

class TileCalls {
 public:
  // Branches of one call are given one after the other. False: there is no kernel for this one.
  bool take(const BranchConv<float>& call, const ConvBranch<float>& branch);
  bool take(const BranchConv<double>&, const ConvBranch<double>&) { return false; }
  void launch(Stream stream) const;

 private:
  struct Sized {
    const BranchConv<float>* of;
    TileCall call;
  };
  std::vector<Sized> calls_;
};

}  // namespace dartsfast::cuda
