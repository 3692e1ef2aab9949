// exp, sigmoid and tanh: one implementation for every backend, so that all give the same bits, within 2 ULP
// (float, on ten million arguments: 1.0 and 1.5). V is one value or a register of them, of element type T; csrc/cpu/vec.h and
// csrc/cuda/scalar.h have the operations that it needs. Loops are unrolled by templates, so that their constants are in
// the code on every device.
#pragma once

#include "order.h"

namespace dartsfast {

// exp(y) for y <= 0 is scale * (1 + p): y = n ln 2 + r (Cody and Waite), scale = 2^n, and p = exp(r) - 1 by
// its Taylor polynomial. `round` is 1.5 * 2^(bits of the mantissa): a sum with it is rounded to an integer
// that stands in its low bits. Not above `least` exp is 0.
// tanh(a) = a - a z N(z) / D(z), z = a^2, below 0.625: the convergent of Lambert's continued fraction, with
// N and D by ascending powers.
template <class T>
struct Activation;
template <>
struct Activation<float> {
  static constexpr float least = -87.25f, ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f, round = 12582912.0f;
  static constexpr int degree = 8, terms = 2;
  static constexpr float N[terms] = {315, 14}, D[terms + 1] = {945, 420, 15};
};
template <>
struct Activation<double> {
  static constexpr double least = -708.0, ln2_high = 6.93147180369123816490e-01,
                          ln2_low = 1.90821492927058770002e-10, round = 6755399441055744.0;
  static constexpr int degree = 13, terms = 4;
  static constexpr double N[terms] = {11486475, 810810, 12870, 44}, D[terms + 1] = {34459425, 16216200, 945945, 13860, 45};
};

// sigmoid and tanh of one x; both come from exp(-|x|) = e + rest, more than the type can hold.
template <class V, class T>
struct Activations {
  using A = Activation<T>;
  V x, e, rest;

  DARTSFAST_BOTH explicit Activations(V x) : x(x) {
    const V y = x.minus_abs(), least = V::set(A::least);
    const auto alive = y.exceeds(least);
    const V clamped = y.at_least(least);
    const V shifted = V::fma(clamped, V::set(static_cast<T>(1.4426950408889634)), V::set(A::round));
    const V minus_n = V::set(A::round) - shifted;
    const V r = V::fma(minus_n, V::set(A::ln2_low), V::fma(minus_n, V::set(A::ln2_high), clamped));
    constexpr T last = inverse_factorial(A::degree);
    const V p = V::fma(r * r, taylor<A::degree - 1>(V::set(last), r), r), scale = shifted.power_of_two().where(alive);
    e = V::fma(scale, p, scale);
    rest = V::fma(scale, p, scale - e);
  }
  // From the term of degree I on down to that of degree 2, by Horner.
  template <int I>
  DARTSFAST_BOTH static V taylor(V sum, V r) {
    if constexpr (I < 2) {
      return sum;
    } else {
      constexpr T factor = inverse_factorial(I);
      return taylor<I - 1>(V::fma(sum, r, V::set(factor)), r);
    }
  }
  DARTSFAST_BOTH static constexpr T inverse_factorial(int n) {
    double factorial = 1;
    for (int i = 2; i <= n; ++i) factorial *= i;
    return static_cast<T>(1 / factorial);
  }
  // 1 / (1 + exp(-|x|)), of x <= 0 times exp(-|x|): a quotient and a step of Newton's on what rounding lost.
  DARTSFAST_BOTH V sigmoid() const {
    const V one = V::set(1), sum = one + e, lost = ((one - sum) + e) + rest, inverse = one / sum;
    const auto positive = x.exceeds(V::zero());
    const V above = V::select(positive, one, e), q = above * inverse;
    return V::fma(V::fnma(q, sum, above) + V::fnma(q, lost, rest.where_not(positive)), inverse, q);
  }
  // From 0.625 on 1 - 2 e^2 / (1 + e^2), with the sign of x.
  DARTSFAST_BOTH V tanh() const {
    const V a = x.abs(), z = a * a, square = V::fma(e, e, (e + e) * rest);
    const auto large = a.exceeds(V::set(static_cast<T>(0.625)));
    const V above = V::select(large, square + square, (a * z) * polynomial<A::N, A::terms>(z));
    const V below = V::select(large, V::set(1) + square, polynomial<A::D, A::terms + 1>(z));
    return (V::select(large, V::set(1), a) - above / below).with_sign_of(x);
  }
  template <const auto& C, int TERMS>
  DARTSFAST_BOTH static V polynomial(V z) {
    constexpr T last = C[TERMS - 1];
    return horner<C, TERMS - 2>(V::set(last), z);
  }
  template <const auto& C, int I>
  DARTSFAST_BOTH static V horner(V sum, V z) {
    if constexpr (I < 0) {
      return sum;
    } else {
      constexpr T factor = C[I];
      return horner<C, I - 1>(V::fma(sum, z, V::set(factor)), z);
    }
  }
};

}  // namespace dartsfast
