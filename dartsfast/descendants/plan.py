"""A sum of calls as fused programs, made for its operations and read again when they change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dartsfast.caches import Cache
from dartsfast.constants import constant, stands_for_others
from dartsfast.descendants.once import laid_out, rectified
from dartsfast.descendants.pending import Call, Pending, Weighted, weighted
from dartsfast.descendants.recognise import Recognised, layer, recognise
from dartsfast.fused.edge import Edge, gather
from dartsfast.fused.forward import Node, Setting
from dartsfast.fused.images import _ChannelsLast, nchw, nhwc
from dartsfast.fused.planning import Part
from dartsfast.fused.programs import Prepared
from dartsfast.fused.watch import Watch

Layers = tuple[nn.Module, ...]
Library = dict[tuple[int, int], Layers]
"""What torch's own layers compute, by group and call."""

MOST_PREPARED = 8


class Plan:
    """Programs whose results add up to a sum, and calls that run as the user's modules.

    Args:
        groups: the calls of the sum, those of one source together.
    """

    def __init__(self, groups: Sequence[Sequence[Weighted]]) -> None:
        first: Call = groups[0][0].value
        self.memory = first.operator.memory
        self.modules: list[nn.Module] = [part.value.operator.module for group in groups for part in group]
        self.operators = [part.value.operator for group in groups for part in group]  # so that no id is again
        self._watch = Watch(self.modules)
        own = [m.__dict__ for root in self.modules for m in root.modules() if not layer(m)]
        self._own = own
        self._seen = self._look()
        self.ordinary: list[tuple[int, int]] = []
        self.rounds: list[_Round] = []
        self.library: Library = {}
        self.owned: set[int] = set()
        left: list[list[tuple[int, Recognised]]] = []
        for g, group in enumerate(groups):
            left.append([])
            for k, (call, *_) in enumerate(group):
                found = recognise(call.operator.module)
                if not isinstance(found, str) and _fits(found, call, self.owned):
                    if found.operation.kind == "library":
                        self.library[g, k] = found.layers
                    else:
                        left[g].append((k, found))
                else:
                    self.ordinary.append((g, k))
        self._lone_zeros(left)
        waiting = dict(self.library)
        while any(left):
            self.rounds.append(_Round(left, waiting))
        self.ordinary += waiting

    def _lone_zeros(self, left: list[list[tuple[int, Recognised]]]) -> None:
        """Let zeros run as they are whose source no other edge reads: its gradient is zero, not None."""
        for g, group in enumerate(left):
            if all(found.operation.kind == "zero" for _, found in group):
                self.ordinary += [(g, k) for k, _ in group]
                group.clear()

    def _look(self) -> list[int]:
        return [id(value) for own in self._own for value in own.values()]

    def unchanged(self) -> bool:
        """Whether all modules are what they were."""
        return self._look() == self._seen and self._watch.unchanged(self.modules)

    def run(self, groups: Sequence[Sequence[Weighted]]) -> list[Tensor]:
        """Return the tensors that add up to the sum of calls."""
        found = [round.run(groups, self.memory) for round in self.rounds]
        for g, k in self.ordinary:
            call, scale, factors, _ = groups[g][k]
            found.append(weighted(Weighted(call.operator.alone(call), scale, factors)))
        return found


def _fits(found: Recognised, call: Call, taken: set[int]) -> bool:
    """Whether an operation's tensors go with its source, and belong to no operation before it."""
    like = call.source.like if isinstance(call.source, Pending) else call.source
    own: list[Any] = []
    for one in found.layers:
        own += [*one.parameters(), *([one] if isinstance(one, nn.BatchNorm2d) else [])]
        tensors = [t for t in (*one.parameters(), *one.buffers()) if t.is_floating_point()]
        if any(t.dtype != like.dtype or t.device != like.device for t in tensors):
            return False
    if found.channels is not None and found.channels[0] != like.shape[1]:
        return False
    ids = list(map(id, own))
    if len(set(ids)) < len(ids) or not taken.isdisjoint(ids):
        return False
    taken.update(ids)
    return True


def _computed(layers: Layers, x: Tensor) -> Tensor:
    for one in layers:
        x = rectified(x) if type(one) is nn.ReLU else one(x)
    return x


