"""The loop that both searches run: epochs, iterations, checkpoints, reports."""

from __future__ import annotations

import dataclasses
import math
import shlex
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dartsfast.bilevel.guard import random_state, set_random_state
from dartsfast.errors import DivergedError, InputError, SearchStopped
from dartsfast.genotypes import AnyGenotype
from dartsfast.search.capture import Captured
from dartsfast.search.checkpoint import save_checkpoint
from dartsfast.search.config import CommonConfig
from dartsfast.search.fit import check_progress, match, match_optimizer
from dartsfast.search.interrupts import Stop, StopAsked, signal_name, stop_signals
from dartsfast.search.lesson import preferences
from dartsfast.search.report import Report

HERE = ("device", "checkpoint_seconds")  # options of a process, not of a run

# What a checkpoint holds, beside its format.
STATE = (
    "format", "kind", "config", "model", "optimizer", "arch_optimizer", "random", "epoch", "step", "sums",
    "count", "seconds", "history", "extra", "data",
)  # fmt: skip


@dataclass(frozen=True)
class SearchResult:
    """What a search found.

    Attributes:
        genotype: the discrete cell.
        alphas: architecture parameters by name, on the CPU.
        history: one row an epoch, as in ``log.jsonl``.
        out: folder of the run, with ``genotype.json``, ``log.jsonl``, ``cell.png``, ``alphas.png``,
            ``curves.png`` (and SVG), ``pictures/``, ``tensorboard/``.
        checkpoint: the last checkpoint.
        lesson: what was learned, in a sentence of the run's own figures; empty for a run that was finished
            before.
    """

    genotype: AnyGenotype
    alphas: dict[str, Tensor]
    history: list[dict[str, Any]]
    out: Path
    checkpoint: Path
    lesson: str = ""


@dataclass(frozen=True)
class Iteration:
    """One iteration as the loop sees it: work done in this epoch, and what to show."""

    done: int
    metrics: dict[str, float]


class AlphaTable(NamedTuple):
    """Alphas of one kind of cell: [edges, operations], the names of both, and what the genotype keeps."""

    alphas: Tensor
    operations: Sequence[str]
    edges: Sequence[str]
    kept: Sequence[tuple[str, int]]


