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
from dartsfast.kernels.launch import accumulator, block, launch
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
def _weights(weights, p, ACC: tl.constexpr):
    """Return the four weights of predecessor p and their sum."""
    row = weights + p * 4
    w0, w1 = tl.load(row).to(ACC), tl.load(row + 1).to(ACC)
    w2, w3 = tl.load(row + 2).to(ACC), tl.load(row + 3).to(ACC)
    return w0, w1, w2, w3, ((w0 + w1) + w2) + w3


@triton.jit
def _candidate(gates, states, p, b, c, B, H, inside, w0, w1, w2, w3, q, ACC: tl.constexpr):
    """Return c, tanh(h), relu(h), sigmoid(h), h, s, d and u of predecessor p, [rows, channels] each."""
    at = (p * B + b)[:, None] * H + c[None, :]
    at_gates = ((p * B + b) * 2)[:, None] * H + c[None, :]
    gate = sigmoid(tl.load(gates + at_gates, inside, 0.0).to(ACC))
    h = tl.load(gates + at_gates + H, inside, 0.0).to(ACC)
    s = tl.load(states + at, inside, 0.0).to(ACC)
    f0, f1, f2 = tanh(h), tl.where(h < 0, 0.0, h), sigmoid(h)
    d = tl.fma(w3, h, tl.fma(w2, f2, tl.fma(w1, f1, w0 * f0)))
    return gate, f0, f1, f2, h, s, d, q * s


@triton.jit
def _store(place, at, inside, x, ACC: tl.constexpr):
    """Store x and return it as it is stored."""
    x = x.to(place.dtype.element_ty)
    tl.store(place + at, x, inside)
    return x.to(ACC)


@triton.jit
def _finish(out, masked, average, states, mask, total, mean, rstd, b, c, B, H, P, inside, ACC: tl.constexpr):
    """Store the normalised node, and what is made of it."""
    at = b[:, None] * H + c[None, :]
    x = _store(out, at, inside, (total - mean[None, :]) * rstd[None, :], ACC)
    if masked is not None:
        if average is not None:
            if P > 1:
                among = tl.load(states + B * H + at, inside, 0.0).to(ACC)
                for p in range(2, P):
                    among += tl.load(states + p * B * H + at, inside, 0.0).to(ACC)
                x = among + x
            x = _store(average, at, inside, divide(x, P.to(ACC)), ACC)
        if mask is not None:
            x *= tl.load(mask + at, inside, 0.0).to(ACC)
        _store(masked, at, inside, x, ACC)


