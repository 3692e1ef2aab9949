"""Which instruction set the C++ kernels use: the widest of this processor that gives the portable ones' bits.

All instruction sets have the same bits. A compiler or a processor for which that does not hold must not go
unnoticed: where operators are first imported, small awkward shapes run on its instruction sets, the widest
first, and on the portable kernels. One that differs is refused aloud, and the next serves. What was found
is kept in the user's cache folder by library and processor. ``DARTSFAST_SELFCHECK=0`` skips the check.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from dartsfast.backends.selfcheck import SAMPLES
from dartsfast.constants import plain

AGREES = "agrees"


def names() -> list[str]:
    """Return the instruction sets of this processor that the library has kernels for, the widest first."""
    return torch.ops.dartsfast.cpu_instruction_sets().split(" ")


@functools.cache
def choose(library: Path) -> dict[str, str]:
    """Let the widest instruction set serve that agrees with the portable kernels.

    Args:
        library: the loaded extension.

    Returns:
        What was found of those that were tried: ``AGREES``, or the first operator that differs, in words.
    """
    if os.environ.get("DARTSFAST_SELFCHECK") == "0":
        return {}
    file, key = cache_path(), _key(library)
    kept = _read(file) if file else {}
    found = dict(kept.get(key, {}))
    for name in names():
        if name not in found:
            found[name] = AGREES if name == "portable" else disagreement(name) or AGREES
        if found[name] == AGREES:
            torch.ops.dartsfast.set_cpu_instruction_set(name)
            break
        warnings.warn(
            f"instruction set {name} is not used: {found[name]} on this processor. The next one serves; "
            "please report it with the output of `dartsfast doctor`",
            stacklevel=2,
        )
    if file and found != kept.get(key):
        _write(file, {**kept, key: found})
    return found


def disagreement(name: str) -> str | None:
    """Return None where instruction set ``name`` has the portable kernels' bits, else what differs."""
    before = torch.ops.dartsfast.cpu_instruction_set()
    try:
        with plain():
            for operator, args in _calls():
                results = [_run(instructions, operator, args) for instructions in ("portable", name)]
                if not all(torch.equal(a, b) for a, b in zip(*results, strict=True)):
                    return f"{operator} differs from the portable kernels"
    finally:
        torch.ops.dartsfast.set_cpu_instruction_set(before)
    return None


def _calls() -> Iterator[tuple[str, tuple[Any, ...]]]:
    """Yield operators and arguments: every remainder of a block of rows or pixels."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float32)

    for name, sample in SAMPLES.items():
        if not name.startswith("branch_conv"):
            yield from ((name, _as(dtype, sample(normal))) for dtype in (torch.float32, torch.float64))
    for width in range(1, 18):  # a block has at most 16 rows
        for name, args in _convolutions(normal, width):
            yield name, args
            if width in (7, 15, 17):  # together blocks of 1, 2, 4, 8 and 16
                yield name, _as(torch.float64, args)


def _as(dtype: torch.dtype, args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tree_map(lambda t: t.to(dtype) if isinstance(t, Tensor) and t.is_floating_point() else t, args)


def _convolutions(normal: Callable[..., Tensor], width: int) -> Iterator[tuple[str, tuple[Any, ...]]]:
    x, norm = normal(1, 2, width, 7), torch.stack([normal(7), normal(7).abs() + 0.5])
    depthwise, pointwise = [normal(7, 1, k, k) for k in (3, 5, 5)], [normal(20, 7, 1, 1) for _ in range(3)]
    edge = x, norm, depthwise, pointwise, [1, 1, 2], 1, True
    yield "branch_conv", edge
    g, z = ([normal(1, 2, width, 20) for _ in range(3)] for _ in range(2))
    yield "branch_conv_backward", (g, z, normal(3, 4, 20), *edge, x, True, True)
    if width % 4 == 1:
        yield "gemm_", (normal(width, 33), normal(width, 21), normal(21, 33), False)


def _run(instructions: str, name: str, args: tuple[Any, ...]) -> list[Tensor]:
    """Return what an operator gives on a set of instructions, then its arguments, which it may write."""
    torch.ops.dartsfast.set_cpu_instruction_set(instructions)
    args = tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, args)
    found = getattr(torch.ops.dartsfast, name).default(*args)
    return [t for t in tree_leaves((found, args)) if isinstance(t, Tensor)]


def cache_path() -> Path | None:
    """Return the file in the user's cache folder where it is kept which instruction sets agree.

    None for a user without a home, as in a container that runs under a number of its own.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # such a one is to be ignored, says its specification
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "dartsfast" / "instruction_sets.json"


def _key(library: Path) -> str:
    digest = hashlib.sha256(library.read_bytes())
    digest.update(_processor().encode())
    return digest.hexdigest()[:32]


def _processor() -> str:
    """Return what tells processors apart: on Linux all but the changing lines of the first of them."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return f"{platform.machine()} {platform.processor()}"
    first = cpuinfo.read_text(errors="replace").split("\n\n")[0]
    return "\n".join(line for line in first.splitlines() if "MHz" not in line and "bogomips" not in line)


def _read(file: Path) -> dict[str, dict[str, str]]:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none yet, or damaged: then the check runs again
        return {}
    entries = kept.items() if isinstance(kept, dict) else ()
    return {key: value for key, value in entries if isinstance(value, dict)}


def _write(file: Path, kept: dict[str, dict[str, str]]) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, file)
    except OSError:  # a home that cannot be written: the check, of milliseconds, runs in every process
        with contextlib.suppress(OSError):
            temporary.unlink()
