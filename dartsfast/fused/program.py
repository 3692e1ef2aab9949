"""What a cell computes, as data: instructions over numbered slots, in sections, without tensors.

The instructions are the fused operators and some lines of arithmetic; what each reads and writes is written
down at its function here, in the order of the operator's own arguments. The instructions of a section do not
depend on each other. Images are [N, H, W, C].
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from math import prod
from typing import NamedTuple

import torch


class Place(IntEnum):
    """Where a slot lies: in a tensor that is given or returned, or in memory of the program's own."""

    GIVEN = 0
    KEPT = 1  # until the backward is done
    TEMPORARY = 2
    RETURNED = 3


class Slot(NamedTuple):
    """A tensor of a program; ``dtype`` None: that of the arithmetic."""

    shape: tuple[int, ...]
    place: Place
    dtype: torch.dtype | None = None


class Ref(NamedTuple):
    """A slot, or a part of one: strides and offset are in elements of the slot as a dense tensor."""

    slot: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int = 0

    def row(self, i: int) -> Ref:
        """Return the part ``[i]``."""
        return Ref(self.slot, self.shape[1:], self.stride[1:], self.offset + i * self.stride[0])

    def rows(self) -> tuple[Ref, ...]:
        """Return every part ``[i]``."""
        return tuple(self.row(i) for i in range(self.shape[0]))

    def channels(self, begin: int, end: int) -> Ref:
        """Return the part ``[..., begin:end]``."""
        return self._replace(
            shape=(*self.shape[:-1], end - begin), offset=self.offset + begin * self.stride[-1]
        )

    def shifted(self) -> Ref:
        """Return the image without its first row and column, ``[:, 1:, 1:]``."""
        N, H, W, C = self.shape
        return self._replace(shape=(N, H - 1, W - 1, C), offset=self.offset + self.stride[1] + self.stride[2])


Refs = Sequence[Ref]
Parts = tuple[tuple[Ref, ...], ...]


@dataclass(frozen=True)
class Instruction:
    """One operator's work: ``reads`` and ``writes`` hold a tuple an argument, empty where there is none."""

    op: str
    reads: Parts
    writes: Parts
    numbers: tuple[int, ...] = ()


@dataclass
class Program:
    """Slots, and the sections of instructions on them; ``given`` and ``returned`` are slots in order."""

    slots: list[Slot] = field(default_factory=list)
    sections: list[list[Instruction]] = field(default_factory=list)
    given: list[int] = field(default_factory=list)
    returned: list[int] = field(default_factory=list)

    def new(self, shape: Sequence[int], place: Place, dtype: torch.dtype | None = None) -> Ref:
        """Add a slot."""
        shape = tuple(shape)
        self.slots.append(Slot(shape, place, dtype))
        number = len(self.slots) - 1
        if place == Place.GIVEN:
            self.given.append(number)
        elif place == Place.RETURNED:
            self.returned.append(number)
        return self.whole(number)

    def whole(self, number: int) -> Ref:
        """Return a slot as a dense tensor."""
        shape = self.slots[number].shape
        return Ref(number, shape, tuple(prod(shape[i + 1 :]) for i in range(len(shape))))

    def section(self, instructions: Sequence[Instruction]) -> None:
        """Add instructions that do not depend on each other."""
        if instructions:
            self.sections.append(list(instructions))

    def prune(self) -> None:
        """Leave out what only writes temporary slots that nothing reads."""
        wanted = {number for number, slot in enumerate(self.slots) if slot.place != Place.TEMPORARY}
        for section in reversed(self.sections):
            section[:] = [i for i in section if any(ref.slot in wanted for part in i.writes for ref in part)]
            wanted |= {ref.slot for i in section for part in i.reads for ref in part}
        self.sections = [section for section in self.sections if section]


def branch_conv(
    x: Ref, norm: Ref | None, depthwise: Refs, pointwise: Refs, dilation: Sequence[int], stride: int,
    relu: bool, z: Refs, stats: Refs,
) -> Instruction:  # fmt: skip
    """Return z [N, Ho, Wo, Co] and stats [2, Co] of every branch."""
    reads = ((x,), _maybe(norm), tuple(depthwise), tuple(pointwise))
    return Instruction("branch_conv", reads, (tuple(z), tuple(stats)), (stride, relu, *dilation))


def pool3x3(x: Ref, stride: int, z: Refs, stats: Refs) -> Instruction:
    """Return z [N, Ho, Wo, C] and stats [2, C] of maximum and average, but of a half that nothing reads."""
    return Instruction("pool3x3", ((x,),), (tuple(z), tuple(stats)), (stride,))


