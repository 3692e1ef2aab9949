"""What a run leaves for its report beside log and genotype: what every epoch and every process was like."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from dartsfast import ranks
from dartsfast.errors import DivergedError, InputError
from dartsfast.files import write_whole
from dartsfast.runs.environment import environment, peak_memory
from dartsfast.runs.page import write_report
from dartsfast.runs.record import EPOCHS, PROCESSES, read_processes


class Journal:
    """Keeps ``epochs.jsonl``, ``run.json`` and ``report.html`` in the folder of a run that goes on within.

    ``epochs.jsonl`` is only ever added to: of several lines of an epoch, which a run that was killed or went
    back does again, the last one counts. What of ``run.json`` cannot be read is written anew. Of several
    ranks the first one writes.

    Args:
        out: folder of the run.
        device: that it runs on.
        changed: names of the options that are not at their defaults.
        begin: (epoch, iteration) that are done.
        epochs: of the whole run; fewer once it has ended by itself.
        earlier: how many ranks there were before, where there are others now.
    """

    def __init__(
        self,
        out: Path,
        device: torch.device,
        changed: Sequence[str],
        begin: tuple[int, int],
        epochs: int,
        earlier: int | None = None,
    ) -> None:
        self.out, self.device, self.changed = out, device, list(changed)
        self.epochs = epochs
        self.lesson = ""  # what was learned, in a sentence
        self.end = ""  # how the process ends
        try:
            self._before = read_processes(out)["processes"]
        except InputError:
            self._before = []
        self._process: dict[str, Any] = {
            "began": _now(), "epochs_before": begin[0], "iterations_before": begin[1],
            "environment": environment(device),
        }  # fmt: skip
        if earlier is not None:
            neither = f"neither that of {earlier} nor of {ranks.size()} processes"
            self._process["environment"]["trajectory"] = neither

    def __enter__(self) -> Journal:
        self._write()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.end:
            self.end = "all epochs are done" if error is None else _what(error)
        # Where something went wrong, such as a full disk, that is what is said.
        with contextlib.suppress(*((OSError,) if error else ())):
            self._write()

    def epoch(self, note: Mapping[str, Any]) -> None:
        """Leave behind what an epoch was like, and the report."""
        if not ranks.first():
            return
        path = self.out / EPOCHS
        torn = path.exists() and not path.read_bytes().endswith(b"\n")  # by a kill
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n" * torn + json.dumps(note) + "\n")
        self._write()

    def _write(self) -> None:
        if not ranks.first():
            return
        seen = {"seen": _now(), "memory": peak_memory(self.device), "end": self.end}
        found = {
            "changed": self.changed, "lesson": self.lesson, "epochs": self.epochs,
            "processes": [*self._before, {**self._process, **seen}],
        }  # fmt: skip
        write_whole(self.out / PROCESSES, json.dumps(found, indent=1) + "\n")
        write_report(self.out)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())


def _what(error: BaseException) -> str:
    if isinstance(error, DivergedError):
        return error.what or str(error)
    return f"{type(error).__name__}: {error}"
