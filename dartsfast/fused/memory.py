"""Lifetimes of a program's slots, and where they lie: in what is kept, in what is temporary, or in what is
returned as long as nothing has been written there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import inf, prod
from typing import NamedTuple

import torch

from dartsfast.backends.table import STORAGE_DTYPES
from dartsfast.fused.program import Place, Program, Ref

ALIGNMENT = 64  # elements: a cache line of any dtype, and whole registers


def refs(parts: tuple[tuple[Ref, ...], ...]) -> Iterator[Ref]:
    """Yield every part's refs."""
    for part in parts:
        yield from part


# What of an operator's writes needs no memory where nothing reads it, by argument.
_OPTIONAL = {
    "branch_conv": (1,),
    "pool3x3": (0, 1),
    "branch_conv_backward": (1, 2, 3),
    "mixed_sum_backward": (0, 1, 2),
}


# What may be made where its arguments are: with the section before.
_EARLY = ("norm_stats", "norm_stats_backward")


def in_use(program: Program) -> set[int]:
    """Return the slots that need memory: those that are read, or that an operator writes in any case."""
    found: set[int] = set()
    for section in program.sections:
        for i in section:
            found |= {ref.slot for ref in refs(i.reads)}
            optional = _OPTIONAL.get(i.op, ())
            found |= {ref.slot for k, part in enumerate(i.writes) if k not in optional for ref in part}
    return found


def lifetimes(program: Program) -> dict[int, tuple[int, int]]:
    """Return the first section that writes and the last that uses each temporary slot that needs memory."""
    wanted = in_use(program)
    found: dict[int, tuple[int, int]] = {}
    for k, section in enumerate(program.sections):
        for instruction in section:
            early = set(refs(instruction.writes)) if instruction.op in _EARLY else ()
            for ref in (*refs(instruction.reads), *refs(instruction.writes)):
                if program.slots[ref.slot].place == Place.TEMPORARY and ref.slot in wanted:
                    first = k - 1 if k and ref in early else k
                    found[ref.slot] = found.get(ref.slot, (first, k))[0], k
    return found


def untouched(program: Program) -> dict[int, int]:
    """Return how many sections run before anything is in each returned slot."""
    found: dict[int, int] = {}
    for k, section in enumerate(program.sections):
        for i in section:
            for ref in (*refs(i.reads), *refs(i.writes)):
                if program.slots[ref.slot].place == Place.RETURNED:
                    found.setdefault(ref.slot, max(k - 1, 0) if i.op in _EARLY else k)
    return found


def last_reads(program: Program) -> dict[int, list[int]]:
    """Return the temporary slots that nothing uses after a section, by section."""
    found: dict[int, list[int]] = {}
    for slot, (_, last) in lifetimes(program).items():
        found.setdefault(last, []).append(slot)
    return found


class Bytes(NamedTuple):
    """What a program keeps for the backward, and what it needs besides while it runs."""

    kept: int
    temporary: int


@dataclass
class Arenas:
    """Offsets of slots of one dtype in elements, and the elements of both arenas.

    ``lent``: returned slot and offset of temporary slots that are done with before anything is written there.
    """

    kept: dict[int, int]
    temporary: dict[int, int]
    lent: dict[int, tuple[int, int]]
    kept_size: int
    temporary_size: int


def halves(program: Program) -> torch.dtype | None:
    """Return the dtype of 16 bits that some of a program's own slots have; None: there are none."""
    own = (slot.dtype for slot in program.slots if slot.place in (Place.KEPT, Place.TEMPORARY))
    return next((dtype for dtype in own if dtype in STORAGE_DTYPES), None)


def arenas(program: Program, halved: torch.dtype | None = None) -> Arenas:
    """Lay out a program's own slots: kept ones side by side, temporary ones where none that lives lies.

    A slot takes the lowest gap that is large enough, the largest slot of a section first; in a returned
    tensor if there is one.

    Args:
        program: the program.
        halved: the slots are those of this dtype of 16 bits; None: those of the arithmetic's.
    """
    chosen = [(slot.dtype if slot.dtype in STORAGE_DTYPES else None) == halved for slot in program.slots]
    kept: dict[int, int] = {}
    kept_size = 0
    for number, slot in enumerate(program.slots):
        if slot.place == Place.KEPT and chosen[number]:
            kept[number] = kept_size
            kept_size += _size(slot.shape)
    spans = {number: span for number, span in lifetimes(program).items() if chosen[number]}
    sizes = {slot: prod(program.slots[slot].shape) for slot in spans}
    lent = {} if halved else _lent(program, spans, sizes)
    temporary, size = packed({slot: span for slot, span in spans.items() if slot not in lent}, sizes)
    return Arenas(kept, temporary, lent, kept_size, size)


def _lent(
    program: Program, spans: Mapping[int, tuple[int, int]], sizes: Mapping[int, int]
) -> dict[int, tuple[int, int]]:
    """Return which temporary slots lie in which returned slot, and where."""
    found: dict[int, tuple[int, int]] = {}
    for returned, until in untouched(program).items():
        room = prod(program.slots[returned].shape)
        fit = {
            s: span for s, span in spans.items() if s not in found and span[1] < until and sizes[s] <= room
        }
        offsets, _ = packed(fit, sizes, room)
        found |= {slot: (returned, offset) for slot, offset in offsets.items()}
    return found


def packed(
    spans: Mapping[int, tuple[int, int]], sizes: Mapping[int, int], room: float = inf
) -> tuple[dict[int, int], int]:
    """Return offsets of what lives from a first to a last section, and the elements of all.

    What does not fit into a ``room`` of so many elements is left out.
    """
    alive: list[tuple[int, int, int]] = []  # offset, end, last section
    found: dict[int, int] = {}
    size = 0
    for number in sorted(spans, key=lambda slot: (spans[slot][0], -sizes[slot])):
        first, last = spans[number]
        alive = sorted(one for one in alive if one[2] >= first)
        offset, wanted = 0, aligned(sizes[number])
        for begin, end, _ in alive:
            if begin - offset >= wanted:
                break
            offset = end
        if offset + sizes[number] > room:
            continue
        found[number] = offset
        alive.append((offset, offset + wanted, last))
        size = max(size, offset + wanted)
    return found, size


def aligned(size: int) -> int:
    """Return the elements that so many take."""
    return (size + ALIGNMENT - 1) // ALIGNMENT * ALIGNMENT


def _size(shape: tuple[int, ...]) -> int:
    return aligned(prod(shape))
