// What the kernels of fd_hvp are given; the contract is in dartsfast/ops/fd_hvp.py.
#pragma once

#include <cstdint>

namespace dartsfast {

// The norm adds squares in double, so that none overflows or vanishes: 32 interleaved partial sums (element
// mod 32) a chunk, folded pairwise, neighbours first; then the chunks, in the same way.
constexpr int64_t kNormInterleave = 32;
constexpr int64_t kNormChunk = 4096;  // elements

template <class T>
struct FdPerturb {
  T* w;
  const T *w0, *v;
  T step;
};

template <class T>
struct FdVirtualStep {
  T* w;
  const T* g;
  const T* momentum_buffer;  // null: none
  T scale, lr, momentum, weight_decay;
};

template <class T>
struct FdQuotient {
  T* out;
  const T *plus, *minus;
  T width;
};

}  // namespace dartsfast
