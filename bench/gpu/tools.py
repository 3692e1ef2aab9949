"""Runs another tool's program within a stage, and finds it."""

from __future__ import annotations

import glob
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.gpu.stage import NotRun

FOLDERS = ("/usr/local/cuda/bin", "/opt/nvidia/nsight-compute/*", "/usr/local/cuda/compute-sanitizer")


def find(tool: str) -> str:
    """Return where ``tool`` is.

    Raises:
        NotRun: nowhere.
    """
    found = shutil.which(tool)
    beside = [path for folder in FOLDERS for path in sorted(glob.glob(f"{folder}/{tool}"))]
    if found is None and not beside:
        raise NotRun(f"{tool} is neither on PATH nor in {', '.join(FOLDERS)}")
    return found or beside[-1]


def output(command: Sequence[str], seconds: float) -> tuple[int, str]:
    """Return exit status and output of a command, which is also printed.

    Raises:
        NotRun: it took longer than ``seconds``.
    """
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=seconds,
        )
    except subprocess.TimeoutExpired as error:
        text = error.stdout or b""
        print(text.decode(errors="replace") if isinstance(text, bytes) else text)
        raise NotRun(f"{Path(command[0]).name} took over {seconds:.0f} s") from error
    print(done.stdout, flush=True)
    return done.returncode, done.stdout


def module(name: str, *arguments: str) -> list[str]:
    """Return the command line of a module of this package."""
    return [sys.executable, "-m", f"bench.gpu.{name}", *arguments]
