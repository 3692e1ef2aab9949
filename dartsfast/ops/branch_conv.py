"""``branch_conv``: every convolution branch of an edge, from one reading of its input."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dartsfast.ops.contract import (
    DTYPES,
    accumulated,
    check_images,
    check_shape,
    define,
    differentiable,
    differentiable_once,
    moment_gradient,
    require,
)

LARGEST_KERNEL = 15
LARGEST_DILATION = 16


def branch_conv(
    x: Tensor,
    pointwise: list[Tensor],
    depthwise: list[Tensor] = [],  # noqa: B006 - a schema's default, never written to
    dilation: list[int] = [],  # noqa: B006
    *,
    stride: int = 1,
    norm: Tensor | None = None,
    relu: bool = True,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return z_b = pointwise_b(depthwise_b(relu(norm(x)))) of every branch b, and its channel statistics.

    Convolutions are padded to keep the image: a stride of 2 gives ceil(H / 2), ceil(W / 2). Without
    depthwise weights the branches are 1x1 convolutions of the pixels that the stride keeps.

    Order of operations: norm is (x - mean) * rstd; relu keeps NaN. A depthwise output is a chain of
    fused multiply-adds from 0 over the taps, row by row; pixels outside the image are 0. A pointwise
    output is a chain of fused multiply-adds from 0 over the input channels, ascending. The statistics
    of an image batch are combined from chunks of max(1, 64 // W) rows (``csrc/order.h``): within a
    chunk 8 interleaved partial sums (pixel mod 8) folded ((0+1)+(2+3))+((4+5)+(6+7)), the mean by one
    division, then squared deviations in the same order by fused multiply-add; chunks, image after
    image, are combined pairwise, neighbours first (Chan, Golub and LeVeque 1979).

    Backward, with dz_b given: the pointwise adjoint is a chain over output channels, ascending; the
    depthwise adjoint a chain over taps, row by row; branches are added in order; weight gradients are
    chains over the pixels of an image, and images are summed pairwise, neighbours first.

    Args:
        x: [N, H, W, Ci], float32, float64, bfloat16 or float16, any strides.
        pointwise: one weight a branch, [Co, Ci, 1, 1].
        depthwise: one weight a branch, [Ci, 1, K, K], K odd, at most 15; or none at all.
        dilation: one number a depthwise weight, 1 to 16.
        stride: 1 or 2.
        norm: [2, Ci], mean and 1 / standard deviation that x is normalised with.
        relu: whether relu comes before the convolutions.
        dtype: what z is stored as; that of x unless given. The statistics are of z as stored.

    Returns:
        z [branches, N, Ho, Wo, Co] and stats [branches, 2, Co], mean and biased variance of z. Both are
        differentiable once, by x, norm and the weights.

    Raises:
        InputError or RuntimeError: shapes, dtypes, devices or numbers that do not fit.
    """
    return torch.ops.dartsfast.branch_conv(x, norm, depthwise, pointwise, dilation, stride, relu, dtype)


