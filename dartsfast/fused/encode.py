"""A program as numbers, and the runner in C++ of those (``csrc/ops/program.cpp``)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from dartsfast.constants import plain
from dartsfast.fused.forward import Setting
from dartsfast.fused.memory import Arenas, Bytes, arenas, halves, refs
from dartsfast.fused.program import Program, Ref

# In the order of csrc/ops/program.h.
_OPS = (
    "branch_conv",
    "pool3x3",
    "norm_stats",
    "mixed_sum",
    "mixed_sum_backward",
    "norm_stats_backward",
    "branch_conv_backward",
    "pool3x3_backward",
    "add",
    "zero",
    "copy",
)

# In the order of csrc/ops/program.cpp.
_DTYPES = (torch.float32, torch.float64, torch.int64, torch.bfloat16, torch.float16)
_UNREAD = -1

torch.library.define("dartsfast::run_program", "(Tensor code, Tensor(a!)[] given, Tensor[] kept) -> Tensor[]")


class Native:
    """Runs a program in one call, on arenas that are laid out beforehand."""

    works = ()

    def __init__(self, program: Program, setting: Setting) -> None:
        self.program = program
        half = halves(program)
        stored = [None] if half is None else [None, half]
        self.arenas = {dtype or setting.dtype: arenas(program, dtype) for dtype in stored}
        self.memory = Bytes(
            sum(found.kept_size * dtype.itemsize for dtype, found in self.arenas.items()),
            sum(found.temporary_size * dtype.itemsize for dtype, found in self.arenas.items()),
        )
        self._returned = len(program.returned)
        numbers = [_DTYPES.index(setting.dtype), *_encoded(program, setting.dtype, self.arenas)]
        with plain():
            self.code = torch.tensor(numbers, dtype=torch.int64)

    def run(self, given: Sequence[Tensor], kept: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return a program's tensors and its arena, from what it is given and its forward's arena."""
        found = torch.ops.dartsfast.run_program(self.code, given, kept)
        return found[: self._returned], found[self._returned :]


def _encoded(program: Program, dtype: torch.dtype, memory: Mapping[torch.dtype, Arenas]) -> Iterator[int]:
    """Yield the numbers after the dtype."""
    parts = (part for section in program.sections for i in section for part in (*i.reads, *i.writes))
    used = {ref.slot for ref in refs(tuple(parts))}
    yield len(program.given)
    for number in program.given:
        slot = program.slots[number]
        yield prod(slot.shape)
        # In the place of an input that only a forward reads, its backward may be given another tensor.
        known = slot.dtype if slot.dtype in _DTYPES else dtype  # of any other the runner says so
        yield _DTYPES.index(known) if number in used else _UNREAD
    yield len(program.returned)
    for number in program.returned:
        shape = program.slots[number].shape
        yield from (len(shape), *shape)
    yield len(memory)
    for stored, found in memory.items():
        yield from (_DTYPES.index(stored), found.kept_size, found.temporary_size)
    places = _Places(program, memory.values())
    yield len(program.sections)
    for section in program.sections:
        yield len(section)
        for instruction in section:
            yield _OPS.index(instruction.op)
            for side in (instruction.reads, instruction.writes):
                yield len(side)
                for part in side:
                    yield len(part)
                    for ref in part:
                        yield from places.encoded(ref)
            yield from (len(instruction.numbers), *map(int, instruction.numbers))


class _Places:
    """Where slots lie: the number of their memory and their offset in it."""

    def __init__(self, program: Program, memory: Iterable[Arenas]) -> None:
        given, returned = len(program.given), len(program.returned)
        self._found = {slot: (k, 0) for k, slot in enumerate(program.given)}
        self._found |= {slot: (given + k, 0) for k, slot in enumerate(program.returned)}
        memory = list(memory)
        self._found |= {
            slot: (self._found[returned][0], offset)
            for found in memory
            for slot, (returned, offset) in found.lent.items()
        }
        own = [offsets for found in memory for offsets in (found.kept, found.temporary)]
        for k, offsets in enumerate(own, given + returned):
            self._found |= {slot: (k, offset) for slot, offset in offsets.items()}

    def encoded(self, ref: Ref) -> Iterator[int]:
        """Yield memory, offset, dimensions, and size and stride of each; -1 for what nobody reads."""
        if ref.slot not in self._found:
            yield -1
            return
        memory, offset = self._found[ref.slot]
        yield from (memory, offset + ref.offset, len(ref.shape))
        for size, stride in zip(ref.shape, ref.stride, strict=True):
            yield from (size, stride)
