// norm_stats of one norm on given memory: what the operators and whoever else runs it share.
#pragma once

#include <optional>

#include "../norm_stats.h"

namespace dartsfast {

// Mean and variance [C], to norm [2, C] mean and 1/std.
template <class T>
void write_norm(const T* mean, const T* variance, int64_t C, T eps, T* norm) {
  for (int64_t c = 0; c < C; ++c) {
    norm[c] = mean[c];
    norm[C + c] = reciprocal_deviation(variance[c], eps);
  }
}

// What a batch moves; no momentum: the mean of all batches.
template <class T>
struct Running {
  T *mean, *variance;  // [C]
  int64_t* batches;
  std::optional<double> momentum;
};

// Mean and variance [C] are of `pixels` values a channel, at least 2.
template <class T>
void move_running(const T* mean, const T* variance, int64_t C, int64_t pixels, const Running<T>& running) {
  const int64_t seen = ++*running.batches;
  const T first = running.momentum ? static_cast<T>(*running.momentum) : T(1) / static_cast<T>(seen);
  const RunningShare<T> share(first, pixels);
  for (int64_t c = 0; c < C; ++c) {
    running.mean[c] = moved(running.mean[c], mean[c], T(1) - first, share.mean);
    running.variance[c] = moved(running.variance[c], variance[c], T(1) - first, share.variance);
  }
}

// The means [C] of g and of g * zhat, and norm [2, C], to coef [4, C] of dz = k * ((g - m) - (z - mu) * r). `flows`:
// the statistics are the batch's own; weight: null if there is none.
template <class T>
void write_coefficients(const T* g_mean, const T* g_zhat_mean, const T* norm, const T* weight, bool flows, int64_t C,
                        T* coef) {
  for (int64_t c = 0; c < C; ++c) {
    const T rho = norm[C + c];
    coef[c] = flows ? g_mean[c] : T(0);
    coef[C + c] = norm[c];
    coef[2 * C + c] = flows ? g_zhat_mean[c] * rho : T(0);
    coef[3 * C + c] = weight ? *weight * rho : rho;
  }
}

}  // namespace dartsfast
