"""``branch_conv`` and the norms after it for the edges of a section, in a launch each."""

from __future__ import annotations

import triton
import triton.language as tl
from dartsfast.kernels.arithmetic import number, root
from dartsfast.kernels.branch_conv import forward_tile
from dartsfast.kernels.grouped import given, place
from dartsfast.kernels.images import scaled
from dartsfast.kernels.norm_stats import move
from dartsfast.kernels.pool3x3 import pooled_tile
from dartsfast.kernels.reduce import combined, divide

CONV = tl.constexpr(12)
"""Entries of a row of :func:`grouped_conv_kernel`: x, norm, z, partial, depthwise, pointwise, K, D."""
POOL = tl.constexpr(10)
"""Entries of a row of :func:`grouped_pool_kernel`: x, partial of both halves, average and place."""
NORM = tl.constexpr(10)
"""Entries of a row of :func:`grouped_norms_kernel`: partial, norm, its parts, pixels of a part and of all,
running mean and variance, batches."""


@triton.jit(do_not_specialize=["start", "branches"])
def grouped_conv_kernel(
    table, addresses, bases, halves, start, branches, strides, norm_stride, z_pitch, part_row,
    pixels, H, W, Ho, Wo, Ci, Co, NORMED: tl.constexpr, TAPS: tl.constexpr,
    X_HALF: tl.constexpr, Z_HALF: tl.constexpr, STRIDE: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr, UI: tl.constexpr, UO: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill z of every branch, and its partial [tiles, 2, channels]; grid (tiles * branches, blocks of Co)."""
    Ci, Co, strides, norm_stride = Ci * UI, Co * UO, scaled(strides, UI), norm_stride * UI
    z_pitch, part_row = z_pitch * UO, part_row * UO
    at = table + start + tl.program_id(0) % branches * CONV
    tile = tl.program_id(0) // branches
    norm, depthwise, K, D = None, None, 1, 1
    if NORMED:
        norm = place(bases, halves, at + 2, False, UI)
    if TAPS:
        depthwise = given(addresses, at + 8, ACC)
        K = tl.load(at + 10).to(tl.int32)
        D = tl.load(at + 11).to(tl.int32)
    forward_tile(
        place(bases, halves, at, X_HALF, UI), strides, norm, norm_stride,
        depthwise, given(addresses, at + 9, ACC), place(bases, halves, at + 4, Z_HALF, UO), z_pitch,
        place(bases, halves, at + 6, False, UO) + tile * 2 * part_row, part_row, tile,
        pixels, H, W, Ho, Wo, Ci, Co, K, D, STRIDE, RELU, PRECISION, BP, BC, BO, ACC,
    )  # fmt: skip


@triton.jit(do_not_specialize=["start"])
def grouped_pool_kernel(
    table, addresses, bases, halves, start, strides, pixels, H, W, Ho, Wo, units,
    AGAIN: tl.constexpr, X_HALF: tl.constexpr, STRIDE: tl.constexpr, UNIT: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill partial [tiles, 2, C] of both halves, which sums make again; grid (tiles, blocks of C, images).

    ``AGAIN``: for the gradient, the averages and the taps that the maxima came from, bytes, instead.
    """
    C = units * UNIT
    at = table + start + tl.program_id(2) * POOL
    tile = tl.program_id(0)
    mean, places, of_most, of_mean = None, None, None, None
    if AGAIN:
        mean = place(bases, halves, at + 6, False, UNIT)
        places = place(bases, halves, at + 8, False, UNIT).to(tl.pointer_type(tl.int8), bitcast=True)
    else:
        of_most = place(bases, halves, at + 2, False, UNIT) + tile * 2 * C
        of_mean = place(bases, halves, at + 4, False, UNIT) + tile * 2 * C
    pooled_tile(
        None, mean, places, of_most, of_mean, place(bases, halves, at, X_HALF, UNIT), strides, tile,
        pixels, H, W, Ho, Wo, C, STRIDE, UNIT, BP, BC, ACC,
    )  # fmt: skip


@triton.jit(do_not_specialize=["start"])
def grouped_norms_kernel(
    table, addresses, bases, halves, start, units, momentum, eps, OWN: tl.constexpr, MOVED: tl.constexpr,
    UNIT: tl.constexpr, PARTS: tl.constexpr, COLUMNS: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill norm [2, C] of every row and move its running statistics; grid (norms,).

    ``OWN``: from the batch, whose partial [parts, 2, C] is combined; else from the running statistics.
    """
    C = units * UNIT
    at = table + start + tl.program_id(0) * NORM
    partial, norm = place(bases, halves, at, False, UNIT), place(bases, halves, at + 2, False, UNIT)
    parts, tile = tl.load(at + 4).to(tl.int32), tl.load(at + 5).to(tl.int32)
    pixels = tl.load(at + 6).to(tl.int32)
    one = tl.full([], 1.0, ACC)
    if MOVED:
        seen = tl.load(given(addresses, at + 9, tl.int64)) + 1
        share = divide(one, seen.to(ACC)) if momentum is None else number(momentum, ACC)
        unbiased = share * divide(pixels.to(ACC), (pixels - 1).to(ACC))
        tl.debug_barrier()  # every warp has read the count before one moves it
    for first in range(0, C, COLUMNS):
        c = first + tl.arange(0, COLUMNS)
        if OWN:
            mean, variance = combined(partial, 2 * C, parts, pixels, tile, c, C, PARTS, COLUMNS, ACC)
        else:
            mean = tl.load(given(addresses, at + 7, ACC) + c, c < C, 0.0)
            variance = tl.load(given(addresses, at + 8, ACC) + c, c < C, 1.0)
        tl.store(norm + c, mean, c < C)
        deviation = root(variance + number(eps, ACC))
        tl.store(norm + C + c, divide(tl.full([COLUMNS], 1.0, ACC), deviation), c < C)
        if MOVED:
            move(given(addresses, at + 7, ACC) + c, mean, c < C, one - share, share)
            move(given(addresses, at + 8, ACC) + c, variance, c < C, one - share, unbiased)
    if MOVED:
        tl.store(given(addresses, at + 9, tl.int64), seen)
