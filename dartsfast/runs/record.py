"""What lies in the folder of a run, read in one way for its report, comparisons and the table of runs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dartsfast.drawing.alphas import kept_places
from dartsfast.errors import InputError
from dartsfast.files import read_text
from dartsfast.genotypes import AnyGenotype, genotype_from_json, genotype_to_json
from dartsfast.runs.config_file import CONFIG, load_config
from dartsfast.runs.fit import match, match_keys
from dartsfast.runs.folder import LOCK, in_use

LOG, GENOTYPE, EPOCHS, PROCESSES = "log.jsonl", "genotype.json", "epochs.jsonl", "run.json"
CANDIDATES = "candidates.json"  # of a competition, in place of log and epochs
COUNTED = {"random": "candidates", "select": "searches"}  # the options that say how many, by the command

# The measure of a run is the first of these that it has, the best of all epochs; of a test set the last.
MEASURES = {"test_acc": "last", "test_ppl": "last", "valid_acc": "max", "valid_ppl": "min"}

# What a line of epochs.jsonl and a process in run.json hold.
NOTE = {"epoch": int, "iterations": int, "work": float, "unit": str, "seconds": dict, "alphas": dict}
TABLE = ("weights", "operations", "edges", "kept")
PROCESS: dict[str, Any] = {
    "began": "", "seen": "", "end": "", "epochs_before": 0, "iterations_before": 0, "environment": {},
    "memory": {},
}  # fmt: skip

# What run.json holds, of a run that has left none.
NO_PROCESSES: dict[str, Any] = {"changed": None, "lesson": "", "epochs": 0, "processes": []}

# What candidates.json holds.
COMPETITION: dict[str, Any] = {
    "command": "", "measure": "", "best": "", "mean": 0.0, "deviation": 0.0, "processes": 1, "candidates": [],
}  # fmt: skip


class Measure(NamedTuple):
    """What a run has reached, and in which epoch."""

    name: str
    value: float
    epoch: int

    def __str__(self) -> str:
        return f"{self.name} {self.value:.4g} in epoch {self.epoch}"


@dataclass
class Record:
    """What a run has left; of what cannot be read nothing is here, and ``problems`` say why.

    Attributes:
        folder: of the run.
        command: such as ``("search", "cnn")``; None of a run of an earlier version, which left no options.
        options: by name, all but ``out``.
        changed: names of those that are not at their defaults; None where a run has not said so.
        rows: of ``log.jsonl``, one an epoch.
        candidates: of a competition, what ``candidates.json`` holds; nothing before the first is done.
        notes: what else is known of an epoch, by its number; see :data:`NOTE`.
        genotype: the latest cell; None before there is one.
        processes: that worked on it, the first one first; see :data:`PROCESS`.
        epochs: of the whole run; 0 where its processes have not said so.
        lesson: what was learned, in a sentence.
        held: a process holds the folder, of a competition that of a candidate.
        problems: what is damaged.
    """

    folder: Path
    command: tuple[str, str] | None = None
    options: dict[str, Any] = field(default_factory=dict)
    changed: list[str] | None = None
    rows: list[dict[str, Any]] = field(default_factory=list)
    candidates: dict[str, Any] = field(default_factory=dict)
    notes: dict[int, dict[str, Any]] = field(default_factory=dict)
    genotype: AnyGenotype | None = None
    processes: list[dict[str, Any]] = field(default_factory=list)
    epochs: int = 0
    lesson: str = ""
    held: bool = False
    problems: list[str] = field(default_factory=list)

    @property
    def unit(self) -> str:
        """What the run goes through, ``epochs``, or the competition, ``candidates``."""
        return "candidates" if self.command and self.command[0] in COUNTED else "epochs"

    @property
    def total(self) -> int:
        """Epochs or candidates of the whole run; 0 where that is not known."""
        return self.epochs or (self.options[_counted(self.command)] if self.command else 0)

    @property
    def done(self) -> int:
        """How many of them are done."""
        return len(self.candidates["candidates"]) if self.candidates else len(self.rows)

    @property
    def end(self) -> str:
        """How the last process ended; nothing where it goes on, or ended without a word."""
        return self.processes[-1]["end"] if self.processes else ""

    @property
    def ranks(self) -> int:
        """How many processes computed together at last."""
        return self.candidates["processes"] if self.candidates else rank_count(self.processes, 1)

    @property
    def state(self) -> str:
        """``running``, ``finished`` or ``stopped``; ``damaged``, or ``?`` where it is not known."""
        if self.problems:
            return "damaged"
        if self.held and not self.end:
            return "running"
        if self.done and self.done == self.total:
            return "finished"
        return "stopped" if self.total else "?"

    @property
    def measure(self) -> Measure | None:
        """The first of :data:`MEASURES` that the run has."""
        for name, which in MEASURES.items():
            found = [Measure(name, row[name], row["epoch"]) for row in self.rows if name in row]
            if found:
                best = max if which == "max" else min
                reached = best(found, key=lambda one: (one.value, one.epoch))
                return found[-1] if which == "last" else reached
        return None

    @property
    def reached(self) -> str:
        """The measure in words, of a competition that of the best candidate; nothing before there is one."""
        if not self.candidates:
            return str(self.measure or "")
        values = {one["name"]: one["measure"] for one in self.candidates["candidates"]}
        best = self.candidates["best"]
        return f"{self.candidates['measure']} {values[best]:.4g} (candidate {best})"

    @property
    def digits(self) -> str:
        """Eight digits that are the same for the same cells, or nothing before there are any."""
        return "" if self.genotype is None else cell_digits(genotype_to_json(self.genotype))

    @property
    def seconds(self) -> float:
        """Of all epochs."""
        return sum(row.get("seconds", 0.0) for row in self.rows)


def cell_digits(fields: Mapping[str, Any]) -> str:
    """Return eight digits that are the same for the same cells, given as JSON has them."""
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:8]


def is_run(folder: Path) -> bool:
    """Say whether a run has left something in ``folder``."""
    return any((folder / name).exists() for name in (LOCK, CONFIG, LOG))


def read_run(folder: Path) -> Record:
    """Read what a run has left in ``folder``.

    Raises:
        InputError: there was no run. What is damaged is said in the record.
    """
    if not is_run(folder):
        raise InputError(f"there is no run in {folder}: name the folder of one")
    record = Record(folder)

    def part(name: str, read: Callable[[Path], Any], empty: Any) -> Any:
        if not (folder / name).exists():
            return empty
        try:
            return read(folder)
        except InputError as error:
            record.problems.append(str(error))
            return empty

    record.command, record.options = part(CONFIG, _options, (None, {}))
    places = [folder]
    if record.command and record.command[0] in COUNTED:  # held by whoever is at one of its candidates
        places += [*folder.glob("*"), *folder.glob("*/*")]
    record.held = any(in_use(place) for place in places if (place / LOCK).exists())
    record.rows = part(LOG, _rows, [])
    record.candidates = part(CANDIDATES, _candidates, {})
    notes = part(EPOCHS, _notes, {})
    record.notes = {k: notes[k] for k in sorted(notes) if k <= len(record.rows)}
    record.genotype = part(GENOTYPE, _genotype, None)
    kept = part(PROCESSES, read_processes, NO_PROCESSES)
    record.changed, record.lesson, record.processes = kept["changed"], kept["lesson"], kept["processes"]
    record.epochs = kept["epochs"]
    return record


def read_processes(folder: Path) -> dict[str, Any]:
    """Return what ``run.json`` says of a run's processes; of an earlier version there is none.

    Raises:
        InputError: it is damaged.
    """
    path = folder / PROCESSES
    if not path.exists():
        return NO_PROCESSES
    found = _json(path, read_text(path))
    if isinstance(found, dict):
        found.setdefault("epochs", 0)  # of an earlier version
    match(str(path), {**NO_PROCESSES, "changed": []}, found)
    if not all(isinstance(name, str) for name in found["changed"]):
        raise InputError(f"{path}: changed has what are no names of options")
    for process in found["processes"]:
        match(f"{path}: a process", PROCESS, process)
        if not str(process["environment"].get("processes", 1)).isdigit():
            raise InputError(f"{path}: processes is {process['environment']['processes']!r}, not a number")
        _check_numbers(f"{path}: memory", process["memory"])
    return found


def rank_count(processes: Sequence[Mapping[str, Any]], unknown: int) -> int:
    """Return how many ranks the last of a run's ``processes`` was of; ``unknown`` where there are none."""
    return int(processes[-1]["environment"].get("processes", 1)) if processes else unknown


