"""sigmoid and tanh of ``csrc/activations.h``: the same operations in the same order, float32 or float64."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from dartsfast.kernels.reduce import divide

TAYLOR32 = tl.constexpr(tuple(1 / math.factorial(i) for i in range(2, 9)))
TAYLOR64 = tl.constexpr(tuple(1 / math.factorial(i) for i in range(2, 14)))
# Of Lambert's continued fraction for tanh, ascending powers.
NUMERATOR32 = tl.constexpr((315.0, 14.0))
NUMERATOR64 = tl.constexpr((11486475.0, 810810.0, 12870.0, 44.0))
DENOMINATOR32 = tl.constexpr((945.0, 420.0, 15.0))
DENOMINATOR64 = tl.constexpr((34459425.0, 16216200.0, 945945.0, 13860.0, 45.0))


@triton.jit
def like(x, value: tl.constexpr):
    """Return ``value`` in the shape and dtype of ``x``: a bare number would be rounded to float32 by fma."""
    return tl.full(x.shape, value, x.dtype)


@triton.jit
def _polynomial(coefficients: tl.constexpr, degree: tl.constexpr, x):
    """Return the sum of coefficients[i] * x^i by Horner's scheme."""
    total = like(x, coefficients[degree])
    for i in tl.static_range(1, degree + 1):
        total = tl.fma(total, x, like(x, coefficients[degree - i]))
    return total


@triton.jit
def _exp(y, least: tl.constexpr, high: tl.constexpr, low: tl.constexpr, rounding: tl.constexpr,
         taylor: tl.constexpr, degree: tl.constexpr,
         INT: tl.constexpr, bias: tl.constexpr, place: tl.constexpr):  # fmt: skip
    """Return exp(y), y <= 0, and what its rounding lost; the constants are explained in the C++ header."""
    dead = y <= least
    clamped = tl.where(dead, like(y, least), y)
    shifted = tl.fma(clamped, like(y, 1.4426950408889634), like(y, rounding))
    minus_n = rounding - shifted
    r = tl.fma(minus_n, like(y, low), tl.fma(minus_n, like(y, high), clamped))
    p = tl.fma(r * r, _polynomial(taylor, degree, r), r)
    scale = ((shifted.to(INT, bitcast=True) + bias) << place).to(y.dtype, bitcast=True)
    rounded = tl.fma(scale, p, scale)
    rest = tl.fma(scale, p, scale - rounded)
    return tl.where(dead, 0.0, rounded), tl.where(dead, 0.0, rest)


@triton.jit
def _decay(x):
    """Return exp(-|x|) and what its rounding lost."""
    if x.dtype == tl.float64:
        return _exp(
            -tl.abs(x), -708.0, 6.93147180369123816490e-01, 1.90821492927058770002e-10, 6755399441055744.0,
            TAYLOR64, 11, tl.int64, 1023, 52,
        )  # fmt: skip
    else:
        return _exp(
            -tl.abs(x), -87.25, 0.693359375, -2.12194440e-4, 12582912.0, TAYLOR32, 6, tl.int32, 127, 23
        )


@triton.jit
def sigmoid(x):
    """Return 1 / (1 + exp(-x)), of x's shape: a quotient and a step of Newton's on what rounding lost."""
    e, rest = _decay(x)
    total = 1.0 + e
    lost = ((1.0 - total) + e) + rest
    inverse = divide(like(x, 1.0), total)
    above = tl.where(x <= 0, e, 1.0)
    above_rest = tl.where(x <= 0, rest, 0.0)
    q = above * inverse
    return tl.fma(tl.fma(-q, total, above) + tl.fma(-q, lost, above_rest), inverse, q)


@triton.jit
def tanh(x):
    """Return the hyperbolic tangent, of x's shape."""
    a = tl.abs(x)
    e, rest = _decay(x)
    square = tl.fma(e, e, (e + e) * rest)
    z = a * a
    small = a <= 0.625
    if x.dtype == tl.float64:
        numerator, denominator = _polynomial(NUMERATOR64, 3, z), _polynomial(DENOMINATOR64, 4, z)
    else:
        numerator, denominator = _polynomial(NUMERATOR32, 1, z), _polynomial(DENOMINATOR32, 2, z)
    above = tl.where(small, (a * z) * numerator, square + square)
    below = tl.where(small, denominator, 1.0 + square)
    t = tl.where(small, a, 1.0) - divide(above, below)
    # The sign by its bit, as a negation is 0 - t, which gives 0 and not -0 for 0.
    if x.dtype == tl.float64:
        sign = (x.to(tl.int64, bitcast=True) >> 63) << 63
        return (t.to(tl.int64, bitcast=True) | sign).to(tl.float64, bitcast=True)
    else:
        sign = (x.to(tl.int32, bitcast=True) >> 31) << 31
        return (t.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
