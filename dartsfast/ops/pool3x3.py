"""``pool3x3``: maximum and average of every 3x3 window, shared by all edges that leave a source."""

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
    moment_gradient,
    require,
)


def pool3x3(x: Tensor, *, stride: int = 1) -> tuple[Tensor, Tensor]:
    """Return max and average pooling of ``x`` (3x3, padding 1), and their channel statistics.

    The average counts pixels of the image only. Order of operations: the nine taps row by row; a later
    value replaces the maximum where it is greater or NaN; the average is the sum from 0, ascending,
    divided by the number of pixels. Statistics as in :func:`dartsfast.ops.branch_conv`. Backward: every
    window, in row-major order, adds to each of its pixels the average's share plus, at the pixel that
    the maximum came from (the first of equals), the maximum's gradient.

    Args:
        x: [N, H, W, C], float32, float64, bfloat16 or float16, any strides.
        stride: 1 or 2.

    Returns:
        z [2, N, ceil(H/stride), ceil(W/stride), C], maximum and average, and stats [2, 2, C], mean and
        biased variance of each. Both are differentiable once.

    Raises:
        InputError or RuntimeError: shapes or dtypes that do not fit.
    """
    return torch.ops.dartsfast.pool3x3(x, stride)


def _check(x: Tensor, stride: int) -> list[int]:
    check_images("x", [x])
    N, H, W, C = x.shape
    require(stride in (1, 2), f"stride must be 1 or 2, got {stride}")
    return [N, (H - 1) // stride + 1, (W - 1) // stride + 1, C]


def _fake(x: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    shape = _check(x, stride)
    return x.new_empty([2, *shape]), x.new_empty([2, 2, shape[-1]], dtype=accumulated(x.dtype))


def _fake_backward(
    g: list[Tensor], z: list[Tensor], coef: Tensor | None, x: Tensor, stride: int, base: Tensor | None
) -> Tensor:
    shape = _check(x, stride)
    require(len(g) == 2, f"g must hold the gradients of maximum and average, got {len(g)}")
    require(len(z) == (0 if coef is None else 2), "z and coef go together: both z and coef, or neither")
    check_images("g and z", [*g, *z], shape, x)
    if coef is not None:
        check_shape("coef", coef, [2, 4, shape[-1]], x)
    if base is not None:
        check_shape("base", base, x.shape, x)
    return g[0].new_empty(x.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.stride = inputs
    ctx.save_for_backward(x, *output)


def _backward(ctx: Any, d_z: Tensor, d_stats: Tensor) -> tuple[Tensor, None]:
    x, z, stats = ctx.saved_tensors
    coef = moment_gradient(z, stats, d_stats)
    dx = torch.ops.dartsfast.pool3x3_backward(list(d_z.unbind()), list(z.unbind()), coef, x, ctx.stride, None)
    return dx, None


define("pool3x3", "(Tensor x, int stride) -> (Tensor, Tensor)", _fake)
define(
    "pool3x3_backward",
    "(Tensor[] g, Tensor[] z, Tensor? coef, Tensor x, int stride, Tensor? base) -> Tensor",
    _fake_backward,
)
differentiable("pool3x3", _setup, _backward)
differentiable_once("pool3x3_backward")
