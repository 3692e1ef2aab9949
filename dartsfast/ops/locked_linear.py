"""``locked_linear_`` and its gradients: a linear layer of inputs of which locked dropout left few."""

from __future__ import annotations

import torch
from torch import Tensor

from dartsfast.ops.contract import check_dtype, check_shape, define, not_differentiable, require


def locked_linear_(out: Tensor, x: Tensor, mask: Tensor, weight: Tensor) -> None:
    """Set out[n, t] to (x[t, n] * mask[n]) @ weight: of dropout with one mask for all time steps.

    Features that a batch element's mask drops are passed over: neither they nor their rows of ``weight``
    are read, so that values there that are not finite do no harm, as they do in a full product.
    Order of operations, an element: a chain s = fma(x_k * mask_k, weight_kv, s) from 0 on, over the
    features k that are kept, ascending. Source: Gal and Ghahramani (2016), section 4. There is no derivative:
    a tensor that autograd follows is refused; the gradients are the two operators below. Where there is
    no kernel for a device, or no native extension, stock functions compute the same, not to the bit.

    Args:
        out: [N, T, V], contiguous, float32 or float64 (on a GPU also bfloat16 and float16); no tensor here
            may overlap with what is read.
        x: inputs before dropout, [T, N, H], any strides.
        mask: [N, H], any strides: 0 for what is dropped, else a factor.
        weight: [H, V], contiguous: transposed from what ``nn.Linear`` has.

    Raises:
        InputError or RuntimeError: shapes, dtypes, devices or strides that do not fit, or a tensor that
            autograd follows.
    """
    torch.ops.dartsfast.locked_linear_(out, x, mask, weight)


def locked_linear_input_gradient_(d_x: Tensor, g: Tensor, mask: Tensor, weight: Tensor) -> None:
    """Set ``d_x`` to the gradient of ``x``: mask[n] * (g[n, t] @ weight.T), 0 where it is dropped.

    Order of operations, an element: the product's as in :func:`dartsfast.ops.gemm_`, chains
    s = fma(g_v, weight_kv, s) over blocks of 320 columns v, added in order; then times mask_k.

    Args:
        d_x: [T, N, H], any strides without overlap.
        g: gradient of ``out``, [N, T, V], contiguous.
        mask: as of :func:`locked_linear_`.
        weight: as of :func:`locked_linear_`.

    Raises:
        InputError or RuntimeError: as :func:`locked_linear_`.
    """
    torch.ops.dartsfast.locked_linear_input_gradient_(d_x, g, mask, weight)


def locked_linear_weight_gradient_(d_weight: Tensor, g: Tensor, x: Tensor, mask: Tensor) -> None:
    """Add the gradient of ``weight`` to ``d_weight``.

    Order of operations, an element: the chain s = fma(x_k * mask_k, g_v, s) goes on from what is there, over
    the batch elements that keep k, ascending, and in each over the time steps.

    Args:
        d_weight: [H, V], contiguous.
        g: gradient of ``out``, [N, T, V], contiguous.
        x: as of :func:`locked_linear_`.
        mask: as of :func:`locked_linear_`.

    Raises:
        InputError or RuntimeError: as :func:`locked_linear_`.
    """
    torch.ops.dartsfast.locked_linear_weight_gradient_(d_weight, g, x, mask)


def _check(x: Tensor, y: Tensor, mask: Tensor, weight: Tensor, names: tuple[str, str, str]) -> None:
    x_name, y_name, weight_name = names
    require(
        y.dim() == 3 and y.numel() > 0 and y.is_contiguous(),
        f"{y_name} must be [N, T, V], contiguous, not empty, got {list(y.shape)}",
    )
    check_dtype(y_name, y)
    N, T, V = y.shape
    require(mask.dim() == 2 and mask.numel() > 0, f"mask must be [{N}, H], not empty, got {list(mask.shape)}")
    check_shape("mask", mask, [N, mask.shape[1]], y)
    check_shape(x_name, x, [T, N, mask.shape[1]], y)
    check_shape(weight_name, weight, [mask.shape[1], V], y)
    require(weight.is_contiguous(), f"{weight_name} must be contiguous")


def _fake(out: Tensor, x: Tensor, mask: Tensor, weight: Tensor) -> None:
    _check(x, out, mask, weight, ("x", "out", "weight"))


def _fake_input(d_x: Tensor, g: Tensor, mask: Tensor, weight: Tensor) -> None:
    _check(d_x, g, mask, weight, ("d_x", "g", "weight"))


def _fake_weight(d_weight: Tensor, g: Tensor, x: Tensor, mask: Tensor) -> None:
    _check(x, g, mask, d_weight, ("x", "g", "d_weight"))


def _stock(out: Tensor, x: Tensor, mask: Tensor, weight: Tensor) -> None:
    _fake(out, x, mask, weight)
    torch.matmul((x * mask).transpose(0, 1), weight, out=out)


def _stock_input(d_x: Tensor, g: Tensor, mask: Tensor, weight: Tensor) -> None:
    _fake_input(d_x, g, mask, weight)
    d_x.copy_((g @ weight.T).transpose(0, 1) * mask)


def _stock_weight(d_weight: Tensor, g: Tensor, x: Tensor, mask: Tensor) -> None:
    _fake_weight(d_weight, g, x, mask)
    d_weight.addmm_((x * mask).transpose(0, 1).flatten(0, 1).T, g.flatten(0, 1))


for name, schema, fake, stock in (
    ("locked_linear_", "(Tensor(a!) out, Tensor x, Tensor mask, Tensor weight) -> ()", _fake, _stock),
    (
        "locked_linear_input_gradient_",
        "(Tensor(a!) d_x, Tensor g, Tensor mask, Tensor weight) -> ()",
        _fake_input,
        _stock_input,
    ),
    (
        "locked_linear_weight_gradient_",
        "(Tensor(a!) d_weight, Tensor g, Tensor x, Tensor mask) -> ()",
        _fake_weight,
        _stock_weight,
    ),
):
    define(name, schema, fake)
    torch.library.impl(f"dartsfast::{name}", "CompositeExplicitAutograd", stock)
    not_differentiable(name)
