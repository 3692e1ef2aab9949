"""What the original's ``Architect`` has and the ones here do without."""

from __future__ import annotations

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
