"""Cells whose edges compute with the first part of the channels, and let the others pass (PC-DARTS)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from dartsfast.fused.edge import Edge
from dartsfast.fused.forward import Node, Setting
from dartsfast.fused.images import nchw, nhwc


def shared(mixed: Sequence[Any], setting: Setting) -> int:
    """Return of how many parts of the channels edges mix one, where nodes of such are one program; else 1.

    Only programs of CPUs shuffle channels.
    """
    shares = {getattr(edge, "share", 1) for edge in mixed}
    served = len(shares) == 1 and setting.runner in ("cpu", "walk") and setting.storage is None
    return shares.pop() if served else 1


class Parts:
    """What nodes read: of a state two parts of its channels, or where its edges have stride 2 two images.

    Args:
        states: the two preprocessed images, [N, H, W, C].
        mixed: an edge of each.
        share: C / share channels are mixed.
    """

    def __init__(self, states: Sequence[Tensor], mixed: Sequence[Any], share: int) -> None:
        self.inputs: list[Tensor] = []
        self.share = share
        self._reads: list[tuple[tuple[int, Any], tuple[int, Any]]] = []
        C = states[0].shape[-1]
        self._both = (0, C // share), (C // share, C)
        for state, edge in zip(states, mixed, strict=True):
            k = len(self.inputs)
            if edge.mixed.stride == 1:
                self._reads.append(self._of(k))
                self.inputs.append(state)
                continue
            through, around = state.split([C // share, C - C // share], -1)
            self._reads.append(((k, None), (k + 1, None)))
            self.inputs += [through, nhwc(edge.around(nchw(around)))]

    def _of(self, state: int) -> tuple[tuple[int, Any], tuple[int, Any]]:
        first, rest = self._both
        return (state, first), (state, rest)

    def nodes(self, by_node: Sequence[Sequence[Edge]], column: int) -> list[Node]:
        """Return the nodes of edges that mix; ``column`` of the mixing weights is that of what passes."""
        found, rows = list[Node](), itertools.count()
        for k, edges in enumerate(by_node):
            mixing, passing = list[tuple[int, Edge, int | None]](), list[tuple[int, Edge, int | None]]()
            reads = [*self._reads, *(self._of(len(self.inputs) + i) for i in range(k))]
            for edge, (first, rest) in zip(edges, reads, strict=True):
                row = next(rows)
                mixing.append((first[0], replace(edge, channels=first[1]), row))
                passing.append((rest[0], Edge(1, (column,), skips=1, channels=rest[1]), row))
            found.append(Node(mixing, passed=passing, groups=self.share))
        return found
