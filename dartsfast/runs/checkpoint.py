"""Checkpoints that no kill, full disk or flipped bit can spoil unnoticed.

A checkpoint is what ``torch.save`` writes, a zip archive, whose comment holds a checksum of all bytes
before it: ``torch.load`` reads the file as any other, and we unpickle nothing that has changed.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import warnings
from pathlib import Path
from typing import Any

import torch

from dartsfast.errors import InputError

FORMAT = "dartsfast search checkpoint 2"
CURRENT = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"
# Whose runs are of a kind.
COMMANDS = {"cnn": "search cnn", "rnn": "search rnn", "train-cnn": "train cnn", "train-rnn": "train rnn"}
COMMENT = len("blake2b ") + 32  # bytes of the archive's comment, the checksum in hexadecimal digits


class WrongKindError(InputError):
    """A checkpoint is of another command's run."""


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write ``state`` (tensors and plain values) to ``folder``, keep the one before, return the path.

    The file appears whole or not at all: it is written under another name, flushed to the disk and
    renamed.

    Raises:
        OSError: it cannot be written, as on a full disk; the checkpoints before are as they were.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    # The archive ends with the length of its comment, 0 so far.
    body = buffer.getvalue()[:-2] + struct.pack("<H", COMMENT)
    current = folder / CURRENT
    temporary = folder / (CURRENT + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(body)
            file.write(_checksum(body))
            file.flush()
            os.fsync(file.fileno())
        if current.exists() and _is_whole(current.read_bytes()):  # else the one before is the better one
            os.replace(current, folder / PREVIOUS)
        os.replace(temporary, current)
    except OSError as error:
        before = "the one before is whole: make room, then go on with --resume"
        remedy = before if has_checkpoint(folder) else "make room, or choose another folder"
        raise OSError(
            error.errno, f"cannot write the checkpoint {current} ({error.strerror}); {remedy}"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return current


def has_checkpoint(folder: Path) -> bool:
    """Say whether ``folder`` holds a checkpoint, the last or the one before."""
    return (folder / CURRENT).exists() or (folder / PREVIOUS).exists()


def load_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    """Read the checkpoint of a ``kind`` run (``cnn`` and ``rnn`` are searches) from a folder or a file.

    From a folder, a checkpoint that cannot be used is refused with a warning that says why, and the
    one before is taken.

    Raises:
        InputError: there is none that can be used.
    """
    if not path.is_dir():
        return _read(path, kind)
    refused = []
    for name in (CURRENT, PREVIOUS):
        if not (path / name).exists():
            continue
        try:
            state = _read(path / name, kind)
        except WrongKindError:  # the one before is of the same
            raise
        except InputError as error:
            refused.append(str(error))
            continue
        if refused:
            warnings.warn(f"{refused[0]}; going on from {name}, the one before", stacklevel=2)
        return state
    raise InputError("; ".join(refused) or f"no checkpoint in {path}: start without --resume")


def _read(path: Path, kind: str) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise InputError(
            f"no checkpoint at {path}: give the folder of a run, or start without --resume"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read the checkpoint {path} ({error.strerror})") from error
    if not _is_whole(content):
        raise InputError(
            f"{path} is damaged, was edited, or was not written by a run of dartsfast "
            "(its checksum does not match)"
        )
    try:
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError) as error:  # another torch's format
        raise InputError(f"torch {torch.__version__} cannot read {path} ({one_line(error)})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} was not written by a run of dartsfast (or by another version of it)")
    if state.get("kind") != kind:
        raise WrongKindError(_other_kind(path, state.get("kind"), kind))
    return state


def _other_kind(path: Path, found: Any, wanted: str) -> str:
    said, needed = COMMANDS.get(str(found), repr(found)), COMMANDS[wanted]
    remedy = f"name the folder of a `{needed}`"
    if f"train-{found}" == wanted:
        remedy += f"; `dartsfast {needed} {path.parent}` trains its cell"
    elif said.split()[0] == needed.split()[0]:
        remedy += f", or say {said.split()[1]} in place of {needed.split()[1]}"
    return f"{path} is of a `{said}`, not of a `{needed}`: {remedy}"


def one_line(error: Exception) -> str:
    """Return all of an error's message in one line."""
    return " ".join(str(error).split())


def _checksum(body: bytes) -> bytes:
    return b"blake2b " + hashlib.blake2b(body, digest_size=16).hexdigest().encode()


def _is_whole(content: bytes) -> bool:
    body, comment = content[:-COMMENT], content[-COMMENT:]
    return comment == _checksum(body)