def _check(
    x: Tensor,
    norm: Tensor | None,
    depthwise: list[Tensor],
    pointwise: list[Tensor],
    dilation: list[int],
    stride: int,
) -> list[int]:
    check_images("x", [x])
    N, H, W, Ci = x.shape
    require(stride in (1, 2), f"stride must be 1 or 2, got {stride}")
    branches = len(pointwise)
    require(branches > 0, "pointwise must hold one weight a branch, got none")
    require(
        len(depthwise) in (0, branches),
        f"depthwise must hold one weight a branch, or none at all: got {len(depthwise)} for {branches}",
    )
    require(
        len(dilation) == len(depthwise),
        f"dilation must hold one number a depthwise weight: got {len(dilation)} for {len(depthwise)}",
    )
    if norm is not None:
        check_shape("norm", norm, [2, Ci], x)
    for weight in (*pointwise, *depthwise):
        require(weight.dim() == 4, f"weights must have four dimensions, got {list(weight.shape)}")
    Co = pointwise[0].shape[0]
    require(Co > 0, "pointwise must have at least one output channel")
    for weight in pointwise:
        check_shape("pointwise", weight, [Co, Ci, 1, 1], x)
    for weight, d in zip(depthwise, dilation, strict=True):
        K = weight.shape[-1]
        require(
            K % 2 == 1 and K <= LARGEST_KERNEL,
            f"a depthwise kernel must be square, odd and at most 15x15, got {list(weight.shape)}",
        )
        check_shape("depthwise", weight, [Ci, 1, K, K], x)
        require(1 <= d <= LARGEST_DILATION, f"dilation must be 1 to {LARGEST_DILATION}, got {d}")
    return [N, (H - 1) // stride + 1, (W - 1) // stride + 1, Co]


def _fake(
    x: Tensor,
    norm: Tensor | None,
    depthwise: list[Tensor],
    pointwise: list[Tensor],
    dilation: list[int],
    stride: int,
    relu: bool,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    shape = _check(x, norm, depthwise, pointwise, dilation, stride)
    branches, stored = len(pointwise), dtype or x.dtype
    require(
        stored in DTYPES and accumulated(stored) == accumulated(x.dtype),
        f"dtype must be one that {accumulated(x.dtype)} arithmetic serves, got {dtype}",
    )
    return (
        x.new_empty([branches, *shape], dtype=stored),
        x.new_empty([branches, 2, shape[-1]], dtype=accumulated(x.dtype)),
    )


def _fake_backward(
    g: list[Tensor],
    z: list[Tensor],
    coef: Tensor | None,
    x: Tensor,
    norm: Tensor | None,
    depthwise: list[Tensor],
    pointwise: list[Tensor],
    dilation: list[int],
    stride: int,
    relu: bool,
    base: Tensor | None,
    input_grad: bool,
    weight_grads: bool,
) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    shape = _check(x, norm, depthwise, pointwise, dilation, stride)
    branches = len(pointwise)
    require(len(g) == branches, f"g must hold one gradient a branch: got {len(g)} for {branches}")
    check_images("g and z", [*g, *z], shape, x)
    if coef is not None:
        check_shape("coef", coef, [branches, 4, shape[-1]], x)
    require(
        len(z) == (0 if coef is None else branches),
        "z and coef go together: one z a branch and coef, or neither",
    )
    if base is not None:
        require(input_grad, "base is given but no input gradient is asked for")
        check_shape("base", base, x.shape, x)
    N, H, W, Ci = x.shape
    return (
        g[0].new_empty([N if input_grad else 0, H, W, Ci]),
        [w.new_empty(w.shape) for w in depthwise] if weight_grads else [],
        [w.new_empty(w.shape) for w in pointwise] if weight_grads else [],
        x.new_empty([2 if input_grad and norm is not None else 0, Ci], dtype=accumulated(x.dtype)),
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, norm, depthwise, pointwise, ctx.dilation, ctx.stride, ctx.relu, _ = inputs
    ctx.branches, ctx.depthwise = len(pointwise), len(depthwise)
    ctx.save_for_backward(x, norm, *output, *depthwise, *pointwise)


def _backward(ctx: Any, d_z: Tensor, d_stats: Tensor) -> tuple[Any, ...]:
    x, norm, z, stats, *weights = ctx.saved_tensors
    depthwise, pointwise = weights[: ctx.depthwise], weights[ctx.depthwise :]
    coef = moment_gradient(z, stats, d_stats)
    need_x, need_norm, need_depthwise, need_pointwise, *_ = ctx.needs_input_grad
    dx, d_depthwise, d_pointwise, means = torch.ops.dartsfast.branch_conv_backward(
        list(d_z.unbind()),
        list(z.unbind()),
        coef,
        x,
        norm,
        depthwise,
        pointwise,
        ctx.dilation,
        ctx.stride,
        ctx.relu,
        None,
        need_x or need_norm,
        any(need_depthwise) or any(need_pointwise),
    )
    d_norm = None
    if norm is not None and (need_x or need_norm):
        pixels = x.shape[0] * x.shape[1] * x.shape[2]
        d_norm = torch.stack([-norm[1] * means[0], means[1] / norm[1]]) * pixels
        dx = dx * norm[1]
    # An empty list counts as a list of tensors, for which autograd wants a list.
    gradients: tuple[Any, ...] = (
        dx if need_x else None,
        d_norm,
        d_depthwise or [None] * ctx.depthwise,
        d_pointwise or [None] * ctx.branches,
        None if ctx.dilation else [],
        None,
        None,
        None,
    )
    # Before torch 2.13 an argument that was left at its default, dtype, is none of autograd's inputs.
    return gradients[: len(ctx.needs_input_grad)]


_ARGUMENTS = (
    "Tensor x, Tensor? norm, Tensor[] depthwise, Tensor[] pointwise, int[] dilation, int stride, bool relu"
)
define("branch_conv", f"({_ARGUMENTS}, ScalarType? dtype=None) -> (Tensor, Tensor)", _fake)
define(
    "branch_conv_backward",
    f"(Tensor[] g, Tensor[] z, Tensor? coef, {_ARGUMENTS}, Tensor? base, bool input_grad, bool weight_grads)"
    " -> (Tensor, Tensor[], Tensor[], Tensor)",
    _fake_backward,
)
differentiable("branch_conv", _setup, _backward)
differentiable_once("branch_conv_backward")
