"""The architecture gradient, first and second order, without a copy of the model.

Second order (paper equations 6 to 8), with c the clip factor of the virtual step:

    w' = w - lr * (momentum * buffer + c * dL_train/dw + weight_decay * w)
    gradient = dL_val(w')/dalpha - lr * c * d2L_train/(dalpha dw) . dL_val(w')/dw'
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dartsfast.bilevel.guard import gradient, preserved
from dartsfast.bilevel.hvp import hvp
from dartsfast.errors import DivergedError

Loss = Callable[[], Tensor]
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
        still: indices of weights that the virtual step leaves where they are.
        vector_max_norm: clip the validation gradient, the vector of the product, to this norm.
        one_mask: both finite-difference passes draw the same random numbers.
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
) -> Gradient:
    """Return the gradient of the validation loss by the alphas; nothing but random streams and buffers moves.

    Args:
        weights: the network's parameters.
        alphas: the architecture parameters.
        train_loss: closure returning the training loss; run at w, then at w + Rv and w - Rv.
        valid_loss: closure returning the validation loss; run at w (first order) or at w' (second).
        virtual: the virtual step, or None for first order (xi = 0).
        buffers: running statistics that the pass at w' must leave as they were; the other passes move
            them, as they moved the original's main model.
        r: length of the finite-difference step.
        method: ``finite_difference`` or ``exact`` (see :func:`dartsfast.bilevel.hvp`).

    Returns:
        One tensor an alpha; None where neither loss depends on it.

    Raises:
        DivergedError: a gradient that is not finite.
    """
    if virtual is None:
        return _finite(gradient(valid_loss, alphas, without=weights))
    found = gradient(train_loss, weights, without=alphas)
    gradients = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=True)]
    coefficient = _clip_(gradients, virtual.max_norm)
    if virtual.clamp:
        coefficient = min(coefficient, 1.0)
    with preserved(weights):
        _move_(weights, gradients, virtual)
        del gradients, found
        with preserved(buffers):
            found = gradient(valid_loss, [*weights, *alphas])
    vector = [torch.zeros_like(w) if g is None else g for w, g in zip(weights, found, strict=False)]
    direct = found[len(weights) :]
    _clip_(vector, virtual.vector_max_norm)
    implicit = hvp(train_loss, weights, vector, alphas, r, method, same_randomness=virtual.one_mask)
    factor = virtual.lr * coefficient
    total: Gradient = []
    for d, i in zip(direct, implicit, strict=True):
        if d is None:  # neither loss sees this alpha, or the training loss alone does
            total.append(-factor * i if i.any() else None)
        else:
            total.append(d - factor * i)
    return _finite(total)


def _finite(gradients: Gradient) -> Gradient:
    """Return ``gradients``, else raise DivergedError: one NaN would stay in the alphas for ever."""
    if any(g is not None and not g.isfinite().all() for g in gradients):
        raise DivergedError(
            "the architecture gradient is not finite: the search has diverged. Lower the learning rate, "
            "or start again from an earlier checkpoint"
        )
    return gradients


def _clip_(gradients: Sequence[Tensor], max_norm: float | None) -> float:
    """Scale ``gradients`` in place to ``max_norm`` if longer; return max_norm / norm, not clamped."""
    if max_norm is None:
        return 1.0
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(g) for g in gradients]))
    coefficient = (max_norm / (norm + 1e-6)).item()
    if coefficient < 1:
        for grad in gradients:
            grad.mul_(coefficient)
    return coefficient


@torch.no_grad()
def _move_(weights: Sequence[Tensor], gradients: Sequence[Tensor], virtual: VirtualStep) -> None:
    for index, (weight, grad) in enumerate(zip(weights, gradients, strict=True)):
        if index in virtual.still:
            continue
        step = grad + virtual.weight_decay * weight
        if virtual.momentum_buffers is not None:
            step += virtual.momentum * virtual.momentum_buffers[index]
        weight.sub_(step, alpha=virtual.lr)
