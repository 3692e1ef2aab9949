"""The recurrent search cell on the fused operators, all time steps as one autograd node.

A matrix product makes the pre-activations ("gates", [.., 2H]) of a node from all earlier states at once;
``rnn_node_`` makes the node from them and, beside it, what the next product reads. What arrives at a state in
the backward is added up where it is used; masked copies for the products are all that runs beside. Kept of
the last time steps, of as many as asked for: states and gates; of those before them output and statistics
alone, from which the backward makes states and gates again. The gradients of the weights add up over time
steps in place.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

import dartsfast.ops  # noqa: F401 - defines the operators
from dartsfast.backends import triton as triton_backend
from dartsfast.constants import constant
from dartsfast.errors import InputError
from dartsfast.ops import gemm
from dartsfast.ops.contract import Function, eager, nothing_to_record, once_differentiable
from dartsfast.ops.rnn_node import weight_parts

kernels = torch.ops.dartsfast


@eager
def recurrence(
    norm: nn.BatchNorm1d,
    kept: int,
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
        kept: how many time steps, the last ones, keep states and gates for the backward; more than T are T.
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
    out, stats = _Recurrence.apply(given, norm.eps, min(kept, T), x, hidden, mask, weights, W0, *Ws)
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


@functools.cache
def _unchecked(device: torch.device) -> Any:
    """Return the operators of a time step, on GPUs without a dispatcher that looks at all arguments."""
    served = device.type in triton_backend.DEVICES and triton_backend.missing() is None
    if not served or device.type == "meta":  # there launches are counted, by the dispatcher
        return kernels
    from dartsfast.kernels import OPERATORS

    names = "rnn_node_", "rnn_node_backward_"
    fill = {name: functools.partial(OPERATORS[name], None) for name in names}
    return SimpleNamespace(gemm_=gemm.unchecked, **fill)


class _Cell:
    """What time steps need, forward and backward."""

    kernels: Any = kernels
    """The operators. As no time step has other arguments than the first, but for their place in memory, those
    after it need no checks."""

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
        self.mask, self.eps = mask, eps
        self.Wx, self.Wh = W0.split([W0.shape[0] - H, H])
        self.Ws = Ws
        # A part a node, with a row a predecessor.
        self.predecessors = list(range(1, self.steps + 1))
        self.weights = weights.split(self.predecessors)
        self.init = _tanh_alone(W0.dtype, W0.device)  # the initial state is such a node
        # What enters the products: the masked states but the last, and the mean; all predecessors as rows.
        self.inputs = hidden.new_empty(self.steps + 1, B, H)
        self.rows = [self.inputs[:i].flatten(0, 1) for i in self.predecessors]

    @functools.cached_property
    def d_states(self) -> Tensor:
        """The gradients of the states but the last."""
        return self.inputs.new_empty(self.inputs[1:].shape)

    @functools.cached_property
    def d_inputs(self) -> Tensor:
        """The gradients of the inputs but the mean."""
        return torch.empty_like(self.d_states)

    @functools.cached_property
    def d_rows(self) -> list[Tensor]:
        return [self.d_inputs[:i].flatten(0, 1) for i in self.predecessors]

    @functools.cached_property
    def d_gates(self) -> Tensor:
        """The gradients of a node's gates."""
        steps, B, H = self.d_states.shape
        return kernels.empty(self.inputs, [steps, B, 2 * H])

    @functools.cached_property
    def d_first(self) -> Tensor:
        """The gradient of the initial state's gates, [B, 2H]."""
        return torch.empty_like(self.d_gates[0])

    @functools.cached_property
    def arriving(self) -> tuple[Tensor, Tensor]:
        """The gradients, from the time step after, of the mean and of its masked copy, [B, H] each."""
        return torch.zeros_like(self.inputs[0]), torch.zeros_like(self.inputs[0])

    def memory(self, T: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return states [T, steps + 1, B, H], the gates of the initial state [T, B, 2H] and those of the
        nodes [T, edges, B, 2H], empty."""
        _, B, H = self.inputs.shape
        # From memory that is used again: fresh pages cost as much time as a third of the GEMMs.
        sizes = [T, self.steps + 1, B, H], [T, B, 2 * H], [T, sum(self.predecessors), B, 2 * H]
        states, first, gates = (kernels.empty(self.inputs, size) for size in sizes)
        return states, first, gates

    def masked(self, x: Tensor, out: Tensor) -> Tensor:
        """Fill ``out`` with what enters the products of ``x``, and return it."""
        return out.copy_(x) if self.mask is None else torch.mul(x, self.mask, out=out)

    def read(self, x: Tensor, first: Tensor) -> None:
        """Begin the gates of initial states, ``first`` [t, B, 2H], with the part of inputs [t, B, ninp]."""
        self.kernels.gemm_(first.flatten(0, 1), x.flatten(0, 1), self.Wx, False)

    def forward(
        self,
        h: Tensor,
        before: Tensor,
        own: bool,
        states: Tensor,
        first: Tensor,
        gates: Tensor,
        stats: Tensor,
        mean: list[Tensor],
    ) -> None:
        """Fill states [steps + 1, B, H], gates [edges, B, 2H] and the mean of the nodes [B, H], if asked for.

        ``before`` [B, H] is the masked state before, h; ``first`` [B, 2H] what :meth:`read` left. ``stats``
        [steps + 1, 2, H], the statistics of batch norm, are the batch's ``own`` and filled too, or they are
        given.
        """

        def fill(i: int, gates: Tensor, before: Tensor, weights: Tensor, mean: list[Tensor]) -> None:
            self.kernels.rnn_node_(
                states[i], self.inputs[i], mean, stats[i], gates, before, weights, self.mask, own, self.eps
            )

        self.kernels.gemm_(first, before, self.Wh, True)
        fill(0, first[None], h[None], self.init, [])
        for i, by_edge in enumerate(gates.split(self.predecessors)):
            self.kernels.gemm_(by_edge.flatten(0, 1), self.rows[i], self.Ws[i], False)
            last = i == self.steps - 1
            fill(i + 1, by_edge, states[: i + 1], self.weights[i], mean if last else [])

    def backward(
        self,
        g: Tensor,
        h: Tensor,
        own: bool,
        states: Tensor,
        first: Tensor,
        gates: Tensor,
        stats: Tensor,
        d_weights: Sequence[Tensor],
        d_Ws: list[Tensor] | None,
    ) -> None:
        """Fill ``d_first`` and make ``arriving`` the gradients of h [B, H] and of its masked copy.

        ``g`` [B, H] is the gradient of the mean of the nodes but for what arrives from the time step after;
        ``d_weights``, by node, and ``d_Ws`` are added to.
        """
        by_node, d_h = gates.split(self.predecessors), self.arriving
        for i in reversed(range(self.steps)):
            last = i == self.steps - 1
            arrive = (*d_h, g) if last else (self.d_states[i + 1], self.d_inputs[i + 1], None)
            d_gates = self.d_gates[: i + 1]
            self.kernels.rnn_node_backward_(
                d_gates, self.d_states[: i + 1], d_weights[i + 1], *arrive, states[i + 1], stats[i + 1, 1],
                by_node[i], states[: i + 1], self.weights[i], self.mask, self.eps, own, not last,
            )  # fmt: skip
            flat = d_gates.flatten(0, 1)
            self.kernels.gemm_(self.d_rows[i], flat, self.Ws[i].T, not last)
            if d_Ws is not None:
                self.kernels.gemm_(d_Ws[i], self.rows[i].T, flat, True)
        self.kernels.rnn_node_backward_(
            self.d_first[None], d_h[0][None], d_weights[0], self.d_states[0], self.d_inputs[0], None,
            states[0], stats[0, 1], first[None], h[None], self.init, self.mask, self.eps, own, False,
        )  # fmt: skip
        self.kernels.gemm_(d_h[1], self.d_first, self.Wh.T, False)


class _Recurrence(Function):
    @staticmethod
    def forward(
        ctx: Any,
        given: Tensor | None,
        eps: float,
        kept: int,
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
        if not any(ctx.needs_input_grad):
            kept = 0
        states, first, gates = cell.memory(max(kept, 1))
        stats = x.new_empty(T, nodes, 2, H) if given is None else given.repeat(T, nodes, 1, 1)
        out = kernels.empty(x, [T, B, H])
        before = cell.inputs[-1]  # from one time step to the next
        with nothing_to_record(), triton_backend.on(x.device):
            cell.masked(hidden, before)
            for t in range(T):
                at = max(0, t - (T - kept))  # time steps that are not kept go before in the first one's place
                if at == 0:
                    last = T if t == T - kept else t + 1
                    cell.read(x[t:last], first[: last - t])
                h = hidden if t == 0 else out[t - 1]
                cell.forward(h, before, own, states[at], first[at], gates[at], stats[t], [out[t]])
                cell.kernels = _unchecked(x.device)
        ctx.own, ctx.eps, ctx.kept = own, eps, kept
        steps = (states, first, gates) if kept else (None, None, None)
        ctx.save_for_backward(x, hidden, mask, weights, W0, *Ws, *steps, stats, out)
        ctx.mark_non_differentiable(stats)
        return out, stats

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
        x, hidden, mask, weights, W0, *Ws, states, first, gates, stats, out = ctx.saved_tensors
        T = len(x)
        cell = _Cell(hidden, mask, weights, W0, Ws, ctx.eps)
        of_x, of_hidden, _, _, *of_W = ctx.needs_input_grad[3:]
        d_W0 = torch.zeros_like(W0) if any(of_W) else None
        d_Ws = [torch.zeros_like(W) for W in Ws] if any(of_W) else None
        # Those of the initial state, which is no choice, come first.
        parts = stats.new_zeros(weight_parts(hidden.shape[1]), 1 + len(weights), weights.shape[1])
        d_weights = parts.split([1, *cell.predecessors], 1)
        d_x = kernels.empty(x, x.shape) if of_x else None
        before = torch.empty_like(hidden)
        kept, again, begin = (states, first, gates), cell.memory(int(ctx.kept < T)), T - ctx.kept
        with nothing_to_record(), triton_backend.on(x.device):
            for t in reversed(range(T)):
                h, (steps, at) = (
                    hidden if t == 0 else out[t - 1],
                    (again, 0) if t < begin else (kept, t - begin),
                )
                made = steps[0][at], steps[1][at], steps[2][at]
                if t < begin or d_W0 is not None:
                    cell.masked(h, before)
                if t < begin:
                    cell.read(x[t : t + 1], again[1])
                    cell.forward(h, before, False, *made, stats[t], [])
                elif d_Ws is not None:
                    cell.masked(made[0][:-1], cell.inputs[:-1])
                cell.backward(g[t], h, ctx.own, *made, stats[t], d_weights, d_Ws)
                if d_x is not None:
                    cell.kernels.gemm_(d_x[t], cell.d_first, cell.Wx.T, False)
                if d_W0 is not None:
                    cell.kernels.gemm_(d_W0[: len(cell.Wx)], x[t].T, cell.d_first, True)
                    cell.kernels.gemm_(d_W0[len(cell.Wx) :], before.T, cell.d_first, True)
                cell.kernels = _unchecked(x.device)
            d_h, through = cell.arriving
            d_hidden = d_h + cell.masked(through, through) if of_hidden else None
        d_mixing = parts[:, 1:].sum(0).to(weights.dtype)
        return None, None, None, d_x, d_hidden, None, d_mixing, d_W0, *(d_Ws or (None,) * len(Ws))
