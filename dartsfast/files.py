"""Files of users: reading regular ones only, texts in UTF-8; writing whole or not at all."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from dartsfast.errors import InputError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_regular(path: str | os.PathLike) -> None:
    """Raise InputError where ``path``, links followed, is no regular file: some others never end.

    Raises:
        InputError: nothing is there, or a folder, FIFO, socket or device.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise InputError(f"cannot read {path} ({error}): check the path") from error
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something else")
        raise InputError(f"{path} is {kind}, where a regular file is needed: put the data into a file")


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


def write_whole(path: Path, text: str) -> None:
    """Write a UTF-8 file such that it is there whole, or as it was; what UTF-8 cannot say is escaped."""
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
