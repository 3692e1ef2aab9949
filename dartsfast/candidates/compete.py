"""Runs candidates one after the other, each in a folder of its own, and keeps the best.

The folder of a competition holds its options, and of what is done only what its candidates' folders hold:
whoever goes on with it takes the next candidate that is neither done nor held by another process, so that
several processes, of any machine that sees the folder, share the work. Each waits for the others at the end.
Ranks (:mod:`dartsfast.ranks`) are together one of these processes: they compute a candidate after the other,
and the first of them alone sees the folder.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from dartsfast import ranks
from dartsfast.drawing import draw_genotype
from dartsfast.errors import DivergedError, InputError, RunStopped
from dartsfast.genotypes import AnyGenotype, as_genotype, genotype_to_json
from dartsfast.runs.checkpoint import has_checkpoint
from dartsfast.runs.config_file import CONFIG, load_config, program, read_config, write_config
from dartsfast.runs.detail import QUIET, detail
from dartsfast.runs.device import resolve_device
from dartsfast.runs.folder import LOCK, InUseError, UsedError, locked, new_folder
from dartsfast.runs.interrupts import signal_name, striking_signals
from dartsfast.runs.options import HERE, here
from dartsfast.runs.page import write_report
from dartsfast.runs.record import CANDIDATES, cell_digits, rank_count, read_processes
from dartsfast.tables import print_table

PATIENCE = 5.0  # seconds between two looks at what other processes do


class Measure(NamedTuple):
    """What candidates are judged by: a column of their logs.

    Attributes:
        name: of the column.
        unit: of its numbers.
        sign: 1 where the largest is the best, -1 where the smallest is.
        last: whether the last epoch counts, else the best one.
    """

    name: str
    unit: str
    sign: int
    last: bool

    def reached(self, history: Sequence[Mapping[str, Any]]) -> float:
        """Return what a training came to."""
        values = [row[self.name] for row in history]
        return values[-1] if self.last else max(values, key=self.better)

    def better(self, value: float | None) -> float:
        """Return what is the larger, the better; None is worse than all."""
        return -inf if value is None else self.sign * value


@dataclass(frozen=True)
class Candidate:
    """A cell that took part.

    Attributes:
        name: of its folder.
        genotype: the cell; None where its search or training diverged.
        measure: what it reached; None where it diverged.
    """

    name: str
    genotype: AnyGenotype | None
    measure: float | None

    @property
    def digits(self) -> str:
        """Eight digits that are the same for the same cells."""
        return "" if self.genotype is None else cell_digits(genotype_to_json(self.genotype))


@dataclass(frozen=True)
class CandidatesResult:
    """What a competition has come to.

    Attributes:
        genotype: the best cell.
        best: the name of its candidate.
        candidates: all that are done, in their order.
        mean, deviation: of what those reached that did not diverge; the deviation of one is 0.
        out: the folder, with ``candidates.json``, ``genotype.json``, ``cell.png`` and the folder of every
            candidate.
        lesson: the same in a sentence.
    """

    genotype: AnyGenotype
    best: str
    candidates: list[Candidate]
    mean: float
    deviation: float
    out: Path
    lesson: str


class Competition(NamedTuple):
    """A competition that begins or goes on.

    Attributes:
        config: its options.
        out: its folder.
        command: what begins it.
        again: what goes on with it, in words.
    """

    config: Any
    out: Path
    command: tuple[str, str]
    again: str


def competition(
    config: Any,
    command: tuple[str, str],
    absolute: Callable[[str], str],
    resume: str | os.PathLike | None,
) -> Competition:
    """Return the competition that ``config`` describes, in a folder with its options, or that at ``resume``.

    ``absolute`` has the option ``data`` mean the same in any working directory.

    Raises:
        InputError: options that cannot work; a folder that holds a run already, or none to go on with.
    """
    moved = []
    if resume is not None:
        out, own = ranks.from_first(lambda: _left_in(resume, command, type(config)))
        now = here(config)
        if config.data != type(config).data:
            now["data"] = absolute(config.data)
            moved = ["--data", now["data"]]
        config = type(config).kept(own).but(**now)
        config.check()
    else:
        config.check()
        config = dataclasses.replace(config, data=absolute(config.data))
        resolve_device(config.device)
        out = ranks.from_first(lambda: _begun(config, command))
    words = [*program(ranks.size()), *command, "--resume", str(out), *moved]
    for field in dataclasses.fields(config):
        if field.name in HERE and getattr(config, field.name) != field.default:
            words += [f"--{field.name}", str(getattr(config, field.name))]
    return Competition(config, out, command, shlex.join(words))


def _left_in(
    resume: str | os.PathLike, command: tuple[str, str], config_cls: Any
) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a competition to go on with, and its options."""
    out = Path(os.path.expanduser(resume)).resolve()
    if not (out / CONFIG).exists():
        raise InputError(f"nothing to go on with in {out}: give the folder of `{' '.join(command)}`")
    return out, read_config(out / CONFIG, command, config_cls)


