// fd_hvp: arithmetic on flat buffers; lanes are elements.
#pragma once

#include "../fd_hvp.h"
#include "reduce.h"

namespace dartsfast::DARTSFAST_ISA {

// Sum of squares of a chunk of n elements.
template <class T>
double fd_norm_chunk(const T* v, int64_t n) {
  using V = Vec<double>;
  constexpr int kSums = kNormInterleave / V::size;
  V s[kSums];
#pragma GCC unroll 8
  for (int k = 0; k < kSums; ++k) s[k] = V::zero();
  const auto add = [&](const T* p) {
#pragma GCC unroll 8
    for (int k = 0; k < kSums; ++k) {
      const V x = V::load(p + k * V::size);
      s[k] = V::fma(x, x, s[k]);
    }
  };
  int64_t i = 0;
  for (; i + kNormInterleave <= n; i += kNormInterleave) add(v + i);
  if (i < n) {
    T rest[kNormInterleave] = {};  // squares of 0 change no sum
    for (int64_t k = 0; i + k < n; ++k) rest[k] = v[i + k];
    add(rest);
  }
  double sums[kNormInterleave];
  for (int k = 0; k < kSums; ++k) s[k].store(sums + k * V::size);
  tree_sum(sums, kNormInterleave, 1, 1);
  return sums[0];
}

template <class T>
void fd_perturb(const FdPerturb<T>& a, int64_t begin, int64_t end) {
  using V = Vec<T>;
  const V step = V::set(a.step);
  each_register<T>(end - begin, [&](int64_t i, auto left) {
    const auto load = [&](const T* p) { return load_channels(p + begin + i, left); };
    store_channels(V::fma(step, load(a.v), load(a.w0)), a.w + begin + i, left);
  });
}

template <class T>
void fd_virtual_step(const FdVirtualStep<T>& a, int64_t begin, int64_t end) {
  using V = Vec<T>;
  const V scale = V::set(a.scale), back = V::set(-a.lr), momentum = V::set(a.momentum), decay = V::set(a.weight_decay);
  each_register<T>(end - begin, [&](int64_t i, auto left) {
    const auto load = [&](const T* p) { return load_channels(p + begin + i, left); };
    const V w = load(a.w);
    V step = V::fma(decay, w, scale * load(a.g));
    if (a.momentum_buffer) step = V::fma(momentum, load(a.momentum_buffer), step);
    store_channels(V::fma(back, step, w), a.w + begin + i, left);
  });
}

template <class T>
void fd_quotient(const FdQuotient<T>& a, int64_t begin, int64_t end) {
  using V = Vec<T>;
  const V width = V::set(a.width);
  each_register<T>(end - begin, [&](int64_t i, auto left) {
    const auto load = [&](const T* p) { return load_channels(p + begin + i, left); };
    store_channels((load(a.plus) - load(a.minus)) / width, a.out + begin + i, left);
  });
}

}  // namespace dartsfast::DARTSFAST_ISA
