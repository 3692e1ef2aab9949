"""What the kernels of ``branch_conv_backward``, one by one and grouped, are made of."""

from __future__ import annotations

import triton
import triton.language as tl
from dartsfast.kernels.branch_conv import convolved, norm_rows, place, source


@triton.jit
def output_gradient(
    g, g_strides, z, z_strides, coef, pitch, n, y, column, there, o, Co, ACC: tl.constexpr
):  # fmt: skip
    """Return dz = ((g - m) - (z - mu) * r) * k of output pixels, [BP, BO]; g itself without coef.

    ``pitch`` lies between the rows of coef.
    """
    inside = there[:, None] & (o < Co)[None, :]
    at = n * g_strides[0] + y * g_strides[1] + column * g_strides[2]
    d = tl.load(g + at[:, None] + o[None, :], inside, 0.0).to(ACC)
    if coef is not None:
        at = n * z_strides[0] + y * z_strides[1] + column * z_strides[2]
        v = tl.load(z + at[:, None] + o[None, :], inside, 0.0).to(ACC)
        m = tl.load(coef + o, o < Co, 0.0).to(ACC)[None, :]
        mu = tl.load(coef + pitch + o, o < Co, 0.0).to(ACC)[None, :]
        r = tl.load(coef + 2 * pitch + o, o < Co, 0.0).to(ACC)[None, :]
        k = tl.load(coef + 3 * pitch + o, o < Co, 0.0).to(ACC)[None, :]
        d = tl.where(inside, ((d - m) - (v - mu) * r) * k, 0.0)
    return d


@triton.jit
def pointwise_adjoint(
    g, g_strides, z, z_strides, coef, pitch, pointwise, n, y, column, there, c, Ci, Co,
    PRECISION: tl.constexpr, BO: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return dt = dz times the pointwise weight at output pixels, [BP, BC]."""
    total = tl.zeros([there.shape[0], c.shape[0]], ACC)
    for start in range(0, Co, BO):
        o = start + tl.arange(0, BO)
        d = output_gradient(g, g_strides, z, z_strides, coef, pitch, n, y, column, there, o, Co, ACC)
        w = tl.load(pointwise + o[:, None] * Ci + c[None, :], (o < Co)[:, None] & (c < Ci)[None, :], 0.0)
        total = tl.dot(d, w.to(ACC), total, input_precision=PRECISION, out_dtype=ACC)
    return total


@triton.jit
def depthwise_adjoint(
    dt, pitch, weight, Ho, Wo, n, y, column, there, c, Ci, K, D, STRIDE: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return the depthwise adjoint of dt [N * Ho * Wo, Ci] at input pixels, [BP, BC].

    Rows of dt are every ``pitch`` numbers.
    """
    s = tl.zeros([there.shape[0], c.shape[0]], ACC)
    top = y + D * (K - 1) // 2
    left = column + D * (K - 1) // 2
    for ky in range(K):
        down = top - ky * D
        row = there & (down >= 0) & (down < Ho * STRIDE) & (down % STRIDE == 0)
        first = (n * Ho + down // STRIDE) * Wo
        for kx in range(K):
            right = left - kx * D
            seen = row & (right >= 0) & (right < Wo * STRIDE) & (right % STRIDE == 0)
            at = ((first + right // STRIDE) * pitch)[:, None] + c[None, :]
            d = tl.load(dt + at, seen[:, None] & (c < Ci)[None, :], 0.0)
            w = tl.load(weight + c * (K * K) + ky * K + kx, c < Ci, 0.0).to(ACC)
            added = tl.fma(d, w[None, :], s)
            if STRIDE > 1:  # a tap that is not finite has no part in pixels that a stride skips
                added = tl.where(((down % STRIDE == 0) & (right % STRIDE == 0))[:, None], added, s)
            s = added
    return s


@triton.jit
def through_source(
    s, x, strides, norm, norm_stride, partial, n, y, column, inside, c, Ci,
    RELU: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return s [BP, BC] where relu let x pass; with norm fill partial [2, Ci], sums of s and s * norm(x)."""
    mean, rstd = norm_rows(norm, c, Ci, norm_stride, ACC)
    at = (n * strides[0] + y * strides[1] + column * strides[2])[:, None] + c[None, :]
    v = source(x, at, inside, norm, mean, rstd, RELU, ACC)
    if RELU:
        s = tl.where(v > 0, s, 0.0)
    if norm is not None:
        tl.store(partial + c, tl.sum(tl.where(inside, s, 0.0), 0), c < Ci)
        tl.store(partial + Ci + c, tl.sum(tl.where(inside, s * v, 0.0), 0), c < Ci)
    return s


@triton.jit
def pointwise_gradient(
    total, g, g_strides, z, z_strides, coef, pitch, x, x_strides, norm, norm_stride, depthwise, K, D,
    begin, end, H, W, Ho, Wo, o, c, Ci, Co, STRIDE: tl.constexpr, RELU: tl.constexpr,
    PRECISION: tl.constexpr, BP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Return total [BO, BC] + dz^T t of output pixels begin to end."""
    for start in range(begin, end, BP):
        p = start + tl.arange(0, BP)
        n, y, column = place(p, Ho, Wo)
        t = convolved(
            x, x_strides, H, W, n, y, column, p < end, c, Ci, norm, norm_stride, depthwise, K, D,
            STRIDE, RELU, ACC,
        )  # fmt: skip
        d = output_gradient(g, g_strides, z, z_strides, coef, pitch, n, y, column, p < end, o, Co, ACC)
        total = tl.dot(tl.trans(d), t, total, input_precision=PRECISION, out_dtype=ACC)
    return total


@triton.jit
def depthwise_gradient(
    dt, pitch, x, strides, norm, mean, rstd, partial, before, begin, end, H, W, Ho, Wo, c, Ci, K, D,
    STRIDE: tl.constexpr, RELU: tl.constexpr, BT: tl.constexpr, BP: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill partial [Ci, K * K] of one branch from output pixels begin to end, BT taps at a time.

    On top of what is there, ``before``; rows of dt are every ``pitch`` numbers.
    """
    for first in range(0, K * K, BT):
        tap = first + tl.arange(0, BT)[:, None]
        down, right = (tap // K - K // 2) * D, (tap % K - K // 2) * D  # [BT, 1]
        total = tl.zeros([BT, BP, c.shape[0]], ACC)
        for start in range(begin, end, BP):
            p = start + tl.arange(0, BP)
            n, y, column = place(p[None, :], Ho, Wo)
            y, column = y * STRIDE + down, column * STRIDE + right  # [BT, BP]
            seen = (p[None, :] < end) & (tap < K * K) & (y >= 0) & (y < H) & (column >= 0) & (column < W)
            at = (n * strides[0] + y * strides[1] + column * strides[2])[:, :, None] + c[None, None, :]
            inside = seen[:, :, None] & (c < Ci)[None, None, :]
            v = source(x, at, inside, norm, mean, rstd, RELU, ACC)
            d = tl.load(dt + p[:, None] * pitch + c[None, :], (p < end)[:, None] & (c < Ci)[None, :], 0.0)
            total = tl.fma(v, d[None, :, :], total)
        to, inside = partial + c[None, :] * (K * K) + tap, (c < Ci)[None, :] & (tap < K * K)
        tl.store(to, tl.load(to, inside & before, 0.0) + tl.sum(total, 1), inside)
