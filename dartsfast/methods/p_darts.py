"""P-DARTS: the search network grows in stages, and its operations become fewer (Chen et al., ICCV 2019).

A third of the epochs each, networks of 5, 11 and 17 cells (``--layers 5``, and 6 and 12 more) choose among 8,
5 and 3 operations an edge: those of the largest alphas go on to the next stage, with fresh weights and alphas
(search space approximation). Skip connections are dropped out (search space regularisation), at a rate that
begins higher in every stage and falls within it: with the rate r of a stage, of E epochs whose first W move
weights alone,

    r (E - e - 1) / E  in epoch e < W,  r exp(-(e - W) / 5)  from there on.

The normal cell keeps at most two skip connections: while there are more, the weight of the weakest is set to
0 and the cell is read off again.

Differences from the public code: it clips the gradient of the alphas, too, and its learning rate is one epoch
ahead. The paper has ``--layers 5 --epochs 75 --warmup_epochs 10 --batch_size 96 --arch_learning_rate 6e-4
--learning_rate_min 0`` and the rates 0, 0.4, 0.7 for CIFAR-10.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
from torch import Tensor, nn

from dartsfast.cnn.genotypes import Genotype
from dartsfast.cnn.model_search import MixedOp, Network
from dartsfast.cnn.operations import Identity
from dartsfast.cnn.spaces import Space
from dartsfast.modules.arch import best_edges

CELLS = (0, 6, 12)  # more than --layers, of each stage
KEPT = (8, 5, 3)  # operations an edge, of each stage


def _dropping(C: int, stride: int, primitives: Sequence[str], *, rate: float) -> MixedOp:
    edge = MixedOp(C, stride, primitives)
    for place, op in enumerate(edge._ops):
        if isinstance(op, Identity) and rate:
            edge._ops[place] = nn.Sequential(op, nn.Dropout(rate))
    return edge


class PDARTS(Network):
    """The search network of a stage of P-DARTS.

    Args:
        arguments, options: of :class:`~dartsfast.cnn.model_search.Network`.
        rate: of dropout, in the first epoch of the stage.
        warmup: epochs of the stage that move weights alone.
        skips: most skip connections of the normal cell.
    """

    def __init__(self, *arguments: Any, rate: float, warmup: int, skips: int, **options: Any) -> None:
        super().__init__(*arguments, mixed_op=functools.partial(_dropping, rate=rate), **options)
        self._own: dict[str, Any] = {"rate": rate, "warmup": warmup, "skips": skips}

    def _build(self, *arguments: Any, **options: Any) -> Network:
        return PDARTS(*arguments, **self._own, **options)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set the rate of dropout; both counts are of the stage."""
        rate, warmup = self._own["rate"], self._own["warmup"]
        share = (epochs - epoch - 1) / epochs if epoch < warmup else math.exp(-(epoch - warmup) / 5)
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = rate * share

    def genotype(self) -> Genotype:
        """Read the cells off the alphas, the normal one with few skip connections."""
        rows, skips = self.strengths(False).cpu().numpy(), int(self._own["skips"])
        cell = cast(Genotype, super().genotype())
        return cell._replace(normal=limited(rows, self._space.of(False), skips, self._steps))


def limited(rows: np.ndarray, space: Any, most: int, steps: int = 4) -> list[tuple[str, int]]:
    """Return a cell read off weights ``rows`` [edges, ops] of a ``space``, with few skip connections."""
    inputs, rows = [2 + i for i in range(steps)], rows.copy()
    while True:
        cell = best_edges(rows, space, inputs, keep=2)
        at = [sum(inputs[: place // 2]) + source for place, (_, source) in enumerate(cell)]
        skips = [
            (edge, space[edge].index("skip_connect"))
            for edge, (name, _) in zip(at, cell, strict=True)
            if name == "skip_connect"
        ]
        weakest = min(skips, key=lambda one: rows[one], default=None)
        if weakest is None or len(skips) <= most or not rows[weakest]:  # of 0: an edge with nothing else
            return cell
        rows[weakest] = 0


def narrowed(alphas: Sequence[Tensor], space: Space, keep: int) -> Space:
    """Return the operations of the largest ``alphas`` [edges, ops] a kind, ``keep`` of every edge."""
    kinds = []
    for table, rows in zip(alphas, space, strict=True):
        best = [sorted(found) for found in table.detach().topk(keep, dim=-1).indices.tolist()]
        kinds.append([[row[k] for k in found] for row, found in zip(rows, best, strict=True)])
    return Space(*kinds)
