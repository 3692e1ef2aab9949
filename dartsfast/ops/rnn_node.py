"""``rnn_node``: a node of the recurrent search cell and its batch norm (paper appendix A.1.2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dartsfast.ops.contract import (
    accumulated,
    check_dtype,
    check_shape,
    define,
    differentiable,
    differentiable_once,
    not_differentiable,
    require,
)

ACTIVATIONS = ("tanh", "relu", "sigmoid", "identity")
"""What the columns of ``weights`` stand for."""

PART = 4
"""Channels that have a part of the weights' gradient of their own."""


def weight_parts(H: int) -> int:
    """Return how many parts the weights' gradient has that :func:`rnn_node_backward_` adds to."""
    return -(-H // PART)


def rnn_node(
    gates: Tensor, states: Tensor, weights: Tensor, norm: Tensor | None = None, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Return BN(sum over predecessors j, activations k of w_jk * (s_j + c_j * (f_k(h_j) - s_j))).

    c_j is the sigmoid of the first half of gates_j, h_j the second half. Order of operations, a
    predecessor: d = w_0 * tanh(h), then fma(w_k, f_k(h), d) for relu, sigmoid, identity;
    u = (w_0 + w_1 + w_2 + w_3) * s; v = fma(c, d - u, u); the v are added, j ascending. sigmoid and tanh
    are those of ``csrc/activations.h``. Mean and variance over the batch follow ``csrc/order.h``, a
    row being a pixel of width 1; out = (sum - mean) * (1 / sqrt(variance + eps)).

    Args:
        gates: [P, B, 2H], the pre-activations; float32, float64, bfloat16 or float16, any strides.
        states: [P, B, H], the predecessors.
        weights: [P, 4], of tanh, relu, sigmoid, identity. ``none`` takes part in the softmax only.
        norm: [2, H], mean and variance to normalise by; None for those of the batch.
        eps: added to the variance.

    Returns:
        out [B, H], differentiable once by gates, states and weights; and the batch's mean and biased
        variance [2, H], not differentiable, empty [0, H] with ``norm``.

    Raises:
        InputError or RuntimeError: shapes, dtypes or devices that do not fit.
    """
    return torch.ops.dartsfast.rnn_node(gates, states, weights, norm, eps)


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
) -> None:
    """Do :func:`rnn_node` in memory that is given, with what a time step makes of a node before it goes on.

    mean = (((s_1 + s_2) + ...) + out) / P, over all predecessors but the first, and the node;
    masked = (mean where it is asked for, else out) * mask.

    Args:
        out: [B, H], the node.
        masked: [B, H], what the next products read.
        mean: [B, H], in a list, or none at all.
        stats: [2, H], mean and variance: those of the batch, or what the node is normalised by.
        gates: as :func:`rnn_node`, and so on.
        states: likewise.
        weights: likewise.
        mask: [B, H], or None for 1.
        own: whether ``stats`` are written, with the batch's, or read.
        eps: added to the variance.

    Everything that is written is contiguous and overlaps with nothing else.

    Raises:
        InputError or RuntimeError: shapes, dtypes or devices that do not fit, or tensors that autograd
            follows.
    """
    torch.ops.dartsfast.rnn_node_(out, masked, mean, stats, gates, states, weights, mask, own, eps)


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
) -> None:
    """Fill the gradients of what :func:`rnn_node_` read.

    Order of operations: the node's own gradient is g + through * mask; with ``of_mean`` it is
    (of_mean + (g + through * mask)) / P, which every predecessor but the first has too. What passes through
    the node is added to that in ``d_states``, with ``accumulate`` to what is there, or else to 0.

    Args:
        d_gates: [P, B, 2H].
        d_states: [P, B, H].
        d_weights: [weight_parts(H), P, 4], added to; the gradient is the sum of its parts. Kernels that run
            side by side add to parts of their own, those of CPUs to the first.
        g: [B, H], what arrives at the node (where there is a mean: at the mean), but for the next two.
        through: [B, H], what arrives at its masked copy.
        of_mean: [B, H], more that arrives at the mean; None where there is none.
        out: [B, H], the node.
        variance: [H], of ``stats``.
        gates: as :func:`rnn_node`, and so on.
        states: likewise.
        weights: likewise.
        mask: [B, H], or None for 1.
        eps: added to the variance.
        own: whether ``stats`` were the batch's.
        accumulate: add to ``d_states``; not with ``of_mean``.

    Everything that is written overlaps with nothing else and is contiguous, of ``d_weights`` every part.

    Raises:
        InputError or RuntimeError: shapes, dtypes or devices that do not fit, or tensors that autograd
            follows.
    """
    torch.ops.dartsfast.rnn_node_backward_(
        d_gates, d_states, d_weights, g, through, of_mean, out, variance, gates, states, weights, mask,
        eps, own, accumulate,
    )  # fmt: skip


def _check(gates: Tensor, states: Tensor, weights: Tensor, eps: float) -> None:
    require(states.dim() == 3, f"states must be [P, B, H], got {list(states.shape)}")
    check_dtype("states", states)
    require(min(states.shape) > 0, f"states must not be empty, got {list(states.shape)}")
    P, B, H = states.shape
    check_shape("gates", gates, [P, B, 2 * H], states)
    check_shape("weights", weights, [P, len(ACTIVATIONS)], states)
    require(eps >= 0, f"eps must not be negative, got {eps}")


def _fake(
    gates: Tensor, states: Tensor, weights: Tensor, norm: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    _check(gates, states, weights, eps)
    _, B, H = states.shape
    if norm is not None:
        check_shape("norm", norm, [2, H], states)
    return states.new_empty([B, H]), states.new_empty(
        [2 if norm is None else 0, H], dtype=accumulated(states.dtype)
    )


def _fake_backward(
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
    _check(gates, states, weights, eps)
    P, B, H = states.shape
    check_shape("g", g, [B, H], states)
    check_shape("out", out, [B, H], states)
    check_shape("variance", variance, [H], states)
    if base is not None:
        check_shape("base", base, [P, B, H], states)
    return (
        gates.new_empty([P, B, 2 * H]),
        states.new_empty([P, B, H]),
        states.new_empty([P, 4], dtype=accumulated(states.dtype)),
    )


def _check_written(name: str, tensor: Tensor, shape: list[int], like: Tensor) -> None:
    check_shape(name, tensor, shape, like)
    require(tensor.is_contiguous(), f"{name} must be contiguous, got strides {list(tensor.stride())}")


def _fake_(
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
    _check(gates, states, weights, eps)
    _, B, H = states.shape
    require(len(mean) < 2, f"mean must hold one tensor or none, got {len(mean)}")
    for name, t in (("out", out), ("masked", masked), *(("mean", t) for t in mean)):
        _check_written(name, t, [B, H], states)
    _check_written("stats", stats, [2, H], states)
    if mask is not None:
        check_shape("mask", mask, [B, H], states)


def _fake_backward_(
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
    _check(gates, states, weights, eps)
    P, B, H = states.shape
    for name, t in (("g", g), ("through", through), ("of_mean", of_mean), ("out", out), ("mask", mask)):
        if t is not None:
            check_shape(name, t, [B, H], states)
    check_shape("variance", variance, [H], states)
    _check_written("d_gates", d_gates, [P, B, 2 * H], states)
    _check_written("d_states", d_states, [P, B, H], states)
    check_shape("d_weights", d_weights, [weight_parts(H), P, 4], states)
    require(d_weights[0].is_contiguous(), f"parts of d_weights must be contiguous, got {d_weights.stride()}")
    require(of_mean is None or not accumulate, "d_states are added to, or hold shares of of_mean: not both")


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    gates, states, weights, norm, ctx.eps = inputs
    out, stats = output
    ctx.own = norm is None
    ctx.mark_non_differentiable(stats)
    ctx.save_for_backward(gates, states, weights, out, (stats if norm is None else norm)[1])


def _backward(ctx: Any, g: Tensor, _: Any) -> tuple[Any, ...]:
    gates, states, weights, out, variance = ctx.saved_tensors
    require(not ctx.needs_input_grad[3], "rnn_node is not differentiable by norm: pass it detached")
    found = torch.ops.dartsfast.rnn_node_backward(
        g, out, variance, gates, states, weights, ctx.eps, ctx.own, None
    )
    return *found, None, None


define(
    "rnn_node",
    "(Tensor gates, Tensor states, Tensor weights, Tensor? norm, float eps) -> (Tensor, Tensor)",
    _fake,
)
define(
    "rnn_node_backward",
    "(Tensor g, Tensor out, Tensor variance, Tensor gates, Tensor states, Tensor weights, float eps, "
    "bool own, Tensor? base) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
)
differentiable("rnn_node", _setup, _backward)
differentiable_once("rnn_node_backward")

define(
    "rnn_node_",
    "(Tensor(a!) out, Tensor(b!) masked, Tensor(c!)[] mean, Tensor(d!) stats, Tensor gates, Tensor states, "
    "Tensor weights, Tensor? mask, bool own, float eps) -> ()",
    _fake_,
)
define(
    "rnn_node_backward_",
    "(Tensor(a!) d_gates, Tensor(b!) d_states, Tensor(c!) d_weights, Tensor g, Tensor through, "
    "Tensor? of_mean, Tensor out, Tensor variance, Tensor gates, Tensor states, Tensor weights, "
    "Tensor? mask, float eps, bool own, bool accumulate) -> ()",
    _fake_backward_,
)
not_differentiable("rnn_node_")
not_differentiable("rnn_node_backward_")
