"""The RNN's node, beside the reference cell's formulas on stock PyTorch functions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.op_cases.case import OURS, STOCK, Case, Peers, Timed, drawing, gradients, kernels, no_grad
from dartsfast.ops import rnn_node

EPSILON = 1e-5


def rnn_cases(*, quick: bool = False) -> list[Case]:
    """Return the first and the last node of the paper's cell, or a tiny one."""
    return [node_case(3, 4, 6)] if quick else [node_case(P, 256, 300) for P in (1, 8)]


def node_case(P: int, B: int, H: int) -> Case:
    """A node of P predecessors, and its batch norm."""
    state = 4 * B * H

    def build(dtype: torch.dtype, device: torch.device) -> dict[str, Peers]:
        draw = drawing(dtype, device)
        gates, states = draw(P, B, 2 * H), draw(P, B, H)
        weights, g = draw(P, 4).softmax(1), draw(B, H)
        out, stats = rnn_node(gates, states, weights)

        def backward() -> tuple[Tensor, ...]:
            return kernels.rnn_node_backward(g, out, stats[1], gates, states, weights, EPSILON, True, None)

        inputs = [t.clone().requires_grad_() for t in (gates, states, weights)]
        return {
            "forward": {
                OURS: Timed(lambda: rnn_node(gates, states, weights), lambda out: out[:1]),
                STOCK: Timed(no_grad(lambda: _stock(*inputs)), lambda out: [out]),
            },
            "backward": {
                OURS: Timed(backward, list),
                STOCK: gradients(_stock(*inputs), inputs, g, list),
            },
        }

    return Case(
        "rnn_node",
        f"P={P}, {B}x{H}",
        build,
        bytes={"forward": (3 * P + 1) * state, "backward": (6 * P + 2) * state},
    )


def _stock(gates: Tensor, states: Tensor, weights: Tensor) -> Tensor:
    """Return the node [B, H] as the published cell computes it."""
    c, h = gates.chunk(2, -1)
    c = c.sigmoid()
    total = torch.zeros_like(states[0])
    for k, activation in enumerate((torch.tanh, torch.relu, torch.sigmoid, lambda x: x)):
        unweighted = states + c * (activation(h) - states)
        total = total + torch.sum(weights[:, k, None, None] * unweighted, dim=0)
    return F.batch_norm(total, None, None, training=True, eps=EPSILON)
