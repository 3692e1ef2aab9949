"""Compiles everything that the check will launch, in as many processes as there are cores.

No process touches the GPU: launches are found on tensors without values, and compiled for its architecture
into Triton's cache, where the stages after this one find them.
"""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed

from triton.errors import TritonError

from bench.gpu.cases import Program, programs
from bench.gpu.launches import Description, launched, targeting
from bench.gpu.stage import Check

REHEARSED = 90, 4  # architecture, and how many launches are compiled in a rehearsal


def run(check: Check) -> None:
    """Compile; a row of totals, and one of the slowest kernel."""
    capability, most = REHEARSED if check.rehearse else (_capability(check), None)
    processes = 2 if check.rehearse else os.cpu_count() or 1
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # of the processes to come
    began = time.perf_counter()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, context) as pool:
        found = [pool.submit(find, program, capability) for program in programs(rehearse=check.rehearse)]
        compiling: dict[Description, Future[float | str]] = {}
        for future in as_completed(found):
            for one in future.result():
                if one not in compiling and (most is None or len(compiling) < most):
                    compiling[one] = pool.submit(compiled, one, capability, not check.rehearse)
        times = {one: future.result() for one, future in compiling.items()}
    seconds = {one: t for one, t in times.items() if isinstance(t, float)}
    check.row(
        launches=len(times),
        processes=processes,
        seconds=time.perf_counter() - began,
        compile_seconds=sum(seconds.values()),
    )
    if seconds:
        slowest = max(seconds, key=seconds.__getitem__)
        check.row(slowest=slowest.kernel, slowest_seconds=seconds[slowest])
    for one, reason in times.items():
        if isinstance(reason, str):
            check.fail(f"{one.kernel} does not compile: {reason}")


def _capability(check: Check) -> int:
    """Return the architecture that an earlier stage found, such as 90."""
    return int(check.earlier["versions"][0]["capability"])


def find(program: Program, capability: int) -> list[Description]:
    """Return what a program launches."""
    return launched(program.launch, capability)


def compiled(one: Description, capability: int, launcher: bool) -> float | str:
    """Compile, with its launcher or without; return the seconds that it took, or why it failed."""
    began = time.perf_counter()
    try:
        with targeting(capability):
            one.compile(launcher=launcher)
    # What Triton, its passes and its assembler raise, and the compiler of launchers.
    except (RuntimeError, TritonError, subprocess.CalledProcessError) as error:
        return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
    return time.perf_counter() - began