def _begun(config: Any, command: tuple[str, str]) -> Path:
    """Return the folder of a new competition, with its options."""
    out = Path(config.out).resolve() if config.out else new_folder("-".join(command)).resolve()
    with locked(out):
        # Where nothing has been computed yet, as after an option that could not work, it begins anew.
        if has_checkpoint(out) or any(has_checkpoint(lock.parent) for lock in out.rglob(LOCK)):
            raise InputError(f"{out} holds a run already: go on with --resume {out}, or choose another --out")
        write_config(out, command, config)
    return out


def compete(
    these: Competition, measure: Measure, entrants: Mapping[str, Callable[[Path], Any]]
) -> CandidatesResult:
    """Run every entrant that no other process runs, wait for those, and keep the best of all.

    Args:
        these: the competition.
        measure: what decides.
        entrants: by name, what runs or goes on with a candidate in its folder and returns its result.

    Raises:
        RunStopped: by a signal; what is done is kept.
        DivergedError: all of them diverged.
    """
    done: dict[str, Candidate] = {}
    try:
        with striking_signals():
            _round(these, measure, entrants, done)
            if left := [name for name in entrants if name not in done]:
                _say(f"waiting for other processes: {', '.join(left)}")
            while len(done) < len(entrants):
                time.sleep(PATIENCE)
                _round(these, measure, entrants, done)
            result = _judged(these.out, [done[name] for name in entrants], measure)
            if ranks.first():
                draw_genotype(result.genotype, these.out / "cell")
                _leave(these, measure, result.candidates)
    except KeyboardInterrupt as stop:
        signum = stop.signum if isinstance(stop, RunStopped) else signal.SIGINT
        raise RunStopped(
            f"stopped by {signal_name(signum)} with {len(done)} of {len(entrants)} candidates done; what is "
            f"done is kept. Go on with: {these.again}",
            signum,
        ) from None
    if _shows():
        _print(result, measure)
    return result


def _round(
    these: Competition,
    measure: Measure,
    entrants: Mapping[str, Callable[[Path], Any]],
    done: dict[str, Candidate],
) -> None:
    """Run those that are neither done nor held by another process."""
    for name, run in entrants.items():
        if name in done:
            continue
        with contextlib.suppress(InUseError):
            done[name] = _entered(these.out / name, run, measure)
            reached = done[name].measure
            what = "diverged" if reached is None else f"{measure.name} {reached:.2f}{measure.unit}"
            _say(f"{len(done)} of {len(entrants)} candidates done: {name}, {what}")
            if ranks.first():
                _leave(these, measure, list(done.values()))


def _shows() -> bool:
    return detail() != QUIET and ranks.first()


def _say(text: str) -> None:
    if _shows():
        print(text, flush=True)


def once(run: Callable[..., Any], config: Any, folder: Path) -> Any:
    """Run it, or go on with what there is of it in its folder.

    Raises:
        InUseError: another process is at it.
        InputError: what there is has other options, or was computed by another number of ranks.
    """
    if not ranks.from_first(lambda: has_checkpoint(folder)):
        with contextlib.suppress(UsedError):  # another process has begun, and stopped, since
            return run(config)
    ranks.from_first(lambda: _check_same(config, folder))
    return run(config, resume=folder)


