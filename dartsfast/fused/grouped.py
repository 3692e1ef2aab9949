"""Runs a program on the Triton kernels: a launch for all that is alike in a section.

Where the slots lie is written in a table that the device reads (``kernels/grouped.py``), made once. A pass
gives the launches nothing but the few tensors that slots lie in: two arenas, what is given and what is
returned.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from dartsfast.backends import triton
from dartsfast.constants import plain
from dartsfast.fused.forward import Setting
from dartsfast.fused.groups import PLANS
from dartsfast.fused.groups.backward import add_up
from dartsfast.fused.launches import Address, At, Launches
from dartsfast.fused.memory import Bytes, aligned, packed
from dartsfast.fused.program import Place, Program
from dartsfast.ops.contract import require


class Grouped:
    """Runs a program.

    Raises:
        InputError: images of 2^31 numbers and more.
    """

    def __init__(self, program: Program, setting: Setting) -> None:
        self.program, self.setting = program, setting
        plan = Launches(program, setting)
        plan.build(PLANS, add_up)
        self.works = plan.works
        self._halved = any(plan.halved(slot) for slot in range(len(plan.slots)))
        self._places(plan)
        self._table(plan)
        self._known: tuple[list[int], Tensor] | None = None

    def _places(self, plan: Launches) -> None:
        """Say where the slots lie: in bases, which are arenas, given and returned tensors, numbered."""
        slots, used = plan.slots, [e for work in plan.works for row in work.rows for e in row]
        named = sorted({entry.slot for entry in used if isinstance(entry, At)})
        for slot in named:
            shape = list(slots[slot].shape)
            require(
                prod(shape) < 2**31,
                f"the kernels index up to 2^31 elements, got {shape}: use a smaller batch",
            )
        number = {slot: k for k, slot in enumerate(plan.program.given)}
        self._addressed = {e.slot: number[e.slot] for e in used if isinstance(e, Address)}
        self._bases = [
            _Bases(plan, [s for s in named if plan.halved(s) == half], half) for half in (False, True)
        ]
        self._at = {**self._bases[0].at, **self._bases[1].at}
        size = plan.itemsize, 2
        self.memory = Bytes(
            sum(n * found.kept for n, found in zip(size, self._bases, strict=True)),
            sum(n * found.temporary for n, found in zip(size, self._bases, strict=True)),
        )

    def _table(self, plan: Launches) -> None:
        rows: list[int] = []
        index = {slot: k for k, slot in enumerate(self._addressed)}
        self._starts = []
        for work in plan.works:
            self._starts.append(len(rows))
            for entry in (entry for row in work.rows for entry in row):
                if isinstance(entry, At):
                    base, offset = self._at[entry.slot]
                    rows += [base, (offset + entry.offset) // entry.unit]
                elif entry is None:
                    rows += [0, -1]
                elif isinstance(entry, Address):
                    rows.append(index[entry.slot])
                else:
                    rows.append(int(entry))
            work.rows = []
        with plain():
            self._rows = torch.tensor(rows, dtype=torch.int64).to(self.setting.device)

    def run(self, given: Sequence[Tensor], kept: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return a program's tensors and its arenas, from what it is given and its forward's arenas."""
        full, halves = self._bases
        addresses = self._addresses(given)
        bases = full.tensors(given, kept[:1], self.setting.dtype, self.setting.device)
        narrow = None
        if self._halved:
            narrow = halves.tensors(given, kept[1:], self.setting.storage, self.setting.device)
        with triton.on(self.setting.device):
            for work, start in zip(self.works, self._starts, strict=True):
                work.launch(self._rows, addresses, bases, narrow, start)
        keeps = [] if kept else [bases[1], *(narrow[1:2] if narrow is not None else ())]
        return full.returned(bases), keeps

    def _addresses(self, given: Sequence[Tensor]) -> Tensor:
        """Return the addresses of given tensors, on the device; copied there when one has changed."""
        device = self.setting.device
        if device.type == "meta":
            return self._rows
        tensors = [given[k] for k in self._addressed.values()]
        found = [t.data_ptr() for t in tensors]
        known = self._known  # another thread, whose tensors lie elsewhere, may set another
        if known is None or known[0] != found:
            for t in tensors:
                require(
                    t.device == device, f"a network on {device} has a tensor on {t.device}: move all of it"
                )
            with plain():
                known = found, torch.tensor(found or [0], dtype=torch.int64).to(device)
            self._known = known
        return known[1]


class _Bases:
    """The tensors of one dtype that a program's slots lie in, and where in them.

    The first is the temporary arena, the second the one that is kept; of half precision they are numbered
    from -1 down.
    """

    def __init__(self, plan: Launches, named: Sequence[int], half: bool) -> None:
        slots = plan.slots
        kept, self.kept = {}, 0
        for slot, (_, place, _) in enumerate(plan.program.slots):
            if place == Place.KEPT and plan.halved(slot) == half:
                kept[slot] = self.kept
                self.kept += aligned(prod(slots[slot].shape))
        spans = {s: plan.spans[s] for s in named if slots[s].place == Place.TEMPORARY}
        sizes = {s: plan.sizes.get(s, prod(slots[s].shape)) for s in spans}
        temporary, self.temporary = packed(spans, sizes)
        gradients, self._gradients = {}, 0  # side by side: there may be a hundred
        number = {slot: k for k, slot in enumerate(plan.program.given)}
        self._given = [(s, number[s]) for s in named if slots[s].place == Place.GIVEN]
        returned = [s for s in plan.program.returned if s in named] if not half else []
        for slot in (s for s in returned if s in plan.summed):
            gradients[slot] = self._gradients
            self._gradients += aligned(prod(slots[slot].shape))
        alone = [s for s in returned if s not in plan.summed]
        self._alone = [(slots[s].shape, s in plan.zeroed) for s in alone]
        places = [temporary, kept, gradients, *({s: 0} for s, _ in self._given), *({s: 0} for s in alone)]
        self.at = {s: (-1 - k if half else k, n) for k, place in enumerate(places) for s, n in place.items()}
        self._returned = [(*self.at[s], slots[s].shape) for s in plan.program.returned if s in self.at]

    def tensors(
        self, given: Sequence[Tensor], kept: Sequence[Tensor], dtype: Any, device: torch.device
    ) -> tuple[Tensor, ...]:
        """Return them for a pass."""

        def empty(size: int) -> Tensor:
            return torch.empty(max(size, 1), dtype=dtype, device=device)

        return (
            empty(self.temporary),
            kept[0] if kept else empty(self.kept),
            empty(self._gradients),
            *(given[k] for _, k in self._given),
            *(
                (torch.zeros if zeroed else torch.empty)(shape, dtype=dtype, device=device)
                for shape, zeroed in self._alone
            ),
        )

    def returned(self, bases: Sequence[Tensor]) -> list[Tensor]:
        """Return the program's returned tensors."""
        found = []
        for base, offset, shape in self._returned:
            whole = bases[base]
            found.append(whole if base != _GRADIENTS else whole[offset : offset + prod(shape)].view(shape))
        return found


_GRADIENTS = 2
