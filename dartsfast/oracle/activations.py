"""sigmoid and tanh of ``csrc/activations.h``, to the bit for float32."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dartsfast.oracle.arithmetic import fma


@dataclass(frozen=True)
class _Constants:
    least: float  # not above it exp is 0
    ln2: tuple[float, float]  # high and low part
    rounding: float  # a sum with it is an integer, in its low bits
    degree: int
    numerator: tuple[int, ...]  # of Lambert's continued fraction, ascending powers
    denominator: tuple[int, ...]
    integer: torch.dtype
    place: int  # of the exponent
    bias: int


_CONSTANTS = {
    torch.float32: _Constants(
        -87.25, (0.693359375, -2.12194440e-4), 12582912.0, 8, (315, 14), (945, 420, 15), torch.int32, 23, 127
    ),
    torch.float64: _Constants(
        -708.0,
        (6.93147180369123816490e-01, 1.90821492927058770002e-10),
        6755399441055744.0,
        13,
        (11486475, 810810, 12870, 44),
        (34459425, 16216200, 945945, 13860, 45),
        torch.int64,
        52,
        1023,
    ),
}


def _constant(x: Tensor, value: float) -> Tensor:
    return torch.tensor(value, dtype=x.dtype)


def _polynomial(coefficients: tuple[float, ...], x: Tensor) -> Tensor:
    """Return the sum of coefficients[i] * x^i by Horner's scheme."""
    total = _constant(x, coefficients[-1]).expand_as(x)
    for c in reversed(coefficients[:-1]):
        total = fma(total, x, _constant(x, c))
    return total


def decay(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return exp(-|x|) and what its rounding lost."""
    k = _CONSTANTS[x.dtype]
    y = -x.abs()
    alive = ~(y <= k.least)
    y = torch.where(alive, y, _constant(x, k.least))
    shifted = fma(y, _constant(x, 1.4426950408889634), _constant(x, k.rounding))
    minus_n = k.rounding - shifted
    high, low = k.ln2
    r = fma(minus_n, _constant(x, low), fma(minus_n, _constant(x, high), y))
    taylor = tuple(1 / math.factorial(i) for i in range(2, k.degree + 1))
    p = fma(r * r, _polynomial(taylor, r), r)
    scale = ((shifted.view(k.integer) + k.bias) << k.place).view(x.dtype)
    rounded = fma(scale, p, scale)
    rest = fma(scale, p, scale - rounded)
    return torch.where(alive, rounded, _constant(x, 0)), torch.where(alive, rest, _constant(x, 0))


def sigmoid(x: Tensor) -> Tensor:
    """Return 1 / (1 + exp(-x))."""
    e, rest = decay(x)
    total = 1 + e
    lost = ((1 - total) + e) + rest
    inverse = 1 / total
    positive = ~(x <= 0)
    above, above_rest = (
        torch.where(positive, _constant(x, 1), e),
        torch.where(positive, _constant(x, 0), rest),
    )
    q = above * inverse
    return fma(fma(-q, total, above) + fma(-q, lost, above_rest), inverse, q)


def tanh(x: Tensor) -> Tensor:
    """Return the hyperbolic tangent."""
    k = _CONSTANTS[x.dtype]
    a, (e, rest) = x.abs(), decay(x)
    square = fma(e, e, (e + e) * rest)
    z = a * a
    large = ~(a <= 0.625)
    above = torch.where(large, square + square, (a * z) * _polynomial(k.numerator, z))
    below = torch.where(large, 1 + square, _polynomial(k.denominator, z))
    return torch.copysign(torch.where(large, _constant(x, 1), a) - above / below, x)