def norm_stats(
    mean: Refs, variance: Refs, moved: Sequence[Refs], momentum: float | None, eps: float, pixels: int,
    norm: Refs,
) -> Instruction:  # fmt: skip
    """Return norm [2, C] from mean and variance [C] of each; ``moved``: running mean, variance, batches."""
    share = float("nan") if momentum is None else momentum
    writes = (tuple(norm), *(tuple(refs) for refs in moved))
    return Instruction(
        "norm_stats", (tuple(mean), tuple(variance)), writes, (pixels, as_integer(share), as_integer(eps))
    )


def mixed_sum(
    z: Refs, norm: Refs, weights: Refs, base: Ref | None, out: Ref, edges: Sequence[int]
) -> Instruction:
    """Return out = base + sum of w * (z - mean) * rstd; ``edges``: how many branches each adds."""
    reads = (tuple(z), tuple(norm), tuple(weights), _maybe(base))
    return Instruction("mixed_sum", reads, ((out,),), tuple(edges))


def mixed_sum_backward(
    g: Ref, z: Refs, norm: Refs, d_weights: Refs, g_mean: Ref, g_zhat_mean: Refs, edges: Sequence[int]
) -> Instruction:
    """Return d_weights [] and the mean of g * zhat [C] of every branch, and the mean of g [C]."""
    writes = (tuple(d_weights), (g_mean,), tuple(g_zhat_mean))
    return Instruction("mixed_sum_backward", ((g,), tuple(z), tuple(norm)), writes, tuple(edges))


def norm_stats_backward(
    g_mean: Refs, g_zhat_mean: Refs, norm: Refs, weights: Refs, own: Sequence[bool], coef: Refs
) -> Instruction:
    """Return coef [4, C] of every norm; ``own``: whether the batch's mean and variance made it."""
    reads = (tuple(g_mean), tuple(g_zhat_mean), tuple(norm), tuple(weights))
    return Instruction("norm_stats_backward", reads, (tuple(coef),), tuple(own))


def branch_conv_backward(
    g: Refs, z: Refs, coef: Refs, x: Ref, norm: Ref | None, depthwise: Refs, pointwise: Refs,
    dilation: Sequence[int], stride: int, relu: bool, base: Ref | None, onto: Ref | None,
    dx: Ref | None, d_depthwise: Refs, d_pointwise: Refs, means: Refs,
) -> Instruction:  # fmt: skip
    """Return dx = onto + (base + gradient of x), weights' gradients, and with a norm two means [C] of it."""
    reads = (
        tuple(g), tuple(z), tuple(coef), (x,), _maybe(norm), tuple(depthwise), tuple(pointwise),
        _maybe(base), _maybe(onto),
    )  # fmt: skip
    writes = (_maybe(dx), tuple(d_depthwise), tuple(d_pointwise), tuple(means))
    return Instruction("branch_conv_backward", reads, writes, (stride, relu, *dilation))


def pool3x3_backward(
    g: Ref, z: Refs, coef: Refs, halves: Collection[int], x: Ref, stride: int, base: Ref | None, dx: Ref,
    skip: Ref | None = None,
) -> Instruction:  # fmt: skip
    """Return dx = base + skip * g + gradient of x; coef [4, C] of maximum and average.

    ``halves``: which of them, 0 and 1, there are; the coef of another is 0. Without z they are made again.
    ``skip``: the weight of an operation that is its source.
    """
    reads = ((g,), tuple(z), tuple(coef), (x,), _maybe(base), _maybe(skip))
    return Instruction("pool3x3_backward", reads, ((dx,),), (stride, 0 in halves, 1 in halves))


def add(a: Ref, b: Ref, out: Ref) -> Instruction:
    """Return out = a + b."""
    return Instruction("add", ((a,), (b,)), ((out,),))


def zero(out: Ref) -> Instruction:
    """Return out = 0."""
    return Instruction("zero", (), ((out,),))


def concatenate(images: Refs, out: Ref) -> Instruction:
    """Return images side by side, by channels."""
    return Instruction("concatenate", (tuple(images),), ((out,),))


def copy(x: Ref, out: Ref) -> Instruction:
    """Return out = x, in the dtype of out."""
    return Instruction("copy", ((x,),), ((out,),))


def as_integer(number: float) -> int:
    """Return the bits of a float64."""
    return struct.unpack("<q", struct.pack("<d", number))[0]


def as_float(bits: int) -> float:
    """Undo :func:`as_integer`."""
    return struct.unpack("<d", struct.pack("<q", bits))[0]


def in_place(i: Instruction) -> bool:
    """Whether only pixels that a convolution without taps reads get a gradient, on top of what is there."""
    if i.op != "branch_conv_backward":
        return False
    depthwise, base, onto = i.reads[5], *i.reads[7:]
    return bool(onto) and onto == i.writes[0] and not base and not depthwise


def _maybe(ref: Ref | None) -> tuple[Ref, ...]:
    return () if ref is None else (ref,)
