"""The runs below a folder: what each is, how far it is, and what it has reached."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from dartsfast.errors import InputError
from dartsfast.runs.folder import LOCK
from dartsfast.runs.record import read_run

COLUMNS = ("run", "what", "state", "epochs", "genotype", "measure", "hours")


class RunInfo(NamedTuple):
    """A run as a table shows it.

    Attributes:
        folder: of the run.
        command: such as ``search cnn``; ``?`` of a run of an earlier version, which left no options.
        state: ``running``, ``finished`` or ``stopped``; ``damaged`` where what it left cannot be read.
        epochs: done, of all: ``3/50``; of a competition candidates.
        genotype: eight digits that are the same for the same cells, or nothing before there are any.
        measure: what was reached, and in which epoch.
        hours: of all epochs.
    """

    folder: str
    command: str
    state: str
    epochs: str
    genotype: str
    measure: str
    hours: str


def list_runs(folder: str | Path) -> list[RunInfo]:
    """Return the runs in ``folder`` and below it, by their names.

    Raises:
        InputError: there is no such folder.
    """
    root = Path(os.path.expanduser(folder))
    if not root.is_dir():
        raise InputError(f"there is no folder {folder}: name one that holds runs")
    return [_info(path.parent, root) for path in sorted(root.rglob(LOCK))]


def _info(folder: Path, root: Path) -> RunInfo:
    name = str(folder.relative_to(root)) if folder != root else folder.name
    run = read_run(folder)
    if run.problems:
        return RunInfo(name, "?", "damaged", "", "", "", "")
    return RunInfo(
        name,
        " ".join(run.command or "?"),
        run.state,
        f"{run.done}/{run.total or '?'}",
        run.digits,
        run.reached,
        "" if run.candidates else f"{run.seconds / 3600:.2f}",
    )
