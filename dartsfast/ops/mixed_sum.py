"""``mixed_sum``: normalise and add all branches of a node in one pass (paper equation 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dartsfast.ops.contract import (
    accumulated,
    check_images,
    check_shape,
    define,
    differentiable,
    differentiable_once,
    require,
)


def mixed_sum(
    z: list[Tensor], mean: Tensor, rstd: Tensor, weights: Tensor, base: Tensor | None = None
) -> Tensor:
    """Return base + sum over branches b of weights_b * (z_b - mean_b) * rstd_b.

    A branch without a norm has mean 0 and rstd 1. Order of operations: from ``base`` (0 without one),
    branches ascending, acc = fma(weights_b, (z_b - mean_b) * rstd_b, acc).

    The backward makes one pass over the gradient g and all z: the pixel means of g and of
    g * (z_b - mean_b) * rstd_b, each channel in the order of ``csrc/order.h``; the gradient of
    weights_b is the pairwise sum over the channels of the second.

    Args:
        z: [N, H, W, C] each, float32, float64, bfloat16 or float16, any strides.
        mean: [branches, C].
        rstd: [branches, C], 1 / standard deviation.
        weights: [branches].
        base: [N, H, W, C], what the branches are added to.

    Returns:
        [N, H, W, C], differentiable once by every argument.

    Raises:
        InputError or RuntimeError: shapes, dtypes or devices that do not fit.
    """
    return torch.ops.dartsfast.mixed_sum(z, mean, rstd, weights, base)


def _check(z: list[Tensor], mean: Tensor, rstd: Tensor) -> None:
    require(len(z) > 0, "z must hold at least one branch")
    check_images("z", z)
    check_shape("mean", mean, [len(z), z[0].shape[-1]], z[0])
    check_shape("rstd", rstd, [len(z), z[0].shape[-1]], z[0])


def _fake(z: list[Tensor], mean: Tensor, rstd: Tensor, weights: Tensor, base: Tensor | None) -> Tensor:
    _check(z, mean, rstd)
    check_shape("weights", weights, [len(z)], z[0])
    if base is not None:
        check_shape("base", base, z[0].shape, z[0])
    return mean.new_empty(z[0].shape)


def _fake_backward(g: Tensor, z: list[Tensor], mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    _check(z, mean, rstd)
    check_shape("g", g, z[0].shape, z[0])
    dtype = accumulated(g.dtype)
    return g.new_empty([len(z)], dtype=dtype), g.new_empty([1 + len(z), g.shape[-1]], dtype=dtype)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    z, mean, rstd, weights, base = inputs
    ctx.base = base is not None
    ctx.save_for_backward(mean, rstd, weights, *z)


def _backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
    mean, rstd, weights, *z = ctx.saved_tensors
    d_weights, means = torch.ops.dartsfast.mixed_sum_backward(g, z, mean, rstd)
    scale = weights[:, None] * rstd
    pixels = g.shape[0] * g.shape[1] * g.shape[2]
    d_z = [g * k for k in scale.unbind()]
    d_mean = -scale * means[0] * pixels
    d_rstd = weights[:, None] * means[1:] / rstd * pixels
    return d_z, d_mean, d_rstd, d_weights, g if ctx.base else None


define("mixed_sum", "(Tensor[] z, Tensor mean, Tensor rstd, Tensor weights, Tensor? base) -> Tensor", _fake)
define(
    "mixed_sum_backward",
    "(Tensor g, Tensor[] z, Tensor mean, Tensor rstd) -> (Tensor, Tensor)",
    _fake_backward,
)
differentiable("mixed_sum", _setup, _backward)
differentiable_once("mixed_sum_backward")
