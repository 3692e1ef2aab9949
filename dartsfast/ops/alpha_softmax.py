"""``alpha_softmax``: the mixing weights of all edges of all cell types (paper equation 2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dartsfast.ops.contract import (
    check_dtype,
    check_like,
    check_shape,
    define,
    differentiable,
    differentiable_once,
    require,
)


def alpha_softmax(alphas: list[Tensor]) -> list[Tensor]:
    """Return softmax over the operations of every edge, one launch for all tensors.

    Order of operations, a row: m = maximum; e_k = exp(a_k - m), by x = n ln 2 + r with two fused
    multiply-adds (Cody and Waite), the Taylor polynomial of degree 7 (float64: 13) by Horner with
    fused multiply-adds, times 2^n; s = ((e_0 + e_1) + e_2) + ...; p_k = e_k / s. Below -87 (-708)
    exp is 0. Backward: t = fma chain of p_k * d_k, ascending; p_k * (d_k - t).

    Args:
        alphas: [edges, operations] each, float32, float64, bfloat16 or float16.

    Returns:
        One tensor an alpha, of its shape.

    Raises:
        InputError or RuntimeError: shapes, dtypes or devices that do not fit.
    """
    return torch.ops.dartsfast.alpha_softmax(alphas)


def _check(name: str, alphas: list[Tensor]) -> None:
    require(len(alphas) > 0, f"{name} must hold at least one tensor")
    for alpha in alphas:
        require(
            alpha.dim() == 2 and alpha.shape[1] > 0,
            f"{name} must be [edges, operations], got {list(alpha.shape)}",
        )
        check_dtype(name, alpha)
        check_like(name, alpha, alphas[0])


def _fake(alphas: list[Tensor]) -> list[Tensor]:
    _check("alphas", alphas)
    return [alpha.new_empty(alpha.shape) for alpha in alphas]


def _fake_backward(p: list[Tensor], d: list[Tensor]) -> list[Tensor]:
    _check("p", p)
    _check("d", d)
    require(len(p) == len(d), f"p and d must hold as many tensors, got {len(p)} and {len(d)}")
    for a, b in zip(p, d, strict=True):
        check_shape("d", b, a.shape, a)
    return [a.new_empty(a.shape) for a in p]


def _setup(ctx: Any, inputs: tuple[Any, ...], output: list[Tensor]) -> None:
    ctx.save_for_backward(*output)


def _backward(ctx: Any, d: list[Tensor]) -> list[Tensor]:
    return torch.ops.dartsfast.alpha_softmax_backward(list(ctx.saved_tensors), d)


define("alpha_softmax", "(Tensor[] alphas) -> Tensor[]", _fake)
define("alpha_softmax_backward", "(Tensor[] p, Tensor[] d) -> Tensor[]", _fake_backward)
differentiable("alpha_softmax", _setup, _backward)
differentiable_once("alpha_softmax_backward")
