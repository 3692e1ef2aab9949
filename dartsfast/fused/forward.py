"""The forward of a cell as a program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

import torch
from torch import Tensor, nn

from dartsfast.backends import cuda, native, triton
from dartsfast.constants import constant
from dartsfast.errors import InputError
from dartsfast.fused.build import Builder, Placed, by_part, shuffle
from dartsfast.fused.edge import Edge
from dartsfast.fused.planning import Part
from dartsfast.fused.program import Instruction, Place, Program, Ref, concatenate, copy, mixed_sum, norm_stats
from dartsfast.ops.contract import require

NATIVE = ("cpu", "cuda")
"""Runners in C++."""


@dataclass
class Node:
    """A sum over edges.

    Attributes:
        edges: number of the source's state, what is computed from it, and its row of the mixing weights
            (None: every weight is one).
        extras: shapes [N, H, W, C] of what the edges' ``extras`` return.
        passed: edges whose sum, of ``groups - 1`` times as many channels, is beside that of the others.
        groups: whose channels are shuffled then, [groups, C] to [C, groups]; 1: nothing passes.
    """

    edges: list[tuple[int, Edge, int | None]]
    extras: list[list[tuple[int, ...]]] = field(default_factory=list)
    passed: list[tuple[int, Edge, int | None]] = field(default_factory=list)
    groups: int = 1


@dataclass(frozen=True)
class Setting:
    """What a program is built for, besides its nodes.

    Attributes:
        inputs: [N, H, W, C] of each.
        weights: [edges, ops] of the mixing weights.
        dtype, device: of the arithmetic.
        memory: ``store``, ``recompute``, or ``cell``, which keeps no state beside the result either.
        storage: dtype of images before their norms; None: that of the arithmetic.
        backward: whether there will be one.
        moves: whether batch norms in training move their running statistics.
        traced: whether tensors stand for others, which have no memory.
        part: where programs are noted instead of run.

    Raises:
        InputError: arithmetic in float64 on what is stored in 16 bits.
    """

    inputs: tuple[tuple[int, ...], ...]
    weights: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    memory: str
    storage: torch.dtype | None
    backward: bool
    traced: bool = False
    part: Part | None = None
    moves: bool = True

    def __post_init__(self) -> None:
        served = self.storage is None or self.dtype == torch.float32
        require(served, f"images stored as {self.storage} go with arithmetic in float32, got {self.dtype}")

    @property
    def runner(self) -> str:
        """What runs it: ``cpu``, ``cuda`` (both in C++), ``triton``, else ``walk``, operator by operator."""
        if self.part is not None:
            return self.part.plan.runner
        device, libraries = self.device.type, {"cpu": native.load, "cuda": cuda.load}
        if self.traced:
            return "walk"
        if device in libraries and libraries[device]() is None:
            return device
        return "triton" if device in triton.DEVICES and triton.missing() is None else "walk"

    @property
    def kept_as(self) -> torch.dtype | None:
        """The dtype that states are kept as for the backward, where it is another."""
        return self.storage if self.memory == "store" and self.backward else None


class Forward:
    """The program of ``nodes``, whose last ``returned`` side by side are its result.

    Attributes:
        builder: the program and its tensors.
        states: the inputs, then one image a node.
        stored: the same as they are kept for the backward.
        read: numbers of the states that edges leave.
        placed: the edges of each node that have operations.
        weights: the mixing weights [edges, ops].
        result: where nodes that are side by side in the result are written; None where they are copied there.
        differentiable: how many of the given tensors gradients may be asked for: the first ones.

    Raises:
        InputError: batch norm over one value.
    """

    def __init__(self, nodes: Sequence[Node], returned: int, setting: Setting) -> None:
        self.setting, self.returned = setting, returned
        self.builder = Builder(Program(), [], setting.storage)
        self.kept = Place.KEPT if setting.backward else Place.TEMPORARY
        # The last input first: gradients of inputs that are one tensor are added in this order.
        self.states = self._inputs()
        self.weights = self.builder.given(None, setting.weights)
        self.placed = [self._place(node) for node in nodes]
        self.groups = [node.groups for node in nodes]
        self.differentiable = len(self.builder.tensors)
        self.stored = self._inputs(setting.kept_as) if setting.kept_as else list(self.states)
        self._begun = 0  # states whose edges are computed
        self.read = {placed.source for node in self.placed for placed in node}
        self.result: Ref | None = None
        for first, last in self.apart:
            self._run(first, last)
        if returned > 1 and self.result is None:
            images = self.states[-returned:]
            for image in images:
                self._fits(image.shape, images[0].shape)
            shape = (*images[0].shape[:3], sum(image.shape[3] for image in images))
            out = self.builder.program.new(shape, Place.RETURNED)
            self.builder.program.section([concatenate(images, out)])
        self.builder.program.prune()

    @property
    def keeps_result(self) -> bool:
        """Whether the backward reads states that are parts of the result."""
        return self.result is not None and any(self.stored[k].slot == self.result.slot for k in self.read)

    def _inputs(self, dtype: torch.dtype | None = None) -> list[Ref]:
        return [self.builder.given(None, shape, dtype) for shape in reversed(self.setting.inputs)][::-1]

    def _place(self, node: Node) -> list[Placed]:
        found = []
        for k, (source, edge, row) in enumerate([*node.edges, *node.passed]):
            placed = Placed(edge, source, row, int(k >= len(node.edges)))
            for w in edge.tensors():
                self.builder.given(w)
            placed.extras = (
                [self.builder.given(None, shape) for shape in node.extras[k]] if node.extras else []
            )
            if edge.ops:
                found.append(placed)
        return found

    @property
    def apart(self) -> list[tuple[int, int]]:
        """The nodes in order, first and last of those that run together: none reads what another gives.

        No two of them read one state, at which their gradients would arrive in an order of their own.
        """
        found: list[tuple[int, int]] = []
        begin, seen = 0, set[int]()
        for k, node in enumerate(self.placed):
            sources = {placed.source for placed in node}
            if k > begin and (seen & sources or max(sources) >= len(self.setting.inputs) + begin):
                found.append((begin, k))
                begin, seen = k, set()
            seen |= sources
        return [*found, (begin, len(self.placed))]

    def _run(self, first: int, last: int) -> None:
        """Add nodes: all edges together, or one after the other where their images are not kept."""
        program, nodes = self.builder.program, self.placed[first:last]
        if self.setting.memory == "store":
            self._edges(self._next(nodes))
        sums: list[Instruction] = []
        shuffles, copies = [], []
        for k, node in enumerate(nodes, first):
            place, halved = self._kept(k)
            parts = by_part(node)
            if len(parts) == 1:
                out = self._part(node, place, sums)
            else:
                images = [self._part(part, Place.TEMPORARY, sums) for part in parts]
                shape = *images[0].shape[:3], sum(image.shape[3] for image in images)
                out = self._out(shape, place)
                shuffles += shuffle(images, out, self.groups[k])
            self.states.append(out)
            self.stored.append(out if halved is None else program.new(out.shape, Place.KEPT, halved))
            copies += [] if halved is None else [copy(out, self.stored[-1])]
        program.section(sums)
        program.section(shuffles)
        program.section(copies)

    def _kept(self, k: int) -> tuple[Place, torch.dtype | None]:
        """Return where node k is written, and the dtype of the copy that is kept of it, if there is one."""
        setting, read = self.setting, len(self.setting.inputs) + k in self.read
        direct = k >= len(self.placed) - self.returned and (self.returned == 1 or setting.runner != "walk")
        halved = setting.kept_as if read else None
        if direct:
            return Place.RETURNED, halved
        keeps = read and halved is None and setting.memory != "cell"
        return self.kept if keeps else Place.TEMPORARY, halved

    def _next(self, nodes: list[list[Placed]]) -> list[Placed]:
        """Return the edges to compute before nodes: theirs.

        On grouped kernels all that leave the states there are, so that few launches read a state.
        """
        if self.setting.runner != "triton":
            return [placed for node in nodes for placed in node]
        first, self._begun = self._begun, len(self.states)
        return [p for node in self.placed for p in node if first <= p.source < self._begun]

    def _part(self, part: list[Placed], place: Place, sums: list[Instruction]) -> Ref:
        """Return where a part of a node's channels is: all of its edges add up in ``sums``, or one by one."""
        if self.setting.memory == "store":
            out = self._out(self._shape(part), place)
            sums.append(self._sum(part, None, out))
            return out
        base: Ref | None = None
        for placed in part:
            self._edges([placed])
            out = self._out(self._shape(part), place) if base is None else base
            self.builder.program.section([self._sum([placed], base, out)])
            base = out
        assert base is not None, "a node has operations"
        return base

    def _shape(self, part: list[Placed]) -> tuple[int, ...]:
        return part[0].summed(self.states)[0].shape

    def _sum(self, group: list[Placed], base: Ref | None, out: Ref) -> Instruction:
        images = [image for placed in group for image in placed.summed(self.states)]
        shapes = {image.shape for image in images}
        require(len(shapes) == 1, f"operations of a node return different shapes: {sorted(shapes)}")
        norms = [norm for placed in group for norm in placed.final]
        weights = [weight for placed in group for weight in self._mixing(placed)]
        return mixed_sum(images, norms, weights, base, out, [len(placed.edge.ops) for placed in group])

    def _out(self, shape: tuple[int, ...], place: Place) -> Ref:
        """Return a place for a node, its part of the result if it belongs to that."""
        if place != Place.RETURNED or self.returned == 1:
            return self.builder.program.new(shape, place)
        *NHW, C = shape
        if self.result is None:
            self.result = self.builder.program.new((*NHW, self.returned * C), place)
        k = len(self.states) - len(self.setting.inputs) - (len(self.placed) - self.returned)
        part = self.result.channels(k * C, (k + 1) * C)
        self._fits(shape, part.shape)
        return part

    def _fits(self, a: tuple[int, ...], b: tuple[int, ...]) -> None:
        require(a[:3] == b[:3], f"nodes of a cell return {list(a)} and {list(b)}")

    def _edges(self, group: list[Placed]) -> None:
        """Add what a group of edges computes, and its norms."""
        builder, states = self.builder, self.states
        images = self.kept if self.setting.memory == "store" else Place.TEMPORARY
        section = [i for p in group for i in builder.pools(p, p.reads(states), shared=True)]
        section += [i for p in group for i in builder.first_stages(p, p.reads(states), images)]
        builder.program.section(section)
        pooled = [i for p in group for i in self._pool_norms(p)]
        builder.program.section([*pooled, *(i for p in group for i in self._first_norms(p))])
        builder.program.section([i for p in group for i in builder.second_stages(p, images)])
        builder.program.section([i for p in group for i in self._second_norms(p)])

    def _pool_norms(self, placed: Placed) -> list[Instruction]:
        """Return the norms of an edge's pooling and of all edges that share it, unless they are there."""
        found: list[Instruction] = []
        if not placed.edge.pools or placed.pool_norms:
            return found
        alike = [p for node in self.placed for p in node if p.pooling == placed.pooling and p.edge.pools]
        for p in alike:
            halves = [half for half, _ in p.edge.pools]
            stats, pooled = ([both[half] for half in halves] for both in (placed.pool_stats, placed.pooled))
            p.pool_norms, p.own_pools, more = self._norms([norm for _, norm in p.edge.pools], stats, pooled)
            found += more
        return found

    def _first_norms(self, placed: Placed) -> list[Instruction]:
        """Return the norms of what reads the source; ``placed.final`` is without those of second stages."""
        edge, count = placed.edge, len(placed.edge.separable)
        norms, own, found = self._norms([s.norm for s in edge.first], placed.first_stats, placed.first)
        placed.inner, placed.final = norms[:count], norms[count:]
        placed.own_inner, placed.own_final = own[:count], own[count:]
        placed.final += placed.pool_norms
        placed.own_final += placed.own_pools
        for r, row, z in zip(edge.reduces, placed.reduced_stats, placed.reduced, strict=True):
            norms, own, more = self._norms([r.norm], [row], [z])
            placed.final += norms
            placed.own_final += own
            found += more
        for image in [placed.reads(self.states)] * edge.skips + placed.extras:
            placed.final.append(
                self.builder.given(no_norm(image.shape[-1], self.setting.dtype, self.setting.device))
            )
            placed.own_final.append(False)
        return found

    def _second_norms(self, placed: Placed) -> list[Instruction]:
        found, final, flags = [], [], []
        for (_, stage), row, z in zip(placed.edge.separable, placed.second_stats, placed.second, strict=True):
            norms, own, more = self._norms([stage.norm], [row], [z])
            final += norms
            flags += own
            found += more
        placed.final, placed.own_final = final + placed.final, flags + placed.own_final
        return found

    def _norms(
        self, modules: Sequence[nn.BatchNorm2d | None], stats: Sequence[Ref], images: Sequence[Ref]
    ) -> tuple[list[Ref], list[bool], list[Instruction]]:
        """Return slots for mean and 1 / std, which of them are the batch's own, and what computes them.

        A module None: no norm.

        Neighbours that are set alike are computed together.
        """
        norms: list[Ref] = []
        flags: list[bool] = []
        found = []
        every = zip(modules, stats, images, strict=True)
        for _, alike in groupby(every, key=lambda one: None if one[0] is None else _set_as(one[0])):
            group = list(alike)
            N, H, W, C = group[0][2].shape
            batch = [(norm, s, z) for norm, s, z in group if norm is not None]
            if not batch:
                none = self.builder.given(no_norm(C, self.setting.dtype, self.setting.device))
                norms += [none] * len(group)
                flags += [False] * len(group)
                continue
            norm = batch[0][0]
            own = norm.training or norm.running_mean is None
            if own and N * H * W == 1:
                raise InputError("batch norm over one value a channel: use a larger batch or larger images")
            if own:
                mean, variance = [s.row(0) for _, s, _ in batch], [s.row(1) for _, s, _ in batch]
            else:
                mean, variance = ([self._buffer(n, name, C) for n, _, _ in batch] for name in _RUNNING[:2])
            moves = norm.training and norm.track_running_stats and self.setting.moves
            moved = [[self._buffer(n, name, C) for n, _, _ in batch] if moves else [] for name in _RUNNING]
            rows = self.builder.program.new((len(batch), 2, C), self.kept).rows()
            found.append(norm_stats(mean, variance, moved, norm.momentum, norm.eps, N * H * W, rows))
            norms += rows
            flags += [own] * len(batch)
        return norms, flags, found

    def _buffer(self, norm: nn.BatchNorm2d, name: str, C: int) -> Ref:
        ref = self.builder.given(norm._buffers[name])
        require(ref.shape in ((C,), ()), f"a batch norm of {C} channels has {name} {list(ref.shape)}")
        return ref

    def _mixing(self, placed: Placed) -> list[Ref]:
        """Return the weights of an edge's operations, in the order of the sum."""
        if placed.row is None:
            one = self.builder.given(ones(self.setting.dtype, self.setting.device)).row(0)
            placed.weights = [one] * len(placed.edge.ops)
        else:
            row = self.weights.row(placed.row)
            placed.weights = [row.row(op) for op in placed.edge.ops]
        return placed.weights


_RUNNING = ("running_mean", "running_var", "num_batches_tracked")


def _set_as(norm: nn.BatchNorm2d) -> tuple[object, ...]:
    return norm.training, norm.track_running_stats, norm.running_mean is None, norm.momentum, norm.eps


@constant
def no_norm(C: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return [2, C], mean 0 and 1 / std 1."""
    return torch.tensor([0.0, 1.0], dtype=dtype, device=device)[:, None].repeat(1, C)


@constant
def ones(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return [1.0]."""
    return torch.ones(1, dtype=dtype, device=device)
