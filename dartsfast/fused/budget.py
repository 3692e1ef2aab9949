"""Which cells of a network keep their images and which compute them again, so that a pass fits a budget."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

from dartsfast.errors import InputError
from dartsfast.fused.costs import costs
from dartsfast.fused.passes import Pass, planned
from dartsfast.names import MEMORY_MODES
from dartsfast.sizes import megabytes

# How many operations take the time of a byte of memory: a CPU's core has 84 GFLOP/s and 14 GB/s, an A100
# 19.5 TFLOP/s and 2 TB/s. Which cells to compute again first hardly depends on it.
OPERATIONS_A_BYTE = 8
_TRIES = 8


@dataclass(frozen=True)
class Fit:
    """A plan that fits a budget.

    Attributes:
        images: [N, 3, H, W] that it is for.
        modes: ``store`` or ``recompute``, by cell.
        peak: bytes that a pass takes at most, beside model, data and optimisers.
        least: the same where every cell is computed again.
        price: time of a pass over that of one whose cells are all stored, by operations and bytes.
    """

    images: tuple[int, ...]
    modes: tuple[str, ...]
    peak: int
    least: int
    price: float

    def serves(self, images: Sequence[int]) -> bool:
        """Whether a pass over such images takes no more."""
        return all(a <= b for a, b in zip(images, self.images, strict=True))

    def __str__(self) -> str:
        stored = [str(k) for k, mode in enumerate(self.modes) if mode == "store"]
        return (
            f"stores cells {', '.join(stored) or 'none'} of {len(self.modes)}, "
            f"peak {megabytes(self.peak)} MB (least {megabytes(self.least)}), "
            f"{self.price:.2f} times the time of storing all"
        )


def fit(network: Any, images: Sequence[int], budget: int) -> Fit:
    """Return the modes of cells with which a pass is the fastest of those that fit, by what cells come to.

    The pass takes the gradients of alphas and weights, which needs the most memory.

    Args:
        network: :class:`dartsfast.cnn.model_search.Network`, its backend ``cpu``, ``cuda`` or ``triton``.
        images: [N, 3, H, W].
        budget: bytes beside model, data and optimisers.

    Raises:
        InputError: nothing fits; it says what would.
    """
    twin = _twin(network)
    cells = len(twin.cells)
    passes = {mode: _pass(twin, [mode] * cells, images) for mode in MEMORY_MODES}
    least = passes["recompute"].peak
    if least > budget:
        raise InputError(_too_little(twin, images, budget, least))
    each = {mode: _by_cell(p, cells) for mode, p in passes.items()}
    times = {mode: sum(c.time for c in found) for mode, found in each.items()}
    goal = budget
    for _ in range(_TRIES):
        modes = _fastest(each, goal)
        peak = _pass(twin, modes, images).peak
        if peak <= budget:
            break
        goal -= peak - budget  # what a sum by cells leaves out, such as blocks that are kept to be used again
    else:
        modes, peak = ["recompute"] * cells, least
    time = sum(each[mode][k].time for k, mode in enumerate(modes))
    price = time / times["store"] if times["store"] else 1.0  # where no cell has programs
    return Fit(tuple(images), tuple(modes), peak, least, price)


class _Cell(NamedTuple):
    kept: int  # bytes
    most: int  # bytes that live while one of its programs runs, without what cells before it keep
    time: float  # in those of a byte


def _by_cell(p: Pass, cells: int) -> list[_Cell]:
    """Return what the cells of a pass come to; what is beside their programs counts to those."""
    found: list[_Cell] = []
    before = 0
    for k in range(cells):
        runs = [run for run in p.runs if run.part.startswith(f"cell {k},")]
        kept = sum(run.kept for run in runs)
        time = sum(
            max(cost.operations / OPERATIONS_A_BYTE, cost.read + cost.written)
            for run in runs
            for *_, cost in costs(run.program, run.dtype)
        )
        found.append(_Cell(kept, max((run.in_use for run in runs), default=0) - before, time))
        before += kept
    return found


def _fastest(each: dict[str, list[_Cell]], budget: int) -> list[str]:
    """Return the modes that take the least time of those that fit, as sums of what cells come to.

    Of ways to have got to a cell, those that neither keep less nor are faster than another are dropped.
    """
    ways: list[tuple[int, float, list[str]]] = [(0, 0.0, [])]
    for k in range(len(each["recompute"])):
        more = []
        for kept, time, modes in ways:
            for mode in MEMORY_MODES:
                cell = each[mode][k]
                if kept + cell.most <= budget or mode == "recompute":
                    more.append((kept + cell.kept, time + cell.time, [*modes, mode]))
        ways = []
        for way in sorted(more, key=lambda way: way[:2]):
            if not ways or way[1] < ways[-1][1]:
                ways.append(way)
    return ways[-1][2]


def _pass(network: Any, modes: Sequence[str], images: Sequence[int]) -> Pass:
    for cell, mode in zip(network.cells, modes, strict=True):
        cell._memory = mode
    return planned(network, images, "both")


def _too_little(network: Any, images: Sequence[int], budget: int, least: int) -> str:
    """Say what would fit: memory grows with the batch in a line."""
    N, *shape = images
    batch = 0
    if N > 1:
        modes = ["recompute"] * len(network.cells)
        half = max(1, N // 2)
        at_half = _pass(network, modes, [half, *shape]).peak
        batch = max(0, N - int(-(-(least - budget) * (N - half) // (least - at_half))))
        while batch and _pass(network, modes, [batch, *shape]).peak > budget:
            batch -= 1
    advice = f"or images in batches of {batch} at most" if batch else "or smaller images, or fewer channels"
    return (
        f"a memory budget of {megabytes(budget)} MB is too little: a pass over images {list(images)} takes "
        f"{megabytes(least)} MB with every cell computed again. Give it that, {advice}"
    )


def _twin(network: Any) -> Any:
    """Return a network like ``network`` whose tensors have no memory."""
    memo: dict[int, Any] = {}
    for t in (*network.parameters(), *network.buffers(), *network.arch_parameters()):
        empty = torch.empty_like(t, device="meta")
        memo[id(t)] = nn.Parameter(empty, t.requires_grad) if isinstance(t, nn.Parameter) else empty
    backend = network.backend
    twin = copy.deepcopy(network, memo)
    twin._backend, twin._memory = backend, "recompute"  # what it is within a plan is said cell by cell
    for cell in twin.cells:
        cell._backend = backend
    return twin
