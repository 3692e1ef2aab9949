"""The operators' calls of the tests on the device: near their oracles, whole, and twice the same bits.

float32 and bfloat16. Memory that is allocated holds NaN until it is written, scratch memory too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from comparisons import same_bits
from op_agreement import assert_near, wide
from op_calls import call, moved
from torch import Tensor
from torch.utils._pytree import tree_leaves

from bench.gpu.cases import DTYPES, calls, operator_cases, oracle
from bench.gpu.stage import Check
from dartsfast.backends import triton as triton_backend
from dartsfast.errors import BackendError, InputError

OF_STORED = {"branch_conv", "pool3x3"}
"""Operators whose second result is the moments of the first, as that is stored."""


def run(check: Check) -> None:
    """Check every call; a row an operator and dtype."""
    triton_backend.load()
    os.environ["DARTSFAST_SELFCHECK"] = "0"  # a stage of its own
    cases = operator_cases(rehearse=check.rehearse)
    with _as_devices_round(check.rehearse):
        for label, dtype in DTYPES.items():
            found: dict[str, list[bool]] = {}
            for case in cases:
                for name, args in calls(case, dtype):
                    try:
                        found.setdefault(name, []).append(agrees(name, args, check.place))
                    except (AssertionError, RuntimeError, BackendError, InputError) as error:
                        check.fail(f"{label} {case}: {_first_line(error)}")
            for name, exact in found.items():
                check.row(operator=name, dtype=label, calls=len(exact), to_the_bit=sum(exact))


def agrees(name: str, args: tuple[Any, ...], place: torch.device) -> bool:
    """Return whether an operator on ``place`` has its oracle's bits.

    Raises:
        AssertionError: it is farther off than rounding explains, leaves something unwritten, or gives other
            bits the second time.
    """
    there = moved(args, place)
    with poisoned():
        first, second = (tree_leaves(call(name, there)) for _ in range(2))
    got = [t.cpu() for t in first]
    assert same_bits([t.cpu() for t in second], got), f"{name} gives other bits the second time"
    half = any(t.dtype in (torch.bfloat16, torch.float16) for t in _floating(args))
    wanted = tree_leaves(oracle(name, wide(args, torch.float32) if half else args))
    truth = tree_leaves(oracle(name, wide(args)))
    if half and name in OF_STORED:
        wanted[1], truth[1] = (_moments(got[0].to(dtype)) for dtype in (torch.float32, torch.float64))
    assert len(got) == len(wanted), name
    if same_bits(got, [w.to(t.dtype) for t, w in zip(got, wanted, strict=True)]):
        return True
    for a, b, exactly in zip(got, wanted, truth, strict=True):
        if a.is_floating_point():
            assert_near(a, b, exactly, name)
        else:
            assert torch.equal(a, b), f"{name}: counts differ"
    return False


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill all memory that torch allocates within the block with NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def _floating(args: tuple[Any, ...]) -> list[Tensor]:
    return [t for t in tree_leaves(args) if isinstance(t, Tensor) and t.is_floating_point()]


def _moments(z: Tensor) -> Tensor:
    """Return mean and biased variance of [branches, N, H, W, C], as [branches, 2, C]."""
    return torch.stack([z.mean((1, 2, 3)), z.var((1, 2, 3), correction=0)], 1)


def _as_devices_round(rehearse: bool) -> Any:
    if not rehearse:
        return nullcontext()
    from mended import mended

    return mended()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
