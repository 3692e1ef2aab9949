"""What the builders of forward and backward share: a program's tensors, and an edge's places in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from math import prod
from typing import Any

import torch
from torch import Tensor

from dartsfast.cnn.operations import FactorizedReduce
from dartsfast.fused.edge import Edge, Stage
from dartsfast.fused.program import Instruction, Place, Program, Ref, branch_conv, copy, pool3x3
from dartsfast.ops.contract import require


@dataclass
class Placed:
    """An edge's places in a program.

    Attributes:
        edge: the edge.
        source: number of the state that it reads.
        row: of the mixing weights; None: every weight is one.
        part: of its node's channels that it adds to: 0, or 1 for those that pass.
        weights: [] of every operation, in the order of the sum.
        inner: norms [2, C] between two stages.
        pool_norms: those of pools, which are made for all edges that share them.
        final: norms [2, C] of every operation, in the order of the sum.
        own_inner, own_pools, own_final: whether a norm is the batch's own, so that its gradient flows through
            it.
        first, second, pooled, reduced, extras: images before their norms.
        first_stats, second_stats, pool_stats, reduced_stats: mean and variance [2, C] of each of them.
    """

    edge: Edge
    source: int
    row: int | None
    part: int = 0
    weights: list[Ref] = field(default_factory=list)
    inner: list[Ref] = field(default_factory=list)
    pool_norms: list[Ref] = field(default_factory=list)
    final: list[Ref] = field(default_factory=list)
    own_inner: list[bool] = field(default_factory=list)
    own_pools: list[bool] = field(default_factory=list)
    own_final: list[bool] = field(default_factory=list)
    first: list[Ref] = field(default_factory=list)
    second: list[Ref] = field(default_factory=list)
    pooled: list[Ref] = field(default_factory=list)
    reduced: list[Ref] = field(default_factory=list)
    extras: list[Ref] = field(default_factory=list)
    first_stats: list[Ref] = field(default_factory=list)
    second_stats: list[Ref] = field(default_factory=list)
    pool_stats: list[Ref] = field(default_factory=list)
    reduced_stats: list[Ref] = field(default_factory=list)

    @property
    def pooling(self) -> tuple[int, tuple[int, int] | None, int]:
        """What edges have in common that share pools."""
        return self.source, self.edge.channels, self.edge.stride

    def reads(self, states: Sequence[Ref]) -> Ref:
        """Return the image that the edge reads."""
        source = states[self.source]
        return source if self.edge.channels is None else source.channels(*self.edge.channels)

    def summed(self, states: Sequence[Ref]) -> list[Ref]:
        """Return the images that the edge adds, in the order of the sum."""
        edge, source = self.edge, self.reads(states)
        single = self.first[len(edge.separable) :]
        pools = [self.pooled[half] for half, _ in edge.pools]
        return [*self.second, *single, *pools, *self.reduced, *[source] * edge.skips, *self.extras]


class Builder:
    """A program in the making, with the tensors that are given to it.

    ``tensors`` holds one for each of ``program.given``, None where every pass gives another.
    """

    def __init__(
        self, program: Program, tensors: Sequence[Tensor | None], storage: torch.dtype | None
    ) -> None:
        self.program, self.storage = program, storage
        self.tensors = list(tensors)
        self._refs = {
            id(t): program.whole(slot)
            for t, slot in zip(tensors, program.given, strict=True)
            if t is not None
        }
        self._pools: dict[Any, tuple[list[Ref], list[Ref]]] = {}

    def given(
        self, tensor: Tensor | None, shape: Sequence[int] = (), dtype: torch.dtype | None = None
    ) -> Ref:
        """Return the slot of a tensor; None: of one of ``shape`` and ``dtype`` that every pass gives."""
        if tensor is None:
            self.tensors.append(None)
            return self.program.new(shape, Place.GIVEN, dtype)
        if id(tensor) not in self._refs:
            self.tensors.append(tensor)
            self._refs[id(tensor)] = self.program.new(tensor.shape, Place.GIVEN, tensor.dtype)
        return self._refs[id(tensor)]

    def weights(self, stages: Sequence[Stage], C: int) -> tuple[list[Ref], list[Ref], list[int]]:
        """Return depthwise, pointwise and dilation as branch_conv takes them with ``C`` channels."""
        both = [[*map(self.given, stage.weights[:-1]), self.points(stage.weights[-1], C)] for stage in stages]
        depthwise = [refs[0] for refs in both if len(refs) == 2]
        for ref in depthwise:
            require(ref.shape[0] == C, f"convolutions of {C} channels have weights of {list(ref.shape)}")
        return depthwise, [refs[-1] for refs in both], [s.dilation for s in stages] if depthwise else []

    def points(self, weight: Tensor, C: int) -> Ref:
        """Return a weight of a convolution of patches, or of points, as [Co, Ci, 1, 1] with Ci = ``C``."""
        ref = self.given(weight)
        Co, Ci = ref.shape[0], prod(ref.shape[1:])
        require(Ci == C, f"convolutions of {C} channels have weights of {list(ref.shape)}")
        return ref._replace(shape=(Co, Ci, 1, 1), stride=(Ci, 1, 1, 1))

    def first_stages(self, placed: Placed, x: Ref, place: Place) -> list[Instruction]:
        """Return the convolutions of an edge's source ``x``, and set the places of their images."""
        edge, found = placed.edge, []
        placed.first = placed.first_stats = placed.reduced = placed.reduced_stats = []
        if edge.first:
            depthwise, pointwise, dilation = self.weights(edge.first, x.shape[-1])
            placed.first = [self.image(x, edge.stride, w.shape[0], place) for w in pointwise]
            placed.first_stats = self.stats(placed.first)
            into = placed.first, placed.first_stats
            found.append(branch_conv(x, None, depthwise, pointwise, dilation, edge.stride, edge.relu, *into))
        if edge.reduces:
            FactorizedReduce.check(*x.shape[1:3])
            C = [2 * reduce.weights[0].shape[0] for reduce in edge.reduces]
            placed.reduced = [self.image(x, 2, c, place) for c in C]
            placed.reduced_stats = self.stats(placed.reduced)
        for reduce, z, stats in zip(edge.reduces, placed.reduced, placed.reduced_stats, strict=True):
            for view, weight, part in halves(x, reduce.weights):
                w = [self.points(weight, x.shape[-1])]
                into = [z.channels(*part)], [stats.channels(*part)]
                found.append(branch_conv(view, None, [], w, [], 2, True, *into))
        return found

    def second_stages(self, placed: Placed, place: Place) -> list[Instruction]:
        """Return what reads the first stages of chains of two, and set the places of its images."""
        placed.second, placed.second_stats, found = [], [], []
        for (_, stage), z, norm in zip(placed.edge.separable, placed.first, placed.inner, strict=False):
            depthwise, pointwise, dilation = self.weights([stage], z.shape[-1])
            out = self.image(z, 1, pointwise[0].shape[0], place)
            stats = self.stats([out])
            found.append(branch_conv(z, norm, depthwise, pointwise, dilation, 1, True, [out], stats))
            placed.second.append(out)
            placed.second_stats += stats
        return found

    def pools(self, placed: Placed, x: Ref, *, shared: bool) -> list[Instruction]:
        """Return the pooling of an edge's source unless it was done, and set its places; none is kept."""
        edge, key = placed.edge, placed.pooling
        if not edge.pools:
            return []
        found = []
        if not shared or key not in self._pools:
            z = [self.image(x, edge.stride, x.shape[-1], Place.TEMPORARY, stored=False) for _ in range(2)]
            self._pools[key] = z, self.stats(z)
            found.append(pool3x3(x, edge.stride, *self._pools[key]))
        placed.pooled, placed.pool_stats = self._pools[key]
        return found

    def image(self, x: Ref, stride: int, C: int, place: Place, *, stored: bool = True) -> Ref:
        """Return a slot for what a stride makes of ``x``, as z is stored."""
        N, H, W, _ = x.shape
        shape = (N, (H - 1) // stride + 1, (W - 1) // stride + 1, C)
        return self.program.new(shape, place, self.storage if stored else None)

    def stats(self, images: Sequence[Ref]) -> list[Ref]:
        """Return slots for mean and variance of images."""
        return list(self.program.new((len(images), 2, images[0].shape[-1]), Place.TEMPORARY).rows())


def halves(x: Ref, weights: Sequence[Tensor]) -> list[tuple[Ref, Tensor, tuple[int, int]]]:
    """Return what the two convolutions of a factorized reduction read, and which channels they make."""
    half = weights[0].shape[0]
    return [(x, weights[0], (0, half)), (x.shifted(), weights[1], (half, 2 * half))]


def by_part(node: Sequence[Placed]) -> list[list[Placed]]:
    """Return the edges of a node by the part of its channels that they add to."""
    return [list(part) for _, part in groupby(node, key=lambda placed: placed.part)]


def shuffle(parts: Sequence[Ref], image: Ref, groups: int, *, back: bool = False) -> list[Instruction]:
    """Return what shuffles two parts side by side into an image, channel g C + c to c groups + g; or back.

    The first part, dense [N, H, W, C], is the first group, the second the ``groups - 1`` others.
    """
    first, rest = parts
    N, H, W, C = first.shape
    n, h, w, c = image.stride
    pixel = h if W == 1 else w
    both = (
        (first, image._replace(shape=first.shape, stride=(n, h, w, groups * c))),
        (
            rest._replace(shape=(N, H * W, groups - 1, C), stride=(rest.stride[0], rest.shape[3], C, 1)),
            Ref(image.slot, (N, H * W, groups - 1, C), (n, pixel, c, groups * c), image.offset + c),
        ),
    )
    return [copy(there, here) if back else copy(here, there) for here, there in both]
