// norm_stats: one implementation of its arithmetic, so that every backend gives the same bits, and what its calls are
// given; the contract is in dartsfast/ops/norm_stats.py.
#pragma once

#include <cmath>
#include <cstdint>

#include "alpha_softmax.h"

namespace dartsfast {

// What the norms of a call share. A momentum that is no number stands for the mean of all batches.
template <class T>
struct NormSetting {
  int64_t C, pixels;  // statistics are of `pixels` values a channel, at least 2 where they move
  T eps, momentum;
};

// A norm: mean and variance [C], to norm [2, C], mean and 1/std; null running: what the batch does not move.
template <class T>
struct NormToMake {
  const T *mean, *variance;
  T* norm;
  T *running_mean = nullptr, *running_var = nullptr;  // [C]
  int64_t* batches = nullptr;
};

// The share that a batch has in the running mean, where `seen` batches are there with it.
template <class T>
DARTSFAST_BOTH T batch_share(const NormSetting<T>& a, int64_t seen) {
  return a.momentum == a.momentum ? a.momentum : T(1) / static_cast<T>(seen);
}

template <class T>
DARTSFAST_BOTH T moved(T running, T now, T keep, T share) {
  return fused(now, share, running * keep);
}

template <class T>
DARTSFAST_BOTH T reciprocal_deviation(T variance, T eps) {
  return T(1) / std::sqrt(variance + eps);
}

// Channel c of a norm; `share` of the batch in what it moves.
template <class T>
DARTSFAST_BOTH void make_norm(const NormSetting<T>& a, const NormToMake<T>& n, int64_t c, T share) {
  n.norm[c] = n.mean[c];
  n.norm[a.C + c] = reciprocal_deviation(n.variance[c], a.eps);
  if (!n.running_mean) return;
  const T unbiased = share * (static_cast<T>(a.pixels) / static_cast<T>(a.pixels - 1));
  n.running_mean[c] = moved(n.running_mean[c], n.mean[c], T(1) - share, share);
  n.running_var[c] = moved(n.running_var[c], n.variance[c], T(1) - share, unbiased);
}

// The means [C] of g and of g * zhat, and norm [2, C], to coef [4, C] of dz = k * ((g - m) - (z - mu) * r).
template <class T>
struct CoefficientsToMake {
  const T *g_mean, *g_zhat_mean, *norm;
  const T* weight;  // of the branch; null: 1
  T* coef;
  bool flows = true;       // whether the statistics are the batch's own
  const T* own = nullptr;  // where it is there, it says so: not 0
};

// Channel c of C.
template <class T>
DARTSFAST_BOTH void make_coefficients(const CoefficientsToMake<T>& n, int64_t C, int64_t c) {
  const bool flows = n.own ? *n.own != 0 : n.flows;
  const T rho = n.norm[C + c];
  n.coef[c] = flows ? n.g_mean[c] : T(0);
  n.coef[C + c] = n.norm[c];
  n.coef[2 * C + c] = flows ? n.g_zhat_mean[c] * rho : T(0);
  n.coef[3 * C + c] = n.weight ? *n.weight * rho : rho;
}

}  // namespace dartsfast
