"""SmoothDARTS: weights that expect other mixing weights (Chen and Hsieh, ICML 2020).

The step of the weights takes mixing weights nearby: softmax(alpha) + delta, |delta| at most epsilon, cut to
[0, 1], and each edge divided by its sum. epsilon grows linearly with the epochs from 0.03 (``--smooth 0.3``
in the paper). The step of the alphas is that of DARTS.

- SDARTS-RS draws each delta evenly.
- SDARTS-ADV (``--smooth_by adversary``) looks for the delta with the largest training loss, by
  projected gradient ascent: from there seven steps of 2 epsilon / 7 along the signs of the gradient, each
  followed by the projection, in evaluation; where that has not raised the loss delta is 0.

Differences from the public code: none in what is computed; an edge whose weights are all cut to 0 has its
strongest operation there and here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from dartsfast.bilevel.guard import gradient
from dartsfast.cnn.model_search import Network
from dartsfast.names import SMOOTH_FIRST

STEPS = 7  # of the ascent


def radius(last: float, epoch: int, epochs: int) -> float:
    """Return epsilon of an epoch, which counts from 0; ``last`` is where it goes."""
    return SMOOTH_FIRST + (last - SMOOTH_FIRST) * epoch / epochs


def moved(rows: Tensor, delta: Tensor) -> Tensor:
    """Return mixing weights [edges, ops] near ``rows``, without a gradient."""
    near = (rows.detach() + delta).clamp(0, 1)
    strongest = torch.nn.functional.one_hot((rows.detach() + delta).argmax(-1), rows.shape[-1]).to(rows)
    near = torch.where(near.sum(-1, keepdim=True) == 0, strongest, near)
    return near / near.sum(-1, keepdim=True)


def _drawn(rows: Tensor, epsilon: float) -> Tensor:
    return moved(rows, torch.empty_like(rows.detach()).uniform_(-epsilon, epsilon))


@contextmanager
def smoothed(model: Network, epsilon: float, against: tuple[Tensor, Tensor] | None = None) -> Iterator[None]:
    """Have passes within take mixing weights nearby; of 0 their own.

    Args:
        model: whose.
        epsilon: how near.
        against: images [N, 3, H, W] and labels [N] whose loss they make large; None: other ones every time.
    """
    before = model._adjust

    def near(rows: Tensor, reduction: bool) -> Tensor:
        rows = _drawn(rows, epsilon)
        return rows if before is None else before(rows, reduction)

    try:
        if epsilon and against:
            _set_to_worst(model, epsilon, *against)
        elif epsilon:
            model._adjust = near
        yield
    finally:
        model._adjust = before


def _sign(slope: Tensor | None) -> Tensor | float:
    return 0.0 if slope is None else slope.sign()  # None where all that takes part is decided


def _set_to_worst(model: Network, epsilon: float, x: Tensor, y: Tensor) -> None:
    """Have passes take the mixing weights within ``epsilon`` that the ascent on their loss finds."""
    kinds = sorted({bool(cell.reduction) for cell in model.cells})
    before, training = model._adjust, model.training
    clean = [rows.detach() for rows in model.mixing_weights(kinds)]

    def take(found: Sequence[Tensor]) -> None:
        places = dict(zip(kinds, found, strict=True))
        model._adjust = lambda _, kind: places[kind] if before is None else before(places[kind], kind)

    def loss_at(found: Sequence[Tensor]) -> Tensor:
        take(found)
        return model._loss(x, y)

    step = 2 * epsilon / STEPS
    model.eval()
    with torch.no_grad():
        at_first = loss_at(clean)
    worst = [_drawn(rows, epsilon) for rows in clean]
    for _ in range(STEPS):
        leaves = [rows.requires_grad_() for rows in worst]
        slopes = gradient(functools.partial(loss_at, leaves), leaves, without=list(model.parameters()))
        worst = [
            moved(rows, (at.detach() + step * _sign(slope) - rows).clamp(-epsilon, epsilon))
            for rows, at, slope in zip(clean, leaves, slopes, strict=True)
        ]
    with torch.no_grad():
        lower = loss_at(worst) < at_first
    model.train(training)
    take([torch.where(lower, rows, at) for rows, at in zip(clean, worst, strict=True)])
