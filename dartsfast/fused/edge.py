"""An edge as kernels compute it: its operations by kind, with their weights and batch norms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

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
        pools: half of pool3x3, 0 maximum or 1 average, and its norm.
        reduces: factorized reductions.
        skips: how many operations are the source itself.
        extras: modules that no kernel serves.
    """

    stride: int
    ops: tuple[int, ...] = ()
    relu: bool = True
    separable: list[tuple[Stage, Stage]] = field(default_factory=list)
    single: list[Stage] = field(default_factory=list)
    pools: list[tuple[int, nn.BatchNorm2d]] = field(default_factory=list)
    reduces: list[Reduce] = field(default_factory=list)
    skips: int = 0
    extras: list[nn.Module] = field(default_factory=list)

    @property
    def first(self) -> list[Stage]:
        """The stages that read the source."""
        return [stage for stage, _ in self.separable] + self.single

    def owned(self) -> Iterator[object]:
        """Yield the weights and norms of all operations that kernels serve."""
        yield from self.tensors()
        for stages in ([s for chain in self.separable for s in chain], self.single, self.reduces):
            yield from (stage.norm for stage in stages)
        yield from (norm for _, norm in self.pools)

    def tensors(self) -> Iterator[Tensor]:
        """Yield the weights of all operations that kernels serve."""
        for stages in ([s for chain in self.separable for s in chain], self.single, self.reduces):
            for stage in stages:
                yield from stage.weights
