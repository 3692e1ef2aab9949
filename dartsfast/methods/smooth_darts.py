"""SmoothDARTS by random smoothing, SDARTS-RS: weights that expect others (Chen and Hsieh, ICML 2020).

The step of the weights takes mixing weights nearby: softmax(alpha) + delta, each delta drawn evenly from
[-epsilon, epsilon], cut to [0, 1], and each edge divided by its sum. epsilon grows linearly with the epochs
from 0.03 (``--smooth 0.3`` in the paper). The step of the alphas is that of DARTS.

Differences from the public code: none in what is computed; an edge whose weights are all cut to 0 has its
strongest operation there and here. Its adversarial variant, SDARTS-ADV, is not here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from dartsfast.cnn.model_search import Network

FIRST = 0.03  # epsilon of the first epoch


def radius(last: float, epoch: int, epochs: int) -> float:
    """Return epsilon of an epoch, which counts from 0; ``last`` is where it goes."""
    return FIRST + (last - FIRST) * epoch / epochs


def moved(rows: Tensor, delta: Tensor) -> Tensor:
    """Return mixing weights [edges, ops] near ``rows``, without a gradient."""
    near = (rows.detach() + delta).clamp(0, 1)
    strongest = torch.nn.functional.one_hot((rows.detach() + delta).argmax(-1), rows.shape[-1]).to(rows)
    near = torch.where(near.sum(-1, keepdim=True) == 0, strongest, near)
    return near / near.sum(-1, keepdim=True)


@contextmanager
def smoothed(model: Network, epsilon: float) -> Iterator[None]:
    """Have passes within take mixing weights nearby, other ones every time; of 0 their own."""
    before = model._adjust

    def near(rows: Tensor, reduction: bool) -> Tensor:
        rows = moved(rows, torch.empty_like(rows.detach()).uniform_(-epsilon, epsilon))
        return rows if before is None else before(rows, reduction)

    if epsilon:
        model._adjust = near
    try:
        yield
    finally:
        model._adjust = before
