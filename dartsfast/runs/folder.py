"""The folder of a run: one process at a time, and no run over another."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import os
import socket
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dartsfast.errors import InputError
from dartsfast.runs.checkpoint import has_checkpoint

LOCK = "run.lock"


class InUseError(InputError):
    """Another process holds the folder of a run."""


class UsedError(InputError):
    """A folder for a new run holds one already."""


def new_folder(kind: str) -> Path:
    """Make and return runs/<kind>-<time>, with a number where two runs start within one second."""
    started = Path("runs") / f"{kind}-{time.strftime('%Y%m%d-%H%M%S')}"
    for attempt in itertools.count(1):
        folder = started if attempt == 1 else started.with_name(f"{started.name}-{attempt}")
        with contextlib.suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise AssertionError("unreachable")


def refuse_used(folder: Path) -> None:
    """Raise UsedError if ``folder`` holds a run."""
    if has_checkpoint(folder):
        raise UsedError(
            f"{folder} holds a run already: go on with --resume {folder}, or choose another --out"
        )


def in_use(folder: Path) -> bool:
    """Say whether a process holds ``folder``; never where the file system has no locks."""
    with open(folder / LOCK, encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            return error.errno in (errno.EAGAIN, errno.EACCES)
    return False


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make ``folder`` where it is missing and hold it against other processes and other runs of this one.

    The lock is the kernel's (``flock`` on ``run.lock``): it ends with its process, however that dies, and
    the file that stays behind hinders nobody. Where the file system has no locks, a warning says so.

    Raises:
        InUseError: another process holds it.
        InputError: it cannot be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # For writing: NFS gives exclusive locks to no other. Appending: its holder may have written already.
        file = open(folder / LOCK, "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise InputError(
            f"cannot make or write the folder {folder} ({error.strerror}): choose another --out"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                file.seek(0)
                holder = file.read(200).strip() or "another process"
                raise InUseError(
                    f"the run in {folder} is in use by {holder}: wait, stop it, or choose another folder"
                ) from None
            warnings.warn(
                f"no locks on the file system of {folder} ({error.strerror}): see to it that no other "
                "process runs there",
                stacklevel=3,
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%F %T')}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
