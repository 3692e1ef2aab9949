"""The launches of a search iteration on the kernels for CUDA, from its programs: nothing is run.

What shares a launch is what ``csrc/ops/program.cpp`` and the launchers in ``csrc/cuda`` put together, in
float32 with everything aligned; tests hold it against the emulator. Bytes are what instructions read and
write, each once; partial results of statistics and of weights' gradients are left out.

``python -m bench.cuda_launches`` prints the table of ``docs/gpu.md``: an ESTIMATE for an A100 and an H100.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import NamedTuple

import torch
from torch import nn

from bench.cnn_peers import CNN, Size
from bench.costs import Launch
from bench.model import CARDS, Card, count, device_seconds
from dartsfast.backends import pretending
from dartsfast.cnn.model_search import Network
from dartsfast.fused.costs import costs
from dartsfast.fused.memory import in_use
from dartsfast.fused.passes import iteration
from dartsfast.fused.program import Instruction, Program, Ref

TILED = {(16, 32): 8, (32, 16): 8, (64, 8): 8}
"""Rows of a tile, by channels and width of the images that csrc/cuda/branch_conv_tile.cu is for."""
POOL_NORMS = 4  # that a statistic of pool3x3 makes
FEW, GRADIENT_BRANCHES = 4, 40  # of csrc/cuda/mixed_sum.h
PARAMETERS, PACKED = 4000, 3968  # bytes for arguments; of those of different sizes, at most 16
SIZES = {
    "branch_conv_kernel": 232,
    "pool3x3_kernel": 736,
    "pool3x3_backward_kernel": 280,
    "pointwise_adjoint_kernel": 272,
    "depthwise_adjoint_kernel": 416,
    "taps_grad_kernel": 200,
    "pointwise_grad_kernel": 200,
    "partial_sums_kernel": 32,
    "norm_stats_kernel": 72,
    "coefficients_kernel": 64,
    "images_kernel": 128,
    "zeros_kernel": 16,
}
"""Bytes of an argument struct, where all are of one size."""
FINISHING = ("branch_conv_tile_kernel", "branch_conv_kernel", "pool3x3_kernel", "mixed_sum_backward_kernel")
ROUNDS = 8
"""Trips to memory one after the other of kernels that are FINISHING: tickets, and what eight chunks left."""
CARD, OLDER, SECONDS = "H100 SXM", "A100 80GB SXM", {1: 15e-3, 2: 40e-3}
"""What an iteration may take, by order."""


class Piece(NamedTuple):
    """What an instruction has a kernel do: ``alike`` says with what it can share launches."""

    kernel: str
    alike: tuple[object, ...] = ()
    size: int | None = None  # bytes of its argument struct; None: as SIZES says
    most: int | None = None  # of a launch
    room: int = PARAMETERS


def iteration_launches(size: Size, order: int) -> list[Launch]:
    """Return the launches of the programs of an iteration."""
    with pretending("cuda"), torch.device("meta"):
        network = Network(size.C, size.classes, size.layers, nn.CrossEntropyLoss(), backend="cuda")
    found: list[Launch] = []
    for one in iteration(network, (size.batch, 3, size.image, size.image), order):
        found += [launch for run in one.runs for launch in program_launches(run.program)] * one.times
    return found


def program_launches(program: Program) -> list[Launch]:
    """Return the launches of a program."""
    spent = {
        id(i): (cost.read + cost.written, cost.operations) for _, i, cost in costs(program, torch.float32)
    }
    used, found, weights = in_use(program) | set(program.returned), list[Launch](), list[Piece]()
    before: list[Instruction] = []
    for k, section in enumerate(program.sections):
        pieces: list[tuple[Piece, int, int]] = [(Piece("zeros_kernel"), 0, 0)] if k == 0 else []
        made = _Made(before)
        for i in section:
            its = list(_pieces(i, made, used))
            # The first has all of the bytes: one kernel, but for shapes that there is no fused one for.
            shares = [spent[id(i)], *[(0, 0)] * len(its)]
            pieces += [(piece, *share) for piece, share in zip(its, shares, strict=False)]
            weights += [Piece("partial_sums_kernel")] * _weights(i, used)
        found += _grouped(pieces)
        before = section
    return [*found, *_grouped([(piece, 0, 0) for piece in weights])]


def needed_share(launches: Sequence[Launch], card: Card, seconds: float) -> float:
    """Return the share of a card's bandwidth at which launches in a graph take so long; above 1: never."""
    low, high = 0.01, 10.0
    for _ in range(50):
        share = (low + high) / 2
        slower = device_seconds(launches, _slowed(card, share)) > seconds
        low, high = (share, high) if slower else (low, share)
    return high


