"""Runs candidates one after the other, each in a folder of its own, and keeps the best.

The folder of a competition holds its options, and of what is done only what its candidates' folders hold:
whoever goes on with it takes the next candidate that is neither done nor held by another process, so that
several processes, of any machine that sees the folder, share the work.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import inf
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from dartsfast.drawing import draw_genotype
from dartsfast.errors import DivergedError, InputError, RunStopped
from dartsfast.genotypes import AnyGenotype, genotype_to_json
from dartsfast.runs.checkpoint import has_checkpoint
from dartsfast.runs.config_file import CONFIG, load_config, write_config
from dartsfast.runs.folder import InUseError, locked, new_folder
from dartsfast.runs.listing import TABLE, cell_digits
from dartsfast.runs.run import HERE
from dartsfast.tables import print_table


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
        genotype: the cell; None where its search diverged.
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
        waiting: names of candidates that other processes are still at.
        out: the folder, with ``candidates.json``, ``genotype.json``, ``cell.png`` and the folder of every
            candidate.
        lesson: the same in a sentence.
    """

    genotype: AnyGenotype
    best: str
    candidates: list[Candidate]
    mean: float
    deviation: float
    waiting: list[str]
    out: Path
    lesson: str


def competition(
    config: Any,
    command: tuple[str, str],
    absolute: Callable[[str], str],
    resume: str | os.PathLike | None,
) -> tuple[Any, Path]:
    """Return the options and the folder of a competition that begins, or goes on at ``resume``.

    ``absolute`` has the option ``data`` mean the same in any working directory.

    Raises:
        InputError: options that cannot work; a folder that holds a run already, or none to go on with.
    """
    if resume is not None:
        out = Path(resume).expanduser().resolve()
        if not (out / CONFIG).exists():
            raise InputError(f"nothing to go on with in {out}: give the folder of `{' '.join(command)}`")
        found, options = load_config(out / CONFIG)
        if found != command:
            raise InputError(f"{out} holds a run of `{' '.join(found)}`, not of `{' '.join(command)}`")
        here = {name: getattr(config, name) for name in HERE}
        if config.data != type(config).data:
            here["data"] = absolute(config.data)
        config = type(config)(**{**options, **here})
        config.check()
        return config, out
    config.check()
    config = dataclasses.replace(config, data=absolute(config.data))
    out = Path(config.out).resolve() if config.out else new_folder("-".join(command)).resolve()
    with locked(out):
        if (out / CONFIG).exists():
            raise InputError(f"{out} holds a run already: go on with --resume {out}, or choose another --out")
        write_config(out, command, config)
    return config, out


def compete(
    out: Path,
    command: tuple[str, str],
    measure: Measure,
    entrants: Mapping[str, Callable[[Path], Any]],
) -> CandidatesResult:
    """Run every entrant, in its folder below ``out``, and keep the best.

    Args:
        out: the folder of the competition.
        command: what began it.
        measure: what decides.
        entrants: by name, what runs or goes on with a candidate in its folder and returns its result.

    Raises:
        RunStopped: by a signal; what is done is kept.
        DivergedError: all of them diverged.
    """
    done, waiting = [], []
    for number, (name, run) in enumerate(entrants.items(), start=1):
        print(f"candidate {number} of {len(entrants)}: {out / name}", flush=True)
        try:
            done.append(_entered(out / name, run, measure))
        except InUseError as error:
            print(f"left out: {error}", flush=True)
            waiting.append(name)
        except RunStopped as stopped:
            words = shlex.join(["dartsfast", *command, "--resume", str(out)])
            raise RunStopped(
                f"stopped at candidate {number} of {len(entrants)}, {name}; what is done is kept. "
                f"Go on with: {words}",
                stopped.signum,
            ) from None
    result = _judged(out, done, waiting, measure)
    _write(result, command, measure)
    _print(result, measure)
    return result


def once(run: Callable[..., Any], config: Any, folder: Path) -> Any:
    """Run it, or go on with what there is of it in its folder."""
    return run(config, resume=folder if has_checkpoint(folder) else None)


def numbered(count: int, run: Callable[[int, Path], Any]) -> dict[str, Callable[[Path], Any]]:
    """Return entrants whose names are their numbers, from 0 on."""
    digits = len(str(count - 1))
    return {f"{number:0{digits}d}": partial(run, number) for number in range(count)}


def _entered(folder: Path, run: Callable[[Path], Any], measure: Measure) -> Candidate:
    try:
        result = run(folder)
    except DivergedError as error:
        print(f"out of the competition: {error}", flush=True)
        return Candidate(folder.name, None, None)
    return Candidate(folder.name, result.genotype, measure.reached(result.history))


def _judged(out: Path, done: list[Candidate], waiting: list[str], measure: Measure) -> CandidatesResult:
    reached = [(c.measure, c.genotype, c.name) for c in done if c.measure is not None and c.genotype]
    if not reached:
        why = "all of its candidates diverged" if not waiting else "other processes are at all that is left"
        raise DivergedError(f"the competition in {out} has no winner: {why}")
    values = [value for value, *_ in reached]
    value, genotype, best = max(reached, key=lambda one: measure.better(one[0]))
    deviation = stdev(values) if len(values) > 1 else 0.0
    lesson = (
        f"best of {len(values)} cells: {best}, {measure.name} {value:.2f}{measure.unit}; "
        f"all: {mean(values):.2f} +- {deviation:.2f}{measure.unit}"
    )
    if waiting:
        lesson += f"; {', '.join(waiting)} still with other processes"
    return CandidatesResult(genotype, best, done, mean(values), deviation, waiting, out, lesson)


def _write(result: CandidatesResult, command: tuple[str, str], measure: Measure) -> None:
    rows = [
        {**dataclasses.asdict(c), "genotype": c.genotype and genotype_to_json(c.genotype)}
        for c in result.candidates
    ]
    table = {
        "command": " ".join(command), "measure": measure.name, "best": result.best, "mean": result.mean,
        "deviation": result.deviation, "waiting": result.waiting, "candidates": rows,
    }  # fmt: skip
    _replace(result.out / TABLE, table)
    _replace(result.out / "genotype.json", genotype_to_json(result.genotype))
    draw_genotype(result.genotype, result.out / "cell")


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
