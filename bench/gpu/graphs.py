"""Iterations as CUDA graphs; in a rehearsal played on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch

from bench.peers import Iteration
from dartsfast.search import capture

WARM_UP = 2


def capturable(iteration: Iteration) -> None:
    """Let the alphas' optimiser count its steps on the device, as recordings need."""
    optimizer = iteration.architect.optimizer
    for group in optimizer.param_groups:
        group["capturable"] = True
    for state in optimizer.state.values():
        state["step"] = state["step"].to(group["params"][0].device)


def recorded(
    iteration: Iteration, order: int, place: torch.device, *, warm_up: int = WARM_UP
) -> Callable[[], Any]:
    """Return what replays an iteration; it has run ``warm_up`` times, then was recorded and replayed.

    A second one meets what a first has not, such as the momentum; what it launches must be loaded by then.

    Raises:
        InputError: it cannot be recorded.
    """

    def step() -> tuple[()]:
        iteration.run_in_place(order)
        return ()

    capturable(iteration)
    captured = capture.Captured(step, place, required=True)
    with mock.patch.object(capture, "WARM_UP", warm_up):
        for _ in range(warm_up + 1):
            captured(numbers=())
    return lambda: captured(numbers=())


def playing(rehearse: bool) -> AbstractContextManager[Any]:
    """Return a context in which graphs can be recorded: on a GPU as it is."""
    if not rehearse:
        return nullcontext()
    from recording import played

    return played()
