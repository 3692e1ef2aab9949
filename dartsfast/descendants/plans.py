"""The plans of sums and cells, kept at the first of their operations."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from dartsfast.descendants.cell import Cell, Read, read
from dartsfast.descendants.pending import Cat, Pending, Weighted, settled, weighted
from dartsfast.descendants.plan import Plan
from dartsfast.descendants.sources import Channels, by_source, identity, origin

SHUFFLED_ON = ("cpu", "meta")  # devices whose programs shuffle channels
_MOST_PLANS = 32  # sums that begin with one operation; where there are more, its edges are summed one by one
_MANY_LAYERS = 24  # of a sum, which pay however small images are
_MOST_MET = 256  # combinations that are remembered to have been met
_MOST_CELLS = 4  # that begin with one operation; where there are more, sums are computed one by one


class Plans:
    """The plans of sums whose first call is of one operation.

    Args:
        work: layers times values of a source, for less of which a sum of few layers runs as they are.
    """

    def __init__(self, work: int) -> None:
        self._work = work
        self._plans: dict[Any, list[Plan]] = {}
        self._cells: dict[Any, list[Cell]] = {}
        self._met: set[Any] = set()
        self._lock = threading.RLock()  # one thread makes a plan, the others find it

    def compute(self, calls: Sequence[Weighted], rest: Sequence[Weighted]) -> Tensor:
        """Return the sum of calls and tensors."""
        for call, *_ in calls:
            call.check()
        if not self._pays(calls):
            for call, *_ in calls:
                call.operator.unpaid(call.source.numel())
            found = [weighted(one._replace(value=one.value.operator.alone(one.value))) for one in calls]
            return functools.reduce(_joined, [*found, *map(weighted, rest)])
        groups = by_source(calls)
        key = tuple((id(call.operator), k) for k, group in enumerate(groups) for call, *_ in group)
        if len(calls) > 1 and not self._repeats(key, self._plans, _MOST_PLANS):
            return self._apart(calls, groups, rest)
        with self._lock:
            plan = _known(self._plans.setdefault(key, []), lambda: Plan(groups))
        found = plan.run(groups)
        for part in rest:
            found.append(weighted(part))
        return functools.reduce(_joined, found)

    def _pays(self, calls: Sequence[Weighted]) -> bool:
        layers = sum(call.operator.layers for call, *_ in calls)
        return layers >= _MANY_LAYERS or layers * calls[0].value.source.numel() >= self._work

    def _repeats(self, key: Any, known: dict[Any, Any], most: int) -> bool:
        """Whether a combination has a plan, or is to have one: the first at once, others when met again."""
        if key in known or not known:
            return True
        if len(known) >= most:
            return False
        met = key in self._met
        if len(self._met) >= _MOST_MET:
            self._met.clear()
        self._met.add(key)
        return met

    def together(self, cat: Cat) -> Tensor | None:
        """Compute values side by side, and what they are made of, as one program.

        None where they are not alone, of different numbers of channels, or more than an edge a source can
        take, or where cells hardly repeat.
        """
        nodes: dict[int, Read] = {}
        stack = [piece.value for piece in cat.pieces]
        waiting = all(isinstance(value, Pending) for value in stack)
        if not waiting or len({value.like.shape for value in stack}) > 1:
            return None
        while stack:
            value = stack.pop()
            if id(value) in nodes:
                continue
            found = read(value, cat.recorded)
            if found is None:
                return None
            nodes[id(value)] = found
            sources = [call.source for call, *_ in found.calls] + [part.value for part in found.passed]
            stack += [value for value, _ in map(origin, sources) if _waits(value)]
        ordered = sorted(nodes.values(), key=lambda node: node.value.number)
        if [node.value for node in ordered[-len(cat.pieces) :]] != [piece.value for piece in cat.pieces]:
            return None
        out = self._whole(ordered, len(cat.pieces))
        if out is not None:
            for node in ordered:
                for one in (node.value, *node.within, *(call for call, *_ in node.calls)):
                    one.taken = True
        return out

    def _whole(self, nodes: Sequence[Read], returned: int) -> Tensor | None:
        """Return the last nodes side by side."""
        states = _States(nodes)
        grouped = [by_source(node.calls) for node in nodes]
        passed = [[states.settled(part) for part in node.passed] for node in nodes]
        reads = [
            [
                states.of(value)
                for value in (*(group[0].value.source for group in groups), *(part.value for part in rest))
            ]
            for groups, rest in zip(grouped, passed, strict=True)
        ]
        shuffled = any(node.groups > 1 for node in nodes)
        if not states.disjoint(reads) or (shuffled and states.inputs[0].device.type not in SHUFFLED_ON):
            return None
        key: Any = tuple(
            (
                tuple(id(call.operator) for group in groups for call, *_ in group),
                tuple(map(len, groups)),
                tuple(read),
                node.groups,
            )
            for read, groups, node in zip(reads, grouped, nodes, strict=True)
        )
        key = (*key, len(states.inputs), returned)
        if not self._repeats(key, self._cells, _MOST_CELLS):
            return None
        shuffles = [node.groups for node in nodes]
        with self._lock:
            cell = _known(self._cells.setdefault(key, []), lambda: Cell(grouped, reads, shuffles))
        return cell.run(grouped, passed, states.inputs, returned) if cell.served else None

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


def _waits(value: Any) -> bool:
    return isinstance(value, Pending) and value.value is None


class _States:
    """The numbers of what nodes read: tensors that are given, then nodes."""

    def __init__(self, nodes: Sequence[Read]) -> None:
        self.inputs: list[Tensor] = []
        self._nodes = nodes
        self._numbers: dict[Any, int] = {}
        for node in nodes:
            for call, *_ in node.calls:
                if not _waits(origin(call.source)[0]):
                    call.check()
                    self._enter(call.source)
            for part in node.passed:
                if not _waits(origin(part.value)[0]):
                    self._enter(settled(part).value)
        for k, node in enumerate(nodes, len(self.inputs)):
            self._numbers[id(node.value), None] = k

    def _enter(self, tensor: Tensor) -> None:
        if identity(tensor) not in self._numbers:
            self._numbers[identity(tensor)] = len(self.inputs)
            self.inputs.append(tensor)

    def settled(self, part: Weighted) -> Weighted:
        """Return what passes, computed unless it is of a node."""
        return part if _waits(origin(part.value)[0]) else settled(part)

    def of(self, source: Any) -> tuple[int, Channels]:
        """Return the number of a source, and which channels are read of it."""
        value, channels = origin(source)
        key = (id(value), None) if isinstance(value, Pending) else identity(value)
        return self._numbers[key], channels

    def disjoint(self, reads: Sequence[Sequence[tuple[int, Channels]]]) -> bool:
        """Whether nodes read no channel of a state twice, and all read it whole or in the same two parts.

        What arrives at a part never is added to what arrives at the whole then.
        """
        parts: dict[int, set[Any]] = {}
        for node in reads:
            mine: dict[int, list[Channels]] = {}
            for state, channels in node:
                mine.setdefault(state, []).append(channels)
            for state, found in mine.items():
                parts.setdefault(state, set()).add(tuple(sorted(found, key=lambda one: one or ())))
        return all(len(ways) == 1 and self._whole(state, *ways) for state, ways in parts.items())

    def _whole(self, state: int, parts: Sequence[Any]) -> bool:
        if None in parts:
            return len(parts) == 1
        channels = self._nodes[state - len(self.inputs)].value.like.shape[1]
        return len(parts) == 2 and parts == ((0, parts[0][1]), (parts[0][1], channels))