def _check_numbers(place: str, found: Mapping[str, Any]) -> None:
    """Raise InputError unless all values are finite numbers."""
    for name, value in found.items():
        if type(value) not in (int, float) or not math.isfinite(value):
            raise InputError(f"{place} has {name}: {value!r}, not a number")


def _options(folder: Path) -> tuple[tuple[str, str] | None, dict[str, Any]]:
    command, options = load_config(folder / CONFIG)
    if type(options.get(_counted(command))) is not int:
        raise InputError(f"{folder / CONFIG} does not say of how many {_counted(command)} the run is")
    return command, options


def _counted(command: tuple[str, str]) -> str:
    """Return the option that says how long a run is."""
    return COUNTED.get(command[0], "epochs")


def _candidates(folder: Path) -> dict[str, Any]:
    path = folder / CANDIDATES
    found = _json(path, read_text(path))
    if isinstance(found, dict):
        found.setdefault("processes", 1)  # of an earlier version
    match(str(path), COMPETITION, found)
    measures = {}
    for one in found["candidates"]:
        match_keys(f"{path}: a candidate", {"name", "genotype", "measure"}, one)
        measures[str(one["name"])] = one["measure"]
    _check_numbers(str(path), {name: one for name, one in measures.items() if one is not None})
    if measures.get(found["best"]) is None:
        raise InputError(f"{path} does not say what its best candidate has reached")
    return found


