// alpha_softmax: one implementation of exp, so that every backend gives the same bits.
#pragma once

#include <cstdint>
#include <cstring>

#include "order.h"

namespace dartsfast {

DARTSFAST_BOTH inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DARTSFAST_BOTH inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }

DARTSFAST_BOTH inline float power_of_two(float, int n) {
  const uint32_t bits = static_cast<uint32_t>(n + 127) << 23;
  float r;
  memcpy(&r, &bits, sizeof r);
  return r;
}
DARTSFAST_BOTH inline double power_of_two(double, int n) {
  const uint64_t bits = static_cast<uint64_t>(n + 1023) << 52;
  double r;
  memcpy(&r, &bits, sizeof r);
  return r;
}

template <class T>
struct Exp;
template <>
struct Exp<float> {
  static constexpr float least = -87.0f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f;
  static constexpr int degree = 7;
};
template <>
struct Exp<double> {
  static constexpr double least = -708.0, ln2_high = 6.93147180369123816490e-01, ln2_low = 1.90821492927058770002e-10;
  static constexpr int degree = 13;
};

// exp(x) for x <= 0: x = n ln 2 + r (Cody and Waite), the Taylor polynomial of exp(r) by Horner, times 2^n.
// Below `least` the result is 0; NaN stays NaN.
template <class T>
DARTSFAST_BOTH T exp_negative(T x) {
  if (x < Exp<T>::least) return 0;
  if (x != x) return x;
  const int n = static_cast<int>(x * static_cast<T>(1.4426950408889634) - static_cast<T>(0.5));
  const T k = static_cast<T>(n);
  const T r = fused(-k, Exp<T>::ln2_low, fused(-k, Exp<T>::ln2_high, x));
  T inverse[Exp<T>::degree + 1];  // 1/i!
  inverse[0] = 1;
  double factorial = 1;
  for (int i = 1; i <= Exp<T>::degree; ++i) inverse[i] = static_cast<T>(1 / (factorial *= i));
  T sum = inverse[Exp<T>::degree];
  for (int i = Exp<T>::degree - 1; i >= 0; --i) sum = fused(sum, r, inverse[i]);
  return sum * power_of_two(T(), n);
}

// p = softmax(alpha) of one row of K operations; sums in index order.
template <class T>
DARTSFAST_BOTH void alpha_softmax_row(const T* alpha, int64_t K, T* p) {
  T most = alpha[0];
  for (int64_t k = 1; k < K; ++k) most = alpha[k] > most || alpha[k] != alpha[k] ? alpha[k] : most;
  T sum = 0;
  for (int64_t k = 0; k < K; ++k) sum += p[k] = exp_negative(alpha[k] - most);
  for (int64_t k = 0; k < K; ++k) p[k] /= sum;
}

// d alpha = p * (d - sum(p * d)), the sum an ascending chain of fma.
template <class T>
DARTSFAST_BOTH void alpha_softmax_backward_row(const T* p, const T* d, int64_t K, T* out) {
  T sum = 0;
  for (int64_t k = 0; k < K; ++k) sum = fused(p[k], d[k], sum);
  for (int64_t k = 0; k < K; ++k) out[k] = p[k] * (d[k] - sum);
}

// Rows of K operations: alpha and where its softmax goes, or p, d and where the gradient of alpha goes.
template <class T>
struct SoftmaxRows {
  int64_t rows, K;
  const T *in, *d;  // [rows, K]; null d: forward
  T* out;
};

template <class T>
DARTSFAST_BOTH void softmax_row(const SoftmaxRows<T>& a, int64_t row) {
  const int64_t at = row * a.K;
  if (a.d) {
    alpha_softmax_backward_row(a.in + at, a.d + at, a.K, a.out + at);
  } else {
    alpha_softmax_row(a.in + at, a.K, a.out + at);
  }
}

}  // namespace dartsfast
