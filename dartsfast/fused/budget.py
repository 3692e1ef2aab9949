"""Which cells of a network keep their images and which compute them again, so that passes fit a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

from dartsfast.errors import InputError
from dartsfast.fused.costs import costs
from dartsfast.fused.passes import Pass, planned
from dartsfast.fused.planning import needed, without_memory
from dartsfast.names import CNN_MEMORY_MODES
from dartsfast.sizes import in_words

# How many operations take the time of a byte of memory: a CPU's core has 84 GFLOP/s and 14 GB/s, an A100
# 19.5 TFLOP/s and 2 TB/s. Which cells to compute again first hardly depends on it.
OPERATIONS_A_BYTE = 8
_LARGEST = {
    1: ("both",),
    2: ("both", "alphas"),
}  # of the passes of an iteration, those that may need the most
_STEPS = 256  # of a frontier
_SLACK = 0.02  # how far sums by cells may be above what a pass takes


@dataclass(frozen=True)
class Fit:
    """A plan that fits a budget.

    Attributes:
        images: [N, 3, H, W] that it is for.
        order: of the alphas' gradient, likewise.
        modes: ``store``, ``recompute`` or ``cell``, by cell; the stem is kept as the first cell.
        peak: bytes that an iteration takes at most, beside model, data and optimisers.
        least: the same where nothing is kept but what lies between cells.
        price: time of a pass over that of one whose cells are all stored, by operations and bytes.
        parts: of a batch that it is for, likewise.
    """

    images: tuple[int, ...]
    order: int
    modes: tuple[str, ...]
    peak: int
    least: int
    price: float
    parts: int

    def serves(self, images: Sequence[int], order: int, parts: int) -> bool:
        """Whether an iteration over such images takes no more."""
        smaller = all(a <= b for a, b in zip(images, self.images, strict=True))
        return smaller and order <= self.order and parts <= self.parts

    def __str__(self) -> str:
        cells = {m: [str(k) for k, mode in enumerate(self.modes) if mode == m] for m in CNN_MEMORY_MODES}
        kept = "; ".join(f"{mode} cells {', '.join(found)}" for mode, found in cells.items() if found)
        return (
            f"{kept}; peak {in_words(self.peak)} (least {in_words(self.least)}), "
            f"{self.price:.2f} times the time of storing all"
        )


def fit(network: Any, images: Sequence[int], budget: int, order: int = 1, parts: int = 1) -> Fit:
    """Return the modes of cells with which a pass is the fastest of those that fit, by what cells come to.

    Args:
        network: :class:`dartsfast.cnn.model_search.Network`, its backend ``cpu``, ``cuda`` or ``triton``.
        images: [N, 3, H, W].
        budget: bytes beside model, data and optimisers.
        order: of the alphas' gradient: with the second, passes have copies of the weights beside them.
        parts: of a batch, whose gradients are added up: passes have those of earlier ones beside them.

    Raises:
        InputError: nothing fits; it says what would.
    """
    twin = _twin(network)
    cells = len(twin.cells)
    passes = {mode: _passes(twin, [mode] * cells, images, order, parts) for mode in CNN_MEMORY_MODES}
    least = _peak(passes["cell"])
    if least > budget:
        raise InputError(_too_little(twin, images, budget, order, parts, least))
    between = min(_outside(found[0]) for found in passes.values())
    each = {mode: _by_cell(p, cells, _outside(p) - between) for mode, (p, *_) in passes.items()}
    times = {mode: sum(c.time for c in found) for mode, found in each.items()}
    beside = passes["store"][0].beside
    for estimate, modes in _frontier(each):
        if needed(estimate, twin._backend) + beside > (1 + _SLACK) * budget:
            continue
        peak = _peak(_passes(twin, modes, images, order, parts))
        if peak <= budget:
            break
    else:
        modes, peak = ["cell"] * cells, least
    time = sum(each[mode][k].time for k, mode in enumerate(modes))
    price = time / times["store"] if times["store"] else 1.0  # where no cell has programs
    return Fit(tuple(images), order, tuple(modes), peak, least, price, parts)


class _Cell(NamedTuple):
    kept: int  # bytes
    most: int  # bytes that live while one of its programs runs, without what cells before it keep
    time: float  # in those of a byte


def _outside(p: Pass) -> int:
    """Return the bytes outside cells: what lies between them, alike in all modes, and the stem's."""
    return p.kept - sum(run.kept for run in p.runs if run.part != "stem")


