"""Places a small graph on paper from left to right, with room for every edge's label.

A layered layout (Sugiyama et al. 1981): nodes stand in columns by their longest path from an input, and an
edge that passes through a column takes up a place in it. Labels take places too, so none overlap.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

_SPACING = 0.12  # inches between boxes of a column
_STARTS, _ORDERING, _STRAIGHTENING = 16, 15, 45  # the last two in sweeps


class Node(NamedTuple):
    """A node to place: its text, its kind and its size in inches."""

    text: str
    kind: str
    width: float
    height: float


class Edge(NamedTuple):
    """An edge from a node to a later one, with its label's text and size (an empty text has no label)."""

    source: int
    target: int
    text: str
    width: float
    height: float


@dataclass(eq=False)
class Box:
    """What stands in a column: a node, a label (kind ``label``) or an edge that passes (kind ``pass``).

    ``x`` and ``y`` are its centre in inches, ``y`` growing downwards; ``left`` and ``right`` are the boxes
    that its edges lead to in the columns beside it.
    """

    text: str
    kind: str
    width: float
    height: float
    x: float = 0.0
    y: float = 0.0
    left: list["Box"] = field(default_factory=list)
    right: list["Box"] = field(default_factory=list)


def lay_out(nodes: Sequence[Node], edges: Sequence[Edge]) -> tuple[list[Box], list[list[Box]]]:
    """Place the nodes; return all boxes and, for each edge, its way from source to target box.

    Every edge must lead to a later node; the last node stands alone at the right. A box that is no node is as
    wide as its column, so that an edge drawn level across it meets no other box. Same graph, same layout.
    """
    columns, ways = _columns(nodes, edges)
    _place_heights(columns)
    x = 0.0
    for column in columns:
        width = max((box.width for box in column), default=0.0)  # no edge leads to the last node
        for box in column:
            box.x = x + width / 2
            if box.kind in ("label", "pass"):
                box.width = width
        climb = max((abs(box.y - other.y) for box in column for other in box.right), default=0.0)
        x += width + min(max(0.5 * climb, 0.3), 0.8)
    return [box for column in columns for box in column], ways


def _columns(nodes: Sequence[Node], edges: Sequence[Edge]) -> tuple[list[list[Box]], list[list[Box]]]:
    """Put nodes in even columns and the edges in all columns between, a label just before its target."""
    rank = [0] * len(nodes)
    for edge in sorted(edges, key=lambda edge: edge.target):
        rank[edge.target] = max(rank[edge.target], rank[edge.source] + 1)
    rank[-1] = max(rank[:-1]) + 1
    columns: list[list[Box]] = [[] for _ in range(2 * rank[-1] + 1)]
    stops = [Box(*node) for node in nodes]
    for place, stop in zip(rank, stops, strict=True):
        columns[2 * place].append(stop)
    ways = []
    for edge in edges:
        between = range(2 * rank[edge.source] + 1, 2 * rank[edge.target])
        bends = [Box("", "pass", 0.0, 0.06) for _ in between]
        way = [stops[edge.source], *bends, stops[edge.target]]
        if edge.text:
            way[-2] = Box(edge.text, "label", edge.width, edge.height)
        for column, box in zip(between, way[1:-1], strict=True):
            columns[column].append(box)
        for left, right in zip(way, way[1:], strict=False):
            left.right.append(right)
            right.left.append(left)
        ways.append(way)
    return columns, ways


def _place_heights(columns: list[list[Box]]) -> None:
    """Order by sweeps back and forth from several starts, keep the one that crosses least, straighten it."""
    first, last = columns[0][0], columns[0][-1]
    rng = random.Random(0)
    best: dict[Box, float] = {}
    best_cost = (np.inf, np.inf)
    for start in range(_STARTS):
        for column in columns:
            if start:
                rng.shuffle(column)
            _settle(column, (), sort=False)
        for sweep in range(_ORDERING):
            side = ("left", "right")[sweep % 2]
            for column in columns if side == "left" else columns[::-1]:
                _settle(column, (side,), sort=True)
        if (cost := _cost(columns)) < best_cost:
            best, best_cost = {box: box.y for column in columns for box in column}, cost
    for box, y in best.items():
        box.y = y
    for column in columns:
        column.sort(key=lambda box: box.y)
    for sweep in range(_STRAIGHTENING):
        for column in columns[:: (1, -1)[sweep % 2]]:
            _settle(column, ("left", "right"), sort=False)
    best = {box: box.y for column in columns for box in column}
    # The mirror image costs the same; take the one that has the inputs in their order.
    sign = 1.0 if best[first] <= best[last] else -1.0
    for box, y in best.items():
        box.y = sign * y


def _settle(column: list[Box], sides: Sequence[str], *, sort: bool) -> None:
    """Move a column's boxes as near to their neighbours on ``sides`` as keeping them apart allows.

    The best heights for a given order (weighted least squares) come from pooling adjacent violators.
    """
    weight, want = {}, {}
    for box in column:
        mass = pull = 0.0
        for other in [other for side in sides for other in getattr(box, side)] or [box]:
            tug = _tug(box, other)
            mass += tug
            pull += tug * other.y
        weight[box], want[box] = mass, pull / mass
    if sort:
        column.sort(key=want.__getitem__)
    bottom = 0.0
    pools: list[tuple[float, float, list[tuple[Box, float]]]] = []
    for box in column:
        offset = bottom + box.height / 2
        bottom = offset + box.height / 2 + _SPACING
        mean, mass, members = want[box] - offset, weight[box], [(box, offset)]
        while pools and pools[-1][0] > mean:
            above, above_mass, above_members = pools.pop()
            mean = (mean * mass + above * above_mass) / (mass + above_mass)
            mass, members = mass + above_mass, above_members + members
        pools.append((mean, mass, members))
    for mean, _, members in pools:
        for box, offset in members:
            box.y = mean + offset


def _tug(box: Box, other: Box) -> float:
    """How hard an edge pulls: where both ends may bend, harder the less it climbs, so that most run level."""
    if box.kind in ("label", "pass") and other.kind in ("label", "pass"):
        return 8.0 / (abs(box.y - other.y) + 0.02)
    return 1.0


def _cost(columns: list[list[Box]]) -> tuple[float, float]:
    """How many edges cross, then how far they climb."""
    crossings, climb = 0.0, 0.0
    for column in columns[:-1]:
        segments = np.array([(box.y, other.y) for box in column for other in box.right]).reshape(-1, 2)
        apart = np.subtract.outer(segments, segments)[:, [0, 1], :, [0, 1]]
        crossings += float((apart[0] * apart[1] < 0).sum()) / 2
        climb += float(np.abs(segments[:, 0] - segments[:, 1]).sum())
    return crossings, climb
