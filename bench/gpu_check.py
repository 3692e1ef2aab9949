"""Checks and measures dartsfast on a GPU with one command: ``make gpu``, or ``python bench/gpu_check.py``.

Every stage is a process of its own with a limit of its own; together they take at most
:data:`SECONDS`. What a stage leaves over, the next may use. The check stops at wrong numbers, and says why
whatever it does not do. ``--rehearse`` runs every stage on the CPU or in Triton's interpreter, at tiny sizes.

``--out`` then holds ``gpu_check.json`` (every row of every stage), ``gpu_check.log`` (what the stages and
their tools printed) and ``gpu_check.md`` (the tables that are printed last). Nothing but torch, Triton and
numpy need be installed, and nothing is fetched.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
REHEARSAL_SECONDS = 600.0  # of a stage: a rehearsal is not about time
TAIL = 15  # lines of the log that are shown of a stage that fails


@dataclass(frozen=True)
class Stage:
    """A stage.

    Attributes:
        name: a module of ``bench.gpu``, and after a colon what it is told; before a slash the backend that
            serves the device, if not Triton's.
        about: what it finds out.
        seconds: its share of the time.
        needed: nothing that comes after it is worth anything without it.
        interpreted: a rehearsal runs it in Triton's interpreter.
    """

    name: str
    about: str
    seconds: float
    needed: bool = False
    interpreted: bool = False

    @property
    def backend(self) -> str:
        """The backend that serves the device."""
        return self.name.rpartition("/")[0] or "triton"


STAGES = (
    # The first import of torch reads gigabytes; what is left of this the next stages have.
    Stage("versions", "versions, device, ceilings", 35, needed=True),
    Stage("build", "the native extension", 40),
    Stage("build:cuda", "the kernels for CUDA in C++", 50),
    Stage("cuda/bits", "operators and cells in C++: the CPU's bits", 30, needed=True),
    Stage("warm", "all Triton kernels compiled", 70, needed=True),
    Stage("deep", "doctor --deep", 20, needed=True),
    Stage("operators", "operators against their oracles", 45, needed=True, interpreted=True),
    Stage("networks", "small networks: right, and the same bits", 45, needed=True),
    Stage("cuda/networks", "the same, kernels in C++", 35),
    Stage("paper:1", "the paper's searches, first order", 40),
    Stage("cuda/paper:1", "the same, kernels in C++", 35),
    Stage("profiled", "kernels of an iteration against the model", 20),
    Stage("paper:2", "the paper's searches, second order", 45),
    Stage("cuda/paper:2", "the same, kernels in C++", 35),
    Stage("counters", "hardware counters of the heaviest kernels", 30),
    Stage("sanitized", "compute-sanitizer: memcheck, racecheck", 25, interpreted=True),
)
"""In order: right numbers first, so that a check which is cut off has said what matters."""
SECONDS = sum(stage.seconds for stage in STAGES)
KERNELS = ROOT / "dartsfast" / "_cuda.abi3.so"

PASSED, WRONG, FAILED, OVER, NOT_RUN = "passed", "WRONG", "FAILED", "over its limit", "not run"


@dataclass
class Outcome:
    """How a stage ended, and what it found."""

    stage: str
    about: str
    outcome: str
    reason: str = ""
    seconds: float = 0.0
    limit: float = 0.0
    rows: list[dict[str, Any]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)


class Run:
    """A check in progress.

    Args:
        out: folder of what it leaves.
        rehearse: whether it is a rehearsal.
        stages: what runs.
        seconds: what they may take together; none: their shares.
        package: module that the stages are in.
    """

    def __init__(
        self,
        out: Path,
        *,
        rehearse: bool,
        stages: Sequence[Stage] = STAGES,
        seconds: float | None = None,
        package: str = "bench.gpu",
    ) -> None:
        self.out, self.rehearse, self.stages, self.package = out, rehearse, stages, package
        self.seconds = seconds
        self.log = out / "gpu_check.log"
        self.outcomes: list[Outcome] = []

    def run(self) -> int:
        """Run the stages, print tables; return 1 where one is wrong, failed or took too long, else 0."""
        self.log.write_text("", encoding="utf-8")
        began, stopped, left = time.monotonic(), "", sum(stage.seconds for stage in self.stages)
        total = self.seconds or left
        with tempfile.TemporaryDirectory(prefix="gpu-check-") as name:
            self.folder = Path(name)
            self.environment = environment(self.folder, rehearse=self.rehearse)
            for stage in self.stages:
                left -= stage.seconds  # of the stages to come
                if stopped:
                    self._note(Outcome(stage.name, stage.about, NOT_RUN, stopped))
                    continue
                if reason := self._needless(stage):
                    self._note(Outcome(stage.name, stage.about, NOT_RUN, reason))
                    continue
                limit = REHEARSAL_SECONDS if self.rehearse else total - left - (time.monotonic() - began)
                outcome = self._stage(stage, limit)
                self._note(outcome)
                if outcome.outcome == WRONG or outcome.outcome == FAILED and stage.needed:
                    stopped = f"stopped: {stage.name} {outcome.outcome}"
        text = report(self.outcomes, rehearse=self.rehearse)
        (self.out / "gpu_check.md").write_text(text + "\n", encoding="utf-8")
        print(f"\n{text}")
        return 0 if all(o.outcome in (PASSED, NOT_RUN) for o in self.outcomes) else 1

    def _needless(self, stage: Stage) -> str:
        """Return why a stage of the kernels in C++ need not run."""
        backend, _, twin = stage.name.rpartition("/")
        if not backend:
            return ""
        if self.rehearse and any(other.name == twin for other in self.stages):
            return f"a rehearsal of {twin} is one of it"
        if not self.rehearse and not KERNELS.exists():
            return "the kernels for CUDA in C++ are not there: see build:cuda"
        return ""

    def _stage(self, stage: Stage, limit: float) -> Outcome:
        result, earlier = self.folder / "result.json", self.folder / "earlier.json"
        result.unlink(missing_ok=True)
        earlier.write_text(json.dumps({o.stage: o.rows for o in self.outcomes}), encoding="utf-8")
        command = [sys.executable, "-m", f"{self.package}.stage", stage.name, str(result)]
        command += ["--earlier", str(earlier), *(["--rehearse"] if self.rehearse else [])]
        chosen = {} if self.rehearse else {"DARTSFAST_BACKEND": stage.backend}
        chosen |= {"TRITON_INTERPRET": "1"} if self.rehearse and stage.interpreted else {}
        began = time.monotonic()
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"\n===== {stage.name}: {stage.about}\n")
            log.flush()
            status = finished(command, limit, log, {**self.environment, **chosen}, self.folder)
        seconds = time.monotonic() - began
        found = json.loads(result.read_text(encoding="utf-8")) if result.exists() else {}
        rows, wrong = found.get("rows", []), found.get("wrong", [])
        outcome, reason = judged(status, wrong, found.get("not_run"), limit)
        return Outcome(stage.name, stage.about, outcome, reason, seconds, limit, rows, wrong)

    def _note(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        kept = {"rehearsal": self.rehearse, "stages": [asdict(o) for o in self.outcomes]}
        (self.out / "gpu_check.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
        reason = f": {outcome.reason}" if outcome.reason else ""
        took = f" ({outcome.seconds:.1f} s of {outcome.limit:.0f})" if outcome.seconds else ""
        print(f"{outcome.stage:<13} {outcome.outcome}{took}{reason}", flush=True)
        if outcome.outcome == FAILED:
            lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
            print("\n".join(f"    {line}" for line in lines[-TAIL:]), flush=True)


def finished(
    command: Sequence[str], limit: float, log: Any, environment: Mapping[str, str], folder: Path
) -> int | None:
    """Run a command with all that it starts; return its exit status, None if it was ended at its limit."""
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder, start_new_session=True
    )
    try:
        return process.wait(max(limit, 0.0))
    except subprocess.TimeoutExpired:
        return None
    finally:
        # With what it started: a tool's child must not hold the GPU into the next stage.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def judged(status: int | None, wrong: Sequence[str], not_run: str | None, limit: float) -> tuple[str, str]:
    """Return how a stage ended, from its exit status and what it noted, and the reason in words."""
    if wrong:
        return WRONG, f"{wrong[0]}" + (f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else "")
    if status is None:
        return OVER, f"ended after {limit:.0f} s; what it had found till then is kept"
    if status:
        return FAILED, f"exit status {status}: the log says why"
    return (NOT_RUN, not_run) if not_run else (PASSED, "")


def environment(folder: Path, *, rehearse: bool) -> dict[str, str]:
    """Return the environment of the stages: this checkout's packages, the tests' modules, an empty cache.

    The package lies in the folder as links, with the kernels where an installation puts them, so that nothing
    need be installed and no other installation is taken.
    """
    package = folder / "dartsfast"
    package.mkdir()
    names = {path.name for path in (ROOT / "dartsfast").iterdir()} - {"__pycache__", "kernels"}
    for name in names | {"_C.abi3.so", KERNELS.name}:  # which may be built only now
        (package / name).symlink_to(ROOT / "dartsfast" / name)
    (package / "kernels").symlink_to(ROOT / "kernels")
    paths = [str(folder), str(ROOT), str(ROOT / "tests")]
    found = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("DARTSFAST_") and name != "TRITON_INTERPRET"
    }
    found |= {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    if rehearse:
        found["TRITON_CACHE_DIR"] = str(folder / "triton")
    return found


def report(outcomes: Sequence[Outcome], *, rehearse: bool) -> str:
    """Return the tables: what every stage found, then how each ended."""
    parts = ["**A rehearsal on the CPU: no figures.**"] if rehearse else []
    for outcome in outcomes:
        if outcome.rows:
            parts += [f"`{outcome.stage}`: {outcome.about}", *tables(outcome.rows)]
    endings = [
        {
            "stage": o.stage,
            "what": o.about,
            "outcome": o.outcome,
            "s": round(o.seconds, 1),
            "reason": o.reason,
        }
        for o in outcomes
    ]
    return "\n\n".join([*parts, *tables(endings)])


def tables(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return markdown tables of rows, one for each run of rows with the same columns."""
    found = []
    for columns, group in groupby(rows, key=_columns):
        lines = [_line(columns), "|---" * len(columns) + "|"]
        found.append("\n".join([*lines, *(_line([_cell(row[c]) for c in columns]) for row in group)]))
    return found


def _columns(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(row)


def _cell(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "/").replace("\n", " ")


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the check; return 0, 1 where something is wrong or failed, 2 for input that cannot work."""
    parser = argparse.ArgumentParser(prog="gpu_check", description="Check and measure dartsfast on a GPU.")
    parser.add_argument("--out", default="runs/gpu", help="folder of the results (default: %(default)s)")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes, on the CPU or the interpreter")
    names = [stage.name for stage in STAGES]
    parser.add_argument(
        "--stages", nargs="+", choices=names, default=names, metavar="STAGE", help=f"of {', '.join(names)}"
    )
    args = parser.parse_args(argv)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    # Others read what the first finds.
    chosen = [stage for stage in STAGES if stage.name in (STAGES[0].name, *args.stages)]
    return Run(out, rehearse=args.rehearse, stages=chosen, seconds=SECONDS).run()


if __name__ == "__main__":
    sys.exit(main())
