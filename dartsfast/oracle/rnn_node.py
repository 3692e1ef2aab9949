"""``rnn_node`` in its documented order of operations; see ``csrc/cpu/rnn_node.kernel.h``."""

from __future__ import annotations

import torch
from torch import Tensor

from dartsfast.oracle.activations import sigmoid, tanh
from dartsfast.oracle.arithmetic import Chunks, fma, moments, relu, tree_sum


def _rstd(variance: Tensor, eps: float) -> Tensor:
    # PyTorch's float32 sqrt is not always the nearest float; float64's, rounded, is.
    return 1 / (variance + torch.tensor(eps, dtype=variance.dtype)).double().sqrt().to(variance.dtype)


def _candidate(gates: Tensor, s: Tensor, w: Tensor) -> tuple[Tensor, list[Tensor], Tensor, Tensor, Tensor]:
    """Return c, the activations of h, their weighted sum d, u, and the sum of the weights."""
    pre, h = gates.chunk(2, -1)
    f = [tanh(h), relu(h), sigmoid(h), h]
    d = w[0] * f[0]
    for k in range(1, 4):
        d = fma(w[k], f[k], d)
    q = ((w[0] + w[1]) + w[2]) + w[3]
    return sigmoid(pre), f, d, q * s, q


def rnn_node(
    gates: Tensor, states: Tensor, weights: Tensor, norm: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the normalised node [B, H], and mean and biased variance of the batch, [2, H]."""
    total = torch.zeros_like(states[0])
    for gate, s, w in zip(gates, states, weights, strict=True):
        c, _, d, u, _ = _candidate(gate, s, w)
        total = total + fma(c, d - u, u)
    stats = moments(total[None, :, None]) if norm is None else norm
    return (total - stats[0]) * _rstd(stats[1], eps), stats if norm is None else stats[:0].clone()


def rnn_node_(
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
) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """Return what becomes of ``out``, ``masked``, ``mean`` and ``stats``."""
    out, found = rnn_node(gates, states, weights, None if own else stats, eps)
    total = out
    if mean:
        rest = [*states[1:], out]
        total = sum(rest[1:], rest[0]) / len(rest)
    return out, total * (1 if mask is None else mask), [total] if mean else [], found if own else stats


def rnn_node_backward(
    g: Tensor,
    out: Tensor,
    variance: Tensor,
    gates: Tensor,
    states: Tensor,
    weights: Tensor,
    eps: float,
    own: bool,
    base: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of gates, of states (on top of ``base``) and of weights."""
    B = g.shape[0]
    chunks = Chunks(1, B, 1)
    mean = slope = torch.zeros_like(variance)
    if own:
        tiles, count = chunks.split(g[None, :, None]), torch.tensor(B, dtype=g.dtype)
        mean = tree_sum(chunks.sum(tiles)) / count
        slope = tree_sum(chunks.dot(tiles, chunks.split(out[None, :, None]))) / count
    ds = ((g - mean) - out * slope) * _rstd(variance, eps)
    d_gates, d_states, d_weights = [], [], []
    for j, (gate, s, w) in enumerate(zip(gates, states, weights, strict=True)):
        c, f, d, u, q = _candidate(gate, s, w)
        dd = ds * c
        du = ds - dd
        d_c = ((ds * (d - u)) * c) * (1 - c)
        rise = fma(w[0], 1 - f[0] * f[0], w[3])
        rise = fma(w[2], f[2] * (1 - f[2]), rise)
        rise = rise + torch.where(f[3] > 0, w[1], torch.zeros_like(w[1]))
        d_gates.append(torch.cat([d_c, dd * rise], -1))
        d_states.append(fma(q, du, torch.zeros_like(s) if base is None else base[j]))
        sums = torch.stack([_channel_sums(dd, k) for k in f] + [_channel_sums(du, s)])
        total = tree_sum(tree_sum(sums.transpose(0, 1)).T)
        d_weights.append(total[:4] + total[4])
    return torch.stack(d_gates), torch.stack(d_states), torch.stack(d_weights)


def rnn_node_backward_(
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
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what becomes of ``d_gates``, ``d_states`` and ``d_weights``."""
    g = g + through * (1 if mask is None else mask)
    base = d_states if accumulate else None
    if of_mean is not None:
        g = (of_mean + g) / len(states)
        base = torch.stack([torch.zeros_like(g), *[g] * (len(states) - 1)])
    d_gates, d_states, d = rnn_node_backward(g, out, variance, gates, states, weights, eps, own, base)
    return d_gates, d_states, torch.cat([d_weights[:1] + d, d_weights[1:]])


def _channel_sums(a: Tensor, b: Tensor) -> Tensor:
    """Return the sums of a * b over the rows of every chunk of 64, [chunks, H], rows ascending by fma."""
    rows = []
    for x, y in zip(a.split(64), b.split(64), strict=True):
        total = torch.zeros_like(x[0])
        for i in range(len(x)):
            total = fma(x[i], y[i], total)
        rows.append(total)
    return torch.stack(rows)
