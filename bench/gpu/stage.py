"""What a stage of the GPU check is given and leaves, and the process that one runs in.

``python -m bench.gpu.stage NAME RESULT [--rehearse] [--earlier FILE]`` runs a stage. What it finds is written
to RESULT with every row, so that a stage that is stopped at its limit leaves what it had.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
from pathlib import Path
from typing import Any

import torch

Row = dict[str, Any]


class NotRun(Exception):  # noqa: N818 - no error: the check goes on
    """A stage cannot run here, for the reason in words."""


class Check:
    """What a stage is given: where to compute, and where to leave what it finds.

    Attributes:
        backend: what serves the device; in a rehearsal the CPU's kernels stand in.
        rehearse: whether everything runs on the CPU, at tiny sizes.
        earlier: the rows of the stages before, by name.
        rows: what was found, flat dicts.
        wrong: what is wrong with the numbers, in words.
    """

    def __init__(self, result: Path, *, rehearse: bool, earlier: dict[str, list[Row]] | None = None) -> None:
        self.result, self.rehearse, self.earlier = result, rehearse, earlier or {}
        self.backend = "cpu" if rehearse else os.environ.get("DARTSFAST_BACKEND", "triton")
        self.rows: list[Row] = []
        self.wrong: list[str] = []
        self.not_run: str | None = None

    @property
    def place(self) -> torch.device:
        """The device of the stages."""
        return torch.device("cpu" if self.rehearse else "cuda")

    def row(self, **values: Any) -> None:
        """Note and print a row."""
        self.rows.append(values)
        print("  ".join(f"{name}={_short(value)}" for name, value in values.items()), flush=True)
        self.save()

    def fail(self, what: str) -> None:
        """Note wrong numbers; the stage goes on, the check does not."""
        self.wrong.append(what)
        print(f"WRONG: {what}", flush=True)
        self.save()

    def skip(self, reason: str) -> None:
        """Note that the stage does not run, and why."""
        self.not_run = reason
        print(f"not run: {reason}", flush=True)
        self.save()

    def save(self) -> None:
        """Write what there is; the file is never half written."""
        part = self.result.with_suffix(".part")
        found = {"rows": self.rows, "wrong": self.wrong, "not_run": self.not_run}
        part.write_text(json.dumps(found), encoding="utf-8")
        part.replace(self.result)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def main() -> None:
    """Run the stage that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.stage")
    parser.add_argument("name", help="a stage, as bench/gpu_check.py calls it")
    parser.add_argument("result", type=Path)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--earlier", type=Path)
    args = parser.parse_args()
    earlier = json.loads(args.earlier.read_text(encoding="utf-8")) if args.earlier else {}
    check = Check(args.result, rehearse=args.rehearse, earlier=earlier)
    try:
        module, _, choice = args.name.rpartition("/")[2].partition(":")
        importlib.import_module(f"bench.gpu.{module}").run(check, *([choice] if choice else []))
    except NotRun as reason:
        check.skip(str(reason))
    check.save()


if __name__ == "__main__":
    # A stage imports this module by its name: were this one another, NotRun would be another class.
    from bench.gpu.stage import main as main_by_name

    main_by_name()
