"""Reading files of users, regular ones only, texts in UTF-8; writing files whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dartsfast.errors import InputError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_ARCHIVES = (b"PK", b"\x80\x02")  # today's, and those before torch 1.6


def check_regular(path: str | os.PathLike) -> None:
    """Raise InputError where ``path``, links followed, is no regular file: some others never end.

    Raises:
        InputError: nothing is there, or a folder, FIFO, socket or device.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"cannot read {path} ({why}): check the path") from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise InputError(f"{path} is {kind}, where a regular file is needed: put the data into a file")


def is_archive(path: str | os.PathLike) -> bool:
    """Say whether a file begins as torch's do, weights and checkpoints; InputError if it is not readable."""
    try:
        with open(path, "rb") as file:
            return file.read(2) in _ARCHIVES
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): check the path") from error


def read_text(path: str | os.PathLike) -> str:
    """Return the text of a UTF-8 file, without a byte order mark.

    Raises:
        InputError: no regular file, one that cannot be read, or not UTF-8.
    """
    check_regular(path)
    try:
        return Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): check the path") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 ({error}): convert it to UTF-8") from error


@contextmanager
def written_whole(path: Path, content: bytes) -> Iterator[Path]:
    """Write ``content`` under another name, which is yielded, and rename it to ``path`` at the end.

    Nothing is left of it where the block raises.

    Raises:
        OSError: it cannot be written, as on a full disk; what was at ``path`` is as it was.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a UTF-8 file such that it is there whole, or as it was; what UTF-8 cannot say is escaped.

    Unlike :func:`written_whole` this does not wait for the disk: for what can be written again. Several
    processes may write it at a time.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
