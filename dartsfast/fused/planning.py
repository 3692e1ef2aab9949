"""Passes that are planned: programs are noted where they would run, and none does."""

from __future__ import annotations

import copy
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dartsfast.fused.memory import Bytes
from dartsfast.fused.program import Program
from dartsfast.fused.scratch import scratch

aten, kernels = torch.ops.aten, torch.ops.dartsfast

# Bytes, of csrc/cpu/cache.cpp, which leaves smaller tensors to torch, and of its large pages.
_SMALLEST_BLOCK, _LARGE_PAGE = 256 << 10, 2 << 20
# Bytes, and a share of the peak, that processes took beside what is counted: 0.4 MB of 8, 2 MB of 100.
_BESIDE, _BESIDE_SHARE = 256 << 10, 40


class Runner(Protocol):
    """What runs a program."""

    @property
    def program(self) -> Program:
        """The program."""
        ...

    @property
    def memory(self) -> Bytes:
        """What it takes."""
        ...

    @property
    def works(self) -> Sequence[Any]:
        """Its launches (``dartsfast.kernels.grouped.Work``), where Triton makes them."""
        ...

    def run(self, given: Sequence[Tensor], kept: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return a program's tensors and what it keeps, from what it is given and what its forward kept."""
        ...


@dataclass(frozen=True)
class Run:
    """A program that would run.

    Attributes:
        part: of the network, as the plan calls it.
        phase: of the pass, likewise.
        program: what would run.
        dtype: of its arithmetic.
        works: its launches (``dartsfast.kernels.grouped.Work``), where Triton makes them.
        kept: bytes that it keeps for the backward.
        temporary: bytes that it needs besides, while it runs.
        in_use: bytes of everything that lives while it runs.
    """

    part: str
    phase: str
    program: Program
    dtype: torch.dtype
    works: Sequence[Any]
    kept: int
    temporary: int
    in_use: int


class _Here(threading.local):
    """What this thread plans; what others do runs."""

    plan: Plan | None = None


_here = _Here()


class Plan(TorchDispatchMode):
    """Notes what a pass would run and how much memory it would take, within its block.

    What passes through is on torch's device ``meta``, which has neither memory nor arithmetic. Tensors count
    from where an operator makes them, in the block, until nothing refers to them.

    Args:
        runner: what would run the programs, as ``Setting.runner`` calls it.

    Attributes:
        part, phase: what the next programs belong to.
        runs: every program that would have run, in order.
        in_use: bytes of what lives now.
        peak: the most that the process needed yet. On the CPU, where large blocks are kept to be used again
            (``csrc/cpu/cache.cpp``), all of these count from then on.
    """

    def __init__(self, runner: str) -> None:
        super().__init__()
        self.runner = runner
        self.part, self.phase = "stem", "forward"
        self.runs: list[Run] = []
        self.in_use = self.peak = 0
        self._blocks = self._most_blocks = self._others = 0
        self._known: set[int] = set()

    def __enter__(self) -> Plan:
        _here.plan = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _here.plan = None
        super().__exit__(*error)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is aten.add.Tensor and torch._C._current_graph_task_id() >= 0:
            func = aten.add_.Tensor  # how autograd adds gradients where no mode is on
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        for t in _tensors(out):
            if t.untyped_storage()._cdata not in given | self._known:
                self._count(t.untyped_storage(), func is kernels.empty.default)
        return out

    def _count(self, storage: torch.UntypedStorage, ours: bool) -> None:
        number, size = storage._cdata, storage.nbytes()
        block = _block(size) if self.runner == "cpu" and ours and size >= _SMALLEST_BLOCK else 0
        self._known.add(number)
        self._add(size, block)

        def forget() -> None:
            self._known.discard(number)
            self._add(-size, -block)

        weakref.finalize(storage, forget)

    def _add(self, size: int, block: int) -> None:
        """Count bytes more or less, which are a ``block`` of the cache's of so many, or in none (0)."""
        self.in_use += size
        self._blocks += block
        self._others += 0 if block else size
        self._most_blocks = max(self._most_blocks, self._blocks)
        self.peak = max(self.peak, self._others + self._most_blocks)

    def note(self, part: str, runner: Runner, dtype: torch.dtype, kept: int) -> None:
        """Note that a program would run now, whose returned tensors and what it keeps are there."""
        temporary = runner.memory.temporary
        if self.runner == "cuda":
            temporary += scratch(runner.program, dtype)
        block = _whole_pages(temporary) if self.runner == "cpu" else 0
        self._add(temporary, block)
        run = Run(part, self.phase, runner.program, dtype, runner.works, kept, temporary, self.in_use)
        self.runs.append(run)
        self._add(-temporary, -block)


def without_memory(network: Any) -> Any:
    """Return a search network like ``network`` on the device ``meta``, whose copy takes no memory."""
    memo: dict[int, Any] = {}
    for t in (*network.parameters(), *network.buffers(), *network.arch_parameters()):
        empty = torch.empty_like(t, device="meta")
        memo[id(t)] = nn.Parameter(empty, t.requires_grad) if isinstance(t, nn.Parameter) else empty
    twin = copy.deepcopy(network, memo)
    twin._backend = network.backend
    return twin


def _block(size: int) -> int:
    """Return what the CPU's cache takes for a tensor: whole large pages where these are hardly more."""
    whole = _whole_pages(size)
    return whole if whole - size <= size // 16 else size


def _whole_pages(size: int) -> int:
    return size if size < _LARGE_PAGE else -(-size // _LARGE_PAGE) * _LARGE_PAGE


def needed(peak: int, runner: str) -> int:
    """Return a plan's peak with what the C library's heap, Python and autograd take beside it on the CPU."""
    return peak + (_BESIDE + peak // _BESIDE_SHARE if runner == "cpu" else 0)


class Part(NamedTuple):
    """Where the programs of a cell, or of the stem, are noted."""

    plan: Plan
    name: str

    @staticmethod
    def current() -> Part | None:
        """Return the part that is being planned, if one is."""
        plan = _here.plan
        return None if plan is None else Part(plan, plan.part)

    def planned(self, runner: Runner, dtype: torch.dtype) -> Planned:
        """Return what stands in for a program's runner."""
        return Planned(self, runner, dtype)


class Planned:
    """Stands in for a program's runner: makes the tensors that it would return, and notes that it ran."""

    def __init__(self, part: Part, runner: Runner, dtype: torch.dtype) -> None:
        self._part, self._runner, self._dtype = part, runner, dtype
        self._like = torch.empty(0, dtype=dtype, device="meta")

    def run(self, given: Sequence[Tensor], kept: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return tensors of the shapes that a runner would return."""
        program, like = self._runner.program, self._like
        found = [kernels.empty(like, program.slots[k].shape) for k in program.returned]
        keeps = 0 if kept else self._runner.memory.kept
        arena = [kernels.empty(like, [-(-keeps // like.itemsize)])] if keeps else []
        self._part.plan.note(self._part.name, self._runner, self._dtype, keeps)
        return found, arena


def _tensors(tree: Any) -> list[Tensor]:
    return [t for t in tree_leaves(tree) if isinstance(t, Tensor)]
