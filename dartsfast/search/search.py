"""What both searches share: alphas beside weights, iterations from recordings, what was found."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from dartsfast import ranks
from dartsfast.drawing import draw_alphas, draw_genotype
from dartsfast.genotypes import AnyGenotype, resolve_genotype
from dartsfast.runs.fit import match
from dartsfast.runs.report import Picture, Report
from dartsfast.runs.run import Run
from dartsfast.search.alphas import AlphaTable
from dartsfast.search.capture import Captured
from dartsfast.search.config import SearchConfig
from dartsfast.search.lesson import preferences


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


class Search(Run):
    """A search between two iterations. Subclasses build the networks and say what an iteration is."""

    noun = "search"
    optimizer_names = ("optimizer", "arch_optimizer")
    optimizer: torch.optim.Optimizer
    architect: Any

    def __init__(self, config: SearchConfig) -> None:
        super().__init__(config)
        self.captured: Captured | None = None

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """Return that of the weights and that of the alphas."""
        return {"optimizer": self.optimizer, "arch_optimizer": self.architect.optimizer}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's ``state``."""
        super().load_state(state)
        self._count_steps_where_they_run()

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
        # Collectives in recordings have never been tried: only who asks for them has them.
        wanted = ranks.size() == 1 if self.config.capture is None else self.config.capture
        return wanted and self.device.type == "cuda"

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

    @classmethod
    @abstractmethod
    def alpha_shapes(cls, config: Any) -> dict[str, Sequence[int]]:
        """Return the shapes of the alphas of a search by their names in the model's state_dict."""

    @abstractmethod
    def alpha_tables(self) -> dict[str, AlphaTable]:
        """Return the alphas by name, as a heat map shows them."""

    @abstractmethod
    def learned(self) -> str:
        """Say what the network of the last epoch can do, and what it could by chance."""

    def genotype(self) -> AnyGenotype:
        """Return the cell that the alphas stand for."""
        return self.model.genotype()

    def pictures(self) -> dict[str, Picture]:
        """Return the cell and the alphas."""
        genotype, tables, epoch = self.genotype(), self.alpha_tables(), self.history[-1]["epoch"]
        title = f"epoch {epoch}"
        return {
            "alphas": Picture(epoch, lambda path: draw_alphas(tables, path, title=title)),
            "cell": Picture(genotype, lambda path: draw_genotype(genotype, path)),
        }

    def alphas(self) -> dict[str, dict[str, Any]]:
        """Return the alphas of this moment as plain values."""
        return {
            name: {
                "weights": table.alphas.tolist(), "operations": list(table.operations),
                "edges": list(table.edges), "kept": [list(entry) for entry in table.kept],
            }
            for name, table in self.alpha_tables().items()
        }  # fmt: skip

    def introduction(self) -> str:
        """Say what is searched here, on what and with how much."""
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        return (
            f"{self.kind} search, order {self.config.order}, on {self.device}, "
            f"backend {self.model.backend}, {parameters:.3f} M parameters"
        )

    def introduce(self, report: Report, out: Path) -> None:
        """Say what runs, on what data, where, and from where on."""
        super().introduce(report, out)
        if self.config.capture and not self._captures:
            report.say(f"capture has no effect: there are no CUDA graphs on {self.device}")
        if self.device.type == "cuda" and ranks.size() > 1 and self.config.capture is None:
            report.say("in several processes iterations are no CUDA graphs, unless with --capture")

    def result(self, out: Path, checkpoint: Path) -> SearchResult:
        """Return what was found, once all epochs are done."""
        tables = self.alpha_tables()
        state = self.model.state_dict()
        alphas = {name: state[name].cpu().clone() for name in self.alpha_shapes(self.config)}
        lesson = f"after {self.config.counted(self.epoch)} {self.learned()}; {preferences(tables)}"
        return SearchResult(self.genotype(), alphas, self.history, out, checkpoint, lesson)

    @classmethod
    def finished(cls, out: Path, checkpoint: Path, state: dict[str, Any]) -> SearchResult:
        """Return what was found by a search that is over; its data need not be there any more."""
        match("the model", {}, state["model"])
        shapes = cls.alpha_shapes(SimpleNamespace(**state["config"]))
        alphas = {name: state["model"].get(name) for name in shapes}
        match("the model", {name: torch.empty(shape) for name, shape in shapes.items()}, alphas)
        return SearchResult(resolve_genotype(str(out)), alphas, state["history"], out, checkpoint)
