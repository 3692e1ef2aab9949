"""The nodes of a cell, read from values side by side, as one program."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from dartsfast.caches import Cache
from dartsfast.descendants.pending import Call, Cat, Pending, Sum, Weighted
from dartsfast.descendants.plan import MOST_PREPARED, Plan, run
from dartsfast.descendants.shaped import Shaped
from dartsfast.descendants.sources import Channels
from dartsfast.fused.edge import Edge
from dartsfast.fused.forward import Node
from dartsfast.fused.programs import Prepared


class Read(NamedTuple):
    """A node as its program computes it.

    Attributes:
        value: the node.
        calls: of operations, which it adds up.
        passed: channels of its sources, or tensors, whose sum is side by side with that of the calls.
        groups: the channels are shuffled then; 1: none pass.
        within: values that are computed with it.
    """

    value: Pending
    calls: list[Weighted]
    passed: list[Weighted]
    groups: int
    within: list[Pending]


def read(value: Pending, recorded: bool) -> Read | None:
    """Return how a program computes a node; None where it cannot."""
    if value.value is not None or value.taken or value.recorded != recorded:
        return None
    if isinstance(value, Call):
        return Read(value, [Weighted(value)], [], 1, [])
    if isinstance(value, Sum):
        calls, rest, within = value.flat()
    else:
        calls, rest, within = [], [Weighted(value)], []
    found = Read(value, calls, [], 1, list(within))
    if calls and rest:
        return None
    groups = {_beside(part, found) for part in rest}
    if not rest:
        return found
    (count,) = groups if len(groups) == 1 else (0,)
    return found._replace(groups=count) if count else None


def _beside(part: Weighted, found: Read) -> int:
    """Add operations on some channels beside the others, and return in how many groups all are shuffled.

    0: it is something else.
    """
    value, scale, factors, _ = part
    chain = [value]
    while isinstance(chain[-1], Shaped):
        chain.append(chain[-1].source)
    *shuffle, cat = chain
    shuffled = shuffle and shuffle[0].seen.kind == "shuffled"
    if not shuffled or not isinstance(cat, Cat) or len(cat.pieces) != 2:
        return 0
    mixed, passed = (piece.value for piece in cat.pieces)
    within = [one for one in (*chain, mixed) if one is not found.value]
    if not isinstance(mixed, (Call, Sum)) or any(one.apart(found.value.recorded) for one in within):
        return 0
    (groups,) = shuffle[0].seen.numbers
    if isinstance(passed, Pending) and not (isinstance(passed, Shaped) and passed.seen.kind == "channels"):
        return 0
    if mixed.like.shape[1] * groups != cat.like.shape[1]:
        return 0
    inner = read(mixed, found.value.recorded)
    if inner is None or inner.passed:
        return 0
    for piece in cat.pieces:
        piece.check()
    found.calls.extend(Weighted(v, s * scale, (*f, *factors)) for v, s, f, _ in inner.calls)
    found.passed.append(Weighted(passed, scale, factors))
    found.within.extend([*within, *inner.within])
    return groups


class Cell:
    """Nodes that read each other as one program, where every one is an edge a source.

    Args:
        grouped: the calls of every node, those of one source together.
        reads: of every node the sources of these, then of what passes: number, tensors that are given first,
            and channels.
        groups: of every node.
    """

    def __init__(
        self,
        grouped: Sequence[Sequence[Sequence[Weighted]]],
        reads: Sequence[Sequence[tuple[int, Channels]]],
        groups: Sequence[int],
    ) -> None:
        self.plans = [Plan(sources) for sources in grouped]
        owned = [thing for plan in self.plans for thing in plan.owned]
        alone = len(set(owned)) == len(owned)
        self.served = alone and all(
            len(plan.rounds) == 1 and not plan.ordinary and not plan.library for plan in self.plans
        )
        self.nodes: list[Node] = []
        rows = 0
        every = zip(self.plans, grouped, reads, groups, strict=True)
        for plan, sources, read, count in every if self.served else ():
            (round,) = plan.rounds
            mixed = [(read[g], edge) for g, (_, edge, _) in zip(round.groups, round.edges, strict=True)]
            rest = [(one, Edge(1, (0,), skips=1)) for one in read[len(sources) :]]
            edges: list[tuple[int, Edge, int | None]] = []
            for (state, channels), edge in (*mixed, *rest):
                edges.append((state, replace(edge, channels=channels), rows))
                rows += 1
            self.nodes.append(Node(edges[: len(mixed)], passed=edges[len(mixed) :], groups=count))
        self._prepared: Cache[Prepared] = Cache(MOST_PREPARED)

    def unchanged(self) -> bool:
        """Whether all modules are what they were."""
        return all(plan.unchanged() for plan in self.plans)

    def run(
        self,
        grouped: Sequence[Sequence[Sequence[Weighted]]],
        passed: Sequence[Sequence[Weighted]],
        inputs: Sequence[Tensor],
        returned: int,
    ) -> Tensor:
        """Return the last ``returned`` nodes side by side."""
        rows: list[Sequence[Weighted]] = []
        for plan, groups, rest in zip(self.plans, grouped, passed, strict=True):
            rows += plan.rounds[0].rows(groups)
            rows += [[part] for part in rest]
        return run(self._prepared, self.nodes, returned, inputs, rows, self.plans[0].memory)
