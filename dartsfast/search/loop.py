"""The loop that both searches run: epochs, iterations, checkpoints, reports."""

from __future__ import annotations

import dataclasses
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dartsfast.bilevel.guard import random_state, set_random_state
from dartsfast.errors import DivergedError, InputError
from dartsfast.genotypes import AnyGenotype
from dartsfast.search.capture import Captured
from dartsfast.search.checkpoint import has_checkpoint, load_checkpoint, save_checkpoint
from dartsfast.search.config import CommonConfig
from dartsfast.search.report import Report


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
    """

    genotype: AnyGenotype
    alphas: dict[str, Tensor]
    history: list[dict[str, Any]]
    out: Path
    checkpoint: Path


@dataclass(frozen=True)
class Iteration:
    """One iteration as the loop sees it: work done in this epoch, and what to show."""

    done: int
    metrics: dict[str, float]


class Search(ABC):
    """A search between two iterations. Subclasses build the networks and say what an iteration is."""

    kind: str
    model: Any
    optimizer: torch.optim.Optimizer
    architect: Any
    work: int  # units of progress an epoch
    every: int  # iterations between lines where the output is no terminal

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

    def run_iteration(self, *inputs: Tensor, numbers: tuple[float, ...]) -> tuple[Tensor, ...]:
        """Run :meth:`iteration`, with ``capture`` from a recording, which is of these ``numbers``."""
        if not self._captures:
            return self.iteration(*inputs)
        if self.captured is None:
            self._count_steps_where_they_run()
            self.captured = Captured(self.iteration, self.device)
        return self.captured(*inputs, numbers=numbers)

    @property
    def _captures(self) -> bool:
        return self.config.capture and self.device.type == "cuda"

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
    def load_extra_state(self, state: dict[str, Any]) -> None:
        """Take back what :meth:`extra_state` returned."""

    @abstractmethod
    def alpha_tables(self) -> dict[str, tuple[Tensor, list[str], list[str]]]:
        """Return the alphas for a heat map: name to (alphas, operation names, edge names)."""

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
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's ``state``."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.architect.optimizer.load_state_dict(state["arch_optimizer"])
        self._count_steps_where_they_run()
        for name in ("epoch", "step", "sums", "count", "seconds", "history"):
            setattr(self, name, state[name])
        self.load_extra_state(state["extra"])
        set_random_state(state["random"])

    def run(self, out: Path) -> SearchResult:
        """Search to the last epoch, leaving everything in ``out``."""
        checkpoint = self._save(out)
        with Report(
            out, epochs=self.config.epochs, work=self.work, every=self.every, history=self.history
        ) as report:
            self._introduce(report, out)
            while self.epoch < self.config.epochs:
                self._run_iterations(report, out)
                row = {"epoch": self.epoch, **self.finish_epoch()}
                row["seconds"] = self.seconds
                for name, value in row.items():
                    if not math.isfinite(value):
                        raise self._diverged(f"{name} is {value}")
                self.history.append(row)
                report.epoch(row, self.model.genotype(), self.alpha_tables(), self.history)
                self.epoch += 1
                self.step, self.sums, self.count, self.seconds = 0, {}, 0.0, 0.0
                checkpoint = self._save(out)
        alphas = {name: table[0].detach().cpu().clone() for name, table in self.alpha_tables().items()}
        return SearchResult(self.model.genotype(), alphas, self.history, out, checkpoint)

    def _run_iterations(self, report: Report, out: Path) -> None:
        saved = began = time.perf_counter()
        for iteration in self.iterations():
            now = time.perf_counter()
            self.seconds += now - began
            began = now
            report.iteration(self.epoch, iteration.done, self.step, iteration.metrics)
            if now - saved >= self.config.checkpoint_seconds:
                self._save(out)
                saved = time.perf_counter()

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


def run_search(search_cls: Callable[[Any], Search], config: Any, resume: str | Path | None) -> SearchResult:
    """Start the search that ``config`` describes, or go on with the run at ``resume``."""
    kind = search_cls.kind  # type: ignore[attr-defined]
    if resume is None:
        search = search_cls(config)
        return search.run(_new_folder(config.out, kind))
    path = Path(resume)
    state = load_checkpoint(path, kind)
    here = {"device": config.device, "checkpoint_seconds": config.checkpoint_seconds}
    try:
        search = search_cls(type(config)(**{**state["config"], **here}))
        search.load_state(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"the checkpoint in {path} does not fit this version or this data ({str(error).splitlines()[0]})"
        ) from error
    return search.run(path if path.is_dir() else path.parent)


def _new_folder(name: str, kind: str) -> Path:
    out = Path(name or f"runs/{kind}-{time.strftime('%Y%m%d-%H%M%S')}")
    if has_checkpoint(out):
        raise InputError(f"{out} holds a run already: go on with --resume {out}, or choose another --out")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {out} ({error}): choose another --out") from error
    return out
