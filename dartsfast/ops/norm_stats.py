"""``norm_stats``: batch norm's scale from channel statistics, and what its backward needs of a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from dartsfast.ops.contract import (
    accumulated,
    check_dtype,
    check_shape,
    define,
    not_differentiable,
    require,
)


def norm_stats_(
    stats: Tensor,
    running_mean: list[Tensor],
    running_var: list[Tensor],
    batches: list[Tensor],
    momentum: float | None,
    eps: float,
    pixels: int,
) -> Tensor:
    """Return mean and 1 / standard deviation, and move the running statistics, of several batch norms.

    Order of operations: batches += 1; s = momentum, or 1 / batches without one (the average of all
    batches); running_mean = fma(mean, s, running_mean * (1 - s)); running_var likewise with
    s * (pixels / (pixels - 1)), which makes the variance unbiased; 1 / sqrt(variance + eps).

    Args:
        stats: [norms, 2, C], mean and biased variance, float32 or float64.
        running_mean: [C] a norm, contiguous, what is moved; or none at all.
        running_var: likewise.
        batches: [] int64 a norm, how many batches the running statistics have seen; or none at all.
        momentum: share of the new statistics, or None.
        eps: what is added to the variance.
        pixels: values that each mean was taken over, at least 2 where running statistics are moved.

    Returns:
        [norms, 2, C].

    Raises:
        InputError or RuntimeError: shapes, dtypes or devices that do not fit, or tensors that autograd
            follows.
    """
    return torch.ops.dartsfast.norm_stats_(stats, running_mean, running_var, batches, momentum, eps, pixels)


def norm_stats_backward(
    g_mean: Tensor, g_zhat_mean: Tensor, norm: Tensor, weights: Tensor | None, own: Tensor
) -> Tensor:
    """Return coef of dz = k * ((g - m) - (z - mu) * r), the gradient of weights * (z - mu) * rho.

    m = mean(g), r = mean(g * zhat) * rho, both 0 where a norm's statistics are not the batch's own;
    k = weights * rho (batch norm's backward, Ioffe and Szegedy 2015).

    Args:
        g_mean: [norms, C], pixel means of g, any strides.
        g_zhat_mean: [norms, C], pixel means of g * (z - mu) * rho, any strides.
        norm: [norms, 2, C], mu and rho, any strides.
        weights: [norms], or None for 1.
        own: [norms], 0 where the gradient does not flow through mean and variance.

    Returns:
        [norms, 4, C]: m, mu, r, k.

    Raises:
        InputError or RuntimeError: shapes, dtypes or devices that do not fit, or tensors that autograd
            follows.
    """
    return torch.ops.dartsfast.norm_stats_backward(g_mean, g_zhat_mean, norm, weights, own)


def _check_norms(name: str, norm: Tensor) -> None:
    require(
        norm.dim() == 3 and norm.shape[1] == 2 and norm.numel() > 0,
        f"{name} must be [norms, 2, C], not empty, got {list(norm.shape)}",
    )
    check_dtype(name, norm)
    require(norm.dtype == accumulated(norm.dtype), f"{name} must be float32 or float64, got {norm.dtype}")


def _fake(
    stats: Tensor,
    running_mean: list[Tensor],
    running_var: list[Tensor],
    batches: list[Tensor],
    momentum: float | None,
    eps: float,
    pixels: int,
) -> Tensor:
    _check_norms("stats", stats)
    norms, _, C = stats.shape
    for name, moved in (("running_mean", running_mean), ("running_var", running_var), ("batches", batches)):
        require(
            len(moved) in (0, norms) and len(moved) == len(batches),
            f"{name} must hold one tensor a norm as the others, or none at all: got {len(moved)} for {norms}",
        )
    for name, moved in (("running_mean", running_mean), ("running_var", running_var)):
        for t in moved:
            check_shape(name, t, [C], stats)
            require(t.dtype == stats.dtype, f"{name} must be {stats.dtype}, got {t.dtype}")
            require(t.is_contiguous(), f"{name} must be contiguous, got strides {list(t.stride())}")
    for t in batches:
        require(
            t.shape == () and t.dtype == torch.int64 and t.device == stats.device,
            f"batches must be [] int64 on {stats.device}, got {list(t.shape)} {t.dtype} on {t.device}",
        )
    require(not batches or pixels > 1, f"pixels must be at least 2, got {pixels}")
    return stats.new_empty(stats.shape)


def _fake_backward(
    g_mean: Tensor, g_zhat_mean: Tensor, norm: Tensor, weights: Tensor | None, own: Tensor
) -> Tensor:
    _check_norms("norm", norm)
    norms, _, C = norm.shape
    means = {"g_mean": (g_mean, [norms, C]), "g_zhat_mean": (g_zhat_mean, [norms, C])}
    scales = {"own": (own, [norms]), **({} if weights is None else {"weights": (weights, [norms])})}
    for name, (tensor, shape) in {**means, **scales}.items():
        check_shape(name, tensor, shape, norm)
        require(tensor.dtype == norm.dtype, f"{name} must be {norm.dtype}, got {tensor.dtype}")
    return norm.new_empty([norms, 4, C])


define(
    "norm_stats_",
    "(Tensor stats, Tensor(a!)[] running_mean, Tensor(b!)[] running_var, Tensor(c!)[] batches, "
    "float? momentum, float eps, int pixels) -> Tensor",
    _fake,
)
define(
    "norm_stats_backward",
    "(Tensor g_mean, Tensor g_zhat_mean, Tensor norm, Tensor? weights, Tensor own) -> Tensor",
    _fake_backward,
)
not_differentiable("norm_stats_")
not_differentiable("norm_stats_backward")
