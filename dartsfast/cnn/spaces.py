"""Search spaces: the candidate operations of every edge of both kinds of cell.

``nasbench201`` has one kind of cell, in a network of its own (:mod:`dartsfast.cnn.nasbench201`).
``s1`` to ``s4`` are those that make DARTS fail (Zela et al., ICLR 2020, section 3 and appendix A): in ``s1``
every edge has the two operations that DARTS weighs most there, ``s2`` to ``s4`` have the same few everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

from dartsfast.cnn.genotypes import NASBENCH201, PRIMITIVES
from dartsfast.errors import InputError

NODES = 4  # of a cell of NAS-Bench-201, the first of which is its input
Primitives = Sequence[str] | Sequence[Sequence[str]]  # of all edges, or edge by edge


class Space(NamedTuple):
    """Names of operations, keys of ``operations.OPS``: those of all edges, or edge by edge, node after node.

    Every edge has as many.
    """

    normal: Primitives
    reduce: Primitives

    def of(self, reduction: bool) -> Primitives:
        """Return those of a kind of cell."""
        return self.reduce if reduction else self.normal


class OneCell(NamedTuple):
    """Operations of a cell of NAS-Bench-201, of all edges or edge by edge: all cells are of one kind."""

    cell: Primitives

    def of(self, reduction: bool) -> Primitives:
        """Return those of a cell."""
        return self.cell


AnySpace = Space | OneCell


def by_edge(primitives: Primitives, edges: int) -> list[list[str]]:
    """Return the operations of every edge.

    Raises:
        InputError: lists for another number of edges, or edges that have not as many.
    """
    found: Any = primitives
    if all(isinstance(name, str) for name in primitives):
        found = [primitives] * edges
    rows = [list(row) for row in found]
    if len(rows) != edges:
        raise InputError(f"the cell has {edges} edges, and there are operations for {len(rows)}")
    for row in rows:
        if len(row) != len(rows[0]):
            raise InputError(f"every edge must have as many primitives, got {rows[0]} and {row}")
    return rows


def as_space(primitives: Primitives | AnySpace, steps: int) -> AnySpace:
    """Return the operations of every edge of the kinds of cell, of which there may be one list.

    A cell of DARTS has ``steps`` nodes, and both inputs before them.

    Raises:
        InputError: as :func:`by_edge`; an edge that has an operation twice, or none other than ``none``.
    """
    space: AnySpace
    if isinstance(primitives, OneCell):
        space = OneCell(by_edge(primitives.cell, sum(range(1, NODES))))
    else:
        kinds = primitives if isinstance(primitives, Space) else (primitives, primitives)
        space = Space(*(by_edge(found, sum(range(2, 2 + steps))) for found in kinds))
    for row in itertools.chain(*space):
        if not [name for name in row if name != "none"]:
            raise InputError(f"primitives must name an operation other than none, got {row}")
        if len(set(row)) < len(row):
            raise InputError(f"primitives must differ from each other, got {row}")
    return space


def _pairs(text: str) -> list[list[str]]:
    short = {
        "skip": "skip_connect", "sep3": "sep_conv_3x3", "dil3": "dil_conv_3x3", "dil5": "dil_conv_5x5",
        "max": "max_pool_3x3", "avg": "avg_pool_3x3",
    }  # fmt: skip
    return [[short[name] for name in pair.split("+")] for pair in text.split()]


def _everywhere(*names: str) -> Space:
    return Space(names, names)


# A line a node.
_S1 = Space(
    normal=_pairs("""
        skip+dil3 skip+dil5
        skip+dil5 skip+sep3 skip+dil3
        max+skip skip+sep3 skip+sep3 skip+dil3
        skip+sep3 max+skip skip+dil3 dil3+dil5 dil3+dil5
    """),
    reduce=_pairs("""
        max+avg max+dil3
        max+avg max+avg skip+dil5
        max+avg max+sep3 skip+dil3 skip+dil5
        max+avg max+avg skip+dil5 skip+dil5 skip+dil5
    """),
)
SPACES: dict[str, AnySpace] = {
    "darts": _everywhere(*PRIMITIVES),
    "s1": _S1,
    "s2": _everywhere("skip_connect", "sep_conv_3x3"),
    "s3": _everywhere("none", "skip_connect", "sep_conv_3x3"),
    "s4": _everywhere("noise", "sep_conv_3x3"),
    "nasbench201": OneCell(NASBENCH201),
}
