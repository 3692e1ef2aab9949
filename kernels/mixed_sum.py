"""``mixed_sum``: see ``dartsfast/ops/mixed_sum.py``."""

from __future__ import annotations

import triton
import triton.language as tl
from dartsfast.kernels.images import CHANNELS, LEAST, VECTOR, offset, position, strides, tile, unit
from dartsfast.kernels.launch import accumulator, block, dense, launch
from dartsfast.kernels.reduce import divide
from torch import Tensor

VECTORS = 2  # a thread of the forward: with one, ptxas spills addresses to get by with 32 registers
PROGRAMS = 512
SUMS = 128  # bytes of the branches' sums in registers of a thread: with more, ptxas spills
PARTS = 128


@triton.jit
def mixed_sum_kernel(
    out, z, base, mean, rstd, weights, z_strides, base_strides, mean_strides, rstd_strides, weights_stride,
    pixels, H, W, units, UNIT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill a tile [BP, BC] of out: from base, or 0, the branches ascending."""
    C = units * UNIT
    p = tl.program_id(0) * BP + tl.arange(0, BP)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    inside = (p < pixels)[:, None] & (c < C)[None, :]
    n, y, x = position(p, H, W)
    acc = tl.zeros([BP, BC], ACC)
    if base is not None:
        at = offset(base_strides, n, y, x, UNIT)
        acc = tl.load(base + at[:, None] + c[None, :], inside, 0.0).to(ACC)
    for b in tl.static_range(len(z)):
        at = offset(z_strides[b], n, y, x, UNIT)
        v = tl.load(z[b] + at[:, None] + c[None, :], inside, 0.0).to(ACC)
        mu = tl.load(mean + b * mean_strides[0] * UNIT + c, c < C, 0.0).to(ACC)
        r = tl.load(rstd + b * rstd_strides[0] * UNIT + c, c < C, 0.0).to(ACC)
        w = tl.load(weights + b * weights_stride).to(ACC)
        acc = tl.fma(w, (v - mu[None, :]) * r[None, :], acc)
    tl.store(out + (p * C)[:, None] + c[None, :], acc.to(out.dtype.element_ty), inside)


@triton.jit
def mixed_sum_backward_kernel(
    partial, g, z, mean, rstd, g_strides, z_strides, mean_strides, rstd_strides, first, rows,
    pixels, H, W, units, UNIT: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Sum g, then g * zhat of the branches from ``first`` on, over every tile of a program.

    partial [programs, rows, C]; row 0 is the sum of g, the branches follow.
    """
    C = units * UNIT
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    g_sum = tl.zeros([BP, BC], ACC)
    sums = (tl.zeros([BP, BC], ACC),) * len(z)
    for start in range(tl.program_id(0) * BP, pixels, tl.num_programs(0) * BP):
        p = start + tl.arange(0, BP)
        inside = (p < pixels)[:, None] & (c < C)[None, :]
        n, y, x = position(p, H, W)
        d = tl.load(g + offset(g_strides, n, y, x, UNIT)[:, None] + c[None, :], inside, 0.0).to(ACC)
        g_sum += d
        added = sums[:0]
        for b in tl.static_range(len(z)):
            at = offset(z_strides[b], n, y, x, UNIT)
            v = tl.load(z[b] + at[:, None] + c[None, :], inside, 0.0).to(ACC)
            mu = tl.load(mean + b * mean_strides[0] * UNIT + c, c < C, 0.0).to(ACC)
            r = tl.load(rstd + b * rstd_strides[0] * UNIT + c, c < C, 0.0).to(ACC)
            zhat = (v - mu[None, :]) * r[None, :]
            added = added + (tl.where(inside, tl.fma(d, zhat, sums[b]), sums[b]),)
        sums = added
    row = partial + tl.program_id(0) * rows * C + c
    if first == 0:
        tl.store(row, tl.sum(g_sum, 0), c < C)
    for b in tl.static_range(len(z)):
        tl.store(row + (1 + first + b) * C, tl.sum(sums[b], 0), c < C)


@triton.jit(do_not_specialize=["pixels"])
def mixed_sum_means_kernel(
    partial, d_weights, means, parts, pixels, units,
    UNIT: tl.constexpr, PARTS: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Add a row of partial [parts, 1 + branches, C] over its parts, and for d_weights over channels."""
    row, rows, C = tl.program_id(0), tl.num_programs(0), units * UNIT
    total = tl.zeros([BC], ACC)
    for first in range(0, C, BC):
        c = first + tl.arange(0, BC)
        part = tl.zeros([BC], ACC)
        for start in range(0, parts, PARTS):
            p = start + tl.arange(0, PARTS)
            inside = (p < parts)[:, None] & (c < C)[None, :]
            part += tl.sum(tl.load(partial + (p * rows + row)[:, None] * C + c[None, :], inside, 0.0), 0)
        tl.store(means + row * C + c, divide(part, pixels.to(ACC)), c < C)
        total += part
    if row > 0:
        tl.store(d_weights + row - 1, tl.sum(total, 0))


def mixed_sum(
    out: Tensor, z: list[Tensor], mean: Tensor, rstd: Tensor, weights: Tensor, base: Tensor | None
) -> None:
    """Fill out [N, H, W, C] with base plus the weighted, normalised branches, in one pass.

    Args:
        out: what is filled.
        z: [N, H, W, C] each, of any storage dtype and strides.
        mean: [branches, C].
        rstd: [branches, C].
        weights: [branches].
        base: [N, H, W, C] or None, which is 0.
    """
    z, mean, rstd = [dense(x) for x in z], dense(mean), dense(rstd)
    base = None if base is None else dense(base)
    images = z if base is None else [*z, base]
    C, pixels, u = out.shape[-1], out[..., 0].numel(), unit(*images, mean, rstd)
    BP, BC = tile(out, *images)
    BP *= VECTORS
    launch(
        mixed_sum_kernel, (triton.cdiv(pixels, BP), triton.cdiv(C, BC)),
        out, tuple(z), base, mean, rstd, weights,
        tuple(strides(x, u) for x in z), None if base is None else strides(base, u),
        strides(mean, u), strides(rstd, u), weights.stride(0),
        pixels, *out.shape[1:3], C // u, UNIT=u, BP=BP, BC=BC, ACC=accumulator(out), num_warps=4,
    )  # fmt: skip


def mixed_sum_backward(
    out: tuple[Tensor, Tensor], g: Tensor, z: list[Tensor], mean: Tensor, rstd: Tensor
) -> None:
    """Fill the gradient of the weights [branches] and the pixel means [1 + branches, C].

    Args:
        out: what is filled; the means are those of g and of g * (z_b - mean_b) * rstd_b.
        g: [N, H, W, C], the gradient.
        z: [N, H, W, C] each, of any storage dtype and strides.
        mean: [branches, C].
        rstd: [branches, C].
    """
    d_weights, means = out
    g, z, mean, rstd = dense(g), [dense(x) for x in z], dense(mean), dense(rstd)
    C, pixels, u = g.shape[-1], g[..., 0].numel(), unit(g, *z, mean, rstd)
    BP, BC = tile(g, *z)
    programs = min(PROGRAMS, triton.cdiv(pixels, BP))
    partial = means.new_empty([programs, *means.shape])
    # Every branch of a program takes a vector of registers: more than a group of them would not fit.
    vector = VECTOR // min(x.element_size() for x in (g, *z))
    size = SUMS // (vector * means.element_size())
    for first in range(0, len(z), size):
        group = z[first : first + size]
        launch(
            mixed_sum_backward_kernel, (programs, triton.cdiv(C, BC)),
            partial, g, tuple(group), mean[first:], rstd[first:],
            strides(g, u), tuple(strides(x, u) for x in group), strides(mean, u), strides(rstd, u),
            first, len(means), pixels, *g.shape[1:3], C // u,
            UNIT=u, BP=BP, BC=BC, ACC=accumulator(means), num_warps=4,
        )  # fmt: skip
    launch(
        mixed_sum_means_kernel, (len(means),), partial, d_weights, means, programs, pixels, C // u,
        UNIT=u, PARTS=PARTS, BC=block(C, LEAST, CHANNELS), ACC=accumulator(means), num_warps=8,
    )  # fmt: skip
