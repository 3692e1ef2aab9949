"""Arithmetic for float32 and float64 alike, and Python numbers as kernel arguments.

Triton passes Python numbers as float32, too narrow for arithmetic in float64.
"""

from __future__ import annotations

import struct

import triton
import triton.language as tl
from dartsfast.kernels.launch import accumulator
from torch import Tensor


def argument(value: float, like: Tensor) -> float | int:
    """Return ``value`` as kernels take it: itself for float32 arithmetic, for float64 its bits."""
    return packed(value, accumulator(like) == tl.float64)


def packed(value: float, double: bool) -> float | int:
    """Return the same for arithmetic in float64, or not."""
    return struct.unpack("q", struct.pack("d", value))[0] if double else float(value)


@triton.jit
def number(value, dtype: tl.constexpr):
    """Return the number [] of ``dtype`` that :func:`argument` packed."""
    if dtype == tl.float64:
        return value.to(tl.int64).to(tl.float64, bitcast=True)
    else:
        return tl.full([], value, tl.float32)


@triton.jit
def root(x):
    """Return the square root of x, rounded once: what float64 does anyway and float32 only on request."""
    if x.dtype == tl.float64:
        return tl.sqrt(x)
    else:
        return tl.sqrt_rn(x)
