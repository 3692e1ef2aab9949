"""What the original's ``architect.py`` has and the ones here do without."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from dartsfast.errors import InputError

_STEPS = ("_compute_unrolled_model", "_construct_model_from_theta", "_hessian_vector_product")


def refuse_steps_of_the_original(architect: object) -> None:
    """Raise InputError where a subclass of an ``Architect`` has a step that nothing would ever call."""
    own = [name for name in _STEPS if hasattr(architect, name)]
    if own:
        raise InputError(
            f"{type(architect).__name__}.{own[0]} would never be called: no model is copied here. "
            "Override _backward_step_unrolled, which has the original's arguments, "
            "or use dartsfast.bilevel.alpha_gradient and hvp"
        )


def concat(tensors: Iterable[Tensor]) -> Tensor:
    """Return the elements of all tensors, one vector: ``_concat`` for scripts that import it."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def clip(gradients: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale ``gradients`` in place to an L2 norm of at most ``max_norm``: ``_clip`` for such scripts.

    Returns max_norm / norm, which is above 1 where nothing was scaled.
    """
    factor = max_norm / (torch.nn.utils.get_total_norm(gradients) + 1e-6)
    with torch.no_grad():
        torch._foreach_mul_(list(gradients), factor.clamp(max=1))
    return factor
