"""The correctness gate: what is wrong is not timed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def disagreement(found: Sequence[Tensor], truth: Sequence[Tensor], tolerance: float) -> str | None:
    """Return None where every tensor of ``found`` is within ``tolerance`` of ``truth``, else what is not.

    Args:
        found: float32 or float64.
        truth: float64, of the same shapes.
        tolerance: bound on the largest error over the largest value of a tensor of ``truth``.
    """
    if len(found) != len(truth):
        return f"{len(found)} outputs instead of {len(truth)}"
    for number, (ours, theirs) in enumerate(zip(found, truth, strict=True)):
        if ours.shape != theirs.shape:
            return f"output {number} is {list(ours.shape)} instead of {list(theirs.shape)}"
        largest = theirs.abs().max().item()
        error = (ours.double() - theirs).abs().max().item()
        # Not <=: a NaN must not pass.
        if not error <= tolerance * (largest or 1.0):
            return f"output {number} is off by {error:.2g} where the largest value is {largest:.2g}"
    return None
