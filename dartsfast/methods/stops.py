"""When a search ends before its last epoch, and with the cell of which.

- ``--stop eigenvalue`` is RobustDARTS' early stop, DARTS-ES (Zela et al., ICLR 2020): where the
  largest eigenvalue, smoothed over five epochs, has grown so that mean(i - 5) / mean(i) < 0.75, the search
  ends with the cell of epoch i - 5 (:mod:`dartsfast.methods.eigenvalue`).
- ``--stop skips=2`` is the first criterion of DARTS+ (Liang et al., 2019): the search ends after
  the first epoch whose normal cell has so many skip connections, with that cell.

Differences from the public code: that of RobustDARTS has 1 / 1.3 in the place of 0.75, and goes back four
epochs. DARTS+ has none that is public.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dartsfast.errors import InputError
from dartsfast.methods.eigenvalue import WINDOW, stops

Alphas = list[Tensor]  # those of a network


def skip_connections(cell: Iterable[tuple[str, int]]) -> int:
    """Return how many of the edges of a genotype's cell are skip connections."""
    return sum(name == "skip_connect" for name, _ in cell)


def stopped(config: Any, history: Sequence[Mapping[str, float]]) -> bool:
    """Whether a search has ended with the last epoch of ``history``, rows with what its stop looks at.

    Raises:
        InputError: a row without.
    """
    if config.stop == "none" or not history:
        return False
    name = "skips" if config.most_skips else "eigenvalue"
    if any(name not in row for row in history):
        raise InputError(f"history has rows without {name}, by which the run stops")
    seen = [row[name] for row in history]
    return seen[-1] >= config.most_skips if config.most_skips else stops(seen)


class Earlier:
    """The alphas after each of the last five epochs, of which a stop by the eigenvalue takes the first."""

    def __init__(self) -> None:
        self.kept: list[Alphas] = []

    def keep(self, alphas: Sequence[Tensor]) -> None:
        """Remember the ``alphas`` of an epoch that is done."""
        self.kept = [*self.kept, [alpha.detach().cpu().clone() for alpha in alphas]][-WINDOW:]

    @torch.no_grad()
    def put_back_(self, alphas: Sequence[Tensor]) -> None:
        """Have ``alphas`` be those of five epochs before the one that is ending, not kept yet."""
        for alpha, before in zip(alphas, self.kept[0], strict=True):
            alpha.copy_(before)
