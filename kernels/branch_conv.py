"""``branch_conv``: every convolution branch of an edge, and the channel statistics, in one launch.

A program owns a tile of pixels, one branch and a block of output channels. The branches of a tile are
neighbours in the grid: the first to read the tile brings it to the cache for the others, and small
images still fill the device.

Arithmetic is IEEE float32 (float64 for float64). With ``DARTSFAST_TF32=1`` in the environment, read at
import, the matrix products of float32 round their factors to TF32: faster on tensor cores, about three
decimal digits.
"""

from __future__ import annotations

import math
import os

import torch
import triton
import triton.language as tl
from dartsfast.kernels.images import LARGEST_UNIT, scaled, strides, unit
from dartsfast.kernels.launch import accumulator, block, dense, launch
from dartsfast.kernels.reduce import divide, moments
from torch import Tensor

PRECISION = "tf32" if os.environ.get("DARTSFAST_TF32") == "1" else "ieee"


@triton.jit
def place(p, H, W):
    """Return image, row and column of pixels numbered through [N, H, W]."""
    row = p // W
    return row // H, row % H, p % W


@triton.jit
def norm_rows(norm, c, Ci, stride, ACC: tl.constexpr):
    """Return mean and 1 / standard deviation of channels ``c`` as rows [1, BC]; unused without norm."""
    mean = tl.zeros([c.shape[0]], ACC)
    rstd = mean
    if norm is not None:
        mean = tl.load(norm + c, c < Ci, 0.0).to(ACC)
        rstd = tl.load(norm + stride + c, c < Ci, 0.0).to(ACC)
    return mean[None, :], rstd[None, :]


@triton.jit
def source(x, at, inside, norm, mean, rstd, RELU: tl.constexpr, ACC: tl.constexpr):
    """Return what the convolutions read at x + at [BP, BC]: relu(norm(x)), and 0 outside the image."""
    v = tl.load(x + at, inside, 0.0).to(ACC)
    if norm is not None:
        v = (v - mean) * rstd
    if RELU:
        v = tl.where(v < 0, 0.0, v)
    if norm is not None:
        v = tl.where(inside, v, 0.0)
    return v


