"""Places of images and vectors as grouped kernels take them, and what of images must be alike."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from dartsfast.fused.launches import At, Launches
from dartsfast.fused.program import Instruction, Ref
from dartsfast.ops.contract import require

Group = Sequence[Instruction]


def steps(ref: Ref) -> tuple[int, ...]:
    """Return the strides of an image but the channels'."""
    return tuple(s if n > 1 else 0 for n, s in zip(ref.shape[:-1], ref.stride[:-1], strict=True))


def alike(refs: Sequence[Ref]) -> tuple[int, ...]:
    """Return the strides that images of one operator share."""
    found = {steps(ref) for ref in refs}
    require(len(found) == 1, f"images of one operator with strides {found}")
    return found.pop()


def pitch(ref: Ref) -> int:
    """Return what lies between the pixels of an image that are numbered through."""
    N, H, W, C = ref.shape
    pitch = ref.stride[2]
    numbered = ref.stride[:2] == (H * W * pitch, W * pitch) and ref.stride[3] == 1
    require(numbered, f"an image {ref.shape} with strides {ref.stride}")
    return pitch


def dense(ref: Ref) -> Ref:
    """Return an image whose pixels follow each other."""
    require(pitch(ref) == ref.shape[3], f"an image {ref.shape} with strides {ref.stride}")
    return ref


def at(ref: Ref, unit: int = 1) -> At:
    """Return the place of a tensor."""
    return At(ref.slot, ref.offset, unit, prod(ref.shape))


def sampled(ref: Ref, pixels: int, unit: int) -> At:
    """Return the place of an image of which so many pixels are touched."""
    return At(ref.slot, ref.offset, unit, pixels * ref.shape[-1])


def maybe(refs: Sequence[Ref], unit: int) -> At | None:
    """Return the place of the one, None for what is not there."""
    return at(refs[0], unit) if refs else None


def scaled(steps: Sequence[int], unit: int) -> tuple[int, ...]:
    """Return strides in units."""
    return tuple(step // unit for step in steps)


def pixels_of(ref: Ref) -> int:
    """Return how many pixels an image has."""
    return prod(ref.shape[:3])


def partial_row(plan: Launches, ref: Ref, unit: int) -> At:
    """Return the place of the partial results of a vector."""
    region = plan.regions[ref.slot]
    row, offset = divmod(ref.offset, region.row)
    return At(ref.slot, row * region.parts * region.row + offset, unit, region.parts * 2 * ref.shape[-1])


def narrowest(plan: Launches, refs: Sequence[Ref]) -> int:
    """Return the bytes of a number of the narrowest image."""
    return min(2 if plan.half(ref) else plan.itemsize for ref in refs)
