// What the kernel of cross_entropy_ is given; the contract is in dartsfast/ops/cross_entropy.py.
#pragma once

#include <cstdint>

namespace dartsfast {

constexpr int64_t kClassInterleave = 32;  // partial sums of a row

template <class T>
struct CrossEntropy {
  int64_t V;
  const T* bias;  // [V], null: none
  T scale;
};

// What is left of a row: the sum of exp(x - maximum), and x - maximum at the label.
template <class T>
struct RowLoss {
  T sum, label;
};

}  // namespace dartsfast
