"""What a running search shows and leaves behind: progress, a line an epoch, scalars, pictures."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter

from dartsfast.drawing import draw_alphas, draw_curves, draw_genotype
from dartsfast.genotypes import AnyGenotype, genotype_to_json

HEADLINE = ("train_loss", "train_acc", "valid_acc", "train_ppl", "valid_ppl", "seconds")


class Report:
    """Progress on the console; log, scalars, pictures and ``genotype.json`` in ``out``.

    Args:
        out: folder of the run.
        epochs: epochs of the whole search.
        work: units of progress an epoch (iterations or rows of text).
        every: iterations between lines where the console is no terminal.
        history: rows of the epochs that are done, of a search that goes on.
    """

    def __init__(
        self, out: Path, *, epochs: int, work: int, every: int, history: list[dict[str, Any]]
    ) -> None:
        self.out = out
        self.epochs = epochs
        self.work = work
        self.every = every
        self.console = Console()
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self._task = self._progress.add_task("", total=epochs * work, metrics="")
        # A run killed between its log line and its checkpoint does that epoch again.
        _write(out / "log.jsonl", "".join(json.dumps(row) + "\n" for row in history))
        self._scalars = SummaryWriter(str(out / "tensorboard"), purge_step=len(history))

    def __enter__(self) -> Report:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()
        self._scalars.close()

    def say(self, text: str) -> None:
        """Print a line above the progress bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def iteration(self, epoch: int, done: int, step: int, metrics: dict[str, float]) -> None:
        """Show iteration ``step`` of ``epoch`` with ``done`` units of its work behind it."""
        line = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        title = f"epoch {epoch + 1}/{self.epochs}"
        completed = epoch * self.work + min(done, self.work)
        self._progress.update(self._task, completed=completed, description=title, metrics=line)
        if not self.console.is_terminal and step % self.every == 0:
            self.say(f"{title}  {done}/{self.work}  {line}")

    def epoch(self, row: dict[str, Any], genotype: AnyGenotype, alphas: Any, history: list[dict]) -> None:
        """Leave behind what the epoch of ``row`` found; ``history`` ends with ``row``."""
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if isinstance(value, (int, float)) and name != "epoch":
                self._scalars.add_scalar(name, value, row["epoch"])
        self._scalars.flush()
        _write(self.out / "genotype.json", json.dumps(genotype_to_json(genotype), indent=1) + "\n")
        self._draw(row["epoch"], genotype, alphas, history)
        shown = "  ".join(f"{name} {row[name]:.4g}" for name in HEADLINE if name in row)
        self.say(f"epoch {row['epoch'] + 1}/{self.epochs}  {shown}")

    def _draw(self, epoch: int, genotype: AnyGenotype, alphas: Any, history: list[dict]) -> None:
        pictures = self.out / "pictures"
        pictures.mkdir(exist_ok=True)
        files = draw_genotype(genotype, pictures / f"cell-{epoch:03d}")
        files += draw_alphas(alphas, pictures / f"alphas-{epoch:03d}", title=f"epoch {epoch + 1}")
        for file in files:  # the latest under a name of its own
            shutil.copyfile(file, self.out / (file.stem.split("-")[0] + file.suffix))
        draw_curves(history, self.out / "curves")


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