class Search(ABC):
    """A search between two iterations. Subclasses build the networks and say what an iteration is."""

    kind: str
    alpha_shapes: dict[str, tuple[int, int]]  # by their names in the model's state_dict
    metrics: tuple[str, ...]  # what iterations record
    scheduled: tuple[str, ...] = ()  # options of the weights' optimiser that change on the way
    model: Any
    optimizer: torch.optim.Optimizer
    architect: Any
    work: int  # units of progress an epoch
    every: int  # iterations between lines where the output is no terminal
    fingerprint: dict[str, Any]  # of the data, see dartsfast.data.fingerprint

    def __init__(self, config: CommonConfig) -> None:
        config.check()
        self.config: Any = config
        self.device = resolve_device(config.device)
        self.epoch = 0
        self.step = 0  # iterations done in this epoch
        self.sums: dict[str, float] = {}  # weighted sums of this epoch's metrics
        self.count = 0.0
        self.seconds = 0.0  # time spent in this epoch, over all its resumptions
        self.history: list[dict[str, Any]] = []
        self.captured: Captured | None = None
        self.stop = Stop()

    @staticmethod
    @abstractmethod
    def absolute_data(data: str) -> str:
        """Return the option ``data`` such that it means the same in any working directory."""

    def run_iteration(self, *inputs: Tensor, numbers: tuple[float, ...]) -> tuple[Tensor, ...]:
        """Run :meth:`iteration`, on CUDA from a recording, which is of these ``numbers``."""
        if not self._captures:
            return self.iteration(*inputs)
        if self.captured is None:
            self._count_steps_where_they_run()
            self.captured = Captured(self.iteration, self.device, required=self.config.capture is True)
        return self.captured(*inputs, numbers=numbers)

    @property
    def _captures(self) -> bool:
        return self.config.capture is not False and self.device.type == "cuda"

    def _count_steps_where_they_run(self) -> None:
        """Let Adam count its steps on the device, as recordings need, or on the host, as others do."""
        optimizer = self.architect.optimizer
        for group in optimizer.param_groups:
            group["capturable"] = self._captures
        for state in optimizer.state.values():
            state["step"] = state["step"].to(self.device if self._captures else "cpu")

    @abstractmethod
    def iteration(self, *inputs: Any) -> tuple[Tensor, ...]:
        """Move the alphas, then the weights, without a wait for the device."""

    @abstractmethod
    def iterations(self) -> Iterator[Iteration]:
        """Run what is left of the epoch, counting ``step`` up before each yield."""

    @abstractmethod
    def finish_epoch(self) -> dict[str, Any]:
        """Validate, move the schedule on, and return the epoch's metrics."""

    @abstractmethod
    def extra_state(self) -> dict[str, Any]:
        """Return what this kind of search must keep in a checkpoint beyond the common state."""

    @abstractmethod
    def check_extra_state(self, state: dict[str, Any]) -> None:
        """Raise InputError unless what ``state`` says of step, count and extra goes together here."""

    @abstractmethod
    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`extra_state` returned."""

    @abstractmethod
    def alpha_tables(self) -> dict[str, AlphaTable]:
        """Return the alphas by name, as a heat map shows them."""

    @abstractmethod
    def learned(self) -> str:
        """Say what the network of the last epoch can do, and what it could by chance."""

    def record(self, weight: float, **metrics: float) -> None:
        """Add an iteration's metrics to the epoch's means.

        Raises:
            DivergedError: one is NaN or infinite.
        """
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise self._diverged(f"{name} is {value}")
            self.sums[name] = self.sums.get(name, 0.0) + weight * value
        self.count += weight

    def _diverged(self, what: str) -> DivergedError:
        return DivergedError(
            f"{what} at epoch {self.epoch + 1}, iteration {self.step}: the search has diverged. "
            "The last checkpoint is from before; lower the learning rate and start again"
        )

    def _save(self, out: Path) -> Path:
        """Write a checkpoint, unless a weight or alpha is not finite: then raise DivergedError."""
        state = self.state()
        for name, value in state["model"].items():
            if not value.isfinite().all():
                raise self._diverged(f"{name} is not finite")
        return save_checkpoint(out, state)

    def mean(self, name: str) -> float:
        """Return the epoch's weighted mean of a metric so far."""
        return self.sums[name] / self.count

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the search depends on."""
        return {
            "kind": self.kind,
            "config": dataclasses.asdict(self.config),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "arch_optimizer": self.architect.optimizer.state_dict(),
            "random": random_state(),
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "count": self.count,
            "seconds": self.seconds,
            "history": self.history,
            "extra": self.extra_state(),
            "data": self.fingerprint,
        }

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise InputError unless this search, not begun yet, can continue from a checkpoint's ``state``."""
        check_progress(self.config.epochs, self.metrics, state)
        fresh = self.state()
        for name in ("kind", "model"):
            match(name, fresh[name], state[name])
        match("random", fresh["random"][:1], state["random"][:1])
        begun = state["epoch"] + state["step"] > 0
        match_optimizer("optimizer", self.optimizer, state["optimizer"], begun=begun, moving=self.scheduled)
        match_optimizer("arch_optimizer", self.architect.optimizer, state["arch_optimizer"], begun=begun)
        self.check_extra_state(state)

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's ``state``."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.architect.optimizer.load_state_dict(state["arch_optimizer"])
        self._count_steps_where_they_run()
        for name in ("epoch", "step", "sums", "count", "seconds", "history"):
            setattr(self, name, state[name])
        # Rows of earlier versions counted from 0.
        self.history = [{**row, "epoch": epoch} for epoch, row in enumerate(self.history, start=1)]
        self.load_extra_state(state["extra"])
        set_random_state(state["random"])

    def run(self, out: Path) -> SearchResult:
        """Search to the last epoch, leaving everything in ``out``.

        Raises:
            SearchStopped: by a signal, after a checkpoint; by a second Ctrl-C, without one.
        """
        checkpoint = self._save(out)
        try:
            with stop_signals() as self.stop:
                checkpoint = self._run_epochs(out, checkpoint)
        except StopAsked:
            assert self.stop.signum is not None
            raise self._stopped(out, self.stop.signum, "the checkpoint is of this moment") from None
        except KeyboardInterrupt as error:
            raise self._stopped(out, signal.SIGINT, "the last checkpoint is from before") from error
        tables = self.alpha_tables()
        alphas = {name: table.alphas.detach().cpu().clone() for name, table in tables.items()}
        epochs = f"{self.epoch} epoch{'s' if self.epoch > 1 else ''}"
        lesson = f"after {epochs} {self.learned()}; {preferences(tables)}"
        return SearchResult(self.model.genotype(), alphas, self.history, out, checkpoint, lesson)

    def _run_epochs(self, out: Path, checkpoint: Path) -> Path:
        """Run what is left; return the last checkpoint, also written where StopAsked is raised."""
        with Report(
            out, epochs=self.config.epochs, work=self.work, every=self.every, history=self.history,
            stop=self.stop,
        ) as report:  # fmt: skip
            self._introduce(report, out)
            while self.epoch < self.config.epochs:
                try:
                    self._run_iterations(report, out)
                    trained = time.perf_counter()
                    report.phase("validating")
                    row = {"epoch": self.epoch + 1, **self.finish_epoch()}
                except StopAsked:
                    self._save(out)
                    raise
                for name, value in row.items():
                    if not math.isfinite(value):
                        raise self._diverged(f"{name} is {value}")
                self.history.append(row)
                report.draw(self.model.genotype(), self.alpha_tables(), self.history)
                row["seconds"] = self.seconds + time.perf_counter() - trained
                report.epoch(row, self.model.genotype())
                if self.epoch + 1 == self.config.epochs:  # before the checkpoint that says that all is done
                    report.draw(self.model.genotype(), self.alpha_tables(), self.history, final=True)
                self.epoch += 1
                self.step, self.sums, self.count, self.seconds = 0, {}, 0.0, 0.0
                checkpoint = self._save(out)
                self.stop.check()
        return checkpoint

    def _run_iterations(self, report: Report, out: Path) -> None:
        saved = began = time.perf_counter()
        for iteration in self.iterations():
            now = time.perf_counter()
            self.seconds += now - began
            began = now
            report.iteration(self.epoch, iteration.done, self.step, iteration.metrics)
            self.stop.check()
            if now - saved >= self.config.checkpoint_seconds:
                self._save(out)
                saved = time.perf_counter()

    def _stopped(self, out: Path, signum: int, saved: str) -> SearchStopped:
        done = self.epoch == self.config.epochs
        place = "after the last epoch" if done else f"in epoch {self.epoch + 1}, iteration {self.step}"
        command = ["dartsfast", "search", self.kind, "--resume", str(out.absolute())]
        for field in dataclasses.fields(self.config):
            value = getattr(self.config, field.name)
            if field.name in HERE and value != field.default:
                command += [f"--{field.name}", str(value)]
        return SearchStopped(
            f"stopped by {signal_name(signum)} {place}; {saved}. Go on with: {shlex.join(command)}", signum
        )

    def _introduce(self, report: Report, out: Path) -> None:
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        report.say(
            f"{self.kind} search, order {self.config.order}, on {self.device}, "
            f"backend {self.model.backend}, {parameters:.3f} M parameters, "
            f"data {self.config.data}, run in {out}"
        )
        if self.config.capture and not self._captures:
            report.say(f"capture has no effect: there are no CUDA graphs on {self.device}")
        if self.epoch or self.step:
            report.say(f"going on from epoch {self.epoch + 1}, iteration {self.step}")


def resolve_device(device: str) -> torch.device:
    """Return the device that ``auto``, ``cpu``, ``cuda`` or ``cuda:N`` names.

    Raises:
        InputError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}: use auto, cpu, cuda or cuda:N") from error
    if found.type not in ("cpu", "cuda"):
        raise InputError(f"device {device!r} is not supported: use auto, cpu, cuda or cuda:N")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise InputError(
            f"device {device!r} is not here (CUDA devices: {torch.cuda.device_count()}): use --device cpu"
        )
    return found
