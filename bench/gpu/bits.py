"""Operators and whole cells on kernels in C++ for CUDA: the bits of the CPU's kernels, and twice the same.

Memory that is allocated holds NaN until it is written, scratch memory too.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from comparisons import same_bits
from op_agreement import assert_near
from op_calls import call, moved
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bench.gpu.cases import operator_cases, small_size
from bench.gpu.operators import poisoned
from bench.gpu.stage import Check
from bench.peers import Peer
from bench.workloads import WORKLOADS
from dartsfast.names import MEMORY_MODES

DTYPES = (torch.float32, torch.float64)


def run(check: Check) -> None:
    """Compare every call, then every cell; a row an operator and dtype, and a row a cell."""
    _operators(check)
    with poisoned():
        for dtype, memory in product(DTYPES, MEMORY_MODES):
            _cells(check, dtype, memory)


def _operators(check: Check) -> None:
    for dtype in DTYPES:
        found: dict[str, int] = {}
        for case in operator_cases(rehearse=check.rehearse):
            for name, args in case.calls(dtype):
                found[name] = found.get(name, 0) + 1
                with poisoned():
                    wanted, *got = (
                        [t.cpu() for t in tree_leaves(call(name, moved(args, place)))]
                        for place in ("cpu", check.place, check.place)
                    )
                if not all(same_bits(again, wanted) for again in got):
                    check.fail(f"{dtype} {case}: {name} differs: {_how_far(got, wanted, name)}")
        for name, calls in found.items():
            check.row(operator=name, dtype=_short(dtype), calls=calls)


def _how_far(got: list[list[Tensor]], wanted: list[Tensor], name: str) -> str:
    if not same_bits(*got):
        return "other bits the second time"
    try:
        for a, b in zip(got[0], wanted, strict=True):
            assert_near(a, b, b.double(), name)
    except AssertionError as error:
        return str(error).splitlines()[0]
    return "by rounding"


def _cells(check: Check, dtype: torch.dtype, memory: str) -> None:
    """Compare a network's cells, each given the same inputs and the same gradient of its result."""
    size, draw = small_size("cnn", rehearse=check.rehearse), torch.Generator().manual_seed(1)
    cpu, device = (
        WORKLOADS["cnn"].iteration(Peer(backend, memory=memory), size, dtype, place).model.cells
        for backend, place in (("cpu", torch.device("cpu")), (check.backend, check.place))
    )
    s0 = s1 = torch.randn(size.batch, 3 * size.C, size.image, size.image, generator=draw).to(dtype)
    for number, pair in enumerate(zip(cpu, device, strict=True)):
        rows = torch.randn(len(pair[0]._ops), len(pair[0]._ops[0]._ops), generator=draw).to(dtype)
        wanted, got = (passes(cell, (s0, s1, rows.softmax(-1))) for cell in pair)
        differing = sum(not same_bits(a, b) for a, b in zip(got, wanted, strict=True))
        row = {"cell": number, "dtype": _short(dtype), "memory": memory, "tensors": len(wanted)}
        check.row(**row, differing=differing)
        if differing:
            check.fail(f"cell {number}, {dtype}, {memory}: {differing} of {len(wanted)} tensors differ")
        s0, s1 = s1, wanted[0]


def passes(cell: Any, given: tuple[Tensor, ...]) -> list[Tensor]:
    """Return the result of a cell, the gradients of all that it reads, and its buffers; on the CPU."""
    place = next(cell.parameters()).device
    leaves = [t.to(place).requires_grad_() for t in given]
    out = cell(*leaves)
    g = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out)
    found = torch.autograd.grad(out, [*leaves, *cell.parameters()], g)
    return [t.detach().cpu() for t in (out, *found, *cell.buffers())]


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
