"""Builds the native extension, beside whose kernels the GPU's are put, unless one is there that loads.

``cuda`` builds the kernels for CUDA in C++ too, where there is nvcc.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

from bench.gpu.stage import Check, NotRun
from bench.gpu_check import KERNELS
from bench.machine import ROOT
from dartsfast.backends import native

COMMAND = (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")


def run(check: Check, what: str = "cpu") -> None:
    """Build where it is needed; a row says what is there.

    Raises:
        RuntimeError: it was built and does not load.
        NotRun: the kernels for CUDA are not there and cannot be built here.
    """
    if what == "cuda" and not KERNELS.exists():
        if check.rehearse:
            raise NotRun("a rehearsal does not build kernels for GPUs")
        if shutil.which("nvcc") is None:
            raise NotRun("nvcc is not on PATH")
    elif what == "cuda" or native.load() is None:
        check.row(extension="was there", seconds=0.0)
        return
    began = time.perf_counter()
    done = subprocess.run(COMMAND, cwd=ROOT, env={**os.environ, "DARTSFAST_BUILD": what})
    if what == "cuda":
        missing = None if KERNELS.exists() else "nvcc's messages are in the log"
    else:
        native.load.cache_clear()
        missing = native.load()
    if missing:
        raise RuntimeError(f"no native extension (build_ext ended with {done.returncode}): {missing}")
    check.row(extension="built", seconds=time.perf_counter() - began)
