"""A program as numbers, and the CPU's runner of those (``csrc/ops/program.cpp``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from dartsfast.constants import plain
from dartsfast.fused.forward import Setting
from dartsfast.fused.memory import Arenas, arenas
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
    "concatenate",
)

torch.library.define("dartsfast::run_program", "(Tensor code, Tensor(a!)[] given, Tensor[] kept) -> Tensor[]")


class Native:
    """Runs a program in one call, on arenas that are laid out beforehand."""

    def __init__(self, program: Program, setting: Setting) -> None:
        self.arenas = arenas(program)
        self._returned = len(program.returned)
        numbers = [int(setting.dtype == torch.float64), *_encoded(program, self.arenas)]
        with plain():
            self.code = torch.tensor(numbers, dtype=torch.int64)

    def run(self, given: Sequence[Tensor], kept: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return a program's tensors and its arena, from what it is given and its forward's arena."""
        found = torch.ops.dartsfast.run_program(self.code, given, kept)
        return found[: self._returned], found[self._returned :]


def _encoded(program: Program, memory: Arenas) -> Iterator[int]:
    """Yield the numbers after the dtype."""
    yield memory.kept_size
    yield memory.temporary_size
    yield len(program.given)
    for number in program.given:
        slot = program.slots[number]
        yield _elements(slot.shape)
        yield int(slot.dtype == torch.int64)
    yield len(program.returned)
    for number in program.returned:
        shape = program.slots[number].shape
        yield from (len(shape), *shape)
    places = _Places(program, memory)
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

    def __init__(self, program: Program, memory: Arenas) -> None:
        given, returned = len(program.given), len(program.returned)
        self._found = {slot: (k, 0) for k, slot in enumerate(program.given)}
        self._found |= {slot: (given + k, 0) for k, slot in enumerate(program.returned)}
        self._found |= {slot: (given + returned, offset) for slot, offset in memory.kept.items()}
        self._found |= {slot: (given + returned + 1, offset) for slot, offset in memory.temporary.items()}

    def encoded(self, ref: Ref) -> Iterator[int]:
        """Yield memory, offset, dimensions, and size and stride of each; -1 for what nobody reads."""
        if ref.slot not in self._found:
            yield -1
            return
        memory, offset = self._found[ref.slot]
        yield from (memory, offset + ref.offset, len(ref.shape))
        for size, stride in zip(ref.shape, ref.stride, strict=True):
            yield from (size, stride)


def _elements(shape: Sequence[int]) -> int:
    count = 1
    for n in shape:
        count *= n
    return count
