"""The runs below a folder: what each is, how far it is, and what it has reached."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from dartsfast.errors import InputError
from dartsfast.files import read_text
from dartsfast.runs.config_file import CONFIG, load_config
from dartsfast.runs.folder import LOCK, in_use

# The measure of a run is the first of these that it has, the best of all epochs; of a test set the last.
MEASURES = {"test_acc": "last", "test_ppl": "last", "valid_acc": "max", "valid_ppl": "min"}
COUNTED = {"random": "candidates", "select": "searches"}
"""The options that say how many candidates a competition has, by its command."""
TABLE = "candidates.json"
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
    try:
        command, total = "?", 0
        if (folder / CONFIG).exists():
            words, options = load_config(folder / CONFIG)
            if words[0] in COUNTED:
                return _competition(folder, name, words, int(options[COUNTED[words[0]]]))
            command, total = " ".join(words), int(options["epochs"])
        rows = _rows(folder / "log.jsonl")
        cell = folder / "genotype.json"
        digits = cell_digits(json.loads(read_text(cell))) if cell.exists() else ""
        measure = _measure(rows)
    except (InputError, ValueError, KeyError, TypeError):
        return RunInfo(name, "?", "damaged", "", "", "", "")
    done = "finished" if rows and len(rows) == total else "stopped"
    state = "running" if in_use(folder) else done if total else "?"
    hours = sum(row.get("seconds", 0.0) for row in rows) / 3600
    return RunInfo(name, command, state, f"{len(rows)}/{total or '?'}", digits, measure, f"{hours:.2f}")


def _competition(folder: Path, name: str, command: tuple[str, str], total: int) -> RunInfo:
    """Return a competition as a run: its candidates in place of epochs, of which the best is the measure."""
    found: dict[str, Any] = {"candidates": []}
    if (folder / TABLE).exists():
        found = json.loads(read_text(folder / TABLE))
    done = {row["name"]: row["measure"] for row in found["candidates"]}
    best = f"{found['measure']} {done[found['best']]:.4g} of {found['best']}" if done else ""
    cell = folder / "genotype.json"
    digits = cell_digits(json.loads(read_text(cell))) if cell.exists() else ""
    state = "finished" if len(done) == total else "stopped"
    return RunInfo(name, " ".join(command), state, f"{len(done)}/{total}", digits, best, "")


def _rows(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_text(log).splitlines()] if log.exists() else []


def cell_digits(fields: Mapping[str, Any]) -> str:
    """Return eight digits that are the same for the same cells, given as JSON has them."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


def _measure(rows: Sequence[Mapping[str, Any]]) -> str:
    for name, which in MEASURES.items():
        found = [(row[name], row["epoch"]) for row in rows if name in row]
        if found:
            value, epoch = found[-1] if which == "last" else (max if which == "max" else min)(found)
            return f"{name} {value:.4g} in epoch {epoch}"
    return ""
