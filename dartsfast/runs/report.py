"""What a run shows and leaves behind: progress, a line an epoch, scalars, pictures."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.live import Live
from torch.utils.tensorboard import SummaryWriter

from dartsfast.drawing import draw_curves
from dartsfast.files import write_whole
from dartsfast.genotypes import AnyGenotype, genotype_to_json
from dartsfast.runs.detail import QUIET, VERBOSE, detail
from dartsfast.runs.interrupts import Stop
from dartsfast.runs.progress import Progress

HEADLINE = (
    "train_loss", "train_acc", "valid_acc", "test_acc", "train_ppl", "valid_ppl", "test_ppl",
    "seconds",
)  # fmt: skip


class Picture(NamedTuple):
    """What a picture shows, equal where it need not be drawn again, and how to draw it to a path."""

    of: Any
    draw: Callable[[Path], list[Path]]


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise what rich would end the process for."""
        raise BrokenPipeError


class Report:
    """Progress on the console; log, scalars, pictures and ``genotype.json`` in ``out``.

    Epochs are counted from 1 in everything that is shown or left.

    Args:
        out: folder of the run.
        epochs: epochs of the whole run.
        called: what is said of an epoch, by its number.
        work: units of progress an epoch (iterations or rows of text).
        every: iterations between lines where the console is no terminal.
        history: rows of the epochs that are done, of a run that goes on.
        console: where to show it; by default the standard output.
        stop: asked to stop, as by SIGPIPE, where the reader of the output has gone.
    """

    def __init__(
        self,
        out: Path,
        *,
        epochs: int,
        work: int,
        every: int,
        history: list[dict[str, Any]],
        called: Callable[[int], str] | None = None,
        console: Console | None = None,
        stop: Stop | None = None,
    ) -> None:
        self.out = out
        self.called = called or f"epoch {{}}/{epochs}".format
        self.work = work
        self.every = every
        self.console = console or _Console()
        self._stop = stop or Stop()
        self._detail = detail()
        self.progress = Progress(epochs, work, called=self.called)
        # On a terminal the display is drawn anew several times a second; else there are lines.
        self._live = Live(get_renderable=lambda: self.progress, console=self.console, transient=True)
        self._drawn: dict[str, Any] = {}
        # A run killed between its log line and its checkpoint does that epoch again.
        self._scalars = self._after(history)

    def _after(self, history: list[dict[str, Any]]) -> SummaryWriter:
        """Let the log end with the rows of ``history``, and return a writer of scalars that does."""
        write_whole(self.out / "log.jsonl", "".join(json.dumps(row) + "\n" for row in history))
        return SummaryWriter(str(self.out / "tensorboard"), purge_step=len(history) + 1)

    def go_back(self, history: list[dict[str, Any]]) -> None:
        """Forget the epochs that are not in ``history``."""
        self._scalars.close()
        self._scalars = self._after(history)

    def __enter__(self) -> Report:
        if self._shows_progress:
            self._live.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._shows_progress:
            self._live.stop()
        self._scalars.close()

    @property
    def _shows_progress(self) -> bool:
        return self.console.is_terminal and self._detail != QUIET

    def say(self, text: str) -> None:
        """Print a line above the progress, unless the run is to be quiet."""
        if self._detail == QUIET:
            return
        try:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)
        except BrokenPipeError:
            self._stop.ask(signal.SIGPIPE)

    def phase(self, name: str) -> None:
        """Show that the run is ``validating`` or ``drawing``."""
        self.progress.phase = name

    def iteration(self, epoch: int, done: int, step: int, metrics: dict[str, float]) -> None:
        """Show iteration ``step`` of ``epoch`` (from 0) with ``done`` units of its work behind it."""
        self.progress.iteration(epoch, min(done, self.work), step, metrics)
        lines = not self.console.is_terminal or self._detail == VERBOSE
        if lines and step % self.every == 0:
            line = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self.say(f"{self.called(epoch + 1)}  {done}/{self.work}  {line}")

    def epoch(self, row: dict[str, Any], genotype: AnyGenotype) -> None:
        """Leave behind what the epoch of ``row`` found."""
        with open(self.out / "log.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in row.items():
            if isinstance(value, (int, float)) and name != "epoch":
                self._scalars.add_scalar(name, value, row["epoch"])
        self._scalars.flush()
        write_whole(self.out / "genotype.json", json.dumps(genotype_to_json(genotype), indent=1) + "\n")
        shown = "  ".join(f"{name} {row[name]:.4g}" for name in HEADLINE if name in row)
        self.say(f"{self.called(row['epoch'])}  {shown}")

    def phases(self, seconds: Mapping[str, float], iterations: int) -> None:
        """Say, where much is to be said, how long each phase of an epoch took."""
        if self._detail == VERBOSE:
            parts = [f"{phase} {value:.3g} s" for phase, value in seconds.items()]
            self.say(f"  {', '.join(parts)}; {iterations / seconds['training']:.3g} it/s")

    def draw(self, pictures: Mapping[str, Picture], history: list[dict], *, final: bool = False) -> None:
        """Draw what the last epoch changed, as PNG; at the end of a run everything, as PNG and SVG."""
        self.phase("drawing")
        if final:
            for name, picture in pictures.items():
                picture.draw(self.out / name)
            draw_curves(history, self.out / "curves")
            return
        for name, picture in pictures.items():
            if name in self._drawn and picture.of == self._drawn[name]:
                continue
            (file,) = picture.draw(self.out / "pictures" / f"{name}-{history[-1]['epoch']:03d}.png")
            shutil.copyfile(file, self.out / f"{name}.png")  # the latest under a name of its own
            self._drawn[name] = picture.of
        draw_curves(history, self.out / "curves.png")


class Unseen(Report):
    """The report of ranks other than the first: nothing is shown, nothing left."""

    def __init__(self, out: Path, **options: Any) -> None:
        pass

    def go_back(self, history: list[dict[str, Any]]) -> None:
        """Do nothing, as all that follow."""

    def __enter__(self) -> Unseen:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def say(self, text: str) -> None:  # noqa: D102
        pass

    def phase(self, name: str) -> None:  # noqa: D102
        pass

    def iteration(self, epoch: int, done: int, step: int, metrics: dict[str, float]) -> None:  # noqa: D102
        pass

    def epoch(self, row: dict[str, Any], genotype: AnyGenotype) -> None:  # noqa: D102
        pass

    def phases(self, seconds: Mapping[str, float], iterations: int) -> None:  # noqa: D102
        pass

    def draw(  # noqa: D102
        self, pictures: Mapping[str, Picture], history: list[dict], *, final: bool = False
    ) -> None:
        pass
