// One value where csrc/activations.h asks for a register: every member does what Vec's of csrc/cpu/vec.h do to a lane.
#pragma once

#include <cstdint>
#include <cstring>

#include "../alpha_softmax.h"
#include "runtime.h"

namespace dartsfast::cuda {

template <class T>
struct Scalar {
  T v;

  __device__ static Scalar zero() { return {0}; }
  __device__ static Scalar set(T x) { return {x}; }
  __device__ Scalar operator+(Scalar o) const { return {v + o.v}; }
  __device__ Scalar operator-(Scalar o) const { return {v - o.v}; }
  __device__ Scalar operator*(Scalar o) const { return {v * o.v}; }
  __device__ Scalar operator/(Scalar o) const { return {v / o.v}; }
  __device__ static Scalar fma(Scalar a, Scalar b, Scalar c) { return {fused(a.v, b.v, c.v)}; }
  __device__ static Scalar fnma(Scalar a, Scalar b, Scalar c) { return {fused(-a.v, b.v, c.v)}; }  // c - a b
  // The second operand wins where one is NaN, so NaN passes.
  __device__ Scalar at_least(Scalar floor) const { return {v < floor.v ? floor.v : v}; }
  __device__ Scalar relu() const { return at_least(zero()); }
  __device__ Scalar where_positive(Scalar x) const { return {x.v > 0 ? v : T(0)}; }
  // Whether this is greater, or a NaN takes part.
  __device__ bool exceeds(Scalar o) const { return !(v <= o.v); }
  __device__ Scalar abs() const { return {magnitude(v)}; }
  __device__ Scalar minus_abs() const { return {-magnitude(v)}; }
  // This value, of any sign, with that of x.
  __device__ Scalar with_sign_of(Scalar x) const { return {with_sign(v, x.v)}; }
  // 2^n for the integer n in the low bits.
  __device__ Scalar power_of_two() const { return {power(v)}; }
  __device__ static Scalar select(bool mask, Scalar yes, Scalar no) { return mask ? yes : no; }
  __device__ Scalar where(bool mask) const { return {mask ? v : T(0)}; }
  __device__ Scalar where_not(bool mask) const { return {mask ? T(0) : v}; }

 private:
  __device__ static float magnitude(float x) { return fabsf(x); }
  __device__ static double magnitude(double x) { return fabs(x); }
  __device__ static float with_sign(float x, float sign) { return copysignf(x, sign); }
  __device__ static double with_sign(double x, double sign) { return copysign(x, sign); }
  __device__ static float power(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 127) << 23;
    memcpy(&x, &bits, sizeof bits);
    return x;
  }
  __device__ static double power(double x) {
    uint64_t bits;
    memcpy(&bits, &x, sizeof bits);
    bits = (bits + 1023) << 52;
    memcpy(&x, &bits, sizeof bits);
    return x;
  }
};

}  // namespace dartsfast::cuda
