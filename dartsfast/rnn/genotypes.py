"""Search space and published cells for text (paper section 3.1.2; the original's ``genotypes.py``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Genotype(NamedTuple):
    """A recurrent cell: one ``(activation, predecessor)`` a node, and the nodes that are averaged.

    State 0 comes from the input and the last hidden state; node ``i`` is state ``i + 1``.
    """

    recurrent: Sequence[tuple[str, int]]
    concat: Sequence[int]


PRIMITIVES = ["none", "tanh", "relu", "sigmoid", "identity"]
STEPS = 8
CONCAT = 8

# Pham et al., 2018.
ENAS = Genotype(
    recurrent=[
        ("tanh", 0),
        ("tanh", 1),
        ("relu", 1),
        ("tanh", 3),
        ("tanh", 3),
        ("relu", 3),
        ("relu", 4),
        ("relu", 7),
        ("relu", 8),
        ("relu", 8),
        ("relu", 8),
    ],
    concat=[2, 5, 6, 9, 10, 11],
)

# Liu et al., 2019: first order.
DARTS_V1 = Genotype(
    recurrent=[
        ("relu", 0),
        ("relu", 1),
        ("tanh", 2),
        ("relu", 3),
        ("relu", 4),
        ("identity", 1),
        ("relu", 5),
        ("relu", 1),
    ],
    concat=range(1, 9),
)

# Liu et al., 2019: second order.
DARTS_V2 = Genotype(
    recurrent=[
        ("sigmoid", 0),
        ("relu", 1),
        ("relu", 1),
        ("identity", 1),
        ("tanh", 2),
        ("sigmoid", 5),
        ("tanh", 3),
        ("relu", 5),
    ],
    concat=range(1, 9),
)

DARTS = DARTS_V2
