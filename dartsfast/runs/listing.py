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
COLUMNS = ("run", "what", "state", "epochs", "genotype", "measure", "hours")


class RunInfo(NamedTuple):
    """A run as a table shows it.

    Attributes:
        folder: of the run.
        command: such as ``search cnn``; ``?`` of a run of an earlier version, which left no options.
        state: ``running``, ``finished`` or ``stopped``; ``damaged`` where what it left cannot be read.
        epochs: done, of all: ``3/50``.
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
            command, total = " ".join(words), int(options["epochs"])
        rows = _rows(folder / "log.jsonl")
        digits = _digits(folder / "genotype.json")
        measure = _measure(rows)
    except (InputError, ValueError, KeyError, TypeError):
        return RunInfo(name, "?", "damaged", "", "", "", "")
    done = "finished" if rows and len(rows) == total else "stopped"
    state = "running" if in_use(folder) else done if total else "?"
    hours = sum(row.get("seconds", 0.0) for row in rows) / 3600
    return RunInfo(name, command, state, f"{len(rows)}/{total or '?'}", digits, measure, f"{hours:.2f}")


def _rows(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in read_text(log).splitlines()] if log.exists() else []


def _digits(genotype: Path) -> str:
    if not genotype.exists():
        return ""
    fields = json.dumps(json.loads(read_text(genotype)), sort_keys=True)
    return hashlib.sha256(fields.encode()).hexdigest()[:8]


def _measure(rows: Sequence[Mapping[str, Any]]) -> str:
    for name, which in MEASURES.items():
        found = [(row[name], row["epoch"]) for row in rows if name in row]
        if found:
            value, epoch = found[-1] if which == "last" else (max if which == "max" else min)(found)
            return f"{name} {value:.4g} in epoch {epoch}"
    return ""
