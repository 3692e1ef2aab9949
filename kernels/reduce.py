"""The second, ordered pass of a reduction: programs' partial results to one, without atomics.

The tree is fixed by the number of partial results: blocks of :data:`PARTS` of them in index order, a
tree of fixed shape within a block.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from dartsfast.kernels.images import LARGEST_UNIT
from dartsfast.kernels.launch import accumulator, block, launch
from torch import Tensor

PARTS = 64
LEAST, COLUMNS = 16, 32  # columns of a block


@triton.jit
def divide(a, b):
    """Return a / b, rounded once: what float64 does anyway and float32 only on request."""
    if a.dtype == tl.float64:
        return a / b
    else:
        return tl.div_rn(a, b)


@triton.jit
def combined(
    partial, pitch, parts, pixels, tile, c, C, PARTS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Return mean and biased variance of channels c from those of tiles (Chan, Golub and LeVeque 1979).

    partial [2, C] every ``pitch`` numbers: mean and sum of squared deviations; a part covers ``tile`` pixels,
    the last what is left.
    """
    total = tl.zeros([COLUMNS], ACC)
    for start in range(0, parts, PARTS):
        p = start + tl.arange(0, PARTS)
        inside = (p < parts)[:, None] & (c < C)[None, :]
        count = tl.minimum(pixels - p * tile, tile).to(ACC)[:, None]
        mean = tl.load(partial + p[:, None] * pitch + c[None, :], inside, 0.0)
        total += tl.sum(tl.where(inside, mean * count, 0.0), 0)
    mean_of_all = divide(total, pixels.to(ACC))
    squares = tl.zeros([COLUMNS], ACC)
    for start in range(0, parts, PARTS):
        p = start + tl.arange(0, PARTS)
        inside = (p < parts)[:, None] & (c < C)[None, :]
        count = tl.minimum(pixels - p * tile, tile).to(ACC)[:, None]
        at = p[:, None] * pitch + c[None, :]
        apart = tl.load(partial + at, inside, 0.0) - mean_of_all[None, :]
        squares += tl.sum(
            tl.where(inside, tl.load(partial + at + C, inside, 0.0) + count * (apart * apart), 0.0), 0
        )
    return mean_of_all, divide(squares, pixels.to(ACC))


@triton.jit(do_not_specialize=["pixels", "tile"])
def moments_kernel(
    partial, out, parts, pixels, tile, units,
    UNIT: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Combine partial [parts, R, 2, C] to out [R, 2, C]; grid (R, blocks of C)."""
    C = units * UNIT
    row, R = tl.program_id(0), tl.num_programs(0)
    c = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    first = partial + row * 2 * C
    mean, variance = combined(first, R * 2 * C, parts, pixels, tile, c, C, PARTS, COLUMNS, ACC)
    tl.store(out + row * 2 * C + c, mean, c < C)
    tl.store(out + (row * 2 + 1) * C + c, variance, c < C)


@triton.jit
def added(partial, pitch, parts, c, size, PARTS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr):
    """Return the sums of columns c of partial [size] every ``pitch`` numbers, over its parts."""
    total = tl.zeros([COLUMNS], ACC)
    for start in range(0, parts, PARTS):
        p = start + tl.arange(0, PARTS)
        inside = (p < parts)[:, None] & (c < size)[None, :]
        total += tl.sum(tl.load(partial + p[:, None] * pitch + c[None, :], inside, 0.0), 0)
    return total


@triton.jit(do_not_specialize=["divisor"])
def sum_kernel(
    partial, out, parts, units, divisor, UNIT: tl.constexpr,
    PARTS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Add partial [parts, size] over its parts, divide, and store as out [size]."""
    size = units * UNIT
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = added(partial, size, parts, c, size, PARTS, COLUMNS, ACC)
    tl.store(out + c, divide(total, divisor.to(ACC)).to(out.dtype.element_ty), c < size)


def moments(partial: Tensor, pixels: int, tile: int, out: Tensor) -> None:
    """Fill out [R, 2, C] with mean and biased variance of ``pixels`` values a channel.

    Args:
        partial: [parts, R, 2, C], mean and sum of squared deviations from it, of every tile of pixels.
        pixels: of all tiles.
        tile: pixels of a tile but the last.
        out: what is filled.
    """
    parts, R, _, C = partial.shape
    columns, u = block(C, LEAST, COLUMNS), math.gcd(LARGEST_UNIT, C)
    launch(
        moments_kernel, (R, triton.cdiv(C, columns)), partial, out, parts, pixels, tile, C // u,
        UNIT=u, PARTS=PARTS, COLUMNS=columns, ACC=accumulator(partial),
    )  # fmt: skip


def ordered_sum(partial: Tensor, out: Tensor, divisor: int = 1) -> None:
    """Fill ``out`` with the sum of ``partial`` [parts, *out.shape] over its parts, over ``divisor``."""
    size = out.numel()
    columns, u = block(size, LEAST, COLUMNS), math.gcd(LARGEST_UNIT, size)
    launch(
        sum_kernel, (triton.cdiv(size, columns),), partial, out, partial.shape[0], size // u, divisor,
        UNIT=u, PARTS=PARTS, COLUMNS=columns, ACC=accumulator(partial),
    )  # fmt: skip
