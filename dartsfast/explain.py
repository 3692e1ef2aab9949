"""What the passes of a search come to, of a CNN program by program, before anything runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn

from dartsfast.backends import pretending, resolve_backend, triton
from dartsfast.cnn.model_search import Network
from dartsfast.cnn.spaces import SPACES
from dartsfast.errors import InputError
from dartsfast.fused import Fit
from dartsfast.fused.costs import costs, words
from dartsfast.fused.passes import Pass, iteration, total
from dartsfast.fused.planning import Run
from dartsfast.methods import fit_network
from dartsfast.methods.darts_minus import DARTSMinus
from dartsfast.names import MEMORY_MODES
from dartsfast.rnn import budget as rnn_budget
from dartsfast.rnn.model_search import RNNModelSearch
from dartsfast.search.config import CNNConfig, RNNConfig, SearchConfig
from dartsfast.tables import print_table

CLASSES = 10


def explain_cnn(config: CNNConfig, primitives: Sequence[str] | None = None) -> list[Pass]:
    """Return the passes of an iteration of a search, without data, a device or a run of it.

    Args:
        config: options of the search; its data are images of ``image_size`` of ten classes.
        primitives: operation names of the search space; None for those of ``config.space``.

    Raises:
        InputError: options that cannot work, or a backend that has no programs.
    """
    network = _network(config, primitives)
    _fit(network, config)
    return iteration(network, _images(config), config.order, config.parts)


def explain_memory(config: CNNConfig, primitives: Sequence[str] | None = None) -> Fit | None:
    """Return how the cells of a search keep where that is planned; arguments and errors as
    :func:`explain_cnn`.
    """
    return _fit(_network(config, primitives), config)


def _fit(network: Network, config: CNNConfig) -> Fit | None:
    with pretending(network._backend):
        return fit_network(config, network, _images(config))


def explain_rnn(config: RNNConfig, words: int) -> tuple[list[rnn_budget.TextPass], rnn_budget.TextFit | None]:
    """Return the passes of an iteration of a search over ``words`` words, and how it keeps a memory budget.

    Raises:
        InputError: options that cannot work, a budget that nothing fits, or a backend without kernels.
    """
    config.check()
    backend, text = _backend(config), (config.bptt, config.batch_size)
    with pretending(backend), torch.device("meta"):
        model = RNNModelSearch(
            words, config.emsize, config.nhid, config.nhidlast,
            config.dropout, config.dropouth, config.dropoutx, config.dropouti, config.dropoute,
            backend=backend, memory=config.memory,
        )  # fmt: skip
        fit = None if config.memory in MEMORY_MODES else model.fit_memory(text, config.order)
        return rnn_budget.iteration(model, text, config.order), fit


def _images(config: CNNConfig) -> tuple[int, int, int, int]:
    return config.batch_size // config.parts, 3, config.image_size, config.image_size


def _network(config: CNNConfig, primitives: Sequence[str] | None) -> Network:
    """Return the network of a search, on torch's device ``meta``."""
    if config.method in ("pc-darts", "p-darts"):  # the programs of the others are those of darts
        raise InputError(
            f"the edges of --method {config.method} are not those of one network of dartsfast's own, which "
            "is what is explained: leave the method out, or choose gdas or drnas"
        )
    if config.space == "nasbench201":
        raise InputError(
            "the cells of nasbench201 are no programs of dartsfast's own, which is what is explained: choose "
            "another space"
        )
    if config.smooth_by == "adversary":
        raise InputError("the passes of an ascent on the loss are not explained: leave --smooth_by out")
    config.check()
    backend = _backend(config)
    storage = None if config.storage_dtype == "float32" else getattr(torch, config.storage_dtype)
    with pretending(backend), torch.device("meta"):
        return (DARTSMinus if config.auxiliary_skip else Network)(
            config.init_channels, CLASSES, config.layers, nn.CrossEntropyLoss(),
            backend=backend, memory=config.memory, storage_dtype=storage,
            primitives=SPACES[config.space] if primitives is None else primitives,
        )  # fmt: skip


def _backend(config: SearchConfig) -> str:
    """Return whose passes are explained."""
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
    return backend


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
        [
            p.of,
            str(p.times),
            *_counts(p.runs).values(),
            *map(_megabytes, (p.kept, p.beside, p.peak + p.beside)),
        ]
        for p in passes
    ]
    most = [
        max(sizes) for sizes in zip(*((p.kept, p.beside, p.peak + p.beside) for p in passes), strict=True)
    ]
    rows.append(["iteration", "", *counts.values(), *map(_megabytes, most)])
    columns = ["gradients of", "times", *counts, "kept, MB", "copies of weights, MB", "peak, MB"]
    print_table(
        "Passes: what their programs add up to, and all their memory", columns, rows, len(columns) - 1
    )


def print_texts(passes: Sequence[rnn_budget.TextPass]) -> None:
    """Print what the passes of an RNN search come to."""
    columns = ["pass", "gradients of", "times", "read and written, MB", "GFLOP"]
    columns += ["kept, MB", "copies of weights, MB", "peak, MB"]
    rows = [
        [
            p.kind.purpose,
            p.kind.of,
            str(p.kind.times),
            _megabytes(p.moved),
            f"{p.operations / 1e9:,.2f}",
            *map(_megabytes, (p.kept, p.beside, p.peak + p.beside)),
        ]
        for p in passes
    ]
    print_table("Passes of an iteration, and all their memory", columns, rows, len(columns) - 2)


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
