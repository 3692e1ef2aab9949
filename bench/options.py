"""What the command line leaves to a suite."""

from __future__ import annotations

from dataclasses import dataclass

from dartsfast.errors import InputError


@dataclass(frozen=True)
class Options:
    """Choices of a run; None leaves a number to the suite.

    Attributes:
        threads: threads of torch.
        batch: images or columns of text a batch.
        repeats: samples a peer.
        quick: tiny sizes, which show that a suite runs and give no figures.
        device: ``cpu`` or ``cuda``.
        compile: also time the reference with every cell compiled.
    """

    threads: int | None = None
    batch: int | None = None
    repeats: int | None = None
    quick: bool = False
    device: str = "cpu"
    compile: bool = False

    def check(self) -> None:
        """Raise InputError for a number that cannot work."""
        for name in ("threads", "batch", "repeats"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"--{name} must be at least 1, got {value}")
