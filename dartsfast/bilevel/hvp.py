"""Mixed second derivative times a vector: the implicit term of the architecture gradient."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dartsfast.bilevel.flat import Flat, averaged, norm
from dartsfast.bilevel.guard import gradient, interruptible, preserved, random_state, set_random_state
from dartsfast.errors import DivergedError, InputError
from dartsfast.ops import fd_perturb_, fd_quotient
from dartsfast.ranks import Average

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
    buffers: Sequence[Tensor] = (),
) -> list[Tensor]:
    """Return d/d(wrt) of <d loss / d params, vector>.

    ``finite_difference`` takes the gradient at params + R v and at params - R v with
    R = ``r`` / ||v|| and returns (plus - minus) / 2R (paper equation 8): two passes, error O(R^2).
    Parameters are moved in place and restored to the bit; as one vector where
    :func:`~dartsfast.bilevel.flatten_` has laid them side by side. ``exact`` differentiates the gradient
    once more; the loss must be twice differentiable. The default random streams of torch and ``buffers``
    are restored too, all of it also where the loss raises; other generators, Python's and NumPy's are not.

    Args:
        loss_fn: a closure that runs the network and returns the scalar loss.
        params: leaves that ``vector`` belongs to, each once. Of half precision ``finite_difference`` warns:
            a step of the usual length is mostly rounded away.
        vector: one tensor a parameter, same shapes.
        wrt: leaves to differentiate by, e.g. the alphas.
        r: length of the step along ``vector`` in parameter space.
        method: ``finite_difference`` or ``exact``.
        same_randomness: both passes draw the same random numbers (one dropout mask for the two).
        buffers: what a pass moves and is to be put back, as batch norm's running statistics:
            ``list(model.buffers())``. A closure does not tell, so buffers that are not named stay moved.

    Returns:
        One tensor a member of ``wrt``, of its shape; zeros where the loss does not depend on it.

    Raises:
        InputError: unknown method, a step that is not positive and finite, a vector that does not fit, a
            parameter listed twice; for ``exact`` a loss that is differentiable once only, or a tensor that
            does not require a gradient.
        DivergedError: the vector is not finite.
    """
    params, vector, wrt = list(params), list(vector), list(wrt)
    if method not in METHODS:
        raise InputError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    if [p.shape for p in params] != [v.shape for v in vector]:
        raise InputError(
            f"vector must hold one tensor a parameter, of its shape: {len(params)} parameters "
            f"{[tuple(p.shape) for p in params][:4]}..., {len(vector)} tensors "
            f"{[tuple(v.shape) for v in vector][:4]}..."
        )
    if not 0 < r < math.inf:
        raise InputError(f"r, the length of the step, must be positive, got {r}")
    flat = Flat(params)
    if len({(p.data_ptr(), p.shape) for p in params if p.numel()}) < sum(p.numel() > 0 for p in params):
        raise InputError("params holds a parameter twice: list each once, with the sum of its vectors")
    before = random_state()
    try:
        with preserved(buffers):
            found, length = product(loss_fn, flat, flat.gather(vector), wrt, r, method, same_randomness)
    finally:
        set_random_state(before)
    if not length.isfinite():
        raise DivergedError(
            f"the vector of the Hessian-vector product has norm {length.item()}: the loss it comes from has "
            "diverged. Lower the learning rate, or start again from an earlier checkpoint"
        )
    return [torch.zeros_like(a) if g is None else g for a, g in zip(wrt, found, strict=True)]


def product(
    losses: Callable[[], Tensor] | Sequence[Callable[[], Tensor]],
    flat: Flat,
    v: Sequence[Tensor],
    wrt: Sequence[Tensor],
    r: float,
    method: str,
    same_randomness: bool,
    average: Average | None = None,
) -> tuple[list[Tensor | None], Tensor]:
    """Return what :func:`hvp` does for ``flat.tensors``, and the norm of the vector; wait for no device.

    Several ``losses`` are parts of a sum. ``v`` is the vector as ``flat`` gathers it, the same in all
    processes where ``average`` makes means over them. None is returned where the loss does not depend on a
    member of ``wrt``.
    """
    length = norm(v)
    _check_method(method, flat.tensors, wrt)
    if method == "exact":
        parts = [losses] if callable(losses) else losses
        exact = interruptible(lambda: _exact(parts, flat.tensors, flat.split(v), wrt))
        return averaged(wrt, exact, average), length

    def gradient_at(origin: list[Tensor], sign: int) -> list[Tensor | None]:
        at = flat.vectors()
        for w, w0, direction in zip(at, origin, v, strict=True):
            fd_perturb_(w, w0, direction, length.to(w), r, sign)
        flat.scatter(at)
        return averaged(wrt, gradient(losses, wrt, without=flat.tensors), average)

    with flat.preserved() as origin:
        before = random_state() if same_randomness else []
        plus = gradient_at(origin, 1)
        if same_randomness:
            set_random_state(before)
        minus = gradient_at(origin, -1)
    return _quotient(wrt, plus, minus, length, r), length


def _check_method(method: str, params: Sequence[Tensor], wrt: Sequence[Tensor]) -> None:
    small = {p.dtype for p in params} - {torch.float32, torch.float64}
    if method == "finite_difference" and small:
        warnings.warn(
            f"finite differences of {small.pop()} parameters: a step of the usual length is mostly rounded "
            "away. Keep the parameters in float32 (autocast does), use method='exact', or a larger r",
            stacklevel=4,
        )
    if method == "exact" and not all(t.requires_grad for t in (*params, *wrt)):
        raise InputError(
            "method='exact' differentiates by all of params and wrt, and one does not require a gradient: "
            "leave it out, or use method='finite_difference'"
        )


def _quotient(
    wrt: Sequence[Tensor],
    plus: Sequence[Tensor | None],
    minus: Sequence[Tensor | None],
    length: Tensor,
    r: float,
) -> list[Tensor | None]:
    flat = Flat(wrt)
    pairs = zip(flat.gather(plus), flat.gather(minus), strict=True)
    quotients = flat.split([fd_quotient(p, m, length.to(p), r) for p, m in pairs])
    found = zip(wrt, quotients, plus, minus, strict=True)
    return [None if p is None and m is None else q.to(a.dtype) for a, q, p, m in found]


def _exact(
    losses: Sequence[Callable[[], Tensor]],
    params: Sequence[Tensor],
    vector: Sequence[Tensor],
    wrt: Sequence[Tensor],
) -> list[Tensor | None]:
    first, *others = losses
    with torch.enable_grad():
        loss = sum((fn() for fn in others), first())
        gradients = torch.autograd.grad(loss, params, create_graph=True, materialize_grads=True)
        scalar = sum((g * v).sum() for g, v in zip(gradients, vector, strict=True))
    if not isinstance(scalar, Tensor) or not scalar.requires_grad:
        raise InputError(
            "method='exact' differentiates the gradient once more, and that of this loss has no derivative: "
            "use method='finite_difference', or backend='reference'"
        )
    return list(torch.autograd.grad(scalar, wrt, allow_unused=True))
