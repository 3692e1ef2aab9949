// Branches of branch_conv that share a tile of their input in shared memory, at the sizes that there are kernels for.
#pragma once

#include <cstdint>
#include <vector>

#include "branch_conv.h"
#include "runtime.h"

namespace dartsfast::cuda {

struct TileBranch {
  const float *taps, *pointwise;  // [C, K*K], [C, C]
  float* z;
  int64_t z_pitch;
  Statistic<float> stat;
};

// Branches of one call, at most one of each kernel and dilation, by dilation and kernel.
struct TileCall {
  static constexpr int most = 4;

  int32_t N, H;
  bool relu;
  Image<const float> x;
  const float* norm;
  uint32_t there;     // bits of the branches that there are
  Arrivals arrivals;  // for the statistics of all of them
  TileBranch branches[most];

  static DARTSFAST_BOTH uint32_t bit(int dilation, int half) { return 1u << place(dilation, half); }
  DARTSFAST_BOTH const TileBranch& branch(int dilation, int half) const { return branches[index(place(dilation, half))]; }
  // Of the branch that has a bit, among those that there are.
  DARTSFAST_BOTH int index(int place) const {
    int found = 0;
    for (int i = 0; i < place; ++i) found += there >> i & 1;
    return found;
  }
  DARTSFAST_BOTH int count() const { return index(most); }
  size_t bytes() const { return sizeof *this - (most - count()) * sizeof(TileBranch); }
  void add(int dilation, int half, const TileBranch& branch) {
    const int at = index(place(dilation, half));
    for (int i = count(); i > at; --i) branches[i] = branches[i - 1];
    branches[at] = branch, there |= bit(dilation, half);
  }

 private:
  static DARTSFAST_BOTH int place(int dilation, int half) { return 2 * (dilation - 1) + half; }
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