@triton.jit
def convolved(
    x, strides, H, W, n, y, column, there, c, Ci, norm, norm_stride, weight, K, D,
    STRIDE: tl.constexpr, RELU: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return the depthwise convolution, or without weight the pixel, of output pixels: [BP, BC]."""
    mean, rstd = norm_rows(norm, c, Ci, norm_stride, ACC)
    top = y * STRIDE - D * (K - 1) // 2
    left = column * STRIDE - D * (K - 1) // 2
    corner = n * strides[0] + top * strides[1] + left * strides[2]
    if weight is None:
        inside = there[:, None] & (c < Ci)[None, :]
        t = source(x, corner[:, None] + c[None, :], inside, norm, mean, rstd, RELU, ACC)
    else:
        t = tl.zeros([there.shape[0], c.shape[0]], ACC)
        for ky in range(K):
            row = there & (top + ky * D >= 0) & (top + ky * D < H)
            for kx in range(K):
                seen = row & (left + kx * D >= 0) & (left + kx * D < W)
                at = (corner + ky * D * strides[1] + kx * D * strides[2])[:, None] + c[None, :]
                v = source(x, at, seen[:, None] & (c < Ci)[None, :], norm, mean, rstd, RELU, ACC)
                w = tl.load(weight + c * (K * K) + ky * K + kx, c < Ci, 0.0).to(ACC)
                t = tl.fma(v, w[None, :], t)
    return t


@triton.jit
def forward_tile(
    x, strides, norm, norm_stride, depthwise, pointwise, z, z_pitch, partial, row, tile,
    pixels, H, W, Ho, Wo, Ci, Co, K, D, STRIDE: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill a tile of one branch: z [pixels, Co], and mean and squared deviations as partial [2, Co].

    ``z_pitch`` and ``row`` lie between the pixels of z and the rows of partial.
    """
    p = tile * BP + tl.arange(0, BP)
    n, y, column = place(p, Ho, Wo)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    total = tl.zeros([BP, BO], ACC)
    for start in range(0, Ci, BC):
        c = start + tl.arange(0, BC)
        t = convolved(
            x, strides, H, W, n, y, column, p < pixels, c, Ci, norm, norm_stride, depthwise,
            K, D, STRIDE, RELU, ACC,
        )  # fmt: skip
        w = tl.load(pointwise + o[None, :] * Ci + c[:, None], (c < Ci)[:, None] & (o < Co)[None, :], 0.0)
        total = tl.dot(t, w.to(ACC), total, input_precision=PRECISION, out_dtype=ACC)
    inside = (p < pixels)[:, None] & (o < Co)[None, :]
    stored = total.to(z.dtype.element_ty)
    tl.store(z + p.to(tl.int64)[:, None] * z_pitch + o[None, :], stored, inside)
    value = tl.where(inside, stored.to(ACC), 0.0)
    mean = divide(tl.sum(value, 0), tl.minimum(pixels - tile * BP, BP).to(ACC))
    apart = tl.where(inside, value - mean[None, :], 0.0)
    tl.store(partial + o, mean, o < Co)
    tl.store(partial + row + o, tl.sum(apart * apart, 0), o < Co)


@triton.jit
def branch_conv_kernel(
    x, strides, norm, norm_stride, depthwise, pointwise, z, partial, pixels, H, W, Ho, Wo, Ci, Co,
    K: tl.constexpr, D: tl.constexpr, STRIDE: tl.constexpr, RELU: tl.constexpr, PRECISION: tl.constexpr,
    UI: tl.constexpr, UO: tl.constexpr, BP: tl.constexpr, BC: tl.constexpr, BO: tl.constexpr,
    ACC: tl.constexpr,
):  # fmt: skip
    """Fill z, a tuple of [pixels, Co], and partial [tiles, branches, 2, Co]; grid (tiles * branches, Co).

    Ci and the strides of x and norm come in units of UI, Co in units of UO.
    """
    Ci, Co, strides, norm_stride = Ci * UI, Co * UO, scaled(strides, UI), norm_stride * UI
    BRANCHES: tl.constexpr = len(pointwise)
    for b in tl.static_range(BRANCHES):
        if tl.program_id(0) % BRANCHES == b:
            forward_tile(
                x, strides, norm, norm_stride, depthwise[b], pointwise[b], z[b], Co,
                partial + tl.program_id(0) * 2 * Co, Co, tl.program_id(0) // BRANCHES,
                pixels, H, W, Ho, Wo, Ci, Co, K[b], D[b], STRIDE, RELU, PRECISION, BP, BC, BO, ACC,
            )  # fmt: skip


def tile(Ci: int, Co: int, taps: bool, double: bool = False) -> dict[str, int]:
    """Return pixels, input channels and output channels of a block of a matrix product, and warps.

    With depthwise taps a thread has at least 8 numbers of t [BP, BC]: two loads of 16 bytes a tap.
    Without them narrow blocks do, and fewer output channels for float64 and where pixels start at addresses
    of all sorts: what is chosen here spills nothing on sm_80 and sm_90.
    """
    BO = block(Co, 16, 64 if Co % 4 == 0 and (taps or not double) else 32)
    warps = 8 if taps and BO == 64 else 4
    return {"BP": 64, "BC": block(Ci, 16, 32 if taps else 16), "BO": BO, "num_warps": warps, "num_stages": 1}


def crowded(channels: int, size: int) -> bool:
    """Whether more registers are needed: pixels at addresses of all sorts, float64, wide blocks of halves.

    ``size``: bytes of a number.
    """
    return channels % 4 != 0 or size == 8 or (size == 2 and channels > 32)


def branch_conv(
    out: tuple[Tensor, Tensor],
    x: Tensor,
    norm: Tensor | None,
    depthwise: list[Tensor],
    pointwise: list[Tensor],
    dilation: list[int],
    stride: int,
    relu: bool,
    dtype: torch.dtype | None = None,
) -> None:
    """Fill z [branches, N, Ho, Wo, Co] and stats [branches, 2, Co]; see ``dartsfast.ops.branch_conv``."""
    z, stats = out
    branches, N, Ho, Wo, Co = z.shape
    _, H, W, Ci = x.shape
    pixels = N * Ho * Wo
    x, norm = dense(x), None if norm is None else dense(norm)
    ui, uo = unit(x) if norm is None else unit(x, norm), math.gcd(LARGEST_UNIT, Co)
    shape = tile(Ci, Co, bool(depthwise), x.element_size() == 8)
    tiles = triton.cdiv(pixels, shape["BP"])
    partial = stats.new_empty([tiles, branches, 2, Co])
    launch(
        branch_conv_kernel, (tiles * branches, triton.cdiv(Co, shape["BO"])),
        x, strides(x, ui), norm, 0 if norm is None else norm.stride(0) // ui,
        tuple(w.contiguous() for w in depthwise) or (None,) * branches,
        tuple(w.contiguous() for w in pointwise), z.unbind(), partial, pixels, H, W, Ho, Wo, Ci // ui,
        Co // uo, K=tuple(w.shape[-1] for w in depthwise) or (1,) * branches,
        D=tuple(dilation) or (1,) * branches, STRIDE=stride, RELU=relu, PRECISION=PRECISION,
        UI=ui, UO=uo, ACC=accumulator(x), **shape,
        many_registers=crowded(Ci, x.element_size()) or (bool(depthwise) and shape["BC"] > shape["BO"]),
    )  # fmt: skip
    moments(partial, pixels, shape["BP"], stats)
