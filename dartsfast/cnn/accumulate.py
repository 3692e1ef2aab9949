"""Gradients of a batch from parts of it, one after the other, so that the memory is that of a part.

Batch norms have the statistics of their part, and move the running ones once a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor


def _parts(x: Tensor, y: Tensor, count: int) -> Iterator[tuple[Tensor, Tensor, float]]:
    """Yield parts of a batch, of as equal sizes as there are, and the share of the batch that each is."""
    if count == 1:  # whatever the model's loss takes
        yield x, y, 1.0
        return
    count = max(1, min(count, len(x)))
    for images, labels in zip(x.tensor_split(count), y.tensor_split(count), strict=True):
        yield images, labels, len(images) / len(x)


def losses(model: Any, x: Tensor, y: Tensor, count: int) -> list[Callable[[], Tensor]]:
    """Return closures whose losses, of ``count`` parts of a batch, add up to the mean over the batch.

    Args:
        model: has ``_loss``, a mean over what it is given.
        x: images [N, 3, H, W].
        y: labels [N].
        count: how many parts; fewer where there are fewer images.
    """
    return [partial(_weighted, model, *part) for part in _parts(x, y, count)]


def _weighted(model: Any, x: Tensor, y: Tensor, share: float) -> Tensor:
    loss: Tensor = model._loss(x, y)
    return loss if share == 1 else loss * share


def backward(model: Any, x: Tensor, y: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Add the gradients of the loss to ``.grad``, of ``count`` parts one by one.

    Returns logits [N, classes] and loss [], detached; arguments as :func:`losses`.
    """
    logits, total = [], []
    for images, labels, share in _parts(x, y, count):
        found = model(images)
        loss = model._criterion(found, labels)
        loss = loss if share == 1 else loss * share
        loss.backward()
        logits.append(found.detach())
        total.append(loss.detach())
    return torch.cat(logits), torch.stack(total).sum()
