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
    require,
)

ACTIVATIONS = ("tanh", "relu", "sigmoid", "identity")
"""What the columns of ``weights`` stand for."""


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
