"""``fd_hvp``: the vector arithmetic of the second-order architecture gradient (paper equations 7, 8).

Vectors are [n] with n > 0, contiguous, float32 or float64; scalars that come from tensors stay
tensors, so that nothing waits for a device. Putting weights back is ``Tensor.copy_``: one pass, to the
bit. None of these has a derivative: a tensor that autograd follows is refused. Where there is no
kernel for a device, or no native extension, stock functions compute the same, not to the bit.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dartsfast.ops.contract import check_dtype, check_shape, define, not_differentiable, require


def fd_norm(v: Tensor) -> Tensor:
    """Return the L2 norm of ``v``.

    Order of operations, in float64 for either dtype, so that no square overflows or vanishes: chunks
    of 4096 elements; in a chunk 32 interleaved sums s = fma(v_i, v_i, s) (i mod 32), added pairwise,
    neighbours first; the chunks likewise; the square root, rounded to the dtype of ``v``.

    Triton kernels hold float64 for float64 vectors only. For either dtype a program scales its elements by
    a power of two that makes the largest of them about 1, and adds their squares and what rounding lost of
    squares and sums, as do those that follow, program by program: within 1 ULP of the truth, and no
    square overflows or vanishes.

    Args:
        v: [n], float32 or float64.

    Returns:
        [], of the dtype of ``v``.

    Raises:
        InputError or RuntimeError: a shape or dtype that does not fit, or a tensor that autograd follows.
    """
    return torch.ops.dartsfast.fd_norm(v)


def fd_perturb_(w: Tensor, w0: Tensor, v: Tensor, norm: Tensor, r: float, sign: float) -> None:
    """Set ``w`` to w0 + sign * (r / norm) * v, the point of a finite difference (paper equation 8).

    Order of operations: fma(sign * (r / norm), v, w0). Where r / norm is 0 or not finite, as with a
    vector of zeros or of NaN, there is nowhere to step and ``w`` becomes ``w0``.

    Args:
        w: [n], what is written; its values are not read. No other tensor may overlap with a part of it.
        w0: [n], the point that is stepped from.
        v: [n], the direction.
        norm: [], the L2 norm of ``v``.
        r: length of the step, positive.
        sign: 1 or -1.

    Raises:
        InputError or RuntimeError: shapes, dtypes or devices that do not fit, a step that is not
            positive, or a tensor that autograd follows.
    """
    torch.ops.dartsfast.fd_perturb_(w, w0, v, norm, r, sign)


def fd_virtual_step_(
    w: Tensor,
    g: Tensor,
    momentum_buffer: Tensor | None,
    scale: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    """Move ``w`` by one step of SGD on the clipped gradient scale * g (paper equation 7).

    w - lr * (momentum * momentum_buffer + weight_decay * w + scale * g), in this order of operations:
    s = fma(weight_decay, w, scale * g); with a buffer s = fma(momentum, momentum_buffer, s);
    w = fma(-lr, s, w).

    Args:
        w: [n], what is moved. No other tensor may overlap with a part of it.
        g: [n], the gradient.
        momentum_buffer: [n], or None before the optimiser's first step.
        scale: [], the clip factor.
        lr: learning rate.
        momentum: factor on the buffer.
        weight_decay: L2 factor.

    Raises:
        InputError or RuntimeError: shapes, dtypes or devices that do not fit, or a tensor that autograd
            follows.
    """
    torch.ops.dartsfast.fd_virtual_step_(w, g, momentum_buffer, scale, lr, momentum, weight_decay)


def fd_quotient(plus: Tensor, minus: Tensor, norm: Tensor, r: float) -> Tensor:
    """Return (plus - minus) / (2 * (r / norm)), the central difference (paper equation 8).

    Args:
        plus: [n], the gradient at w0 + (r / norm) * v.
        minus: [n], the gradient at w0 - (r / norm) * v.
        norm: [], the L2 norm of v.
        r: length of the step, positive.

    Returns:
        [n]; where ``norm`` is 0 the zeros that a product with nothing is.

    Raises:
        InputError or RuntimeError: shapes, dtypes or devices that do not fit, a step that is not
            positive, or a tensor that autograd follows.
    """
    return torch.ops.dartsfast.fd_quotient(plus, minus, norm, r)


def _check(scalars: dict[str, Tensor], **vectors: Tensor) -> None:
    first = next(iter(vectors.values()))
    for name, v in vectors.items():
        require(
            v.dim() == 1 and len(v) > 0 and v.is_contiguous(),
            f"{name} must be [n], contiguous, n > 0, got {list(v.shape)}, strides {list(v.stride())}",
        )
        check_dtype(name, v)
        check_shape(name, v, first.shape, first)
    for name, scalar in scalars.items():
        check_shape(name, scalar, [], first)


def _fake_norm(v: Tensor) -> Tensor:
    _check({}, v=v)
    return v.new_empty([])


def _norm(v: Tensor) -> Tensor:
    _fake_norm(v)
    return torch.linalg.vector_norm(v, dtype=torch.float64).to(v.dtype)


def _fake_perturb(w: Tensor, w0: Tensor, v: Tensor, norm: Tensor, r: float, sign: float) -> None:
    _check({"norm": norm}, w=w, w0=w0, v=v)
    require(r > 0, f"r must be positive, got {r}")


def _perturb(w: Tensor, w0: Tensor, v: Tensor, norm: Tensor, r: float, sign: float) -> None:
    _fake_perturb(w, w0, v, norm, r, sign)
    R = r / norm
    w.copy_(torch.where(R.isfinite() & (R != 0), w0 + sign * R * v, w0))


def _fake_virtual_step(
    w: Tensor,
    g: Tensor,
    momentum_buffer: Tensor | None,
    scale: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    optional = {} if momentum_buffer is None else {"momentum_buffer": momentum_buffer}
    _check({"scale": scale}, w=w, g=g, **optional)


def _virtual_step(
    w: Tensor,
    g: Tensor,
    momentum_buffer: Tensor | None,
    scale: Tensor,
    lr: float,
    momentum: float,
    weight_decay: float,
) -> None:
    _fake_virtual_step(w, g, momentum_buffer, scale, lr, momentum, weight_decay)
    step = scale * g + weight_decay * w
    if momentum_buffer is not None:
        step += momentum * momentum_buffer
    w.sub_(step, alpha=lr)


def _fake_quotient(plus: Tensor, minus: Tensor, norm: Tensor, r: float) -> Tensor:
    _check({"norm": norm}, plus=plus, minus=minus)
    require(r > 0, f"r must be positive, got {r}")
    return torch.empty_like(plus)


def _quotient(plus: Tensor, minus: Tensor, norm: Tensor, r: float) -> Tensor:
    _fake_quotient(plus, minus, norm, r)
    return (plus - minus) / (2 * (r / norm))


def _define(name: str, schema: str, fake: Callable[..., object], stock: Callable[..., object]) -> None:
    define(name, schema, fake)
    torch.library.impl(f"dartsfast::{name}", "CompositeExplicitAutograd", stock)
    not_differentiable(name)


_define("fd_norm", "(Tensor v) -> Tensor", _fake_norm, _norm)
_define(
    "fd_perturb_",
    "(Tensor(a!) w, Tensor w0, Tensor v, Tensor norm, float r, float sign) -> ()",
    _fake_perturb,
    _perturb,
)
_define(
    "fd_virtual_step_",
    "(Tensor(a!) w, Tensor g, Tensor? momentum_buffer, Tensor scale, float lr, float momentum, "
    "float weight_decay) -> ()",
    _fake_virtual_step,
    _virtual_step,
)
_define(
    "fd_quotient", "(Tensor plus, Tensor minus, Tensor norm, float r) -> Tensor", _fake_quotient, _quotient
)
