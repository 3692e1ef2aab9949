"""The architecture gradient, first and second order, without a copy of the model.

Second order (paper equations 6 to 8), with c the clip factor of the virtual step:

    w' = w - lr * (momentum * buffer + c * dL_train/dw + weight_decay * w)
    gradient = dL_val(w')/dalpha - lr * c * d2L_train/(dalpha dw) . dL_val(w')/dw'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from dartsfast.bilevel.flat import Flat, averaged, norm
from dartsfast.bilevel.guard import gradient, preserved
from dartsfast.bilevel.hvp import product
from dartsfast.errors import DivergedError, InputError
from dartsfast.ops import fd_virtual_step_
from dartsfast.ranks import Average

Loss = Callable[[], Tensor] | Sequence[Callable[[], Tensor]]
Gradient = list[Tensor | None]


@dataclass(frozen=True)
class VirtualStep:
    """How the weights would move in one step of their optimiser.

    Attributes:
        lr: learning rate xi of the weights.
        weight_decay: L2 factor, added to the gradient after clipping.
        momentum: factor on ``momentum_buffers``.
        momentum_buffers: SGD's buffers, one a weight, or None before its first step.
        max_norm: clip the training gradient to this L2 norm; None leaves it alone.
        clamp: the clip factor that multiplies the implicit gradient is at most 1.
        still: indices of weights that the virtual step leaves where they are, beside frozen ones.
        vector_max_norm: clip the validation gradient, the vector of the product, to this norm.
        one_mask: both finite-difference passes draw the same random numbers.

    The numbers may also be NumPy's or tensors of one element.

    Raises:
        InputError: another thing in a number's place.
    """

    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.0
    momentum_buffers: Sequence[Tensor] | None = None
    max_norm: float | None = None
    clamp: bool = True
    still: frozenset[int] = frozenset()
    vector_max_norm: float | None = None
    one_mask: bool = True

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "momentum", "max_norm", "vector_max_norm"):
            value = getattr(self, name)
            if value is not None or name in ("lr", "weight_decay", "momentum"):
                object.__setattr__(self, name, _number(name, value))


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value.item())
    if isinstance(value, Real) and not isinstance(value, bool):
        return float(value)
    raise InputError(
        f"the virtual step's {name} must be one number, got {value!r}: pass, for example, "
        "scheduler.get_last_lr()[0]"
    )


def alpha_gradient(
    weights: Sequence[Tensor],
    alphas: Sequence[Tensor],
    train_loss: Loss,
    valid_loss: Loss,
    virtual: VirtualStep | None,
    *,
    buffers: Sequence[Tensor] = (),
    r: float = 0.01,
    method: str = "finite_difference",
    average: Average | None = None,
) -> Gradient:
    """Return the gradient of the validation loss by the alphas; nothing but random streams and buffers moves.

    Args:
        weights: the network's parameters.
        alphas: the architecture parameters.
        train_loss: closure returning the training loss; run at w, then at w + Rv and w - Rv. Or several whose
            losses add up to it, run one by one.
        valid_loss: the same of the validation loss; run at w (first order) or at w' (second).
        virtual: the virtual step, or None for first order (xi = 0).
        buffers: running statistics that the pass at w' must leave as they were; the other passes move
            them, as they moved the original's main model.
        r: length of the finite-difference step.
        method: ``finite_difference`` or ``exact`` (see :func:`dartsfast.bilevel.hvp`).
        average: of several processes that each have a part of the batches, returns means of vectors over all
            of them (:func:`dartsfast.ranks.average`): every gradient goes through it as soon as it is there,
            so that virtual step, vector, norms and result are those of the whole batches.

    Returns:
        One tensor an alpha; None where neither loss depends on it.

    Raises:
        DivergedError: a gradient that is not finite.
    """
    if virtual is None:
        return _finite(averaged(alphas, gradient(valid_loss, alphas, without=weights), average))
    flat = Flat(weights)
    step = flat.gather(gradient(train_loss, weights, without=alphas))
    if average is not None:
        step = average(step)
    factor = _clip_factor(norm(step), virtual.max_norm)
    with flat.preserved():
        _move_(flat, step, factor.clamp(max=1), weights, virtual)
        del step
        with preserved(buffers):
            found = gradient(valid_loss, [*weights, *alphas])
    vector, direct = flat.gather(found[: len(weights)]), averaged(alphas, found[len(weights) :], average)
    del found  # as large as the weights, and of no use in the passes to come
    if average is not None:
        vector = average(vector)
    implicit, length = product(train_loss, flat, vector, alphas, r, method, virtual.one_mask, average)
    if virtual.clamp:
        factor = factor.clamp(max=1)
    # The product is linear in its vector: what clips the one clips the other.
    factor = virtual.lr * factor * _clip_factor(length, virtual.vector_max_norm).clamp(max=1)
    total: Gradient = []
    for d, i in zip(direct, implicit, strict=True):
        if i is None:
            total.append(d)
        else:
            i = factor.to(i) * i
            total.append(-i if d is None else d - i)
    return _finite(total)


def _finite(gradients: Gradient) -> Gradient:
    """Return ``gradients``, else raise DivergedError: one NaN would stay in the alphas for ever.

    While a CUDA graph is recorded there is nothing to look at yet: the search looks at its losses.
    """
    if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
        return gradients
    if any(g is not None and not g.isfinite().all() for g in gradients):
        raise DivergedError(
            "the architecture gradient is not finite: the search has diverged. Lower the learning rate, "
            "or start again from an earlier checkpoint"
        )
    return gradients


def _clip_factor(length: Tensor, max_norm: float | None) -> Tensor:
    """Return max_norm / length, not clamped; 1 without a limit."""
    return torch.ones_like(length) if max_norm is None else max_norm / (length + 1e-6)


def _move_(
    flat: Flat, step: Sequence[Tensor], scale: Tensor, weights: Sequence[Tensor], virtual: VirtualStep
) -> None:
    """Move ``weights``, but those that stay still, by one step of their optimiser."""
    buffers: Sequence[Tensor | None] = [None] * len(step)
    if virtual.momentum_buffers is not None:
        buffers = flat.gather(virtual.momentum_buffers)
    still = [w for i, w in enumerate(weights) if i in virtual.still or not w.requires_grad]
    with preserved(still):
        at = flat.vectors()
        for w, g, buffer in zip(at, step, buffers, strict=True):
            fd_virtual_step_(w, g, buffer, scale.to(w), virtual.lr, virtual.momentum, virtual.weight_decay)
        flat.scatter(at)
