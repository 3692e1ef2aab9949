"""``mixed_sum`` in its documented order of operations; see ``csrc/cpu/mixed_sum.kernel.h``."""

from __future__ import annotations

import torch
from torch import Tensor

from dartsfast.oracle.arithmetic import Chunks, fma, tree_sum


def mixed_sum(z: list[Tensor], mean: Tensor, rstd: Tensor, weights: Tensor, base: Tensor | None) -> Tensor:
    """Return base + sum over branches b of weights_b * (z_b - mean_b) * rstd_b, [N, H, W, C]."""
    total = torch.zeros_like(z[0]) if base is None else base
    for image, mu, r, w in zip(z, mean, rstd, weights, strict=True):
        total = fma(w, (image - mu) * r, total)
    return total.contiguous()


def mixed_sum_backward(g: Tensor, z: list[Tensor], mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of the weights [branches] and the pixel means [1 + branches, C].

    The means are those of g, then of g * (z_b - mean_b) * rstd_b of every branch.
    """
    chunks = Chunks(*g.shape[:3])
    tiles = chunks.split(g)
    parts = [chunks.sum(tiles)]
    for image, mu, r in zip(z, mean, rstd, strict=True):
        parts.append(chunks.dot(tiles, chunks.split((image - mu) * r)))
    sums = tree_sum(torch.stack(parts, 1))
    pixels = torch.tensor(g.shape[0] * g.shape[1] * g.shape[2], dtype=g.dtype)
    return tree_sum(sums[1:].T), sums / pixels