def _check_same(config: Any, folder: Path) -> None:
    before = rank_count(read_processes(folder)["processes"], ranks.size())
    if before != ranks.size():
        how = f"torchrun --nproc_per_node={before}" if before > 1 else "one process, without torchrun"
        raise InputError(
            f"{folder} holds a run of {before} ranks, and here are {ranks.size()}: whole batches would have "
            f"another size, and candidates could not be compared. Go on with {how}, or choose another --out"
        )
    if not (folder / CONFIG).exists():  # killed before it was written
        return
    _, found = load_config(folder / CONFIG)
    for field in dataclasses.fields(config):
        name, value = field.name, getattr(config, field.name)
        if name in (*HERE, "out", "data", "download") or value is None:
            continue
        kept = found.get(name)
        same = as_genotype(kept) == as_genotype(value) if name == "arch" and kept else kept == value
        if not same:
            raise InputError(
                f"{folder} holds a run with {name} {kept!r}, and this competition has {value!r}: "
                "choose another folder"
            )


def numbered(count: int, run: Callable[[int, Path], Any]) -> dict[str, Callable[[Path], Any]]:
    """Return entrants whose names are their numbers, from 0 on."""
    digits = len(str(count - 1))
    return {f"{number:0{digits}d}": partial(run, number) for number in range(count)}


def _entered(folder: Path, run: Callable[[Path], Any], measure: Measure) -> Candidate:
    try:
        result = run(folder)
    except DivergedError as error:
        _say(f"out of the competition: {error}")
        return Candidate(folder.name, None, None)
    return Candidate(folder.name, result.genotype, measure.reached(result.history))


def _judged(out: Path, done: list[Candidate], measure: Measure) -> CandidatesResult:
    reached = [(c.measure, c.genotype, c.name) for c in done if c.measure is not None and c.genotype]
    if not reached:
        raise DivergedError(f"the competition in {out} has no winner: all of its candidates diverged")
    values = [value for value, *_ in reached]
    value, genotype, best = max(reached, key=lambda one: measure.better(one[0]))
    deviation = stdev(values) if len(values) > 1 else 0.0
    lesson = (
        f"best of {len(values)} cells: {best}, {measure.name} {value:.2f}{measure.unit}; "
        f"all: {mean(values):.2f} ± {deviation:.2f}{measure.unit}"
    )
    return CandidatesResult(genotype, best, done, mean(values), deviation, out, lesson)


def _leave(these: Competition, measure: Measure, done: list[Candidate]) -> None:
    _write(these, measure, done)
    write_report(these.out)


def _write(these: Competition, measure: Measure, done: list[Candidate]) -> None:
    """Write the table and the best cell of what is done, by others too: who is last writes all of it."""
    rows = {
        c.name: {**dataclasses.asdict(c), "genotype": c.genotype and genotype_to_json(c.genotype)}
        for c in done
    }
    path = these.out / CANDIDATES
    if path.exists():
        for row in json.loads(path.read_text(encoding="utf-8"))["candidates"]:
            rows.setdefault(row["name"], row)
    reached = {name: row["measure"] for name, row in sorted(rows.items()) if row["measure"] is not None}
    if not reached:
        return
    best, values = max(reached, key=lambda name: measure.better(reached[name])), list(reached.values())
    table = {
        "command": " ".join(these.command), "measure": measure.name, "best": best, "mean": mean(values),
        "deviation": stdev(values) if len(values) > 1 else 0.0, "processes": ranks.size(),
        "candidates": [row for _, row in sorted(rows.items())],
    }  # fmt: skip
    _replace(path, table)
    _replace(these.out / "genotype.json", rows[best]["genotype"])


def _replace(path: Path, value: Any) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def _print(result: CandidatesResult, measure: Measure) -> None:
    rows = [
        (c.name, c.digits, "diverged" if c.measure is None else f"{c.measure:.2f}")
        for c in sorted(result.candidates, key=lambda c: measure.better(c.measure), reverse=True)
    ]
    print_table(f"candidates in {result.out}", ("candidate", "cell", measure.name), rows, numbers=1)
