"""The passes of a search iteration as they would run: programs and memory, before anything does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dartsfast.backends import pretending
from dartsfast.fused.costs import Cost, costs
from dartsfast.fused.planning import Plan, Run, needed
from dartsfast.names import CNN_MEMORY_MODES

PASSES = {1: {"alphas": 1, "both": 1}, 2: {"alphas": 2, "weights": 1, "both": 2}}
"""Whose gradients the passes of an iteration take, and how many of each there are, by order.

The step of the weights takes the alphas' gradients too. The second order has a virtual step (weights), the
validation loss after it (both), and the two passes of its finite difference (alphas).
"""


COPIES = {1: {"alphas": 0, "both": 0}, 2: {"weights": 0, "both": 1, "alphas": 2}}
"""Copies of the weights that the alphas' step holds while a pass runs, by order: the weights that it will
restore, and in the finite difference the vector of the product."""


class Pass(NamedTuple):
    """A forward and a backward.

    Attributes:
        of: whose gradients the backward takes: ``alphas``, ``weights`` or ``both``.
        times: how many of them an iteration has.
        runs: programs, in order.
        kept: bytes that live between the two.
        peak: bytes that live at most. Both are beside model, data and optimisers.
        beside: bytes of copies of the weights, and of gradients of earlier parts, that live all the time.
    """

    of: str
    times: int
    runs: list[Run]
    kept: int
    peak: int
    beside: int


def iteration(network: Any, images: Sequence[int], order: int, parts: int = 1) -> list[Pass]:
    """Return the passes of an iteration as they would run.

    Args:
        network: :class:`dartsfast.cnn.model_search.Network` on the device ``meta``, of the backend ``cpu``,
            ``cuda`` or ``triton``.
        images: [N, 3, H, W].
        order: of the alphas' gradient.
        parts: of a batch, whose gradients are added up.

    Raises:
        InputError: images that do not fit the network.
    """
    return [planned(network, images, of, order, parts) for of in PASSES[order]]


def planned(network: Any, images: Sequence[int], of: str, order: int = 1, parts: int = 1) -> Pass:
    """Return a pass that takes the gradients ``of``; arguments and errors as :func:`iteration`."""
    groups: dict[str, list[Tensor]] = {
        "alphas": network.arch_parameters(),
        "weights": list(network.parameters()),
    }
    for name, group in groups.items():
        for t in group:
            t.requires_grad_(of in (name, "both"))
    wanted = [t for group in groups.values() for t in group if t.requires_grad]
    x = torch.empty(images, dtype=network.alphas_normal.dtype, device="meta")
    labels = torch.empty(images[0], dtype=torch.int64, device="meta")
    plan = Plan(network._backend)
    if network._memory not in CNN_MEMORY_MODES:
        with pretending(network._backend):
            network.fit_memory(images, order, parts)
    with ExitStack() as stack:
        # The cell itself takes no part in what it computes: a hook on it alters nothing.
        for k, cell in enumerate(network.cells):
            stack.enter_context(cell.register_forward_pre_hook(partial(_begin, plan, k)))
        stack.enter_context(pretending(network._backend))
        stack.enter_context(plan)
        loss = network._loss(x, labels)
        kept = plan.in_use
        plan.part, plan.phase = "stem", f"backward of {of}"  # of cells, what is made in the forward says so
        torch.autograd.grad(loss, wanted, allow_unused=True)
    copies = COPIES[order][of] + (parts > 1 and of != "alphas")
    beside = copies * sum(w.numel() * w.itemsize for w in groups["weights"])
    return Pass(of, PASSES[order][of] * parts, plan.runs, kept, needed(plan.peak, plan.runner), beside)


def _begin(plan: Plan, number: int, cell: Any, inputs: Any) -> None:
    plan.part = f"cell {number}, {'reduction' if cell.reduction else 'normal'}"


def total(runs: Iterable[Run]) -> Cost:
    """Return what all instructions of programs cost together."""
    found = [cost for run in runs for *_, cost in costs(run.program, run.dtype)]
    return Cost(*map(sum, zip(*found, strict=True)))
