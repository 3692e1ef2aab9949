"""What the grouped kernels share: one launch does the work of an operator for many edges.

A program's images and statistics lie in few tensors, ``bases``, and those that are stored in half precision
in ``halves``. Where in them is written in a table, a row of int64 a piece of work; a kernel is given the
number of its first row's first entry. A place is two entries: the number of the base, or for halves that
number from -1 down, and the offset in units of elements. Where there is nothing the offset is negative.
Parameters and running statistics, which lie anywhere, are entries of a second table, of addresses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import triton
import triton.language as tl
from dartsfast.kernels.images import LARGEST_UNIT
from dartsfast.kernels.launch import launch
from torch import Tensor

Tensors = tuple[Tensor, ...]


@dataclass
class Work:
    """A launch to be: everything but the tables and bases, which come first.

    Attributes:
        kernel: a grouped kernel.
        grid: of programs.
        rows: of the table.
        arguments: those after the number of the first entry.
        options: constants, and what Triton takes.
        operations: in floating point, of all rows.
        rounds: trips to memory one after the other within a program.
        bytes: what it touches, each place once.
    """

    kernel: Any
    grid: tuple[int, ...]
    rows: list[Sequence[Any]]
    arguments: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)
    operations: int = 0
    rounds: int = 0
    bytes: int = 0

    def launch(
        self, table: Tensor, addresses: Tensor, bases: Tensors, halves: Tensors | None, start: int
    ) -> None:
        """Launch it; ``start``: the number of its first entry in the table."""
        launch(
            self.kernel, self.grid, table, addresses, bases, halves, start, *self.arguments, **self.options
        )


def units(*numbers: int) -> int:
    """Return the largest power of two, at most 16, that divides all."""
    return math.gcd(LARGEST_UNIT, *numbers)


@triton.jit
def base(bases, kind):
    """Return the base of a number, ``bases`` being a tuple."""
    found = bases[0]
    for i in tl.static_range(1, len(bases)):
        found = tl.where(kind == i, bases[i], found)
    return found


@triton.jit
def place(bases, halves, at, HALF: tl.constexpr, UNIT: tl.constexpr):
    """Return the pointer that two entries of the table stand for; ``HALF``: into halves."""
    kind = tl.load(at)
    if HALF:
        return base(halves, -1 - kind) + tl.load(at + 1) * UNIT
    else:
        return base(bases, kind) + tl.load(at + 1) * UNIT


@triton.jit
def there(at):
    """Whether a place is one."""
    return tl.load(at + 1) >= 0


@triton.jit
def loaded(bases, halves, at, offsets, inside, UNIT: tl.constexpr, ACC: tl.constexpr):
    """Return numbers of a place that is a base's or a half's: the table says which."""
    if halves is None:
        v = tl.load(place(bases, None, at, False, UNIT) + offsets, inside, 0.0).to(ACC)
    elif tl.load(at) < 0:
        v = tl.load(place(bases, halves, at, True, UNIT) + offsets, inside, 0.0).to(ACC)
    else:
        v = tl.load(place(bases, halves, at, False, UNIT) + offsets, inside, 0.0).to(ACC)
    return v


@triton.jit
def given(addresses, at, DTYPE: tl.constexpr):
    """Return the pointer that an entry of the table, the number of an address, stands for."""
    return tl.load(addresses + tl.load(at)).to(tl.pointer_type(DTYPE))