def _by_cell(p: Pass, cells: int, stem: int) -> list[_Cell]:
    """Return what the cells of a pass come to; what is beside their programs counts to those.

    ``stem``: bytes that the stem keeps, which is kept as the first cell.
    """
    found: list[_Cell] = []
    before = 0
    for k in range(cells):
        runs = [run for run in p.runs if run.part.startswith(f"cell {k},")]
        kept = sum(run.kept for run in runs) + (0 if k else stem)
        time = sum(
            max(cost.operations / OPERATIONS_A_BYTE, cost.read + cost.written)
            for run in runs
            for *_, cost in costs(run.program, run.dtype)
        )
        found.append(_Cell(kept, max((run.in_use for run in runs), default=0) - before, time))
        before += kept
    return found


def _frontier(each: dict[str, list[_Cell]]) -> Iterator[tuple[int, list[str]]]:
    """Yield peaks, as sums of what cells come to, and modes: the fastest first, the smallest last."""
    most: float = inf
    step = 0
    while (found := _fastest(each, most)) is not None:
        yield found
        step = step or found[0] // _STEPS + 1
        most = found[0] - step


def _fastest(each: dict[str, list[_Cell]], most: float) -> tuple[int, list[str]] | None:
    """Return peak and modes of the least time of those whose peak is not above ``most``, if there are any.

    Of ways to have got to a cell, those that neither keep less nor are faster than another are dropped.
    """
    ways: list[tuple[int, float, int, list[str]]] = [(0, 0.0, 0, [])]
    for k in range(len(each["cell"])):
        more = []
        for kept, time, peak, modes in ways:
            for mode, cells in each.items():
                highest = max(peak, kept + cells[k].most)
                if highest <= most:
                    more.append((kept + cells[k].kept, time + cells[k].time, highest, [*modes, mode]))
        ways = []
        for way in sorted(more, key=lambda way: way[:3]):
            if not ways or way[1] < ways[-1][1]:
                ways.append(way)
        if not ways:
            return None
    return ways[-1][2], ways[-1][3]


def _passes(network: Any, modes: Sequence[str], images: Sequence[int], order: int, parts: int) -> list[Pass]:
    for cell, mode in zip(network.cells, modes, strict=True):
        cell._memory = mode
    return [planned(network, images, of, order, parts) for of in _LARGEST[order]]


def _peak(passes: Sequence[Pass]) -> int:
    return max(p.peak + p.beside for p in passes)


def fit_to_part(network: Any, images: Sequence[int], parts: int, order: int = 1) -> Fit:
    """Return the modes of cells with which a pass is the fastest of those that take no more than ``store``
    does of one of so many equal parts of the images.

    Arguments and errors otherwise as :func:`fit`.
    """
    twin, (N, *shape) = _twin(network), images
    if parts < 1 or N % parts:
        raise InputError(f"accumulate must divide the batch, {N} images, into equal parts, got {parts}")

    def peak(mode: str, batch: int) -> int:
        return _peak(_passes(twin, [mode] * len(twin.cells), [batch, *shape], order, 1))

    budget, least = peak("store", N // parts), peak("cell", N)
    if least <= budget:
        return fit(network, images, budget, order)
    fewer = (k for k in range(parts - 1, 1, -1) if N % k == 0 and peak("store", N // k) >= least)
    most = next(fewer, None)
    raise InputError(
        f"accumulate {parts} is too much: passes over images {list(images)} take {in_words(least)} with "
        f"nothing kept but what lies between cells, and those over {N // parts} of them {in_words(budget)} "
        f"with all stored. {f'Choose {most} at most' if most else 'Leave it out'}, or "
        "--accumulate_statistics part, which takes the parts one after the other"
    )


def _too_little(network: Any, images: Sequence[int], budget: int, order: int, parts: int, least: int) -> str:
    """Say what would fit."""
    N, *shape = images
    modes = ["cell"] * len(network.cells)
    batch = largest_batch(
        N, least, budget, lambda batch: _peak(_passes(network, modes, [batch, *shape], order, parts))
    )
    advice = "or smaller images, or fewer channels"
    if batch and parts > 1:
        advice = f"or accumulate in more parts, of {batch} images at most"
    elif batch:
        advice = f"or images in batches of {batch} at most"
    return (
        f"a memory budget of {in_words(budget)} is too little: passes over images {list(images)} take "
        f"{in_words(least)} with nothing kept but what lies between cells. Give it that, {advice}"
    )


def largest_batch(N: int, least: int, budget: int, peak: Callable[[int], int]) -> int:
    """Return the largest batch below ``N`` whose ``peak`` fits, 0 if none does.

    Memory grows with the batch in a line; ``least`` is that of ``N``.
    """
    if N == 1:
        return 0
    half = N // 2
    batch = max(0, N - int(-(-(least - budget) * (N - half) // (least - peak(half)))))
    while batch and peak(batch) > budget:
        batch -= 1
    return batch


def _twin(network: Any) -> Any:
    twin = without_memory(network)
    twin._memory = "cell"  # what it is within a plan is said cell by cell
    for cell in twin.cells:
        cell._backend = twin._backend
    return twin
