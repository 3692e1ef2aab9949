"""Batch norm's statistics from a kernel's channel sums, with the running ones kept as stock modules do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import dartsfast.ops  # noqa: F401 - defines the operators
from dartsfast.errors import InputError


def normalise(norms: Sequence[Any], stats: Tensor, pixels: int) -> tuple[Tensor, tuple[bool, ...]]:
    """Return mean and 1 / std, [norms, 2, C], and which of them are the batch's; move running statistics.

    Args:
        norms: one ``nn.BatchNorm2d`` a row of ``stats``.
        stats: [norms, 2, C], mean and biased variance of the batch.
        pixels: values that each was taken over.

    Raises:
        InputError: batch statistics of a single value.
    """
    norm = norms[0]
    if len({(n.training, n.track_running_stats, n.momentum, n.eps) for n in norms}) > 1:
        parts = [normalise([n], row[None], pixels) for n, row in zip(norms, stats, strict=True)]
        return torch.cat([found for found, _ in parts]), tuple(own for _, (own,) in parts)
    own = norm.training or norm.running_mean is None
    if own and pixels == 1:
        raise InputError("batch norm over one value a channel: use a larger batch or larger images")
    if not own:
        stats = torch.stack([torch.stack([n.running_mean, n.running_var]) for n in norms])
    moved = norms if norm.training and norm.track_running_stats else []
    found = torch.ops.dartsfast.norm_stats_(
        stats,
        [n.running_mean for n in moved],
        [n.running_var for n in moved],
        [n.num_batches_tracked for n in moved],
        norm.momentum,
        norm.eps,
        pixels,
    )
    return found, (own,) * len(norms)
