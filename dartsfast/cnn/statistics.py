"""Batch norm's statistics from a kernel's channel sums, with the running ones kept as stock modules do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

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
    own = tuple(norm.training or norm.running_mean is None for norm in norms)
    if any(own):
        if pixels == 1:
            raise InputError("batch norm over one value a channel: use a larger batch or larger images")
        _move_running(norms, stats, pixels)
    if not all(own):
        rows = [
            stats[i] if batch else torch.stack([norm.running_mean, norm.running_var])
            for i, (norm, batch) in enumerate(zip(norms, own, strict=True))
        ]
        stats = torch.stack(rows)
    out = stats.clone()
    eps = {norm.eps for norm in norms}
    out[:, 1].add_(eps.pop() if len(eps) == 1 else stats.new_tensor([[norm.eps] for norm in norms]))
    out[:, 1].sqrt_().reciprocal_()
    return out, own


@torch.no_grad()
def _move_running(norms: Sequence[Any], stats: Tensor, pixels: int) -> None:
    moved = [(i, norm) for i, norm in enumerate(norms) if norm.training and norm.track_running_stats]
    if not moved:
        return
    modules = [norm for _, norm in moved]
    torch._foreach_add_([norm.num_batches_tracked for norm in modules], 1)
    mean, variance = ([half[i] for i, _ in moved] for half in stats.unbind(1))
    unbiased = pixels / (pixels - 1)
    momenta = {norm.momentum for norm in modules}
    if len(momenta) == 1 and None not in momenta:
        share = momenta.pop()
        for running, new, scale in (
            ([norm.running_mean for norm in modules], mean, share),
            ([norm.running_var for norm in modules], variance, share * unbiased),
        ):
            torch._foreach_mul_(running, 1 - share)
            torch._foreach_add_(running, new, alpha=scale)
        return
    for norm, m, v in zip(modules, mean, variance, strict=True):
        # momentum=None is the plain average of all batches
        share = 1 / norm.num_batches_tracked.item() if norm.momentum is None else norm.momentum
        norm.running_mean.mul_(1 - share).add_(m, alpha=share)
        norm.running_var.mul_(1 - share).add_(v, alpha=share * unbiased)
