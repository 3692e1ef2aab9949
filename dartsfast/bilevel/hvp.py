"""Mixed second derivative times a vector: the implicit term of the architecture gradient."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dartsfast.bilevel.guard import gradient, preserved, random_state, set_random_state
from dartsfast.errors import DivergedError, InputError

METHODS = ("finite_difference", "exact")


def hvp(
    loss_fn: Callable[[], Tensor],
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    wrt: Sequence[Tensor],
    r: float = 0.01,
    method: str = "finite_difference",
    *,
    same_randomness: bool = False,
) -> list[Tensor]:
    """Return d/d(wrt) of <d loss / d params, vector>.

    ``finite_difference`` takes the gradient at params + R v and at params - R v with
    R = ``r`` / ||v|| and returns (plus - minus) / 2R (paper equation 8): two passes, error O(R^2).
    Parameters are moved in place and restored to the bit. ``exact`` differentiates the gradient once
    more; the loss must be twice differentiable.

    Args:
        loss_fn: a closure that runs the network and returns the scalar loss.
        params: leaves that ``vector`` belongs to.
        vector: one tensor a parameter, same shapes.
        wrt: leaves to differentiate by, e.g. the alphas.
        r: length of the step along ``vector`` in parameter space.
        method: ``finite_difference`` or ``exact``.
        same_randomness: both passes draw the same random numbers (one dropout mask for the two).

    Returns:
        One tensor a member of ``wrt``, of its shape; zeros where the loss does not depend on it.

    Raises:
        InputError: unknown method, or a vector that does not fit.
        DivergedError: the vector is not finite.
    """
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    if [p.shape for p in params] != [v.shape for v in vector]:
        raise InputError(
            f"vector must hold one tensor a parameter, of its shape: {len(params)} parameters "
            f"{[tuple(p.shape) for p in params][:4]}..., {len(vector)} tensors "
            f"{[tuple(v.shape) for v in vector][:4]}..."
        )
    if method == "exact":
        return _exact(loss_fn, params, vector, wrt)
    norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(v) for v in vector]))
    if not torch.isfinite(norm):
        raise DivergedError(
            f"the vector of the Hessian-vector product has norm {norm.item()}: the loss it comes from has "
            "diverged. Lower the learning rate, or start again from an earlier checkpoint"
        )
    if norm == 0:  # nowhere to step: the product with the zero vector
        return [torch.zeros_like(a) for a in wrt]
    R = r / norm
    with preserved(params) as at:
        before = random_state()
        plus = _gradient_at(at, R, params, vector, loss_fn, wrt)
        if same_randomness:
            set_random_state(before)
        minus = _gradient_at(at, -R, params, vector, loss_fn, wrt)
    return [(p - m).div_(2 * R) for p, m in zip(plus, minus, strict=True)]


def _gradient_at(
    at: Sequence[Tensor],
    step: Tensor,
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    loss_fn: Callable[[], Tensor],
    wrt: Sequence[Tensor],
) -> tuple[Tensor, ...]:
    with torch.no_grad():
        for param, origin, v in zip(params, at, vector, strict=True):
            param.copy_(origin + step * v)
    found = gradient(loss_fn, wrt, without=params)
    return tuple(torch.zeros_like(a) if g is None else g for a, g in zip(wrt, found, strict=True))


def _exact(
    loss_fn: Callable[[], Tensor], params: Sequence[Tensor], vector: Sequence[Tensor], wrt: Sequence[Tensor]
) -> list[Tensor]:
    gradients = torch.autograd.grad(loss_fn(), params, create_graph=True, materialize_grads=True)
    product = sum((g * v).sum() for g, v in zip(gradients, vector, strict=True))
    return list(torch.autograd.grad(product, wrt, materialize_grads=True))  # type: ignore[arg-type]
