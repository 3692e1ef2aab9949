"""Iterations as CUDA graphs; in a rehearsal played on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch

from bench.peers import Iteration
from dartsfast.search import capture


def capturable(iteration: Iteration) -> None:
    """Let the alphas' optimiser count its steps on the device, as recordings need."""
    optimizer = iteration.architect.optimizer
    for group in optimizer.param_groups:
        group["capturable"] = True
    for state in optimizer.state.values():
        state["step"] = state["step"].to(group["params"][0].device)


def recorded(iteration: Iteration, order: int, place: torch.device) -> Callable[[], Any]:
    """Return what replays an iteration; it has run once, then was recorded and replayed.

    Raises:
        InputError: it cannot be recorded.
    """

    def step() -> tuple[()]:
        iteration.run_in_place(order)
        return ()

    capturable(iteration)
    captured = capture.Captured(step, place, required=True)
    with mock.patch.object(capture, "WARM_UP", 1):
        for _ in range(2):
            captured(numbers=())
    return lambda: captured(numbers=())


def playing(rehearse: bool) -> AbstractContextManager[Any]:
    """Return a context in which graphs can be recorded: on a GPU as it is."""
    if not rehearse:
        return nullcontext()
    from recording import played

    return played()
