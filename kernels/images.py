"""How kernels address images [N, H, W, C]: tiles of pixels by channels, any strides but dense channels."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from dartsfast.kernels.launch import block
from torch import Tensor

LEAST, CHANNELS = 8, 64  # channels of a tile
THREADS = 128
VECTOR = 16  # bytes
LARGEST_UNIT = 16


def unit(*tensors: Tensor) -> int:
    """Return the largest power of two, at most 16, that divides the channels and all other strides.

    Kernels take them in units of it: so the compiler knows how wide an access may be.
    """
    return math.gcd(LARGEST_UNIT, *(n for x in tensors for n in (x.shape[-1], *_strides(x))))


def strides(tensor: Tensor, unit: int) -> tuple[int, ...]:
    """Return all strides but that of the channels, 1, in units."""
    return tuple(s // unit for s in _strides(tensor))


def tile(*images: Tensor) -> tuple[int, int]:
    """Return pixels and channels of a program's tile: a vector of the narrowest image for every thread."""
    return tile_of(images[0].shape[-1], min(x.element_size() for x in images))


def tile_of(C: int, size: int) -> tuple[int, int]:
    """Return the same for images of C channels, the narrowest of ``size`` bytes a number."""
    channels = block(C, LEAST, CHANNELS)
    return THREADS * VECTOR // size // channels, channels


@triton.jit
def scaled(strides, UNIT: tl.constexpr):
    """Return strides of an image from those in units."""
    return strides[0] * UNIT, strides[1] * UNIT, strides[2] * UNIT


@triton.jit
def position(p, H, W):
    """Return image, row and column of pixel ``p``."""
    n = p // (H * W)
    p -= n * (H * W)
    y = p // W
    return n, y, p - y * W


@triton.jit
def offset(strides, n, y, x, UNIT: tl.constexpr):
    """Return where in memory the channels of pixels start, for strides in units."""
    return (n * strides[0] + y * strides[1] + x * strides[2]) * UNIT


def _strides(tensor: Tensor) -> list[int]:
    return [s if n > 1 else 0 for n, s in zip(tensor.shape[:-1], tensor.stride()[:-1], strict=True)]
