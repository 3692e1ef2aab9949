"""Where a result comes from, and how fast that machine multiplies and copies.

``python -m bench.machine THREADS REPEATS SIZE`` prints the sgemm ceiling of a fresh process, whose
environment may restrict MKL to an instruction set.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import dartsfast.ops  # noqa: F401 - chooses the instruction set that serves
from bench.device import CPU, Device
from bench.timing import interleaved
from dartsfast.backends import availability

ROOT = Path(__file__).resolve().parent.parent


def header(device: Device) -> dict[str, Any]:
    """Return the machine, the versions, the commit and the date that a result belongs to."""
    return {
        **({"device": device.name} if device.name else {}),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_set": _instruction_set(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.machine()


def _instruction_set() -> str:
    found = availability("cpu")
    return torch.ops.dartsfast.cpu_instruction_set() if found.available else f"none: {found.reason}"


def _commit() -> str:
    """Return the commit, with a + where tracked files differ from it."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Let torch use ``count`` threads within the block; None leaves them alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ceilings(repeats: int, device: Device, *, quick: bool = False) -> dict[str, float | None]:
    """Measure what ``device`` can do, a CPU with this process's threads.

    Returns:
        ``sgemm_gflops``, of square float32 matrices; ``sgemm_avx2_gflops``, the same in a process where
        MKL may use AVX2 only (None on a GPU, or where torch multiplies without MKL); ``copy_gbs``, bytes
        read and written a second by a copy that fits no cache.
    """
    size = 256 if quick else device.gemm_size
    return {
        "sgemm_gflops": sgemm_gflops(repeats, size, device),
        "sgemm_avx2_gflops": _sgemm_avx2_gflops(repeats, size) if isinstance(device, CPU) else None,
        "copy_gbs": _copy_gbs(repeats, 2**22 if quick else device.copy_elements, device),
    }


def sgemm_gflops(repeats: int, size: int, device: Device) -> float:
    """Return the median speed of a product of ``size`` x ``size`` float32 matrices, GFLOP/s."""
    a, b, out = (torch.rand(size, size, device=device.place) for _ in range(3))
    times = interleaved({"mm": lambda: torch.mm(a, b, out=out)}, repeats, device, sample_seconds=0.02)
    return 2 * size**3 / times["mm"]["ms_p50"] / 1e6


def _sgemm_avx2_gflops(repeats: int, size: int) -> float | None:
    if not torch.backends.mkl.is_available():
        return None
    command = [sys.executable, "-m", "bench.machine", str(torch.get_num_threads()), str(repeats), str(size)]
    environment = {**os.environ, "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _copy_gbs(repeats: int, elements: int, device: Device) -> float:
    x, y = (torch.rand(elements, device=device.place) for _ in range(2))
    times = interleaved({"copy": lambda: y.copy_(x)}, repeats, device)
    return 2 * x.nbytes / times["copy"]["ms_p50"] / 1e6


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[1]))
    print(sgemm_gflops(int(sys.argv[2]), int(sys.argv[3]), CPU()))
