"""The launches of a program on grouped Triton kernels, in the making: what each touches, and for how long."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from math import prod
from typing import Any, NamedTuple

import torch
import triton.language as tl

from dartsfast.fused.forward import Setting
from dartsfast.fused.program import Instruction, Place, Program, Ref, Slot, in_place


class At(NamedTuple):
    """A place of the table: elements from the start of a slot, in units, and how many are touched there."""

    slot: int
    offset: int
    unit: int
    size: int


class Address(NamedTuple):
    """The number of a given tensor's address."""

    slot: int


class Region(NamedTuple):
    """A slot that holds partial results, in each of ``parts`` a row of numbers."""

    parts: int
    pixels: int  # of a part
    of: int  # pixels of all
    row: int  # numbers


def together(program: Program) -> tuple[Program, dict[Instruction, list[Instruction]]]:
    """Let a convolution with taps make what comes after it on an edge that reduces, and the edge's arrival.

    Return the program in which it does, and the halves of factorized reductions, in order, by the
    convolution that makes their gradients of the source.
    """
    sections = [list(section) for section in program.sections]
    later = [i for section in sections for i in section if in_place(i) or i.op == "add"]
    found: dict[Instruction, list[Instruction]] = {}
    gone: set[Instruction] = set()
    for section in sections:
        for k, conv in enumerate(section):
            dx = conv.writes[0]
            halves = [i for i in later if in_place(i) and dx and i.writes[0][0].slot == dx[0].slot]
            if conv.op != "branch_conv_backward" or not conv.reads[5] or conv.reads[8] or not halves:
                continue
            onto: tuple[Ref, ...] = ()
            for arrival in (i for i in later if i.op == "add" and i.reads[1] == dx):
                onto, dx = arrival.reads[0], arrival.writes[0]
                gone.add(arrival)
            gone.update(halves)
            section[k] = replace(conv, reads=(*conv.reads[:8], onto), writes=(dx, *conv.writes[1:]))
            found[section[k]] = halves
            section += [_of_weights(half) for half in halves if half.writes[2]]
    kept = [[i for i in section if i not in gone] for section in sections]
    return replace(program, sections=[section for section in kept if section]), found


def _of_weights(conv: Instruction) -> Instruction:
    """Return what a convolution does without the gradient of its source."""
    return replace(conv, reads=(*conv.reads[:7], (), ()), writes=((), *conv.writes[1:]))


