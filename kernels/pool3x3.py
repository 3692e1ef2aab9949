"""``pool3x3``: see ``dartsfast/ops/pool3x3.py``."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from dartsfast.kernels.images import offset, position, strides, tile, unit
from dartsfast.kernels.launch import accumulator, dense, launch
from dartsfast.kernels.reduce import divide, moments
from torch import Tensor


@triton.jit
def windows(
    image, strides, p, c, pixels, H, W, Ho, Wo, C, stride, UNIT: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Return maximum, average and the tap that the maximum came from, of the windows of pixels of z.

    All are [BP, BC] for p [BP] and c [BC]; a tap is 3 * row + column.
    """
    n, y, x = position(p, Ho, Wo)
    y, x = y * stride, x * stride
    total = tl.zeros([p.shape[0], c.shape[0]], ACC)
    most = total - float("inf")
    # The first pixel holds the maximum until a later one beats it, which nothing does to -inf.
    place = (tl.where(y == 0, 3, 0) + tl.where(x == 0, 1, 0))[:, None] + tl.zeros(total.shape, tl.int32)
    for tap in tl.static_range(9):
        ty, tx = y + (tap // 3 - 1), x + (tap % 3 - 1)
        there = ((p < pixels) & (ty >= 0) & (ty < H) & (tx >= 0) & (tx < W))[:, None] & (c < C)[None, :]
        at = offset(strides, n, ty, tx, UNIT)
        v = tl.load(image + at[:, None] + c[None, :], there, 0.0).to(ACC)
        better = there & ((v > most) | (v != v))
        place = tl.where(better, tap, place)
        most = tl.where(better, v, most)
        total += tl.where(there, v, 0.0)
    return most, divide(total, window_pixels(y, x, H, W).to(ACC)[:, None]), place


@triton.jit
def window_pixels(y, x, H, W):
    """Return how many pixels of the image lie in the windows around rows y and columns x."""
    rows = tl.minimum(y + 1, H - 1) - tl.maximum(y - 1, 0) + 1
    return rows * (tl.minimum(x + 1, W - 1) - tl.maximum(x - 1, 0) + 1)


@triton.jit
def pool3x3_kernel(
    most, mean, partial, x, x_strides, pixels, H, W, Ho, Wo, units,
    STRIDE: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill a tile [BP, BC] of both halves of z, and its mean and squares in partial [parts, 2, 2, C]."""
    C = units * UNIT
    rows = partial + tl.program_id(0) * 4 * C
    pooled_tile(
        most, mean, None, rows, rows + 2 * C, x, x_strides, tl.program_id(0), pixels, H, W, Ho, Wo, C,
        STRIDE, UNIT, BP, BC, ACC,
    )  # fmt: skip


@triton.jit
def pooled_tile(
    most, mean, place, of_most, of_mean, x, x_strides, part, pixels, H, W, Ho, Wo, C,
    STRIDE: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill a tile [BP, BC] of both halves of z, mean and squares [2, C] of each, and place: what is given."""
    p = part * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (p < pixels)[:, None] & (c < C)[None, :]
    high, middle, tap = windows(x, x_strides, p, c, pixels, H, W, Ho, Wo, C, STRIDE, UNIT, ACC)
    if place is not None:
        tl.store(place + (p * C)[:, None] + c[None, :], tap.to(tl.int8), inside)
    count = tl.minimum(pixels - part * BP, BP).to(ACC)
    z, found, rows = (most, mean), (high, middle), (of_most, of_mean)
    for half in tl.static_range(2):
        v = found[half]
        if z[half] is not None:
            v = v.to(z[half].dtype.element_ty)
            tl.store(z[half] + (p * C)[:, None] + c[None, :], v, inside)
        if rows[half] is not None:
            v = v.to(ACC)  # The statistics are of z as stored.
            centre = divide(tl.sum(tl.where(inside, v, 0.0), 0), count)
            apart = tl.where(inside, v - centre[None, :], 0.0)
            tl.store(rows[half] + c, centre, c < C)
            tl.store(rows[half] + C + c, tl.sum(apart * apart, 0), c < C)


@triton.jit
def pool3x3_place_kernel(
    place, x, x_strides, pixels, H, W, Ho, Wo, units,
    STRIDE: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill a tile [BP, BC] of place [N, Ho, Wo, C] with the tap that every maximum came from."""
    C = units * UNIT
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    _, _, tap = windows(x, x_strides, p, c, pixels, H, W, Ho, Wo, C, STRIDE, UNIT, ACC)
    inside = (p < pixels)[:, None] & (c < C)[None, :]
    tl.store(place + (p * C)[:, None] + c[None, :], tap.to(tl.int8), inside)


@triton.jit
def coefficients(coef, c, C, ACC: tl.constexpr):
    """Return m, mu, r and k of coef [4, C], [1, BC] each."""
    m = tl.load(coef + c, c < C, 0.0).to(ACC)[None, :]
    mu = tl.load(coef + C + c, c < C, 0.0).to(ACC)[None, :]
    r = tl.load(coef + 2 * C + c, c < C, 0.0).to(ACC)[None, :]
    k = tl.load(coef + 3 * C + c, c < C, 0.0).to(ACC)[None, :]
    return m, mu, r, k


@triton.jit
def gradient(g, z, coef, g_strides, z_strides, n, y, x, c, there, UNIT: tl.constexpr, ACC: tl.constexpr):
    """Return dz of pixels of z, [BP, BC]; g without coef."""
    d = tl.load(g + offset(g_strides, n, y, x, UNIT)[:, None] + c[None, :], there, 0.0).to(ACC)
    if coef is not None:
        v = tl.load(z + offset(z_strides, n, y, x, UNIT)[:, None] + c[None, :], there, 0.0).to(ACC)
        d = through_norm(d, v, coef)
    return d


@triton.jit
def through_norm(g, z, coef):
    """Return dz = ((g - m) - (z - mu) * r) * k."""
    m, mu, r, k = coef
    return ((g - m) - (z - mu) * r) * k


@triton.jit
def pool3x3_backward_kernel(
    dx, place, g, z, coef, base, g_strides, z_strides, base_strides, pixels, H, W, Ho, Wo, units,
    STRIDE: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill a tile [BP, BC] of dx: what the windows around its pixels add, row by row, then base."""
    C = units * UNIT
    of_most, of_mean = None, None
    if coef is not None:
        c = tl.program_id(1) * BC + tl.arange(0, BC)
        of_most = coefficients(coef, c, C, ACC)
        of_mean = coefficients(coef + 4 * C, c, C, ACC)
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (p < pixels)[:, None] & (c < C)[None, :]
    n, y, x = position(p, H, W)
    total = pool_gradient(
        place, g, z, None, of_most, of_mean, g_strides, z_strides, n, y, x, c, inside, H, W, Ho, Wo, C,
        STRIDE, UNIT, BP, BC, ACC,
    )  # fmt: skip
    if base is not None:
        at = offset(base_strides, n, y, x, UNIT)
        total = tl.load(base + at[:, None] + c[None, :], inside, 0.0).to(ACC) + total
    tl.store(dx + (p * C)[:, None] + c[None, :], total.to(dx.dtype.element_ty), inside)


@triton.jit
def pool_gradient(
    place, g, z, own, of_most, of_mean, g_strides, z_strides, n, y, x, c, inside, H, W, Ho, Wo, C,
    STRIDE: tl.constexpr, UNIT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return what the windows around pixels add [BP, BC]; ``of_most``: what :func:`coefficients` returns.

    ``own``: the pixels themselves, which are the maxima that came from there; None: these are in z.
    """
    total = tl.zeros([BP, BC], ACC)
    REACH: tl.constexpr = 3 if STRIDE == 1 else 2
    for window in range(REACH * REACH):  # a loop: unrolled, its loads ask for too many registers
        wy = (y + (STRIDE - 2)) // STRIDE + window // REACH
        wx = (x + (STRIDE - 2)) // STRIDE + window % REACH
        ky, kx = y - wy * STRIDE + 1, x - wx * STRIDE + 1
        reached = (wy >= 0) & (wy < Ho) & (ky >= 0) & (wx >= 0) & (wx < Wo) & (kx >= 0)
        there = inside & reached[:, None]
        at = ((n * Ho + wy) * Wo + wx) * C
        tap = tl.load(place + at[:, None] + c[None, :], there, -1)
        if own is None:
            d_most = gradient(g[0], z[0], of_most, g_strides[0], z_strides[0], n, wy, wx, c, there, UNIT, ACC)
        else:
            d = gradient(g[0], None, None, g_strides[0], None, n, wy, wx, c, there, UNIT, ACC)
            d_most = through_norm(d, own, of_most)
        d_mean = gradient(g[1], z[1], of_mean, g_strides[1], z_strides[1], n, wy, wx, c, there, UNIT, ACC)
        count = window_pixels(wy * STRIDE, wx * STRIDE, H, W)
        share = divide(d_mean, tl.maximum(count, 1).to(ACC)[:, None])
        added = tl.where(tap == (3 * ky + kx)[:, None], d_most, 0.0) + share
        total += tl.where(there, added, 0.0)
    return total


def pool3x3(out: tuple[Tensor, Tensor], x: Tensor, stride: int) -> None:
    """Fill z [2, N, Ho, Wo, C], maximum and average, and stats [2, 2, C], mean and biased variance.

    Args:
        out: z and stats.
        x: [N, H, W, C].
        stride: 1 or 2.
    """
    z, stats = out
    x = dense(x)
    C, pixels, u = x.shape[-1], z[0, ..., 0].numel(), unit(x)
    BP, BC = tile(x)
    parts = triton.cdiv(pixels, BP)
    partial = stats.new_empty([parts, 2, 2, C])
    launch(
        pool3x3_kernel, (parts, triton.cdiv(C, BC)), z[0], z[1], partial, x, strides(x, u),
        pixels, *x.shape[1:3], *z.shape[2:4], C // u,
        STRIDE=stride, UNIT=u, BP=BP, BC=BC, ACC=accumulator(x), num_warps=4,
    )  # fmt: skip
    moments(partial, pixels, BP, stats)


def pool3x3_backward(
    out: Tensor,
    g: list[Tensor],
    z: list[Tensor],
    coef: Tensor | None,
    x: Tensor,
    stride: int,
    base: Tensor | None,
) -> None:
    """Fill out [N, H, W, C] with the gradient of ``x``, on top of ``base`` where that is given.

    Args:
        out: what is filled.
        g: [N, Ho, Wo, C] twice, the gradients of maximum and average.
        z: [N, Ho, Wo, C] twice, what the forward gave; empty without ``coef``.
        coef: [2, 4, C] or None, which takes g itself for the gradient of z.
        x: [N, H, W, C].
        stride: 1 or 2.
        base: [N, H, W, C] or None.
    """
    x, g, z = dense(x), [dense(t) for t in g], [dense(t) for t in z]
    coef = None if coef is None else coef.contiguous()
    base = None if base is None else dense(base)
    C, sizes = x.shape[-1], (*x.shape[1:3], *g[0].shape[1:3])
    images = g + z if base is None else [*g, *z, base]
    meta = dict(STRIDE=stride, ACC=accumulator(x), num_warps=4)

    place = x.new_empty(g[0].shape, dtype=torch.int8)
    pixels, u, (BP, BC) = place[..., 0].numel(), unit(x), tile(x)
    launch(
        pool3x3_place_kernel, (triton.cdiv(pixels, BP), triton.cdiv(C, BC)),
        place, x, strides(x, u), pixels, *sizes, C // u, UNIT=u, BP=BP, BC=BC, **meta,
    )  # fmt: skip
    pixels, u, (BP, BC) = out[..., 0].numel(), unit(*images), tile(out, *images)
    launch(
        pool3x3_backward_kernel, (triton.cdiv(pixels, BP), triton.cdiv(C, BC)),
        out, place, tuple(g), tuple(z) or (None, None), coef, base,
        tuple(strides(t, u) for t in g), tuple(strides(t, u) for t in z) or (None, None),
        None if base is None else strides(base, u), pixels, *sizes, C // u, UNIT=u, BP=BP, BC=BC, **meta,
    )  # fmt: skip
