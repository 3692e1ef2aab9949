"""What programs cost, counted before they run: bytes and operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from math import prod
from operator import attrgetter
from typing import NamedTuple

import torch

from dartsfast.fused.memory import in_use, refs
from dartsfast.fused.program import Instruction, Parts, Place, Program, Ref, in_place


class Cost(NamedTuple):
    """What an instruction costs.

    Attributes:
        read, written: bytes of the parts of slots that it reads and writes, each part once.
        operations: in floating point; a fused multiply-add is two, and taps beside the image count.
    """

    read: int
    written: int
    operations: int


def costs(program: Program, dtype: torch.dtype) -> Iterator[tuple[int, Instruction, Cost]]:
    """Yield every instruction's section, by number, itself, and its cost with arithmetic in ``dtype``."""
    needed = in_use(program)
    size = [(slot.dtype or dtype).itemsize for slot in program.slots]

    for number, section in enumerate(program.sections):
        for i in section:
            parts = _strided(i)

            def total(refs: Iterable[Ref], parts: dict[Ref, int] = parts) -> int:
                return sum(parts.get(ref, prod(ref.shape)) * size[ref.slot] for ref in set(refs))

            # What nobody reads has no memory: the operator leaves it out.
            written = (w for w in refs(i.writes) if w.slot in needed or _outlives(program, w))
            yield number, i, Cost(total(refs(i.reads)), total(written), OPERATIONS[i.op](i))


def _strided(i: Instruction) -> dict[Ref, int]:
    """Return the elements of images of which a convolution without taps leaves out what its stride does."""
    if i.op == "branch_conv" and not i.reads[2]:
        (x,), outputs, images = i.reads[0], i.writes[0], i.reads[0]
    elif i.op == "branch_conv_backward" and not i.reads[5]:
        (x,), outputs, images = i.reads[3], i.reads[0], i.reads[3]
        if in_place(i):
            images += i.writes[0]
    else:
        return {}
    return dict.fromkeys(images, prod(outputs[0].shape[:3]) * x.shape[3])


def _outlives(program: Program, ref: Ref) -> bool:
    return program.slots[ref.slot].place != Place.TEMPORARY


# Operations an element, the least that the formula takes.
_NORM = 2  # (x - mean) * rstd
_MOMENTS = 4  # a sum, then a sum of squared differences
_GRADIENT = 4  # k * ((g - m) - (z - mu) * r)


def _elements(parts: Iterable[Ref]) -> int:
    return sum(prod(ref.shape) for ref in parts)


def _convolutions(
    images: Iterable[Ref], depthwise: Iterable[Ref], pointwise: Iterable[Ref]
) -> tuple[int, int]:
    """Return the operations of all depthwise and of all pointwise convolutions that make ``images``."""
    pixels = [prod(image.shape[:3]) for image in images]
    taps = sum(2 * n * prod(w.shape) for n, w in zip(pixels, depthwise, strict=False))
    return taps, sum(2 * n * prod(w.shape) for n, w in zip(pixels, pointwise, strict=True))


def _branch_conv(i: Instruction) -> int:
    x, norm, depthwise, pointwise = i.reads
    z, _ = i.writes
    normed = _NORM * _elements(x) if norm else 0
    return normed + sum(_convolutions(z, depthwise, pointwise)) + _MOMENTS * _elements(z)


def _branch_conv_backward(i: Instruction) -> int:
    g, _, _, x, norm, depthwise, pointwise, base, onto = i.reads
    dx, d_depthwise, d_pointwise, means = i.writes
    taps, products = _convolutions(g, depthwise, pointwise)
    found = _GRADIENT * _elements(g) + _elements([*base, *onto])
    if norm:
        found += (_NORM + 3 * bool(means)) * _elements(x)
    if dx or d_depthwise:
        found += products  # the adjoint, which gives the gradient of what is between the two convolutions
    if dx:
        found += taps
    if d_pointwise:
        found += products + taps  # of what is between them, made again
    return found + (taps if d_depthwise else 0)


def _pool3x3(i: Instruction) -> int:
    z, _ = i.writes
    return (9 + _MOMENTS) * _elements(z)


def _pool3x3_backward(i: Instruction) -> int:
    g, z, _, _, base, skip = i.reads
    remade = 0 if z else 9
    return (
        sum(i.numbers[1:]) * (9 + remade + _GRADIENT) * _elements(g)
        + _elements(base)
        + 2 * len(skip) * _elements(g)
    )


def _mixed_sum(i: Instruction) -> int:
    z, _, _, base = i.reads
    return (_NORM + 2) * _elements(z) + _elements(base)


def _mixed_sum_backward(i: Instruction) -> int:
    g, z, _ = i.reads
    return (_NORM + 2) * _elements(z) + _elements(g)


OPERATIONS: dict[str, Callable[[Instruction], int]] = {
    "branch_conv": _branch_conv,
    "branch_conv_backward": _branch_conv_backward,
    "pool3x3": _pool3x3,
    "pool3x3_backward": _pool3x3_backward,
    "mixed_sum": _mixed_sum,
    "mixed_sum_backward": _mixed_sum_backward,
    "norm_stats": lambda i: 4 * _elements(i.reads[0]),
    "norm_stats_backward": lambda i: _elements(i.writes[0]),
    "add": lambda i: _elements(i.writes[0]),
    "zero": lambda i: 0,
    "copy": lambda i: 0,
    "concatenate": lambda i: 0,
}
"""Operations of an instruction, by operator."""


def words(program: Program, parts: Parts) -> str:
    """Name what an instruction reads or writes, argument by argument.

    A slot is a letter for its place (given, kept, temporary, returned) and its number; of one that is used in
    part also the shape of that, and where it begins or how many there are.
    """
    return "; ".join(", ".join(_argument(program, part)) for part in parts if part)


def _argument(program: Program, part: Iterable[Ref]) -> Iterator[str]:
    for number, group in groupby(part, key=attrgetter("slot")):
        slot, refs = program.slots[number], list(group)
        name = f"{slot.place.name[0].lower()}{number}"
        shape = "x".join(map(str, refs[0].shape)) or "1"
        if len(refs) > 1:
            yield f"{name}[{len(refs)} of {shape}]"
        elif refs[0].shape != slot.shape:
            yield f"{name}[{shape} at {refs[0].offset}]"
        else:
            yield name
