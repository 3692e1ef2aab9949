"""``alpha_softmax``: see ``dartsfast/ops/alpha_softmax.py``."""

from __future__ import annotations

import math

import triton
import triton.language as tl
from dartsfast.kernels.launch import accumulator, launch
from dartsfast.kernels.reduce import divide
from torch import Tensor

ROWS = 32
# What exp takes as 0, ln 2 in two parts, and the polynomial from its highest power down.
EXP = {
    tl.float32: (-87.0, 0.693359375, -2.12194440e-4, *(1 / math.factorial(i) for i in reversed(range(8)))),
    tl.float64: (
        -708.0,
        6.93147180369123816490e-01,
        1.90821492927058770002e-10,
        *(1 / math.factorial(i) for i in reversed(range(14))),
    ),
}


@triton.jit
def exp_negative(x, EXP: tl.constexpr, ACC: tl.constexpr):
    """Return exp(x) for x <= 0 by the documented polynomial, [ROWS]; NaN stays."""
    usual = x >= EXP[0]
    r = tl.where(usual, x, 0.0)
    n = (r * 1.4426950408889634 - 0.5).to(tl.int32)
    minus_n = -n.to(ACC)
    r = tl.fma(minus_n, tl.full(x.shape, EXP[1], ACC), r)
    r = tl.fma(minus_n, tl.full(x.shape, EXP[2], ACC), r)
    e = tl.full(x.shape, EXP[3], ACC)
    for i in tl.static_range(4, len(EXP)):
        e = tl.fma(e, r, tl.full(x.shape, EXP[i], ACC))
    # 2^n is a normal number: its bits are the exponent's.
    if x.dtype == tl.float64:
        e *= ((n.to(tl.int64) + 1023) << 52).to(tl.float64, bitcast=True)
    else:
        e *= ((n + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(usual, e, tl.where(x < EXP[0], 0.0, x))


@triton.jit
def alpha_softmax_kernel(
    p, alphas, sizes, strides, EXP: tl.constexpr, ROWS: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Softmax of ROWS edges, a lane each, of the tensor that the second axis of the grid names."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    for t in tl.static_range(len(alphas)):
        if tl.program_id(1) == t:
            edges, K = sizes[t][0], sizes[t][1]
            alpha = alphas[t] + row * strides[t][0]
            most = tl.load(alpha, row < edges, 0.0).to(ACC)
            for k in range(1, K):
                a = tl.load(alpha + k * strides[t][1], row < edges, 0.0).to(ACC)
                most = tl.where((a > most) | (a != a), a, most)
            total = tl.zeros([ROWS], ACC)
            for k in range(K):
                a = tl.load(alpha + k * strides[t][1], row < edges, 0.0).to(ACC)
                total += exp_negative(a - most, EXP, ACC)
            for k in range(K):
                a = tl.load(alpha + k * strides[t][1], row < edges, 0.0).to(ACC)
                share = divide(exp_negative(a - most, EXP, ACC), total)
                tl.store(p[t] + row * K + k, share.to(p[t].dtype.element_ty), row < edges)


@triton.jit
def alpha_softmax_backward_kernel(
    out, p, d, sizes, p_strides, d_strides, ROWS: tl.constexpr, ACC: tl.constexpr
):  # fmt: skip
    """Gradient p * (d - sum of p * d) of ROWS edges, as :func:`alpha_softmax_kernel`."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    for t in tl.static_range(len(p)):
        if tl.program_id(1) == t:
            edges, K = sizes[t][0], sizes[t][1]
            p_row, d_row = p[t] + row * p_strides[t][0], d[t] + row * d_strides[t][0]
            total = tl.zeros([ROWS], ACC)
            for k in range(K):
                share = tl.load(p_row + k * p_strides[t][1], row < edges, 0.0).to(ACC)
                total = tl.fma(share, tl.load(d_row + k * d_strides[t][1], row < edges, 0.0).to(ACC), total)
            for k in range(K):
                share = tl.load(p_row + k * p_strides[t][1], row < edges, 0.0).to(ACC)
                apart = tl.load(d_row + k * d_strides[t][1], row < edges, 0.0).to(ACC) - total
                tl.store(out[t] + row * K + k, (share * apart).to(out[t].dtype.element_ty), row < edges)


def alpha_softmax(out: list[Tensor], alphas: list[Tensor]) -> None:
    """Fill ``out`` with the softmax over the operations of every edge, in one launch.

    Args:
        out: [edges, operations] each, what is filled.
        alphas: tensors of the same shapes.
    """
    acc = accumulator(alphas[0])
    launch(
        alpha_softmax_kernel, _grid(alphas), tuple(out), tuple(alphas), _sizes(alphas), _strides(alphas),
        EXP=EXP[acc], ROWS=ROWS, ACC=acc, num_warps=1,
    )  # fmt: skip


def alpha_softmax_backward(out: list[Tensor], p: list[Tensor], d: list[Tensor]) -> None:
    """Fill ``out`` with the gradients of the alphas, in one launch.

    Args:
        out: [edges, operations] each, what is filled.
        p: softmax, of the same shapes.
        d: its gradient.
    """
    launch(
        alpha_softmax_backward_kernel, _grid(p), tuple(out), tuple(p), tuple(d),
        _sizes(p), _strides(p), _strides(d), ROWS=ROWS, ACC=accumulator(p[0]), num_warps=1,
    )  # fmt: skip


def _grid(tensors: list[Tensor]) -> tuple[int, int]:
    return triton.cdiv(max(1, *(len(t) for t in tensors)), ROWS), len(tensors)


def _sizes(tensors: list[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(t.shape) for t in tensors)


def _strides(tensors: list[Tensor]) -> tuple[tuple[int, ...], ...]:
    return tuple(t.stride() for t in tensors)
