"""``norm_stats``: see ``dartsfast/ops/norm_stats.py``."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from dartsfast.kernels.arithmetic import argument, number, root
from dartsfast.kernels.launch import accumulator, dense, launch
from dartsfast.kernels.reduce import divide
from torch import Tensor

CHANNELS = 128
"""Of a program at a time: 16 bytes of float32 a thread."""
WARPS = 1  # another warp could read the count of batches after it was moved


@triton.jit(do_not_specialize=["pixels"])
def norm_stats_kernel(
    out, stats, running_mean, running_var, batches, momentum, eps, pixels, units,
    UNIT: tl.constexpr, BC: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill mean and 1 / std of a norm, a row [2, C] of out; move its running statistics [C] each."""
    row, C = tl.program_id(0), units * UNIT
    for first in range(0, C, BC):
        c = first + tl.arange(0, BC)
        mean = tl.load(stats + row * 2 * C + c, c < C, 0.0)
        deviation = root(tl.load(stats + (row * 2 + 1) * C + c, c < C, 1.0) + number(eps, ACC))
        tl.store(out + row * 2 * C + c, mean, c < C)
        tl.store(out + (row * 2 + 1) * C + c, divide(tl.full([BC], 1.0, ACC), deviation), c < C)
    for i in tl.static_range(len(batches)):
        if row == i:
            seen = tl.load(batches[i]) + 1
            tl.store(batches[i], seen)
            one = tl.full([], 1.0, ACC)
            share = divide(one, seen.to(ACC)) if momentum is None else number(momentum, ACC)
            unbiased = share * divide(pixels.to(ACC), (pixels - 1).to(ACC))
            for first in range(0, C, BC):
                c = first + tl.arange(0, BC)
                mean = tl.load(stats + row * 2 * C + c, c < C, 0.0)
                variance = tl.load(stats + (row * 2 + 1) * C + c, c < C, 0.0)
                move(running_mean[i] + c, mean, c < C, one - share, share)
                move(running_var[i] + c, variance, c < C, one - share, unbiased)


@triton.jit
def move(running, now, inside, keep, share):
    """Let a running statistic be ``keep`` of itself and ``share`` of ``now``."""
    kept = tl.load(running, inside, 0.0) * keep
    share += tl.zeros(kept.shape, kept.dtype)
    tl.store(running, tl.fma(now, share, kept), inside)


@triton.jit
def norm_stats_backward_kernel(
    out, g_mean, g_zhat_mean, norm, weights, own, g_stride, zhat_stride, norm_strides, weights_stride, units,
    UNIT: tl.constexpr, BC: tl.constexpr,
):  # fmt: skip
    """Fill m, mu, r and k of a norm, a row [4, C] of out."""
    row, C = tl.program_id(0), units * UNIT
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    flows = tl.load(own + row) != 0
    at = norm + row * norm_strides[0] * UNIT + c
    rho = tl.load(at + norm_strides[1] * UNIT, c < C, 0.0)
    m = tl.load(g_mean + row * g_stride * UNIT + c, c < C, 0.0)
    r = tl.load(g_zhat_mean + row * zhat_stride * UNIT + c, c < C, 0.0) * rho
    to = out + row * 4 * C + c
    tl.store(to, tl.where(flows, m, 0.0), c < C)
    tl.store(to + C, tl.load(at, c < C, 0.0), c < C)
    tl.store(to + 2 * C, tl.where(flows, r, 0.0), c < C)
    tl.store(to + 3 * C, rho if weights is None else tl.load(weights + row * weights_stride) * rho, c < C)


def norm_stats_(
    out: Tensor,
    stats: Tensor,
    running_mean: list[Tensor],
    running_var: list[Tensor],
    batches: list[Tensor],
    momentum: float | None,
    eps: float,
    pixels: int,
) -> None:
    """Fill mean and 1 / std, out [norms, 2, C], and move the running statistics, in one launch.

    Args:
        out: what is filled.
        stats: [norms, 2, C], mean and biased variance.
        running_mean: [C] a norm, or none.
        running_var: likewise.
        batches: [] int64 a norm, or none.
        momentum: share of the new statistics; None for that of an average.
        eps: what is added to the variance.
        pixels: values that each mean was taken over.
    """
    stats, C = stats.contiguous(), out.shape[-1]
    u = math.gcd(16, C)
    launch(
        norm_stats_kernel, (len(out),), out, stats, tuple(running_mean), tuple(running_var), tuple(batches),
        None if momentum is None else argument(momentum, out), argument(eps, out), pixels, C // u,
        UNIT=u, BC=CHANNELS, ACC=accumulator(out), num_warps=WARPS,
    )  # fmt: skip


def norm_stats_backward(
    out: Tensor, g_mean: Tensor, g_zhat_mean: Tensor, norm: Tensor, weights: Tensor | None, own: Tensor
) -> None:
    """Fill coef, out [norms, 4, C], in one launch.

    Args:
        out: what is filled.
        g_mean: [norms, C].
        g_zhat_mean: [norms, C].
        norm: [norms, 2, C].
        weights: [norms], or None for 1.
        own: [norms], 0 or 1.
    """
    g_mean, g_zhat_mean, norm = dense(g_mean), dense(g_zhat_mean), dense(norm)
    C = out.shape[-1]
    u = math.gcd(16, C, g_mean.stride(0), g_zhat_mean.stride(0), norm.stride(0), norm.stride(1))
    launch(
        norm_stats_backward_kernel, (len(out), triton.cdiv(C, CHANNELS)),
        out, g_mean, g_zhat_mean, norm, weights, own.contiguous(),
        g_mean.stride(0) // u, g_zhat_mean.stride(0) // u, (norm.stride(0) // u, norm.stride(1) // u),
        0 if weights is None else weights.stride(0), C // u, UNIT=u, BC=CHANNELS, num_warps=WARPS,
    )  # fmt: skip
