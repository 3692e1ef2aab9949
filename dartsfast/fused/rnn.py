"""The recurrent search cell on the fused operators, all time steps as one autograd node.

A matrix product makes the pre-activations ("gates", [.., 2H]) of a node from all earlier states at once;
``rnn_node`` makes the node from them. Kept a time step: states and gates, or with ``memory="recompute"``
its output and statistics alone, from which the backward makes states and gates again. The gradients of the
weights add up over time steps in place.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import dartsfast.ops  # noqa: F401 - defines the operators
from dartsfast.constants import constant
from dartsfast.errors import InputError
from dartsfast.ops.contract import Function, eager, nothing_to_record, once_differentiable

kernels = torch.ops.dartsfast


@eager
def recurrence(
    norm: nn.BatchNorm1d,
    memory: str,
    x: Tensor,
    hidden: Tensor,
    mask: Tensor | None,
    weights: Tensor,
    W0: Tensor,
    Ws: list[Tensor],
) -> Tensor:
    """Run a search cell over time and move the running statistics of ``norm``; return [T, B, H].

    Args:
        norm: the batch norm that all nodes share, without affine.
        memory: ``store`` or ``recompute``.
        x: inputs, dropped out, [T, B, ninp].
        hidden: the state before them, [B, H].
        mask: dropout of the states that enter the GEMMs, [B, H].
        weights: [edges, 4], of tanh, relu, sigmoid and identity, predecessors of the first node first.
        W0: [ninp + H, 2H].
        Ws: [H, 2H] a node.

    Raises:
        InputError: batch statistics of a batch of one, or shapes that do not fit.
    """
    T, B, ninp = x.shape
    H = Ws[0].shape[0]
    if T == 0 or hidden.shape != (B, H) or ninp + H != W0.shape[0]:
        raise InputError(
            f"inputs must be [T, B, {W0.shape[0] - H}], T > 0, and states [B, {H}]: "
            f"got {list(x.shape)} and {list(hidden.shape)}"
        )
    own = norm.training or norm.running_mean is None
    if own and hidden.shape[0] == 1:
        raise InputError("batch norm over a batch of one: use a larger batch, or eval()")
    given = None if own else torch.stack([norm.running_mean, norm.running_var])  # type: ignore[list-item]
    out, stats = _Recurrence.apply(given, norm.eps, memory, x, hidden, mask, weights, W0, *Ws)
    if norm.training and norm.track_running_stats:
        _move_running(norm, stats.flatten(0, 1), hidden.shape[0])
    return out


@torch.no_grad()
def _move_running(norm: nn.BatchNorm1d, stats: Tensor, batch: int) -> None:
    """Move the running statistics as ``norm`` would, called once a row of ``stats`` [calls, 2, H]."""
    calls = len(stats)
    assert norm.num_batches_tracked is not None
    if norm.momentum is None:  # the plain average of all batches
        seen = norm.num_batches_tracked.double() + calls
        shares = (1 / seen).expand(calls)
    else:
        shares = norm.momentum * (1 - norm.momentum) ** torch.arange(
            calls - 1, -1, -1, dtype=torch.float64, device=stats.device
        )
    shares = shares.to(stats)
    norm.num_batches_tracked += calls
    unbiased = batch / (batch - 1)
    for running, new in ((norm.running_mean, stats[:, 0]), (norm.running_var, stats[:, 1] * unbiased)):
        assert running is not None
        running.mul_(1 - shares.sum()).add_((shares[:, None] * new).sum(0))


@constant
def _tanh_alone(dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor([[1.0, 0.0, 0.0, 0.0]], dtype=dtype, device=device)


class _Cell:
    """What time steps need, forward and backward."""

    def __init__(
        self,
        hidden: Tensor,
        mask: Tensor | None,
        weights: Tensor,
        W0: Tensor,
        Ws: Sequence[Tensor],
        eps: float,
    ) -> None:
        (B, H), self.steps = hidden.shape, len(Ws)
        self.mask, self.eps = hidden.new_ones(()) if mask is None else mask, eps
        self.Wx, self.Wh = W0.split([W0.shape[0] - H, H])
        self.Ws = Ws
        # A part a node, with a row a predecessor.
        self.predecessors = list(range(1, self.steps + 1))
        self.weights = weights.split(self.predecessors)
        self.init = _tanh_alone(W0.dtype, W0.device)  # the initial state is such a node
        # The masked states that enter the products; all predecessors of a node as rows.
        self.inputs = hidden.new_empty(self.steps, B, H)
        self.rows = [self.inputs[:i].flatten(0, 1) for i in self.predecessors]

    @functools.cached_property
    def d_inputs(self) -> Tensor:
        """The gradients of the inputs."""
        return torch.empty_like(self.inputs)

    @functools.cached_property
    def d_rows(self) -> list[Tensor]:
        return [self.d_inputs[:i].flatten(0, 1) for i in self.predecessors]

    @functools.cached_property
    def d_mean(self) -> Tensor:
        """The gradients that the mean gives the states; the initial one has no share in it, its are zeros."""
        return torch.zeros_like(self.inputs)

    def memory(self, T: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Return states [T, steps + 1, B, H] and gates [T, 1 + edges, B, 2H], empty; ``like`` is [B, H]."""
        B, H = like.shape
        # From memory that is used again: fresh pages cost as much time as a third of the GEMMs.
        states = kernels.empty(like, [T, self.steps + 1, B, H])
        return states, kernels.empty(like, [T, 1 + sum(self.predecessors), B, 2 * H])

    def forward(self, x: Tensor, h: Tensor, own: bool, states: Tensor, gates: Tensor, stats: Tensor) -> None:
        """Fill states [steps + 1, B, H] and gates [1 + edges, B, 2H] of a time step.

        ``stats`` [steps + 1, 2, H], the statistics of batch norm, are the batch's ``own`` and filled too, or
        they are given.
        """

        def fill(i: int, gates: Tensor, before: Tensor, weights: Tensor) -> None:
            norm = None if own else stats[i]
            states[i], found = kernels.rnn_node(gates, before, weights, norm, self.eps)
            if own:
                stats[i] = found

        # The gates of the initial state are those of input and state before.
        kernels.gemm_(gates[0], x, self.Wx, False)
        kernels.gemm_(gates[0], h * self.mask, self.Wh, True)
        fill(0, gates[:1], h[None], self.init)
        for i, by_edge in enumerate(gates[1:].split(self.predecessors)):
            torch.mul(states[i], self.mask, out=self.inputs[i])
            kernels.gemm_(by_edge.view(-1, by_edge.shape[2]), self.rows[i], self.Ws[i], False)
            fill(i + 1, by_edge, states[: i + 1], self.weights[i])

    def backward(
        self,
        g: Tensor,
        h: Tensor,
        own: bool,
        states: Tensor,
        gates: Tensor,
        stats: Tensor,
        d_weights: Sequence[Tensor],
        d_Ws: list[Tensor] | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients of gates[0] [B, 2H] and, but for what passes through them, of h [B, H].

        ``g`` [B, H] is the gradient of the mean of the nodes; ``d_weights``, by node, and ``d_Ws`` are added
        to.
        """
        if d_Ws is not None:
            torch.mul(states[: self.steps], self.mask, out=self.inputs)
        share, d = g / self.steps, self.d_mean
        d[1:] = share
        by_node = gates[1:].split(self.predecessors)
        for i in reversed(range(self.steps)):
            last = i == self.steps - 1
            d_gates, d, found = kernels.rnn_node_backward(
                share if last else d[i + 1] + self.d_inputs[i + 1] * self.mask, states[i + 1],
                stats[i + 1, 1], by_node[i], states[: i + 1], self.weights[i], self.eps, own, d[: i + 1],
            )  # fmt: skip
            d_weights[i].add_(found)
            flat = d_gates.flatten(0, 1)
            kernels.gemm_(self.d_rows[i], flat, self.Ws[i].T, not last)
            if d_Ws is not None:
                kernels.gemm_(d_Ws[i], self.rows[i].T, flat, True)
        d_first, d_h, _ = kernels.rnn_node_backward(
            d[0] + self.d_inputs[0] * self.mask, states[0], stats[0, 1], gates[:1], h[None], self.init,
            self.eps, own, None,
        )  # fmt: skip
        return d_first[0], d_h[0]


def _mean(states: Tensor, out: Tensor) -> Tensor:
    """Write the mean of ``states`` [nodes, B, H] to ``out`` [B, H] and return it.

    On the CPU torch adds up the last elements in another order than the others. Rows that are alike would
    become different by a rounding, which batch norm over such rows, whose variance is zero, makes large.
    """
    if not states.is_cpu or len(states) == 1:
        return torch.mean(states, 0, out=out)
    torch.add(states[0], states[1], out=out)
    for state in states[2:]:
        out.add_(state)
    return out.div_(len(states))


class _Recurrence(Function):
    @staticmethod
    def forward(
        ctx: Any,
        given: Tensor | None,
        eps: float,
        memory: str,
        x: Tensor,
        hidden: Tensor,
        mask: Tensor | None,
        weights: Tensor,
        W0: Tensor,
        *Ws: Tensor,
    ) -> tuple[Tensor, Tensor]:
        cell = _Cell(hidden, mask, weights, W0, Ws, eps)
        own = given is None
        T, (B, H), nodes = len(x), hidden.shape, cell.steps + 1
        keep = memory == "store" and any(ctx.needs_input_grad)
        states, gates = cell.memory(T if keep else 1, hidden)
        stats = x.new_empty(T, nodes, 2, H) if given is None else given.repeat(T, nodes, 1, 1)
        out = x.new_empty(T, B, H)
        h = hidden
        with nothing_to_record():
            for t in range(T):
                at = t if keep else 0
                cell.forward(x[t], h, own, states[at], gates[at], stats[t])
                h = _mean(states[at, 1:], out[t])
        ctx.own, ctx.eps = own, eps
        kept = (states, gates) if keep else (None, None)
        ctx.save_for_backward(x, hidden, mask, weights, W0, *Ws, *kept, stats, out)
        ctx.mark_non_differentiable(stats)
        return out, stats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
        x, hidden, mask, weights, W0, *Ws, states, gates, stats, out = ctx.saved_tensors
        cell = _Cell(hidden, mask, weights, W0, Ws, ctx.eps)
        learn = any(ctx.needs_input_grad[7:])
        d_W0 = torch.zeros_like(W0) if learn else None
        d_Ws = [torch.zeros_like(W) for W in Ws] if learn else None
        d_weights = torch.zeros_like(weights)
        d_by_node = d_weights.split(cell.predecessors)
        d_x = torch.empty_like(x) if ctx.needs_input_grad[3] else None
        d_h = torch.zeros_like(hidden)
        kept = states is not None
        if not kept:
            states, gates = cell.memory(1, hidden)
        with nothing_to_record():
            for t in reversed(range(len(x))):
                h, at = hidden if t == 0 else out[t - 1], t if kept else 0
                if not kept:
                    cell.forward(x[t], h, False, states[at], gates[at], stats[t])
                d_first, d_h = cell.backward(
                    g[t] + d_h, h, ctx.own, states[at], gates[at], stats[t], d_by_node, d_Ws
                )
                through = torch.empty_like(d_h)
                kernels.gemm_(through, d_first, cell.Wh.T, False)
                d_h = d_h + through * cell.mask
                if d_x is not None:
                    kernels.gemm_(d_x[t], d_first, cell.Wx.T, False)
                if d_W0 is not None:
                    kernels.gemm_(d_W0[: len(cell.Wx)], x[t].T, d_first, True)
                    kernels.gemm_(d_W0[len(cell.Wx) :], (h * cell.mask).T, d_first, True)
        return None, None, None, d_x, d_h, None, d_weights, d_W0, *(d_Ws or (None,) * len(Ws))
