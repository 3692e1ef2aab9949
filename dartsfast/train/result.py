"""What a training has come to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dartsfast.genotypes import AnyGenotype


@dataclass(frozen=True)
class TrainResult:
    """What a training has come to.

    Attributes:
        genotype: the cell.
        history: one row an epoch, as in ``log.jsonl``.
        out: folder of the run, with ``genotype.json``, ``log.jsonl``, ``cell.png``, ``curves.png`` (and
            SVG), ``weights.pt``, ``tensorboard/``.
        checkpoint: the last checkpoint.
        weights: the trained network's ``state_dict``; of a recurrent one that of the best epoch.
        lesson: what the last test says, in a sentence.
    """

    genotype: AnyGenotype
    history: list[dict[str, Any]]
    out: Path
    checkpoint: Path
    weights: Path
    lesson: str


def epochs(count: int) -> str:
    """Return the number of epochs in words."""
    return f"{count} epoch{'s' if count > 1 else ''}"
