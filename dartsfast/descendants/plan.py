"""A sum of calls as fused programs, made for its operations and read again when they change."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import active_fake_mode

from dartsfast.constants import constant
from dartsfast.descendants.pending import Call, Pending, Weighted, weighted
from dartsfast.descendants.recognise import Recognised, layer, recognise
from dartsfast.fused.cnn import _ChannelsLast, nchw
from dartsfast.fused.edge import Edge, gather
from dartsfast.fused.forward import Node, Setting
from dartsfast.fused.planning import Part
from dartsfast.fused.programs import Prepared
from dartsfast.fused.watch import Watch

_MOST_PLANS = 32  # sums that begin with one operation; where there are more, its edges are summed one by one
_MOST_CELLS = 4  # that begin with one operation; where there are more, sums are computed one by one
_MOST_PREPARED = 8


class Plans:
    """The plans of sums whose first call is of one operation."""

    def __init__(self) -> None:
        self._plans: dict[Any, list[Plan]] = {}
        self._cells: dict[Any, list[Cell]] = {}

    def compute(self, calls: Sequence[Weighted], rest: Sequence[Weighted]) -> Tensor:
        """Return the sum of calls and tensors."""
        for call, *_ in calls:
            call.check()
        groups = _by_source(calls)
        key = tuple((id(call.operator), k) for k, group in enumerate(groups) for call, *_ in group)
        if key not in self._plans and len(self._plans) >= _MOST_PLANS:
            return self._apart(calls, groups, rest)
        plan = _known(self._plans.setdefault(key, []), lambda: Plan(groups))
        found = plan.run(groups)
        for part in rest:
            found.append(weighted(part))
        return functools.reduce(_joined, found)

    def whole(self, nodes: Sequence[tuple[Pending, Sequence[Weighted]]], returned: int) -> Tensor | None:
        """Return the last nodes side by side, all being sums of calls of tensors or of nodes before.

        None where a node is more than an edge a source can take, or cells hardly repeat.
        """
        calls = [part.value for _, parts in nodes for part in parts]
        for call in calls:
            if not call.waits:
                call.check()
        inputs = list({id(call.source): call.source for call in calls if not call.waits}.values())
        states = {id(x): k for k, x in enumerate((*inputs, *(value for value, _ in nodes)))}
        grouped = [_by_source(parts) for _, parts in nodes]
        reads = [[states[id(group[0].value.source)] for group in groups] for groups in grouped]
        key: Any = tuple(
            tuple(
                (id(part.value.operator), k) for k, group in zip(read, groups, strict=True) for part in group
            )
            for read, groups in zip(reads, grouped, strict=True)
        )
        key = (*key, returned)
        if key not in self._cells and len(self._cells) >= _MOST_CELLS:
            return None
        cell = _known(self._cells.setdefault(key, []), lambda: Cell(grouped, reads))
        return cell.run(grouped, inputs, returned) if cell.served else None

    def _apart(
        self, calls: Sequence[Weighted], groups: Sequence[Sequence[Weighted]], rest: Sequence[Weighted]
    ) -> Tensor:
        """Sum edge by edge, or operation by operation, so that plans are met again."""
        parts = groups if len(groups) > 1 else [[call] for call in calls]
        found = [part[0].value.operator.plans.compute(part, []) for part in parts]
        return functools.reduce(_joined, [*found, *map(weighted, rest)])


def _known(known: list[Any], make: Callable[[], Any]) -> Any:
    """Return the plan of the last two whose modules are what they were, or else a new one."""
    plan = next((plan for plan in known if plan.unchanged()), None) or make()
    if known[:1] != [plan]:
        known[:] = [plan, *known[:1]]
    return plan


def _joined(a: Tensor, b: Tensor) -> Tensor:
    return a + b


def _by_source(calls: Sequence[Weighted]) -> list[list[Weighted]]:
    groups: dict[int, list[Weighted]] = {}
    for part in calls:
        groups.setdefault(id(part.value.source), []).append(part)
    return list(groups.values())


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
        self.owned: set[int] = set()
        left: list[list[tuple[int, Recognised]]] = []
        for g, group in enumerate(groups):
            left.append([])
            for k, (call, *_) in enumerate(group):
                found = recognise(call.operator.module)
                if not isinstance(found, str) and _fits(found, call, self.owned):
                    left[g].append((k, found))
                else:
                    self.ordinary.append((g, k))
        self._lone_zeros(left)
        while any(left):
            self.rounds.append(_Round(left))

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


class _Round:
    """A program with an edge a source, and which calls its weights belong to.

    Takes what it serves out of ``left``.
    """

    def __init__(self, left: list[list[tuple[int, Recognised]]]) -> None:
        self.edges: list[tuple[int, Edge, int]] = []  # number among the sources of the round, edge, row
        self.groups: list[int] = []
        self.columns: list[list[int]] = []  # the calls of a row
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
            self.edges.append((len(self.groups), edge, len(self.groups)))
            self.groups.append(g)
            self.columns.append(columns)
        self._prepared: dict[Setting, Prepared] = {}

    def run(self, groups: Sequence[Sequence[Weighted]], memory: str) -> Tensor:
        """Return the sum of the calls that it serves."""
        sources = [groups[g][0].value.source for g in self.groups]
        return _run(self._prepared, [Node(list(self.edges))], 1, sources, self.rows(groups), memory)

    def rows(self, groups: Sequence[Sequence[Weighted]]) -> list[list[Weighted]]:
        """Return the calls that it serves, edge by edge."""
        return [[groups[g][k] for k in columns] for g, columns in zip(self.groups, self.columns, strict=True)]


class Cell:
    """Nodes that read each other as one program, where every one is an edge a source.

    Args:
        grouped: the calls of every node, those of one source together.
        reads: the numbers of these sources: tensors that are given, then nodes.
    """

    def __init__(
        self, grouped: Sequence[Sequence[Sequence[Weighted]]], reads: Sequence[Sequence[int]]
    ) -> None:
        self.plans = [Plan(groups) for groups in grouped]
        owned = [thing for plan in self.plans for thing in plan.owned]
        alone = len(set(owned)) == len(owned)
        self.served = alone and all(len(plan.rounds) == 1 and not plan.ordinary for plan in self.plans)
        self.nodes: list[Node] = []
        rows = 0
        for plan, read in zip(self.plans, reads, strict=True) if self.served else ():
            (round,) = plan.rounds
            self.nodes.append(
                Node(
                    [
                        (read[g], edge, rows + row)
                        for g, (_, edge, row) in zip(round.groups, round.edges, strict=True)
                    ]
                )
            )
            rows += len(round.edges)
        self._prepared: dict[Setting, Prepared] = {}

    def unchanged(self) -> bool:
        """Whether all modules are what they were."""
        return all(plan.unchanged() for plan in self.plans)

    def run(
        self, grouped: Sequence[Sequence[Sequence[Weighted]]], inputs: Sequence[Tensor], returned: int
    ) -> Tensor:
        """Return the last ``returned`` nodes side by side."""
        rows = [
            row
            for plan, groups in zip(self.plans, grouped, strict=True)
            for row in plan.rounds[0].rows(groups)
        ]
        return _run(self._prepared, self.nodes, returned, inputs, rows, self.plans[0].memory)


def _run(
    known: dict[Setting, Prepared],
    nodes: Sequence[Node],
    returned: int,
    sources: Sequence[Tensor],
    rows: Sequence[Sequence[Weighted]],
    memory: str,
) -> Tensor:
    """Run nodes on images [N, C, H, W], by the program of ``known`` that is for them or a new one."""
    weights = _mixing(rows, sources[0].dtype, sources[0].device)
    inputs = [_ChannelsLast.apply(x) for x in sources]
    shapes = tuple(tuple(x.shape) for x in inputs)
    modes = torch.is_grad_enabled(), active_fake_mode() is not None, Part.current()
    setting = Setting(shapes, tuple(weights.shape), weights.dtype, weights.device, memory, None, *modes)
    if setting not in known:
        if len(known) >= _MOST_PREPARED:
            known.clear()
        known[setting] = Prepared(nodes, returned, setting)
    return nchw(known[setting](inputs, weights))


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
