"""Builds the native extension, beside whose kernels the GPU's are put, unless one is there that loads."""

from __future__ import annotations

import subprocess
import sys
import time

from bench.gpu.stage import Check
from bench.machine import ROOT
from dartsfast.backends import native

COMMAND = (sys.executable, "setup.py", "--quiet", "build_ext", "--inplace")


def run(check: Check) -> None:
    """Build where it is needed; a row says what is there.

    Raises:
        RuntimeError: it was built and does not load.
    """
    if native.load() is None:
        check.row(extension="was there", seconds=0.0)
        return
    began = time.perf_counter()
    done = subprocess.run(COMMAND, cwd=ROOT)
    native.load.cache_clear()
    missing = native.load()
    if missing:
        raise RuntimeError(f"no native extension (build_ext ended with {done.returncode}): {missing}")
    check.row(extension="built", seconds=time.perf_counter() - began)
