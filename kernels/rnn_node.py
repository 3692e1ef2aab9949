"""``rnn_node``: a program owns all rows of a few channels, so that a node is one launch.

The activations are most of its work, so that what counts is the number of programs: a node of the
paper's size (256 rows, 300 channels) is 75 of them, in the backward 75 a predecessor. The batch's
moments are those of tiles of rows, combined in row order (Chan, Golub and LeVeque 1979).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from dartsfast.kernels.activations import like, sigmoid, tanh
from dartsfast.kernels.arithmetic import argument, number, root
from dartsfast.kernels.launch import accumulator, block, dense, launch
from dartsfast.kernels.reduce import divide, ordered_sum
from torch import Tensor

WARP, ROWS = 32, 256
"""Fewest and most rows of a tile; a thread has one of them."""
CHANNELS = 4
"""Channels of a tile: one load of a thread, 16 bytes of float32."""


@triton.jit
def _rstd(variance, eps, ACC: tl.constexpr):
    return divide(like(variance, 1.0), root(variance + number(eps, ACC)))


@triton.jit
def _weights(weights, sw_p, p, ACC: tl.constexpr):
    """Return the four weights of predecessor p and their sum."""
    row = weights + p * sw_p
    w0, w1 = tl.load(row).to(ACC), tl.load(row + 1).to(ACC)
    w2, w3 = tl.load(row + 2).to(ACC), tl.load(row + 3).to(ACC)
    return w0, w1, w2, w3, ((w0 + w1) + w2) + w3


@triton.jit
def _candidate(gates, states, at_gates, at_states, H, inside, w0, w1, w2, w3, q, ACC: tl.constexpr):
    """Return c, tanh(h), relu(h), sigmoid(h), h, s, d and u, [rows, channels] each."""
    c = sigmoid(tl.load(gates + at_gates, inside, 0.0).to(ACC))
    h = tl.load(gates + at_gates + H, inside, 0.0).to(ACC)
    s = tl.load(states + at_states, inside, 0.0).to(ACC)
    f0, f1, f2 = tanh(h), tl.where(h < 0, 0.0, h), sigmoid(h)
    d = tl.fma(w3, h, tl.fma(w2, f2, tl.fma(w1, f1, w0 * f0)))
    return c, f0, f1, f2, h, s, d, q * s


@triton.jit(do_not_specialize=["P", "B"])
def rnn_node_kernel(
    out, sums, stats, gates, states, weights, norm, P, B, H, sg_p, sg_b, ss_p, ss_b, sw_p, sn, eps,
    V: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill out [B, H], by ``norm`` or, through sums [B, H], by the batch's moments, which fill stats [2, H].

    H and the strides of gates and states come divided by V: so a compiler knows what divides them.
    """
    H, sg_p, sg_b, ss_p, ss_b = H * V, sg_p * V, sg_b * V, ss_p * V, ss_b * V
    c = tl.program_id(0) * BH + tl.arange(0, BH)
    mean = tl.zeros([BH], ACC)
    squares = tl.zeros([BH], ACC)
    rows = tl.zeros([], ACC)  # that mean and squares are of
    if norm is not None:
        mean = tl.load(norm + c, c < H, 0.0).to(ACC)
        rstd = _rstd(tl.load(norm + sn + c, c < H, 1.0).to(ACC), eps, ACC)
    for start in range(0, B, BB):
        b = start + tl.arange(0, BB)
        inside = (b < B)[:, None] & (c < H)[None, :]
        total = tl.zeros([BB, BH], ACC)
        for p in range(P):
            w0, w1, w2, w3, q = _weights(weights, sw_p, p, ACC)
            at_gates = p * sg_p + b[:, None] * sg_b + c[None, :]
            at_states = p * ss_p + b[:, None] * ss_b + c[None, :]
            gate, _, _, _, _, _, d, u = _candidate(
                gates, states, at_gates, at_states, H, inside, w0, w1, w2, w3, q, ACC
            )
            total += tl.fma(gate, d - u, u)
        at = b[:, None] * H + c[None, :]
        if norm is not None:
            tl.store(out + at, ((total - mean[None, :]) * rstd[None, :]).to(out.dtype.element_ty), inside)
        else:
            tl.store(sums + at, total, inside)
            count = tl.minimum(B - start, BB).to(ACC)
            tile_mean = divide(tl.sum(tl.where(inside, total, 0.0), 0), count)
            apart = tl.where(inside, total - tile_mean[None, :], 0.0)
            share = divide(count, rows + count)
            delta = tile_mean - mean
            squares += tl.sum(apart * apart, 0) + (delta * (rows * share)) * delta
            mean += delta * share
            rows += count
    if norm is None:
        variance = divide(squares, B.to(ACC))
        tl.store(stats + c, mean, c < H)
        tl.store(stats + H + c, variance, c < H)
        rstd = _rstd(variance, eps, ACC)
        tl.debug_barrier()  # other threads of this program wrote what is read here
        for start in range(0, B, BB):
            b = start + tl.arange(0, BB)
            inside = (b < B)[:, None] & (c < H)[None, :]
            at = b[:, None] * H + c[None, :]
            total = tl.load(sums + at, inside, 0.0)
            tl.store(out + at, ((total - mean[None, :]) * rstd[None, :]).to(out.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["P", "B"])
def rnn_node_backward_kernel(
    d_gates, d_states, d_weights, g, out, variance, gates, states, weights, base, P, B, H,
    sd_b, so_b, sg_p, sg_b, ss_p, ss_b, sb_p, sb_b, sw_p, eps,
    OWN: tl.constexpr, V: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill d_gates [P, B, 2H], d_states [P, B, H], and this program's part of d_weights [parts, P, 4].

    A program a predecessor and BH channels; each takes the batch's means of g and g * out by itself.
    H and all strides but that of weights come divided by V.
    """
    H, sd_b, so_b, sb_p, sb_b = H * V, sd_b * V, so_b * V, sb_p * V, sb_b * V
    sg_p, sg_b, ss_p, ss_b = sg_p * V, sg_b * V, ss_p * V, ss_b * V
    p = tl.program_id(1)
    c = tl.program_id(0) * BH + tl.arange(0, BH)
    mean = tl.zeros([BH], ACC)
    slope = tl.zeros([BH], ACC)
    if OWN:
        for start in range(0, B, BB):
            b = start + tl.arange(0, BB)
            inside = (b < B)[:, None] & (c < H)[None, :]
            dy = tl.load(g + b[:, None] * sd_b + c[None, :], inside, 0.0).to(ACC)
            y = tl.load(out + b[:, None] * so_b + c[None, :], inside, 0.0).to(ACC)
            mean += tl.sum(dy, 0)
            slope += tl.sum(dy * y, 0)
        mean = divide(mean, B.to(ACC))
        slope = divide(slope, B.to(ACC))
    rstd = _rstd(tl.load(variance + c, c < H, 1.0).to(ACC), eps, ACC)
    w0, w1, w2, w3, q = _weights(weights, sw_p, p, ACC)
    d_w0 = tl.zeros([BB, BH], ACC)
    d_w1, d_w2, d_w3, d_q = d_w0, d_w0, d_w0, d_w0
    for start in range(0, B, BB):
        b = start + tl.arange(0, BB)
        inside = (b < B)[:, None] & (c < H)[None, :]
        at_gates = p * sg_p + b[:, None] * sg_b + c[None, :]
        at_states = p * ss_p + b[:, None] * ss_b + c[None, :]
        gate, f0, f1, f2, h, s, d, u = _candidate(
            gates, states, at_gates, at_states, H, inside, w0, w1, w2, w3, q, ACC
        )
        dy = tl.load(g + b[:, None] * sd_b + c[None, :], inside, 0.0).to(ACC)
        y = tl.load(out + b[:, None] * so_b + c[None, :], inside, 0.0).to(ACC)
        ds = tl.where(inside, ((dy - mean[None, :]) - y * slope[None, :]) * rstd[None, :], 0.0)
        dd = ds * gate
        du = ds - dd
        rise = tl.fma(w2, f2 * (1.0 - f2), tl.fma(w0, 1.0 - f0 * f0, w3))
        rise += tl.where(h > 0, w1, 0.0)
        at = ((p * B + b) * 2)[:, None] * H + c[None, :]
        d_c = ((ds * (d - u)) * gate) * (1.0 - gate)
        tl.store(d_gates + at, d_c.to(d_gates.dtype.element_ty), inside)
        tl.store(d_gates + at + H, (dd * rise).to(d_gates.dtype.element_ty), inside)
        if base is None:
            below = tl.zeros([BB, BH], ACC)
        else:
            below = tl.load(base + p * sb_p + b[:, None] * sb_b + c[None, :], inside, 0.0).to(ACC)
        at = (p * B + b)[:, None] * H + c[None, :]
        tl.store(d_states + at, tl.fma(q, du, below).to(d_states.dtype.element_ty), inside)
        d_w0, d_w1 = tl.fma(dd, f0, d_w0), tl.fma(dd, f1, d_w1)
        d_w2, d_w3 = tl.fma(dd, f2, d_w2), tl.fma(dd, h, d_w3)
        d_q = tl.fma(du, s, d_q)
    row = d_weights + (tl.program_id(0) * P + p) * 4
    of_all = tl.sum(d_q)
    tl.store(row, tl.sum(d_w0) + of_all)
    tl.store(row + 1, tl.sum(d_w1) + of_all)
    tl.store(row + 2, tl.sum(d_w2) + of_all)
    tl.store(row + 3, tl.sum(d_w3) + of_all)


def tile(B: int) -> dict[str, int]:
    """Return rows and channels of a tile, and the number of warps."""
    rows = block(B, WARP, ROWS)
    return {"BB": rows, "BH": CHANNELS, "num_warps": rows // WARP}


def common_divisor(*sizes: int) -> int:
    """Return the largest of 1, 2, 4, 8 that divides all."""
    return math.gcd(8, *sizes)


def rnn_node(
    out: tuple[Tensor, Tensor],
    gates: Tensor,
    states: Tensor,
    weights: Tensor,
    norm: Tensor | None,
    eps: float,
) -> None:
    """Fill the node [B, H] and, without ``norm`` [2, H], the batch's mean and variance [2, H]."""
    result, stats = out
    gates, states, weights = dense(gates), dense(states), dense(weights)
    norm = None if norm is None else dense(norm)
    P, B, H = states.shape
    sizes = H, *gates.stride()[:2], *states.stride()[:2]
    V = common_divisor(*sizes)
    exact = norm is not None or result.dtype == stats.dtype
    sums = result if exact else torch.empty_like(result, dtype=stats.dtype)
    launch(
        rnn_node_kernel, (triton.cdiv(H, CHANNELS),),
        result, sums, stats, gates, states, weights, norm, P, B, *(n // V for n in sizes),
        weights.stride(0), 0 if norm is None else norm.stride(0), argument(eps, states),
        V=V, ACC=accumulator(states), **tile(B),
    )  # fmt: skip


def rnn_node_backward(
    out: tuple[Tensor, Tensor, Tensor],
    g: Tensor,
    result: Tensor,
    variance: Tensor,
    gates: Tensor,
    states: Tensor,
    weights: Tensor,
    eps: float,
    own: bool,
    base: Tensor | None,
) -> None:
    """Fill the gradients of gates [P, B, 2H], states [P, B, H], added to ``base``, and weights [P, 4]."""
    d_gates, d_states, d_weights = out
    g, result, variance, gates, states = map(dense, (g, result, variance, gates, states))
    weights = dense(weights)
    base = None if base is None else dense(base)
    P, B, H = states.shape
    strides = [g.stride(0), result.stride(0), *gates.stride()[:2], *states.stride()[:2]]
    strides += [0, 0] if base is None else base.stride()[:2]
    V = common_divisor(H, *strides)
    programs = triton.cdiv(H, CHANNELS)
    parts = d_weights.new_empty([programs, P, 4])
    launch(
        rnn_node_backward_kernel, (programs, P),
        d_gates, d_states, parts, g, result, variance, gates, states, weights, base,
        P, B, H // V, *(n // V for n in strides), weights.stride(0), argument(eps, states),
        OWN=own, V=V, ACC=accumulator(states), **tile(B),
    )  # fmt: skip
    ordered_sum(parts, d_weights)
