"""What the cells of a search network come to, program by program, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from dartsfast.backends import pretending, resolve_backend, triton
from dartsfast.cnn.model_search import Network
from dartsfast.cnn.spaces import SPACES
from dartsfast.errors import InputError
from dartsfast.fused.costs import Cost, costs, words
from dartsfast.fused.planning import Plan, Run
from dartsfast.search.config import CNNConfig
from dartsfast.tables import print_table

CLASSES = 10
PASSES = {1: {"alphas": 1, "both": 1}, 2: {"alphas": 2, "weights": 1, "both": 2}}
"""Whose gradients the passes of an iteration take, and how many of each there are, by order.

The step of the weights takes the alphas' gradients too. The second order has a virtual step (weights), the
validation loss after it (both), and the two passes of its finite difference (alphas).
"""


class Pass(NamedTuple):
    """A forward and a backward.

    Attributes:
        of: whose gradients the backward takes: ``alphas``, ``weights`` or ``both``.
        times: how many of them an iteration has.
        runs: programs, in order.
        kept: bytes that live between the two.
        peak: bytes that live at most. Both are beside model, data and optimisers.
    """

    of: str
    times: int
    runs: list[Run]
    kept: int
    peak: int


def iteration(network: Network, images: Sequence[int], order: int) -> list[Pass]:
    """Return the passes of an iteration as they would run.

    Args:
        network: on the device ``meta``, of the backend ``cpu``, ``cuda`` or ``triton``.
        images: [N, 3, H, W].
        order: of the alphas' gradient.

    Raises:
        InputError: images that do not fit the network.
    """
    return [_pass(network, images, of, times) for of, times in PASSES[order].items()]


def _pass(network: Network, images: Sequence[int], of: str, times: int) -> Pass:
    groups: dict[str, list[Tensor]] = {
        "alphas": network.arch_parameters(),
        "weights": list(network.parameters()),
    }
    for name, group in groups.items():
        for t in group:
            t.requires_grad_(of in (name, "both"))
    wanted = [t for group in groups.values() for t in group if t.requires_grad]
    x = torch.empty(images, device="meta")
    labels = torch.empty(images[0], dtype=torch.int64, device="meta")
    plan = Plan(network._backend)
    with ExitStack() as stack:
        # The cell itself takes no part in what it computes: a hook on it alters nothing.
        for k, cell in enumerate(network.cells):
            stack.enter_context(cell.register_forward_pre_hook(partial(_begin, plan, k)))
        stack.enter_context(pretending(network._backend))
        stack.enter_context(plan)
        loss = network._loss(x, labels)
        kept = plan.in_use
        plan.phase = f"backward of {of}"
        torch.autograd.grad(loss, wanted, allow_unused=True)
    return Pass(of, times, plan.runs, kept, plan.peak)


def _begin(plan: Plan, number: int, cell: Any, inputs: Any) -> None:
    plan.part = f"cell {number}, {'reduction' if cell.reduction else 'normal'}"


def explain_cnn(config: CNNConfig, primitives: Sequence[str] | None = None) -> list[Pass]:
    """Return the passes of an iteration of a search, without data, a device or a run of it.

    Args:
        config: options of the search; its data are images of ``image_size`` of ten classes.
        primitives: operation names of the search space; None for those of ``config.space``.

    Raises:
        InputError: options that cannot work, or a backend that has no programs.
    """
    config.check()
    backend = config.backend
    if backend == "auto":
        backend = resolve_backend(backend, "cuda" if torch.cuda.is_available() else "cpu")
        if backend == "reference":
            raise InputError(
                "a search runs on stock modules here, which have no programs to explain: build the kernels "
                "as the warning says, or name with --backend whose programs are meant, cpu, cuda or triton: "
                "to be explained they need not be here"
            )
    if backend not in ("cpu", "cuda", "triton"):
        raise InputError(f"backend {backend!r} has no programs to explain: choose cpu, cuda or triton")
    if backend == "triton" and (missing := triton.load()):
        raise InputError(f"launches of Triton kernels are counted from the kernels: {missing}")
    storage = None if config.storage_dtype == "float32" else getattr(torch, config.storage_dtype)
    with pretending(backend), torch.device("meta"):
        network = Network(
            config.init_channels, CLASSES, config.layers, nn.CrossEntropyLoss(),
            backend=backend, memory=config.memory, storage_dtype=storage,
            primitives=SPACES[config.space] if primitives is None else primitives,
        )  # fmt: skip
    return iteration(network, (config.batch_size, 3, config.image_size, config.image_size), config.order)


def total(runs: Iterable[Run]) -> Cost:
    """Return what all instructions of programs cost together."""
    found = [cost for run in runs for *_, cost in costs(run.program, run.dtype)]
    return Cost(*map(sum, zip(*found, strict=True)))


def print_explanation(passes: Sequence[Pass], cell: int | None = None) -> None:
    """Print the programs by part and phase, the passes and their sum; before them the programs of ``cell``.

    Raises:
        InputError: there is no such cell.
    """
    programs = _programs(passes)
    if cell is not None:
        _print_instructions(programs, cell)
    everything = [run for p in passes for run in p.runs * p.times]
    counts = _counts(everything)
    columns = ["part", "phase", "times", *counts, "kept, MB", "temporary, MB", "in use, MB"]
    rows = []
    for (part, phase), (times, runs) in programs.items():
        sizes = sum(r.kept for r in runs), max(r.temporary for r in runs), max(r.in_use for r in runs)
        rows.append([part, phase, str(times), *_counts(runs).values(), *map(_megabytes, sizes)])
    print_table("Programs, and how often an iteration runs them", columns, rows, len(columns) - 2)
    rows = [
        [p.of, str(p.times), *_counts(p.runs).values(), *map(_megabytes, (p.kept, p.peak))] for p in passes
    ]
    most = max(p.kept for p in passes), max(p.peak for p in passes)
    rows.append(["iteration", "", *counts.values(), *map(_megabytes, most)])
    columns = ["gradients of", "times", *counts, "kept, MB", "peak, MB"]
    print_table(
        "Passes: what their programs add up to, and all their memory", columns, rows, len(columns) - 1
    )


_Programs = dict[tuple[str, str], tuple[int, list[Run]]]


def _programs(passes: Iterable[Pass]) -> _Programs:
    """Return how often an iteration runs the programs of every part and phase, and each of them once."""
    found: _Programs = {}
    for p in passes:
        groups: dict[tuple[str, str], list[Run]] = {}
        for run in p.runs:
            groups.setdefault((run.part, run.phase), []).append(run)
        for key, runs in groups.items():
            found[key] = found.get(key, (0, []))[0] + p.times, runs
    parts = list(dict.fromkeys(part for part, _ in found))
    return dict(sorted(found.items(), key=lambda one: parts.index(one[0][0])))


def _counts(runs: Sequence[Run]) -> dict[str, str]:
    """Return what programs come to, by name; where launches are known, those in place of sections."""
    cost, sections = total(runs), [section for run in runs for section in run.program.sections]
    works = [work for run in runs for work in run.works]
    by_launch = {"launches": f"{len(works):,}", "touched, MB": _megabytes(sum(work.bytes for work in works))}
    by_section = {
        "sections": f"{len(sections):,}",
        "read, MB": _megabytes(cost.read),
        "written, MB": _megabytes(cost.written),
    }
    return {
        "instructions": f"{sum(map(len, sections)):,}",
        **(by_launch if works else by_section),
        "GFLOP": f"{cost.operations / 1e9:,.2f}",
    }


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}"


def _print_instructions(programs: _Programs, cell: int) -> None:
    mine = {key: runs for key, (_, runs) in programs.items() if key[0].startswith(f"cell {cell},")}
    if not mine:
        raise InputError(f"there is no cell {cell} with programs: they count from 0")
    columns = ["section", "writes", "operator", "reads", "read, KB", "written, KB", "MFLOP"]
    for (part, phase), runs in mine.items():
        for run in runs:
            print_table(f"{part}, {phase}", columns, list(_instructions(run)), 3)
    print("g given, k kept, t temporary, r returned")


def _instructions(run: Run) -> Iterator[list[str]]:
    for section, i, cost in costs(run.program, run.dtype):
        sizes = [f"{n / 1e3:,.1f}" for n in (cost.read, cost.written, cost.operations / 1e3)]
        writes, reads = (words(run.program, parts) for parts in (i.writes, i.reads))
        yield [str(section), writes, i.op, reads, *sizes]
