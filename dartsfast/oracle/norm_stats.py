"""``norm_stats`` in its documented order of operations; see ``csrc/norm_stats.h``."""

from __future__ import annotations

import torch
from torch import Tensor

from dartsfast.oracle.arithmetic import fma

Moved = tuple[Tensor, list[Tensor], list[Tensor], list[Tensor]]


def norm_stats_(
    stats: Tensor,
    running_mean: list[Tensor],
    running_var: list[Tensor],
    batches: list[Tensor],
    momentum: float | None,
    eps: float,
    pixels: int,
) -> Moved:
    """Return mean and 1 / std [norms, 2, C], and what becomes of the running statistics."""
    seen = [count + 1 for count in batches]
    unbiased = _like(stats, pixels) / _like(stats, pixels - 1)
    means, variances = [], []
    for i, count in enumerate(seen):
        one = _like(stats, 1)
        share = one / count.to(stats.dtype) if momentum is None else _like(stats, momentum)
        means.append(fma(stats[i, 0], share, running_mean[i] * (one - share)))
        variances.append(fma(stats[i, 1], share * unbiased, running_var[i] * (one - share)))
    # PyTorch's float32 sqrt is not always the nearest float; float64's, rounded, is.
    rstd = 1 / (stats[:, 1] + _like(stats, eps)).double().sqrt().to(stats.dtype)
    return torch.stack([stats[:, 0], rstd], 1), means, variances, seen


def norm_stats_backward(
    g_mean: Tensor, g_zhat_mean: Tensor, norm: Tensor, weights: Tensor | None, own: Tensor
) -> Tensor:
    """Return m, mu, r and k, [norms, 4, C]."""
    mu, rho = norm.unbind(1)
    zero, batch = torch.zeros_like(mu), own[:, None] != 0
    k = rho if weights is None else weights[:, None] * rho
    return torch.stack(
        [torch.where(batch, g_mean, zero), mu, torch.where(batch, g_zhat_mean * rho, zero), k], 1
    )


def _like(tensor: Tensor, value: float) -> Tensor:
    return torch.tensor(float(value), dtype=tensor.dtype)
