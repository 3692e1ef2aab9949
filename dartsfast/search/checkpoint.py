"""Checkpoints that a kill at any moment cannot spoil."""

from __future__ import annotations

import os
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

from dartsfast.errors import InputError

FORMAT = "dartsfast search checkpoint 1"
CURRENT = "checkpoint.pt"
PREVIOUS = "checkpoint.previous.pt"


def save_checkpoint(folder: Path, state: dict[str, Any]) -> Path:
    """Write ``state`` (tensors and plain values) to ``folder``, keep the one before, return the path.

    The file appears whole or not at all: it is written under another name, flushed to the disk and
    renamed.
    """
    current = folder / CURRENT
    temporary = folder / (CURRENT + ".tmp")
    with open(temporary, "wb") as file:
        torch.save({"format": FORMAT, **state}, file)
        file.flush()
        os.fsync(file.fileno())
    if current.exists():
        os.replace(current, folder / PREVIOUS)
    os.replace(temporary, current)
    return current


def has_checkpoint(folder: Path) -> bool:
    """Say whether ``folder`` holds a checkpoint, the last or the one before."""
    return (folder / CURRENT).exists() or (folder / PREVIOUS).exists()


def load_checkpoint(path: Path, kind: str) -> dict[str, Any]:
    """Read the checkpoint of a ``kind`` search (``cnn`` or ``rnn``) from a folder or a file.

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
        except InputError as error:
            refused.append(str(error))
            continue
        if refused:
            warnings.warn(f"{refused[0]}; going on from {name}, the one before", stacklevel=2)
        return state
    raise InputError("; ".join(refused) or f"no checkpoint in {path}: start the search without --resume")


def _read(path: Path, kind: str) -> dict[str, Any]:
    if not path.exists():
        raise InputError(f"no checkpoint at {path}: give the folder of a run, or start without --resume")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise InputError(f"{path} is damaged (checksum of {damaged})")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(f"{path} is truncated or no checkpoint ({str(error).splitlines()[0]})") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise InputError(f"{path} was not written by a dartsfast search (or by another version of it)")
    if state.get("kind") != kind:
        raise InputError(f"{path} belongs to a search of kind {state.get('kind')!r}, not {kind!r}")
    return state
