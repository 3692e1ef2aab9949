"""Alphas as heat maps show them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from dartsfast.cnn.genotypes import Architecture
from dartsfast.cnn.model_search import Network

ABSENT = -1e4  # the softmax is 0, to the bit


class AlphaTable(NamedTuple):
    """Alphas of one kind of cell: [edges, operations], the names of both, and what the genotype keeps.

    An operation that an edge does not have is :data:`ABSENT` there.
    """

    alphas: Tensor
    operations: Sequence[str]
    edges: Sequence[str]
    kept: Sequence[tuple[str, int]]


def edge_table(
    alphas: Tensor, primitives: Sequence[Sequence[str]], edges: Sequence[str], kept: Sequence[tuple[str, int]]
) -> AlphaTable:
    """Return a table with a column for every operation that some edge has."""
    names = list(dict.fromkeys(itertools.chain.from_iterable(primitives)))
    if all(row == names for row in primitives):
        return AlphaTable(alphas, names, edges, kept)
    wide = torch.full((len(edges), len(names)), ABSENT, dtype=alphas.dtype)
    columns = torch.tensor([[names.index(name) for name in row] for row in primitives])
    return AlphaTable(wide.scatter_(1, columns, alphas.detach().cpu()), names, edges, kept)


def cnn_tables(model: Network) -> dict[str, AlphaTable]:
    """Return the alphas of the kinds of cells of a search network, by name."""
    genotype = model.genotype()
    kept: dict[str, Sequence[tuple[str, int]]]
    if isinstance(genotype, Architecture):
        kept = {"normal": list(itertools.chain(*genotype.nodes()))}
        edges = [f"{source}→{node}" for node in (1, 2, 3) for source in range(node)]
    else:
        kept = {"normal": genotype.normal, "reduce": genotype.reduce}
        inputs = ["c_{k-2}", "c_{k-1}", *(str(i) for i in range(model._steps))]
        edges = [f"{inputs[j]}→{i}" for i in range(model._steps) for j in range(2 + i)]
    return {
        f"alphas_{kind}": edge_table(
            model.logits(kind == "reduce"), model._space.of(kind == "reduce"), edges, entries
        )
        for kind, entries in kept.items()
    }
