"""The loop of every run: epochs, iterations, checkpoints, reports."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dartsfast import ranks
from dartsfast.bilevel.flat import average_over_ranks_
from dartsfast.bilevel.guard import random_state, set_random_state
from dartsfast.errors import DivergedError, InputError, RunStopped
from dartsfast.genotypes import AnyGenotype
from dartsfast.runs.checkpoint import CURRENT, save_checkpoint
from dartsfast.runs.config_file import changed_options, resume_command, write_config
from dartsfast.runs.device import ran_out, resolve_device
from dartsfast.runs.fit import check_progress, match, match_optimizer
from dartsfast.runs.interrupts import Stop, StopAsked, signal_name, stop_signals
from dartsfast.runs.journal import Journal
from dartsfast.runs.options import RunOptions
from dartsfast.runs.report import Picture, Report, Unseen

# What a checkpoint holds beside the states of optimisers, and "ranks": what each of several has of its own.
STATE = (
    "format", "kind", "config", "model", "random", "epoch", "step", "sums", "count", "seconds", "history",
    "extra", "data",
)  # fmt: skip


@dataclass(frozen=True)
class Iteration:
    """One iteration as the loop sees it: work done in this epoch, and what to show."""

    done: int
    metrics: dict[str, float]


class Run(ABC):
    """A run between two iterations. Subclasses build the network and say what an iteration is."""

    kind: str  # of its checkpoints
    noun: str  # what messages call it: search, training
    command: tuple[str, str]  # such as search cnn
    metrics: tuple[str, ...]  # what iterations record
    optimizer_names: tuple[str, ...]  # the weights' first
    scheduled: tuple[str, ...] = ()  # options of the weights' optimiser that change on the way
    model: Any
    journal: Journal
    own: tuple[str, ...] = ()  # parts of the extra state that every rank has for itself
    unit = ""  # what the weights of its records count: images
    work: int  # units of progress an epoch
    every: int  # iterations between lines where the output is no terminal
    fingerprint: dict[str, Any]  # of the data, see dartsfast.data.fingerprint

    def __init__(self, config: RunOptions) -> None:
        config.check()
        self.config: Any = config
        self.device = resolve_device(config.device)
        self.epoch = 0
        self.step = 0  # iterations done in this epoch
        self.sums: dict[str, float] = {}  # weighted sums of this epoch's metrics
        self.count = 0.0
        self.seconds = 0.0  # time spent in this epoch, over all its resumptions
        self.history: list[dict[str, Any]] = []
        self.stop = Stop()
        self.earlier: int | None = None  # ranks that there were before, where there are others now
        self.say: Callable[[str], None] = print  # a line for the user; above the progress once that is there

    @staticmethod
    @abstractmethod
    def absolute_data(data: str) -> str:
        """Return the option ``data`` such that it means the same in any working directory."""

    @classmethod
    def settle(cls, config: Any) -> Any:
        """Return the options of a new run such that they mean the same in any working directory."""
        return dataclasses.replace(config, data=cls.absolute_data(config.data))

    def prepare_epoch(self) -> None:  # noqa: B027 - most runs have no stages
        """Make ready for what is left of an epoch: nothing, unless a run has stages."""

    def take_form(self, state: dict[str, Any]) -> None:  # noqa: B027 - as above
        """Have the networks that a checkpoint's ``state`` is of: those of a new run, unless it has stages.

        Raises:
            InputError: the state does not say so.
        """

    @abstractmethod
    def iterations(self) -> Iterator[Iteration]:
        """Run what is left of the epoch, counting ``step`` up before each yield."""

    @abstractmethod
    def finish_epoch(self) -> dict[str, Any]:
        """Validate, move the schedule on, and return the epoch's metrics."""

    @abstractmethod
    def extra_state(self) -> dict[str, Any]:
        """Return what this kind of run must keep in a checkpoint beyond the common state."""

    @abstractmethod
    def check_extra_state(self, state: dict[str, Any]) -> None:
        """Raise InputError unless what ``state`` says of step, count and extra goes together here."""

    @abstractmethod
    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`extra_state` returned."""

    @abstractmethod
    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return what takes steps, by the names of :attr:`optimizer_names`."""

    @abstractmethod
    def genotype(self) -> AnyGenotype:
        """Return the cell of this moment."""

    @abstractmethod
    def pictures(self) -> dict[str, Picture]:
        """Return what is drawn at the end of an epoch, by the names of the files."""

    def alphas(self) -> dict[str, dict[str, Any]]:
        """Return the alphas of this moment as plain values, a table a name; nothing of a run without."""
        return {}

    @abstractmethod
    def introduction(self) -> str:
        """Say what runs here, on what and with how much."""

    @abstractmethod
    def result(self, out: Path, checkpoint: Path) -> Any:
        """Return what was found, once all epochs are done."""

    @classmethod
    @abstractmethod
    def finished(cls, out: Path, checkpoint: Path, state: dict[str, Any]) -> Any:
        """Return what was found by a run that is over; its data need not be there any more."""

    @classmethod
    def is_over(cls, config: Any, history: list[dict[str, Any]]) -> bool:
        """Whether a run is at its end after the epochs of ``history``; InputError: its rows do not say."""
        return len(history) == config.all_epochs

    def has_stepped(self, state: dict[str, Any], name: str) -> bool | None:
        """Say whether the optimiser ``name`` of ``state`` has taken steps; None: perhaps."""
        return state["epoch"] + state["step"] > 0 if self.earlier is None else None

    def go_back(self, problem: DivergedError) -> int:
        """Return to the end of an earlier epoch, as the run has diverged, and say how many are done there.

        Raises:
            DivergedError: there is no way back: ``problem``, unless a run says otherwise.
        """
        raise problem

    def record(self, weight: float, **metrics: float) -> None:
        """Add an iteration's metrics, their means over all ranks, to the epoch's means.

        Raises:
            DivergedError: one is NaN or infinite.
        """
        for name, total in zip(metrics, ranks.totals(*metrics.values()), strict=True):
            value = total / ranks.size()
            if not math.isfinite(value):
                raise self.diverged(f"{name} is {value}")
            self.sums[name] = self.sums.get(name, 0.0) + weight * value
        self.count += weight

    def diverged(self, what: str) -> DivergedError:
        """Return the error that says what is not finite at this moment."""
        where = f"{what} at epoch {self.epoch + 1}, iteration {self.step}"
        return DivergedError(
            f"{where}: the {self.noun} has diverged. "
            "The last checkpoint is from before; lower the learning rate and start again",
            where,
        )

    def _save(self, out: Path) -> Path:
        """Write a checkpoint, unless something in the model is not finite: then raise DivergedError.

        All ranks call it, and the first one writes.
        """
        state = self.state()
        for name, value in state["model"].items():
            if not value.isfinite().all():
                raise self.diverged(f"{name} is not finite")
        return save_checkpoint(out, state) if ranks.first() else out / CURRENT

    def mean(self, name: str) -> float:
        """Return the epoch's weighted mean of a metric so far."""
        return self.sums[name] / self.count

    def state(self) -> dict[str, Any]:
        """Return everything that the rest of the run depends on; all ranks call it."""
        random, extra = random_state(), self.extra_state()
        own = {"random": random, "extra": {name: extra[name] for name in self.own}}
        several = {"ranks": ranks.gathered(own)} if ranks.size() > 1 else {}
        return {
            **several,
            "kind": self.kind,
            "config": dataclasses.asdict(self.config),
            "model": self.model.state_dict(),
            **{name: optimizer.state_dict() for name, optimizer in self.optimizers().items()},
            "random": random,
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "count": self.count,
            "seconds": self.seconds,
            "history": self.history,
            "extra": extra,
            "data": self.fingerprint,
        }

    def begin_epoch_anew(self, state: dict[str, Any]) -> None:
        """Have a checkpoint's ``state`` be of the beginning of its epoch, but for weights and optimisers."""
        state |= {"step": 0, "sums": {}, "count": 0.0, "seconds": 0.0}

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise InputError unless this run, not begun yet, can continue from a checkpoint's ``state``."""
        check_progress(self.config.all_epochs, self.metrics, state)
        fresh = self.state()
        for name in ("kind", "model"):
            match(name, fresh[name], state[name])
        match("random", fresh["random"][:1], state["random"][:1])
        for name, optimizer in self.optimizers().items():
            begun = self.has_stepped(state, name)
            moving = self.scheduled if name == self.optimizer_names[0] else ()
            match_optimizer(name, optimizer, state[name], begun=begun, moving=moving)
        self.check_extra_state(state)

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's ``state``."""
        self.model.load_state_dict(state["model"])
        for name, optimizer in self.optimizers().items():
            optimizer.load_state_dict(state[name])
        for name in ("epoch", "step", "sums", "count", "seconds", "history"):
            setattr(self, name, state[name])
        # Rows of earlier versions counted from 0.
        self.history = [{**row, "epoch": epoch} for epoch, row in enumerate(self.history, start=1)]
        self.load_extra_state(state["extra"])
        set_random_state(state["random"])

    def run(self, out: Path) -> Any:
        """Run to the last epoch, leaving everything in ``out``.

        Raises:
            RunStopped: by a signal, after a checkpoint; by a second Ctrl-C, without one.
        """
        ranks.check_same(self.model.state_dict(), "at the start")
        checkpoint = self._save(out)
        if ranks.first():
            write_config(out, self.command, self.config)
        changed, done = list(changed_options(self.config)), (self.epoch, self.step)
        epochs = self.config.all_epochs
        with Journal(out, self.device, changed, done, epochs, self.earlier) as self.journal:
            try:
                with stop_signals() as self.stop:
                    checkpoint = self._run_epochs(out, checkpoint)
            except StopAsked:
                assert self.stop.signum is not None
                raise self._stopped(out, self.stop.signum, "the checkpoint is of this moment") from None
            except KeyboardInterrupt as error:
                raise self._stopped(out, signal.SIGINT, "the last checkpoint is from before") from error
            except (MemoryError, RuntimeError) as error:
                if not ran_out(error):
                    raise
                raise self._ran_out(out, error) from error
            result = ranks.from_first(lambda: self.result(out, checkpoint))
            self.journal.lesson = result.lesson
            if self.epoch < self.config.all_epochs:
                self.journal.epochs = self.epoch
                self.journal.end = f"the {self.noun} has ended by itself after epoch {self.epoch}"
        return result

    def _run_epochs(self, out: Path, checkpoint: Path) -> Path:
        """Run what is left; return the last checkpoint, also written where StopAsked is raised."""
        with (Report if ranks.first() else Unseen)(
            out, epochs=self.config.all_epochs, called=self.config.called, work=self.work, every=self.every,
            history=self.history, stop=self.stop,
        ) as report:  # fmt: skip
            self.say = report.say
            self.introduce(report, out)
            while not self.is_over(self.config, self.history):
                try:
                    done = self._run_epoch(report, out)
                except DivergedError as problem:
                    done = self.go_back(problem)
                    self.say(f"{problem.what}: going back to the end of epoch {done}")
                    del self.history[done:]
                    report.go_back(self.history)
                self.epoch = done
                self.step, self.sums, self.count, self.seconds = 0, {}, 0.0, 0.0
                checkpoint = self._save(out)
                self.stop.check()
        return checkpoint

    def _run_epoch(self, report: Report, out: Path) -> int:
        """Run what is left of an epoch and return how many are done; a checkpoint comes before StopAsked."""
        self.prepare_epoch()
        self.stop.check()  # the checkpoint is of this moment: nothing has moved since it was written
        try:
            self._run_iterations(report, out)
            ranks.check_same(self.model.state_dict(), f"at the end of epoch {self.epoch + 1}")
            trained = time.perf_counter()
            report.phase("validating")
            row = {"epoch": self.epoch + 1, **self.finish_epoch()}
        except StopAsked:
            self._save(out)
            raise
        for name, value in row.items():
            if not math.isfinite(value):
                raise self.diverged(f"{name} is {value}")
        validated = time.perf_counter()
        self.history.append(row)
        report.draw(self.pictures(), self.history)
        drawn = time.perf_counter()
        row["seconds"] = self.seconds + drawn - trained
        report.epoch(row, self.genotype())
        phases = {
            "training": self.seconds, "validating": validated - trained, "drawing": drawn - validated,
        }  # fmt: skip
        report.phases(phases, self.step)
        self.journal.epoch({
            "epoch": row["epoch"], "iterations": self.step, "work": float(self.count), "unit": self.unit,
            "seconds": phases, "alphas": self.alphas(),
        })  # fmt: skip
        if self.is_over(self.config, self.history):  # before the checkpoint that says that all is done
            report.draw(self.pictures(), self.history, final=True)
        return self.epoch + 1

    def _run_iterations(self, report: Report, out: Path) -> None:
        saved = began = time.perf_counter()
        statistics = [buffer for buffer in self.model.buffers() if buffer.is_floating_point()]
        for iteration in self.iterations():
            average_over_ranks_(statistics)
            now = time.perf_counter()
            self.seconds += now - began
            began = now
            report.iteration(self.epoch, iteration.done, self.step, iteration.metrics)
            self.stop.check()
            if any(ranks.gathered(now - saved >= self.config.checkpoint_seconds)):
                self._save(out)
                saved = time.perf_counter()

    def _stopped(self, out: Path, signum: int, saved: str) -> RunStopped:
        done = self.is_over(self.config, self.history[: self.epoch])  # what came after is not saved
        place = "after the last epoch" if done else f"in epoch {self.epoch + 1}, iteration {self.step}"
        self.journal.end = f"stopped by {signal_name(signum)} {place}"
        command = resume_command(out, self.command, changed_options(self.config), ranks.size())
        return RunStopped(f"{self.journal.end}; {saved}. Go on with: {command}", signum)

    def _ran_out(self, out: Path, error: BaseException) -> InputError:
        self.journal.end = f"out of memory in epoch {self.epoch + 1}, iteration {self.step}"
        traceback.clear_frames(error.__traceback__)  # which hold what the pass has made
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        advice, options = self.smaller()
        command = resume_command(out, self.command, changed_options(self.config), ranks.size())
        return InputError(
            f"{self.journal.end}; the checkpoint of before is whole. {advice}. Go on with: "
            f"{' '.join([command, *options])}"
        )

    def smaller(self) -> tuple[str, list[str]]:
        """Return what would take less memory, in words, and the options with which a resumed run does."""
        return "Free memory of other programs", []

    def introduce(self, report: Report, out: Path) -> None:
        """Say what runs, on what data, where, and from where on."""
        several = f", in {ranks.size()} processes" if ranks.size() > 1 else ""
        report.say(f"{self.introduction()}{several}, data {self.config.data}, run in {out}")
        if self.epoch or self.step:
            report.say(f"going on from epoch {self.epoch + 1}, iteration {self.step}")