class Launches:
    """Launches of a program, by section, and where its slots lie.

    Attributes:
        works: the launches (``dartsfast.kernels.grouped.Work``), rows still with :class:`At` and
            :class:`Address`.
        regions: what became of slots that other instructions add up.
        totals: where the gradient of a mixing weight goes to, by the place of its partial sums.
        read: the places of partial sums that a later instruction adds up.
        zeroed: returned slots that are zero where nothing is written.
        summed: returned slots that are gradients of convolutions' weights.
        sums: rows of the partial sums of those that are not yet added up.
        reduced: halves of factorized reductions, by the convolution that makes what they add to its gradient.
        pooled: image, half and stride of maxima, 0, and averages, 1, of windows, by their slot.
        counted: slots of means and variances that norms of this program read.
        places: where the taps are that maxima came from, by the slot of the maxima.
        narrowed: where else a sum is written, in half precision.
        bases: pools by the slot of a gradient that nothing else reads than a convolution with taps: it makes
            that itself. Not in float64, for which registers would not do.
        skips: weights of operations that are their source, by the gradient that holds nothing else, to which
            pools add theirs: their kernel makes it.
    """

    def __init__(self, program: Program, setting: Setting) -> None:
        # Not in float64, for which registers would not do.
        self.program, self.reduced = (program, {}) if setting.dtype == torch.float64 else together(program)
        self.setting = setting
        self.slots = list(program.slots)
        self.itemsize = torch.finfo(setting.dtype).bits // 8
        self.sizes: dict[int, int] = {}
        self.regions: dict[int, Region] = {}
        self.totals: dict[tuple[int, int], Ref] = {}
        self.zeroed: set[int] = set()
        self.summed: set[int] = set()
        self.sums: list[tuple[At, At, int, int]] = []
        self.places: dict[int, At] = {}
        self.pools = self._all("pool3x3_backward")
        self.pooled = {
            z.slot: (i.reads[0][0], half, i.numbers[0])
            for i in self._all("pool3x3")
            for half, z in enumerate(i.writes[0])
        }
        self.counted = {ref.slot for i in self._all("norm_stats") for ref in i.reads[0]}
        sums = Counter(i.writes[0][0] for i in self._all("mixed_sum"))  # edge by edge they are not the last
        copies = [(i.reads[0][0], i.writes[0][0]) for i in self._all("copy")]
        self.narrowed = {image: to for image, to in copies if sums[image] == 1 and self.half(to)}
        pools = {pool.writes[0][0]: pool for pool in self.pools if self.itemsize < 8}
        self.bases = {dx.slot: pool for dx, pool in pools.items() if self._made_with_convolution(dx)}
        self.skips = {i.writes[0][0]: i.reads[2][0] for i in self._all("mixed_sum") if self._is_skip(i)}
        self.works: list[Any] = []
        self.spans: dict[int, tuple[int, int]] = {}
        self.read = {(ref.slot, ref.offset) for i in self._all("norm_stats_backward") for ref in i.reads[1]}
        self._section = 0
        self.accumulator = tl.float64 if setting.dtype == torch.float64 else tl.float32

    def _is_skip(self, i: Instruction) -> bool:
        """Whether a sum is the gradient of an operation that is its source, to which pools add theirs."""
        readers = [pool for pool in self.pools if pool.reads[4] == i.writes[0]]
        alone = len(i.reads[0]) == 1 and not i.reads[3]
        return alone and bool(readers) and i.reads[0] == readers[0].reads[0]

    def _all(self, op: str) -> list[Instruction]:
        return [i for section in self.program.sections for i in section if i.op == op]

    def _made_with_convolution(self, dx: Ref) -> bool:
        """Whether a convolution with taps adds to the gradient of a pool, which no one else reads."""
        readers = [conv for conv in self._all("branch_conv_backward") if dx in conv.reads[7]]
        return bool(readers) and bool(readers[0].reads[5]) and dx not in readers[0].writes[0]

    def half(self, ref: Ref) -> bool:
        """Whether a slot is stored in half precision."""
        return self.halved(ref.slot)

    def halved(self, slot: int) -> bool:
        """The same of its number."""
        dtype = self.slots[slot].dtype
        return dtype is not None and dtype == self.setting.storage != self.setting.dtype

    def scratch(self, size: int, unit: int = 1) -> At:
        """Return a place for ``size`` numbers of the launches of this section."""
        self.slots.append(Slot((size,), Place.TEMPORARY))
        return At(len(self.slots) - 1, 0, unit, size)

    def region(self, slot: int, rows: int, region: Region) -> None:
        """Let a slot hold ``rows`` rows of partial results, one after the other, instead of its numbers."""
        self.regions[slot] = region
        self.sizes[slot] = rows * region.parts * region.row

    def bytes_of(self, slot: int) -> int:
        """Return the bytes of a number of a slot."""
        return (self.slots[slot].dtype or self.setting.dtype).itemsize

    def add(self, work: Any, touched: Sequence[Any] | None = None) -> None:
        """Add a launch; slots that its rows name live at least until this section.

        ``touched``: the entries of the rows that it goes by, unless all.
        """
        work.options["ACC"] = self.accumulator
        self.works.append(work)
        entries = [entry for row in work.rows for entry in row]
        for entry in entries:
            if isinstance(entry, At) and self.slots[entry.slot].place == Place.TEMPORARY:
                self.spans[entry.slot] = self.spans.get(entry.slot, (self._section, 0))[0], self._section
        touched = entries if touched is None else touched
        places = {(e.slot, e.offset, e.size) for e in touched if isinstance(e, At)}
        work.bytes = sum(size * self.bytes_of(slot) for slot, _, size in places)
        weights = {e.slot for e in touched if isinstance(e, Address)}
        work.bytes += sum(prod(self.slots[slot].shape) * self.bytes_of(slot) for slot in weights)

    def build(
        self,
        plans: dict[str, tuple[Callable[..., Any], Callable[..., None]]],
        finish: Callable[[Launches], None],
    ) -> None:
        """Add the launches of all sections; ``plans``: what is equal within a launch, and how to add it."""
        for k, section in enumerate(self.program.sections):
            self._section = k
            for op, of_op in groupby(sorted(section, key=lambda i: i.op), key=lambda i: i.op):
                alike, plan = plans[op]
                groups: dict[Any, list[Instruction]] = {}
                for instruction in of_op:
                    groups.setdefault(alike(self, instruction), []).append(instruction)
                for group in groups.values():
                    plan(self, group)
        finish(self)
