// cross_entropy_: a row of logits at a time; lanes are classes.
#pragma once

#include "../activations.h"
#include "../cross_entropy.h"
#include "reduce.h"

namespace dartsfast::DARTSFAST_ISA {

// x = row + bias, in place; its largest element, NaN where there is one.
template <class T>
T add_bias(const CrossEntropy<T>& a, T* row) {
  using V = Vec<T>;
  V most = V::set(-__builtin_inf());
  T lanes[V::size];
  each_register<T>(a.V, [&](int64_t c, auto left) {
    V x = load_channels(row + c, left);
    if (a.bias) x = x + load_channels(a.bias + c, left);
    store_channels(x, row + c, left);
    if (left < V::size) {  // lanes beyond the row are not its elements
      most.store(lanes);
      x.store_part(lanes, left);
      x = V::load(lanes);
    }
    most = V::select(most.beaten_by(x), x, most);
  });
  most.store(lanes);
  T found = lanes[0];
  for (T x : lanes) found = x > found || x != x ? x : found;
  return found;
}

// e = exp(x - most), in place; returns their sum.
template <class T>
T exponentials(int64_t classes, T most, T* row) {
  using V = Vec<T>;
  constexpr int kSums = kClassInterleave / V::size;
  V s[kSums];
#pragma GCC unroll 8
  for (int k = 0; k < kSums; ++k) s[k] = V::zero();
  const auto add = [&](T* p) {
#pragma GCC unroll 8
    for (int k = 0; k < kSums; ++k) {
      const V e = Activations<V, T>(V::load(p + k * V::size) - V::set(most)).e;
      e.store(p + k * V::size);
      s[k] = s[k] + e;
    }
  };
  int64_t c = 0;
  for (; c + kClassInterleave <= classes; c += kClassInterleave) add(row + c);
  if (c < classes) {
    T rest[kClassInterleave];
    for (int64_t k = 0; k < kClassInterleave; ++k) rest[k] = c + k < classes ? row[c + k] : T(-__builtin_inf());
    add(rest);
    for (int64_t k = 0; c + k < classes; ++k) row[c + k] = rest[k];
  }
  T sums[kClassInterleave];
  for (int k = 0; k < kSums; ++k) s[k].store(sums + k * V::size);
  tree_sum(sums, kClassInterleave, 1, 1);
  return sums[0];
}

template <class T>
RowLoss<T> cross_entropy_row(const CrossEntropy<T>& a, T* row, int64_t label) {
  using V = Vec<T>;
  const T most = add_bias(a, row), at = row[label] - most, sum = exponentials(a.V, most, row), factor = a.scale / sum;
  each_register<T>(a.V, [&](int64_t c, auto left) {
    store_channels(load_channels(row + c, left) * V::set(factor), row + c, left);
  });
  row[label] = row[label] - a.scale;
  return {sum, at};
}

}  // namespace dartsfast::DARTSFAST_ISA