def _slowed(card: Card, share: float) -> Card:
    return replace(card, bandwidth=share * card.bandwidth)


def table(size: Size, order: int) -> str:
    """Return a markdown table of an iteration: its kernels, those that move most first, and all."""
    own = iteration_launches(size, order)
    others, _ = count(CNN, "triton store", order, size)
    rest = [one for one in others if not one.name.startswith("grouped_")]
    card, groups = CARDS[CARD], dict[str, list[Launch]]()
    share = needed_share([*own, *rest], card, SECONDS[order])
    for one in own:
        groups.setdefault(one.name.removesuffix("_kernel"), []).append(one)
    rows = sorted(groups.items(), key=lambda row: -sum(one.bytes for one in row[1]))
    rows += [("other operators", rest), ("iteration", [*own, *rest])]
    titles = ["order", "kernel", "launches", "GB", "GFLOP"]
    titles += ["A100, ms", "H100, ms", "H100, ms at most", "share of bandwidth"]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for name, launches in rows:
        size_, operations = (sum(getattr(one, what) for one in launches) for what in ("bytes", "operations"))
        older, fast, slow = (device_seconds(launches, c) for c in (CARDS[OLDER], card, _slowed(card, share)))
        cells = [str(order), name, f"{len(launches):,}", f"{size_ / 1e9:.2f}", f"{operations / 1e9:.1f}"]
        cells += [f"{1e3 * seconds:.2f}" for seconds in (older, fast, slow)]
        cells.append(f"{size_ / slow / card.bandwidth:.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _grouped(pieces: Sequence[tuple[Piece, int, int]]) -> Iterator[Launch]:
    groups: dict[tuple[object, ...], list[tuple[Piece, int, int]]] = {}
    for piece in pieces:
        groups.setdefault((piece[0].kernel, *piece[0].alike), []).append(piece)
    for group in groups.values():
        some: list[tuple[Piece, int, int]] = []
        for piece in group:
            if some and not _fits([p for p, _, _ in some], piece[0]):
                yield _launch(some)
                some = []
            some.append(piece)
        yield _launch(some)


def _fits(pieces: Sequence[Piece], more: Piece) -> bool:
    size = sum(p.size or SIZES[p.kernel] for p in [*pieces, more])
    return size <= more.room and len(pieces) < (more.most or size)


def _launch(pieces: Sequence[tuple[Piece, int, int]]) -> Launch:
    name = pieces[0][0].kernel
    size, operations = sum(moved for _, moved, _ in pieces), sum(done for *_, done in pieces)
    return Launch(name, size, operations, False, ROUNDS if name in FINISHING else 0)


class _Made:
    """The norms that the section before makes, where their statistics are finished."""

    def __init__(self, section: Iterable[Instruction]) -> None:
        self._left: dict[Ref, int] = {}  # norms that a mean's statistic still takes
        self._means: set[Ref] = set()
        for i in section:
            if i.op in ("branch_conv", "pool3x3"):
                self._left |= {stats.row(0): POOL_NORMS if i.op == "pool3x3" else 1 for stats in i.writes[1]}
            elif i.op == "mixed_sum_backward":
                self._means |= set(i.writes[2])
            elif i.op == "branch_conv_backward":
                self._means |= set(i.writes[3][1:])

    def norm(self, mean: Ref) -> bool:
        """Whether a norm is made; its statistic may have come in parts."""
        start = mean.offset
        parts: list[Ref] = []
        while start < mean.offset + mean.shape[0]:
            part = [m for m in self._left if (m.slot, m.offset) == (mean.slot, start) and self._left[m]]
            if not part:
                return False
            parts += part[:1]
            start += part[0].shape[0]
        for made in parts:
            self._left[made] -= 1
        return True

    def coefficients(self, mean: Ref) -> bool:
        """Whether they are made of this mean of g * zhat."""
        return mean in self._means


def _pieces(i: Instruction, made: _Made, used: set[int]) -> Iterator[Piece]:
    if i.op == "branch_conv":
        yield from _conv(i)
    elif i.op == "branch_conv_backward":
        yield from _conv_backward(i, used)
    elif i.op in ("pool3x3", "pool3x3_backward"):
        yield Piece(f"{i.op}_kernel", (i.reads[0][0].shape[-1] % 4 == 0,))
    elif i.op == "mixed_sum":
        for count in _parts(len(i.reads[0]), 64):
            yield Piece("mixed_sum_kernel", (count > FEW,), 256 if count <= FEW else PARAMETERS)
    elif i.op == "mixed_sum_backward":
        for branches in _parts(len(i.reads[1]), GRADIENT_BRANCHES):
            yield Piece(
                "mixed_sum_backward_kernel", (branches > FEW,), 400 if branches <= FEW else PARAMETERS
            )
    elif i.op == "norm_stats":
        yield from (Piece("norm_stats_kernel") for mean in i.reads[0] if not made.norm(mean))
    elif i.op == "norm_stats_backward":
        yield from (Piece("coefficients_kernel") for mean in i.reads[1] if not made.coefficients(mean))
    elif i.op == "zero":
        yield Piece("zeros_kernel")
    else:
        yield from [Piece("images_kernel")] * len(i.reads[0])


def _parts(count: int, most: int) -> Iterator[int]:
    yield from (min(most, count - first) for first in range(0, count, most))


def _kernels(i: Instruction, depthwise: Sequence[Ref]) -> set[tuple[int, int]]:
    """Return kernel and dilation of every branch."""
    return {(w.shape[-1], d) for w, d in zip(depthwise, i.numbers[2:], strict=True)}


def _usual(x: Ref, stride: int, kernels: set[tuple[int, int]], pointwise: Sequence[Ref]) -> bool:
    _, H, W, C = x.shape
    of_a_cell = bool(kernels) and kernels <= {(K, D) for K in (3, 5) for D in (1, 2)}
    same = stride == 1 and all(w.shape[0] == C for w in pointwise)
    return (C, W) in TILED and H % TILED[C, W] == 0 and of_a_cell and same


def _conv(i: Instruction) -> Iterator[Piece]:
    (x,), _, depthwise, pointwise = i.reads
    kernels = _kernels(i, depthwise)
    C = x.shape[-1]
    if _usual(x, i.numbers[0], kernels, pointwise):
        dilations = {dilation for _, dilation in kernels}
        yield Piece("branch_conv_tile_kernel", (C, *sorted(dilations)), 88 + 136 * len(pointwise), 16, PACKED)
        return
    for w in pointwise:
        yield Piece("branch_conv_kernel", (_step(w.shape[0]), C % 4 == 0))


def _step(channels: int) -> int:
    return min(size for size in (16, 32, 64) if channels <= size or size == 64)


def _conv_backward(i: Instruction, used: set[int]) -> Iterator[Piece]:
    _, z, _, (x,), norm, depthwise, pointwise, _, _ = i.reads
    dx, _, _, means = i.writes
    N, H, W, C = x.shape
    wanted = _weights(i, used)
    kernels = _kernels(i, depthwise)
    if z and len(pointwise) <= 4 and H <= W and _usual(x, i.numbers[0], kernels, pointwise):
        yield Piece("resident_kernel", (C, bool(wanted)), 248 + 120 * len(pointwise), 16, PACKED)
        return
    direct = dx and len(pointwise) == 1 and not depthwise and not means
    aligned = C % 4 == 0 and pointwise[0].shape[0] % 4 == 0
    for _ in pointwise if dx or (wanted and depthwise) else ():
        yield Piece("pointwise_adjoint_kernel", (_step(C), aligned))
    if dx and not direct:
        yield Piece("depthwise_adjoint_kernel", (aligned,))
    for part, kernel in ((depthwise, "taps_grad_kernel"), (pointwise, "pointwise_grad_kernel")):
        alike = () if kernel == "taps_grad_kernel" else (_step(pointwise[0].shape[0]), aligned)
        yield from [Piece(kernel, alike)] * (len(part) if wanted else 0)


def _weights(i: Instruction, used: set[int]) -> int:
    """Return how many weights' gradients are asked for."""
    if i.op != "branch_conv_backward":
        return 0
    return sum(ref.slot in used and prod(ref.shape) > 0 for part in i.writes[1:3] for ref in part)


if __name__ == "__main__":
    print(*(table(CNN.size, order) for order in SECONDS), sep="\n\n")