@triton.jit(do_not_specialize=["P", "B"])
def rnn_node_kernel(
    out, masked, average, sums, stats, gates, states, weights, mask, norm, P, B, H, eps,
    V: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill out [B, H], by ``norm`` or, through sums [B, H], by the batch's moments, which fill stats [2, H].

    From it, where there is masked [B, H], the average [B, H], where that is asked for, and masked itself.
    H comes divided by V: so a compiler knows what divides it.
    """
    H = H * V
    c = tl.program_id(0) * BH + tl.arange(0, BH)
    mean = tl.zeros([BH], ACC)
    squares = tl.zeros([BH], ACC)
    rows = tl.zeros([], ACC)  # that mean and squares are of
    if norm is not None:
        mean = tl.load(norm + c, c < H, 0.0).to(ACC)
        rstd = _rstd(tl.load(norm + H + c, c < H, 1.0).to(ACC), eps, ACC)
    for start in range(0, B, BB):
        b = start + tl.arange(0, BB)
        inside = (b < B)[:, None] & (c < H)[None, :]
        total = tl.zeros([BB, BH], ACC)
        for p in range(P):
            w0, w1, w2, w3, q = _weights(weights, p, ACC)
            gate, _, _, _, _, _, d, u = _candidate(
                gates, states, p, b, c, B, H, inside, w0, w1, w2, w3, q, ACC
            )
            total += tl.fma(gate, d - u, u)
        if norm is not None:
            _finish(out, masked, average, states, mask, total, mean, rstd, b, c, B, H, P, inside, ACC)
        else:
            tl.store(sums + b[:, None] * H + c[None, :], total, inside)
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
            total = tl.load(sums + b[:, None] * H + c[None, :], inside, 0.0)
            _finish(out, masked, average, states, mask, total, mean, rstd, b, c, B, H, P, inside, ACC)


@triton.jit
def _arriving(g, through, of_mean, mask, at, P, inside, ACC: tl.constexpr):
    """Return the gradient of the node: of what reads it and, ``through`` the mask, of what reads its copy."""
    dy = tl.load(g + at, inside, 0.0).to(ACC)
    if through is not None:
        more = tl.load(through + at, inside, 0.0).to(ACC)
        if mask is not None:
            more *= tl.load(mask + at, inside, 0.0).to(ACC)
        dy += more
    if of_mean is not None:
        dy = divide(tl.load(of_mean + at, inside, 0.0).to(ACC) + dy, P.to(ACC))
    return dy


@triton.jit(do_not_specialize=["P", "B"])
def rnn_node_backward_kernel(
    d_gates, d_states, d_weights, g, through, of_mean, mask, out, variance, gates, states, weights, base,
    P, B, H, sd_w, eps,
    OWN: tl.constexpr, ADD: tl.constexpr,
    V: tl.constexpr, BB: tl.constexpr, BH: tl.constexpr, ACC: tl.constexpr,
):  # fmt: skip
    """Fill d_gates [P, B, 2H], d_states [P, B, H], and this program's part of d_weights [parts, P, 4].

    A program a predecessor and BH channels; each takes the batch's means of the node's gradient and of that
    times out by itself. H comes divided by V. With ADD its part of d_weights is added to.
    """
    H = H * V
    p = tl.program_id(1)
    c = tl.program_id(0) * BH + tl.arange(0, BH)
    mean = tl.zeros([BH], ACC)
    slope = tl.zeros([BH], ACC)
    if OWN:
        for start in range(0, B, BB):
            b = start + tl.arange(0, BB)
            inside = (b < B)[:, None] & (c < H)[None, :]
            at = b[:, None] * H + c[None, :]
            dy = _arriving(g, through, of_mean, mask, at, P, inside, ACC)
            y = tl.load(out + at, inside, 0.0).to(ACC)
            mean += tl.sum(dy, 0)
            slope += tl.sum(dy * y, 0)
        mean = divide(mean, B.to(ACC))
        slope = divide(slope, B.to(ACC))
    rstd = _rstd(tl.load(variance + c, c < H, 1.0).to(ACC), eps, ACC)
    w0, w1, w2, w3, q = _weights(weights, p, ACC)
    d_w0 = tl.zeros([BB, BH], ACC)
    d_w1, d_w2, d_w3, d_q = d_w0, d_w0, d_w0, d_w0
    for start in range(0, B, BB):
        b = start + tl.arange(0, BB)
        inside = (b < B)[:, None] & (c < H)[None, :]
        gate, f0, f1, f2, h, s, d, u = _candidate(
            gates, states, p, b, c, B, H, inside, w0, w1, w2, w3, q, ACC
        )
        at = b[:, None] * H + c[None, :]
        dy = _arriving(g, through, of_mean, mask, at, P, inside, ACC)
        y = tl.load(out + at, inside, 0.0).to(ACC)
        ds = tl.where(inside, ((dy - mean[None, :]) - y * slope[None, :]) * rstd[None, :], 0.0)
        dd = ds * gate
        du = ds - dd
        rise = tl.fma(w2, f2 * (1.0 - f2), tl.fma(w0, 1.0 - f0 * f0, w3))
        rise += tl.where(h > 0, w1, 0.0)
        at = ((p * B + b) * 2)[:, None] * H + c[None, :]
        d_c = ((ds * (d - u)) * gate) * (1.0 - gate)
        tl.store(d_gates + at, d_c.to(d_gates.dtype.element_ty), inside)
        tl.store(d_gates + at + H, (dd * rise).to(d_gates.dtype.element_ty), inside)
        at = (p * B + b)[:, None] * H + c[None, :]
        if of_mean is not None:
            below = tl.where(p > 0, dy, 0.0)
        elif base is not None:
            below = tl.load(base + at, inside, 0.0).to(ACC)
        else:
            below = tl.zeros([BB, BH], ACC)
        tl.store(d_states + at, tl.fma(q, du, below).to(d_states.dtype.element_ty), inside)
        d_w0, d_w1 = tl.fma(dd, f0, d_w0), tl.fma(dd, f1, d_w1)
        d_w2, d_w3 = tl.fma(dd, f2, d_w2), tl.fma(dd, h, d_w3)
        d_q = tl.fma(du, s, d_q)
    row = d_weights + tl.program_id(0) * sd_w + p * 4
    of_all = tl.sum(d_q)
    _put(row, tl.sum(d_w0) + of_all, ADD)
    _put(row + 1, tl.sum(d_w1) + of_all, ADD)
    _put(row + 2, tl.sum(d_w2) + of_all, ADD)
    _put(row + 3, tl.sum(d_w3) + of_all, ADD)


@triton.jit
def _put(place, x, ADD: tl.constexpr):
    tl.store(place, tl.load(place) + x if ADD else x)


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
    _fill(result, None, None, stats, gates, states, weights, None, norm, eps)


def rnn_node_(
    _: None,
    out: Tensor,
    masked: Tensor,
    mean: list[Tensor],
    stats: Tensor,
    gates: Tensor,
    states: Tensor,
    weights: Tensor,
    mask: Tensor | None,
    own: bool,
    eps: float,
) -> None:
    """Fill the node [B, H], what is made of it, and ``stats`` [2, H] where they are the batch's own."""
    average, norm = mean[0] if mean else None, None if own else stats
    _fill(out, masked, average, stats, gates, states, weights, mask, norm, eps)


def _fill(
    out: Tensor,
    masked: Tensor | None,
    average: Tensor | None,
    stats: Tensor,
    gates: Tensor,
    states: Tensor,
    weights: Tensor,
    mask: Tensor | None,
    norm: Tensor | None,
    eps: float,
) -> None:
    P, B, H = states.shape
    V = common_divisor(H)
    exact = norm is not None or out.dtype == stats.dtype
    sums = out if exact else torch.empty_like(out, dtype=stats.dtype)
    read = (t if t is None else t.contiguous() for t in (gates, states, weights, mask, norm))
    # Accesses of single elements need many addresses.
    launch(
        rnn_node_kernel, (-(-H // CHANNELS),),
        out, masked, average, sums, stats, *read, P, B, H // V, argument(eps, states),
        many_registers=V == 1, V=V, ACC=accumulator(states), **tile(B),
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
    parts = d_weights.new_empty([-(-states.shape[2] // CHANNELS), *d_weights.shape])
    arriving = g, None, None, None
    _fill_backward(
        d_gates, d_states, parts, arriving, result, variance, gates, states, weights, base, eps, own, False
    )
    ordered_sum(parts, d_weights)


def rnn_node_backward_(
    _: None,
    d_gates: Tensor,
    d_states: Tensor,
    d_weights: Tensor,
    g: Tensor,
    through: Tensor,
    of_mean: Tensor | None,
    out: Tensor,
    variance: Tensor,
    gates: Tensor,
    states: Tensor,
    weights: Tensor,
    mask: Tensor | None,
    eps: float,
    own: bool,
    accumulate: bool,
) -> None:
    """Fill the gradients of gates and states, and add those of weights to the parts of ``d_weights``."""
    arriving, base = (g, through, of_mean, mask), d_states if accumulate else None
    _fill_backward(
        d_gates, d_states, d_weights, arriving, out, variance, gates, states, weights, base, eps, own, True
    )


def _fill_backward(
    d_gates: Tensor,
    d_states: Tensor,
    parts: Tensor,
    arriving: tuple[Tensor, Tensor | None, Tensor | None, Tensor | None],
    out: Tensor,
    variance: Tensor,
    gates: Tensor,
    states: Tensor,
    weights: Tensor,
    base: Tensor | None,
    eps: float,
    own: bool,
    add: bool,
) -> None:
    P, B, H = states.shape
    V = common_divisor(H)
    read = (
        t if t is None else t.contiguous() for t in (*arriving, out, variance, gates, states, weights, base)
    )
    launch(
        rnn_node_backward_kernel, (-(-H // CHANNELS), P),
        d_gates, d_states, parts, *read, P, B, H // V, parts.stride(0), argument(eps, states),
        OWN=own, ADD=add, V=V, ACC=accumulator(states), **tile(B),
    )  # fmt: skip
