"""DARTS-: a skip connection beside every edge, which fades out (Chu et al., ICLR 2021).

An edge computes

    beta * x + sum over operations of softmax(alpha) * o(x),

beta falling linearly over the epochs from 1 to 0; where the stride is 2 a factorized reduction of its own
stands for x. What a skip connection does for training is then no reason to choose one: the genotype goes by
the alphas alone.

Differences from the public code: none in what is computed; it has other courses of beta, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dartsfast.cnn.model_search import MixedOp, Network


def _with_skip(C: int, stride: int, primitives: Sequence[str]) -> MixedOp:
    return MixedOp(C, stride, [*primitives, "skip_connect"])


class DARTSMinus(Network):
    """The search network of DARTS-, with the arguments of :class:`~dartsfast.cnn.model_search.Network`."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, mixed_op=_with_skip, **options)
        self.beta = 1.0

    def _build(self, *arguments: Any, **options: Any) -> Network:
        return DARTSMinus(*arguments, **options)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """Set beta."""
        self.beta = 1 - epoch / epochs

    def mixing_weights(self, kinds: Sequence[bool]) -> list[Tensor]:
        """Return softmax(alpha) and, in a column of its own, beta: [edges, ops + 1] a kind."""
        return [
            torch.cat([rows, torch.full_like(rows[:, :1], self.beta, requires_grad=False)], dim=1)
            for rows in super().mixing_weights(kinds)
        ]
