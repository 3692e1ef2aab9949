"""An edge as kernels compute it: its operations by kind, with their weights and batch norms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, NamedTuple

from torch import Tensor, nn


class Stage(NamedTuple):
    """[relu] -> depthwise -> pointwise -> batch norm; one weight: no depthwise."""

    weights: tuple[Tensor, ...]
    dilation: int
    norm: nn.BatchNorm2d


class Reduce(NamedTuple):
    """relu -> two strided 1x1 convolutions, the second of the image shifted by a pixel -> batch norm."""

    weights: tuple[Tensor, Tensor]
    norm: nn.BatchNorm2d


class Operation(NamedTuple):
    """What kernels compute in the place of a module.

    Attributes:
        kind: ``separable`` (two stages), ``single`` (one), ``pool`` (half of pool3x3 and norm), ``reduce``,
            ``skip``, or ``zero``, which nothing computes.
        parts: those stages, that half and norm, or that reduction.
    """

    kind: str
    parts: tuple[Any, ...] = ()

    @property
    def form(self) -> tuple[int, int] | None:
        """Weights and channels of a chain's first stage: one operator takes those that are alike."""
        if self.kind not in ("separable", "single"):
            return None
        weights = self.parts[0].weights
        return len(weights), weights[-1].shape[0]


@dataclass
class Edge:
    """What an edge computes from its source; each list is in the order of the sum.

    Attributes:
        stride: of first stages and pools.
        ops: the operations' columns in the mixing weights: those of ``separable``, ``single``,
            ``pools``, ``reduces``, ``skips`` and ``extras``, one after the other.
        relu: whether first stages begin with relu.
        separable: chains of two stages.
        single: chains of one stage.
        pools: half of pool3x3, 0 maximum or 1 average, and its norm, None where there is none.
        reduces: factorized reductions.
        skips: how many operations are the source itself.
        extras: modules that no kernel serves.
        channels: first and end of what it reads of its source; None: all.
    """

    stride: int
    ops: tuple[int, ...] = ()
    relu: bool = True
    separable: list[tuple[Stage, Stage]] = field(default_factory=list)
    single: list[Stage] = field(default_factory=list)
    pools: list[tuple[int, nn.BatchNorm2d | None]] = field(default_factory=list)
    reduces: list[Reduce] = field(default_factory=list)
    skips: int = 0
    extras: list[nn.Module] = field(default_factory=list)
    channels: tuple[int, int] | None = None

    @property
    def first(self) -> list[Stage]:
        """The stages that read the source."""
        return [stage for stage, _ in self.separable] + self.single

    def owned(self) -> Iterator[object]:
        """Yield the weights and norms of all operations that kernels serve."""
        yield from self.tensors()
        for stages in ([s for chain in self.separable for s in chain], self.single, self.reduces):
            yield from (stage.norm for stage in stages)
        yield from (norm for _, norm in self.pools if norm is not None)

    def tensors(self) -> Iterator[Tensor]:
        """Yield the weights of all operations that kernels serve."""
        for stages in ([s for chain in self.separable for s in chain], self.single, self.reduces):
            for stage in stages:
                yield from stage.weights


_ORDER = ("separable", "single", "pool", "reduce", "skip")


def gather(
    stride: int,
    operations: Sequence[tuple[int, Operation]],
    extras: Sequence[tuple[int, nn.Module]] = (),
    *,
    relu: bool = True,
) -> tuple[Edge, list[int]]:
    """Return an edge of operations and modules by their columns, and the columns of what it cannot take.

    It takes chains of one form, that which has most weights and then channels, and a half of pool3x3 once.
    """
    forms = (op.form for _, op in operations)
    form = max((form for form in forms if form is not None), key=itemgetter(0), default=None)
    kinds: dict[str, list[tuple[int, Operation]]] = {kind: [] for kind in _ORDER}
    left = []
    for column, op in operations:
        again = op.kind == "pool" and op.parts[0] in [other.parts[0] for _, other in kinds["pool"]]
        if again or op.form not in (None, form):
            left.append(column)
        elif op.kind != "zero":
            kinds[op.kind].append((column, op))
    edge = Edge(
        stride,
        (*(column for kind in _ORDER for column, _ in kinds[kind]), *(column for column, _ in extras)),
        relu,
        separable=[(op.parts[0], op.parts[1]) for _, op in kinds["separable"]],
        single=[op.parts[0] for _, op in kinds["single"]],
        pools=[(op.parts[0], op.parts[1]) for _, op in kinds["pool"]],
        reduces=[op.parts[0] for _, op in kinds["reduce"]],
        skips=len(kinds["skip"]),
        extras=[module for _, module in extras],
    )
    return edge, left
