"""Compiles C++ for tests, once for the same sources and flags."""

import fcntl
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

COMPILER = os.environ.get("CXX", "g++")


class UnavailableError(Exception):
    """Something cannot be run here in any way; the reason."""


def made(
    to: Path,
    name: str,
    flags: list[str],
    inputs: list[str],
    watched: Iterable[Path],
    compiler: str = COMPILER,
) -> Path:
    """Return what the compiler makes of ``inputs``, in ``to``, under ``name`` and a hash.

    Args:
        to: A folder, made where it is not there.
        name: Name and suffix of what is made.
        flags: Flags of the compiler, which are part of the hash.
        inputs: Files, and flags that name folders; not part of the hash, so that a checkout may move.
        watched: Files whose contents are part of the hash.
        compiler: Its command.

    Raises:
        UnavailableError: There is no compiler.
        subprocess.CalledProcessError: It refuses the inputs; it has said why.
    """
    if shutil.which(compiler) is None:
        raise UnavailableError(f"no compiler {compiler}")
    digest = hashlib.sha256(" ".join([compiler, *flags]).encode())
    for path in sorted(watched):
        digest.update(path.read_bytes())
    file = to / f"{Path(name).stem}-{digest.hexdigest()[:16]}{Path(name).suffix}"
    to.mkdir(parents=True, exist_ok=True)
    # Another process of the tests may be at it.
    with open(file.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not file.exists():
            partial = file.with_suffix(".partial")
            subprocess.run([compiler, *flags, *inputs, "-o", str(partial)], check=True)
            os.replace(partial, file)
    return file
