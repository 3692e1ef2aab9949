"""How far a run is: what the terminal shows while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

SMOOTHING = 0.1  # weight of the newest measurement, as in a mean of about the last 20


class Progress:
    """Two lines that fit 60 columns: the whole run, and the epoch with its phase and metrics.

    The time left is that of the iterations to come and of the ends of epochs (validating, drawing), each at
    its smoothed pace; what was done before a run was resumed does not count.

    Args:
        epochs: epochs of the whole run.
        work: units of progress an epoch (iterations or rows of text).
        clock: seconds.
        called: what is said of an epoch, by its number.
    """

    def __init__(
        self,
        epochs: int,
        work: int,
        clock: Callable[[], float] = time.monotonic,
        called: Callable[[int], str] | None = None,
    ) -> None:
        self.epochs, self.work, self.phase = epochs, work, "starting"
        self._called = called or f"epoch {{}}/{epochs}".format
        self._clock = clock
        self._epoch = self._done = self._step = 0
        self._metrics: dict[str, float] = {}
        self._last = clock()
        self._unit: float | None = None  # seconds a unit of work
        self._iteration: float | None = None  # seconds an iteration
        self._end: float | None = None  # seconds from an epoch's last iteration to the next one's first

    def iteration(self, epoch: int, done: int, step: int, metrics: dict[str, float]) -> None:
        """Take in that iteration ``step`` of ``epoch`` (from 0) is over, with ``done`` units of work."""
        now = self._clock()
        spent, units = now - self._last, done - self._done
        if epoch != self._epoch:
            first = self._iteration or 0.0
            self._end = _smoothed(self._end, max(spent - first, 0.0)) if self._iteration else None
        elif step == self._step + 1 and units > 0 and self.phase == "training":
            self._unit = _smoothed(self._unit, spent / units)
            self._iteration = _smoothed(self._iteration, spent)
        self._epoch, self._done, self._step, self._metrics = epoch, done, step, metrics
        self._last, self.phase = now, "training"

    def seconds_left(self) -> float | None:
        """Return the time to the end of the run, None before two iterations have passed."""
        if self._unit is None:
            return None
        ahead = self.epochs - self._epoch - 1
        left = self._unit * (ahead * self.work + self.work - self._done) + (self._end or 0.0) * (ahead + 1)
        return max(left - (self._clock() - self._last), 0.0)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left = self.seconds_left()
        whole = Table.grid(padding=(0, 1), expand=True)
        for ratio in (None, 1, None, None):
            whole.add_column(ratio=ratio, no_wrap=True)
        completed = self._epoch * self.work + self._done
        whole.add_row(
            self._called(self._epoch + 1),
            ProgressBar(total=self.epochs * self.work, completed=completed),
            f"{100 * completed / (self.epochs * self.work):.0f} %",
            f"{clock_time(left)} left" if left is not None else "",
        )
        yield whole
        whole_steps = self._done == self._step
        parts = [self.phase, f"{self._step}/{self.work}" if whole_steps else f"iteration {self._step}"]
        if self._iteration:
            parts.append(f"{1 / self._iteration:.3g} it/s")
        parts += [f"{name} {value:.4g}" for name, value in self._metrics.items()]
        yield Text("  ".join(parts), no_wrap=True, overflow="ellipsis")


def clock_time(seconds: float) -> str:
    """Return hours, minutes and seconds as ``2:03:04``, or ``3:04`` below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _smoothed(mean: float | None, value: float) -> float:
    return value if mean is None else mean + SMOOTHING * (value - mean)