def _rows(folder: Path) -> list[dict[str, Any]]:
    path = folder / LOG
    rows = [_json(path, line) for line in read_text(path).splitlines()]
    for place, row in enumerate(rows, start=1):
        if not isinstance(row, dict) or type(row.get("epoch")) is not int:
            raise InputError(f"line {place} of {path} is not the row of an epoch")
        _check_numbers(f"line {place} of {path}", row)
    return rows


def _notes(folder: Path) -> dict[int, dict[str, Any]]:
    path, notes = folder / EPOCHS, {}
    for line in read_text(path).splitlines():
        try:
            note = json.loads(line)
        except ValueError:  # torn by a kill: that epoch is done again
            continue
        match_keys(f"a line of {path}", set(NOTE), note)
        if [type(note[name]) for name in NOTE] != list(NOTE.values()):
            raise InputError(f"a line of {path} has values of other types than {NOTE}")
        _check_numbers(f"a line of {path}: seconds", note["seconds"])
        for name, table in note["alphas"].items():
            _check_table(f"{path}: {name}", table)
        notes[note["epoch"]] = note
    return notes


def _check_table(place: str, table: Any) -> None:
    """Raise InputError unless a table has a finite weight for every edge and operation."""
    match_keys(place, set(TABLE), table)
    try:
        weights = np.array(table["weights"], dtype=np.float64)
        kept_places(table["operations"], table["edges"], table["kept"])
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise InputError(f"{place} is no table of alphas ({error})") from error
    if not all(isinstance(name, str) for name in (*table["edges"], *table["operations"])):
        raise InputError(f"{place} has what are no names of edges and operations")
    if weights.shape != (len(table["edges"]), len(table["operations"])) or not np.isfinite(weights).all():
        raise InputError(f"{place} has not a finite weight for every edge and operation")


def _genotype(folder: Path) -> AnyGenotype:
    path = folder / GENOTYPE
    return genotype_from_json(_json(path, read_text(path)))


def _json(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})") from error