class _Round:
    """A program with an edge a source, and which calls its weights belong to.

    Takes what it serves out of ``left``, and what torch's layers compute of the same out of ``library``.
    """

    def __init__(
        self,
        left: list[list[tuple[int, Recognised]]],
        library: Library,
    ) -> None:
        self.edges: list[tuple[int, Edge, int]] = []  # number among the sources of the round, edge, row
        self.groups: list[int] = []
        self.columns: list[list[int]] = []  # the calls of a row
        self.layers: list[list[Layers]] = []  # of the last of them
        for g, group in enumerate(left):
            if not group:
                continue
            # Zeros go with whatever there is.
            relu = next((f.relu for _, f in group if f.operation.form is not None), True)
            stride = next(f.stride for _, f in group if f.operation.kind != "zero")
            alike = [(k, f) for k, f in group if f.stride == stride or f.operation.kind == "zero"]
            mine = [(k, f) for k, f in alike if f.relu == relu or f.operation.form is None]
            columns = [k for k, _ in mine]
            numbered = [(column, f.operation) for column, (_, f) in enumerate(mine)]
            edge, rest = gather(stride, numbered, relu=relu)
            if rest:
                columns = [k for column, k in enumerate(columns) if column not in rest]
                numbered = [(0, op) for column, op in numbered if column not in rest]
                edge, _ = gather(stride, [(c, op) for c, (_, op) in enumerate(numbered)], relu=relu)
            left[g] = [(k, f) for k, f in group if k not in columns]
            joining = [k for at, k in library if at == g]
            self.layers.append([library.pop((g, k)) for k in joining])
            edge = replace(edge, ops=(*edge.ops, *range(len(columns), len(columns) + len(joining))))
            columns += joining
            self.edges.append((len(self.groups), edge, len(self.groups)))
            self.groups.append(g)
            self.columns.append(columns)
        self._prepared: Cache[Prepared] = Cache(MOST_PREPARED)

    def run(self, groups: Sequence[Sequence[Weighted]], memory: str) -> Tensor:
        """Return the sum of the calls that it serves."""
        sources = [laid_out(groups[g][0].value.source) for g in self.groups]
        every = zip(self.layers, sources, strict=True)
        extras = [[nhwc(_computed(layers, x)) for layers in each] for each, x in every]
        nodes = [Node(list(self.edges), [[tuple(image.shape) for image in images] for images in extras])]
        flat = [image for images in extras for image in images]
        return run(self._prepared, nodes, 1, sources, self.rows(groups), memory, flat)

    def rows(self, groups: Sequence[Sequence[Weighted]]) -> list[list[Weighted]]:
        """Return the calls that it serves, edge by edge."""
        return [[groups[g][k] for k in columns] for g, columns in zip(self.groups, self.columns, strict=True)]


def run(
    known: Cache[Prepared],
    nodes: Sequence[Node],
    returned: int,
    sources: Sequence[Tensor],
    rows: Sequence[Sequence[Weighted]],
    memory: str,
    extras: Sequence[Tensor] = (),
) -> Tensor:
    """Run nodes on images [N, C, H, W], by the program of ``known`` that is for them or a new one.

    ``extras``: as a program takes them, [N, H, W, C].
    """
    weights = _mixing(rows, sources[0].dtype, sources[0].device)
    inputs = [_ChannelsLast.apply(laid_out(x)) for x in sources]
    shapes = tuple(tuple(x.shape) for x in inputs)
    modes = torch.is_grad_enabled(), stands_for_others(), Part.current()
    setting = Setting(shapes, tuple(weights.shape), weights.dtype, weights.device, memory, None, *modes)
    prepared = known.get(setting, lambda: Prepared(nodes, returned, setting))
    return nchw(prepared(inputs, weights, extras))


def _mixing(rows: Sequence[Sequence[Weighted]], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the mixing weights [edges, ops] of calls: products of what they were scaled by."""
    width = max(map(len, rows))
    depth = max(len(part.factors) for row in rows for part in row)
    found: Tensor | None = None
    one = _number(1.0, dtype, device)
    for level in range(depth):
        flat = []
        for row in rows:
            for _, _, factors, _ in row:
                flat.append(_as(factors[level], dtype, device) if level < len(factors) else one)
            flat += [one] * (width - len(row))
        stacked = torch.stack(flat).view(len(rows), width)
        found = stacked if found is None else found * stacked
    scales = tuple(tuple(part.scale for part in row) + (1.0,) * (width - len(row)) for row in rows)
    if found is None:
        return _scales(scales, dtype, device)
    if any(scale != 1.0 for row in scales for scale in row):
        found = found * torch.tensor(scales, dtype=dtype, device=device)
    return found


def _as(factor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    if factor.dtype != dtype or factor.device != device:
        factor = factor.to(device=device, dtype=dtype)
    return factor.reshape(()) if factor.dim() else factor


@constant
def _number(value: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=dtype, device=device)


def _scales(scales: tuple[tuple[float, ...], ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if all(scale == 1.0 for row in scales for scale in row):
        return _ones((len(scales), len(scales[0])), dtype, device)
    return torch.tensor(scales, dtype=dtype, device=device)


@constant
def _ones(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.ones(shape, dtype=dtype, device=device)
