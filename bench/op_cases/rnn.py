"""The RNN's node, products and loss, beside the reference's formulas on stock PyTorch functions."""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.op_cases.case import OURS, STOCK, Case, Peers, Timed, drawing, gradients, kernels, no_grad
from dartsfast.ops import (
    cross_entropy_,
    gemm_,
    locked_linear_,
    locked_linear_input_gradient_,
    locked_linear_weight_gradient_,
    rnn_node,
)

EPSILON = 1e-5


def rnn_cases(*, quick: bool = False) -> list[Case]:
    """Return nodes, their products and the decoder's of the paper's cell, or tiny ones."""
    if quick:
        return [node_case(3, 4, 6), product_case(12, 6, 8), locked_case(3, 2, 6, 20), loss_case(4, 20)]
    nodes = [node_case(P, 256, 300) for P in (1, 8)]
    products = [product_case(*sizes) for sizes in ((256, 300, 600), (2048, 300, 600), (256, 300, 10_000))]
    return [*nodes, *products, locked_case(35, 8, 300, 10_000), loss_case(256, 10_000)]


def product_case(M: int, K: int, N: int) -> Case:
    """A product [M, K] x [K, N] and those of its gradients, the weight's added to what there is."""

    def build(dtype: torch.dtype, device: torch.device) -> dict[str, Peers]:
        draw = drawing(dtype, device)
        x, w, g = draw(M, K), draw(K, N), draw(M, N)
        passes = {
            "forward": (x, w, False),
            "input gradient": (g, w.T, False),
            "weight gradient": (x.T, g, True),
        }

        def peers(a: Tensor, b: Tensor, accumulate: bool) -> Peers:
            ours, stock = a.new_zeros(len(a), b.shape[1]), a.new_zeros(len(a), b.shape[1])

            def library() -> Tensor:
                return stock.addmm_(a, b) if accumulate else torch.mm(a, b, out=stock)

            def own() -> Tensor:
                gemm_(ours, a, b, accumulate)
                return ours

            return {
                peer: Timed(no_grad(call), lambda out: [out.clone()])
                for peer, call in ((OURS, own), (STOCK, library))
            }

        return {name: peers(*given) for name, given in passes.items()}

    flops = dict.fromkeys(("forward", "input gradient", "weight gradient"), 2 * M * K * N)
    return Case("gemm_", f"{M} x {K} x {N}", build, flops=flops)


def locked_case(T: int, N: int, H: int, V: int) -> Case:
    """The decoder behind locked dropout of three quarters; stock products multiply the zeros too."""
    kept = N * H // 4

    def build(dtype: torch.dtype, device: torch.device) -> dict[str, Peers]:
        draw = drawing(dtype, device)
        x, weight, g = draw(T, N, H), draw(H, V), draw(N, T, V)
        mask = torch.zeros(N * H, dtype=dtype, device=device)
        mask[torch.randperm(N * H, generator=torch.Generator().manual_seed(0))[:kept]] = 4
        mask = mask.view(N, H)
        places = {
            (peer, name): torch.zeros_like(t)
            for peer in (OURS, STOCK)
            for name, t in (("forward", g), ("input gradient", x), ("weight gradient", weight))
        }

        def own(name: str) -> Tensor:
            place = places[OURS, name]
            if name == "forward":
                locked_linear_(place, x, mask, weight)
            elif name == "input gradient":
                locked_linear_input_gradient_(place, g, mask, weight)
            else:
                locked_linear_weight_gradient_(place, g, x, mask)
            return place

        def stock(name: str) -> Tensor:
            place = places[STOCK, name]
            if name == "forward":
                return torch.matmul((x * mask).transpose(0, 1), weight, out=place)
            if name == "input gradient":
                return torch.mul((g @ weight.T).transpose(0, 1), mask, out=place)
            return place.addmm_((x * mask).transpose(0, 1).flatten(0, 1).T, g.flatten(0, 1))

        return {
            name: {
                peer: Timed(no_grad(functools.partial(call, name)), lambda out: [out.clone()])
                for peer, call in ((OURS, own), (STOCK, stock))
            }
            for name in ("forward", "input gradient", "weight gradient")
        }

    flops = dict.fromkeys(("forward", "input gradient", "weight gradient"), 2 * T * kept * V)
    return Case("locked_linear_", f"{T} x {N} of {H} to {V}, a quarter kept", build, flops=flops)


def loss_case(R: int, V: int) -> Case:
    """Cross entropy and its gradient in the place of the logits; stock functions in memory of their own."""

    def build(dtype: torch.dtype, device: torch.device) -> dict[str, Peers]:
        draw = drawing(dtype, device)
        logits, bias, labels = draw(R, V), draw(V), torch.arange(R, device=device) % V
        place = torch.empty_like(logits)

        def own() -> tuple[Tensor, Tensor]:
            return cross_entropy_(place.copy_(logits), bias, labels, 1 / R), place

        def stock() -> tuple[Tensor, Tensor]:
            log_probabilities = torch.add(logits, bias, out=place).log_softmax(1)
            losses = -log_probabilities.gather(1, labels[:, None])[:, 0]
            gradient = log_probabilities.exp_() / R
            gradient[torch.arange(R, device=device), labels] -= 1 / R
            return losses, gradient

        timed = {
            peer: Timed(no_grad(call), lambda out: [t.clone() for t in out])
            for peer, call in ((OURS, own), (STOCK, stock))
        }
        return {"loss and gradient": timed}

    return Case("cross_entropy_", f"{R} rows, {V:,} classes", build, bytes={"loss and gradient": 8 * R * V})


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
