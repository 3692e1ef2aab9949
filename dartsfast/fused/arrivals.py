"""Gradients that arrive at states, or at channels of them, in the order of the backward."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dartsfast.fused.build import Placed
from dartsfast.fused.program import Instruction, Place, Program, Ref, add, copy

Channels = tuple[int, int] | None


class Arrivals:
    """What has arrived until now, and where it is with the next gradient added.

    Args:
        program: the backward.
        states: the images that edges read.
        returned: where the gradient of a state is that is returned, None of any other.
    """

    def __init__(
        self, program: Program, states: Sequence[Ref], returned: Callable[[Ref], Ref | None]
    ) -> None:
        self._program, self._states, self._returned = program, states, returned
        self._found: dict[tuple[int, Channels], Ref] = {}
        self._places: dict[int, Ref] = {}  # where gradients of states are added up

    def begin(self, state: int, g: Ref) -> None:
        """Let ``g`` be the first that arrives at a state."""
        self._found[state, None] = g

    def at(self, state: int) -> Ref | None:
        """Return what has arrived at a state: where its channels are read apart, all of them are."""
        apart = any(k == state and channels is not None for k, channels in self._found)
        return self._places[state] if apart else self._found.get((state, None))

    def before(self, placed: Placed) -> Ref | None:
        """Return what has arrived at an edge's source."""
        key = placed.source, placed.edge.channels
        whole = self._found.get((placed.source, None))
        if key in self._found or whole is None or placed.edge.channels is None:
            return self._found.get(key)
        return whole.channels(*placed.edge.channels)

    def next(self, placed: Placed) -> tuple[Ref | None, Ref]:
        """Return what has arrived at an edge's source until now, and where it is with the next added."""
        state, channels = key = placed.source, placed.edge.channels
        before, ref = self.before(placed), self._states[state]
        after = self._returned(ref) or self._places.get(state)
        if after is None:
            after = self._program.new(ref.shape, Place.TEMPORARY)
        self._places[state] = after
        self._found[key] = after = after if channels is None else after.channels(*channels)
        return before, after

    def add(self, placed: Placed, dx: Ref) -> list[Instruction]:
        """Return what adds an edge's gradient to what has arrived at its source."""
        before, after = self.next(placed)
        if after == dx:
            return []
        return [copy(dx, after) if before is None else add(before, dx, after)]
