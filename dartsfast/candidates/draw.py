"""Cells drawn uniformly from the search space, for the random baseline (paper section 3.2)."""

from __future__ import annotations

import random
from collections.abc import Callable

from dartsfast.cnn import genotypes as cnn
from dartsfast.rnn import genotypes as rnn

STEPS = 4  # nodes of a CNN cell


def draw_cnn(seed: int) -> cnn.Genotype:
    """Return a pair of CNN cells: each node adds two operations, of two different states before it.

    Pairs of states and operations are equally likely, ``none`` left out. The same seed gives the same cells
    with every version of Python.
    """
    below = _drawing(seed)
    normal, reduce = (_pairs(below) for _ in range(2))
    concat = range(2, 2 + STEPS)
    return cnn.Genotype(normal, concat, reduce, concat)


def draw_rnn(seed: int) -> rnn.Genotype:
    """Return a recurrent cell: each node is an activation of a state before it, all equally likely."""
    below = _drawing(seed)
    activations = [name for name in rnn.PRIMITIVES if name != "none"]
    nodes = [(activations[below(len(activations))], below(i + 1)) for i in range(rnn.STEPS)]
    return rnn.Genotype(nodes, range(1, rnn.STEPS + 1))


def _drawing(seed: int) -> Callable[[int], int]:
    """Return what draws from 0 to below a number; of Python's generator only ``random()`` never changes,
    and of its seeds it takes no sign."""
    generator = random.Random(seed % 2**64)
    return lambda count: int(generator.random() * count)


def _pairs(below: Callable[[int], int]) -> list[tuple[str, int]]:
    operations = [name for name in cnn.PRIMITIVES if name != "none"]
    found: list[tuple[str, int]] = []
    for i in range(STEPS):
        first = below(2 + i)
        second = below(1 + i)
        states = sorted((first, second + (second >= first)))
        found += [(operations[below(len(operations))], state) for state in states]
    return found
