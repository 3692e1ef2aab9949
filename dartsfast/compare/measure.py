"""What every comparison shares: the distance of numbers, and the rows of a search."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from dartsfast.backends import resolve_backend
from dartsfast.compare.config import CommonConfig
from dartsfast.errors import DivergedError, InputError
from dartsfast.genotypes import genotype_to_json

Batch = tuple[Tensor, Tensor]
Row = dict[str, Any]


@dataclass(frozen=True)
class Distance:
    """How far numbers are from their yardstick.

    Attributes:
        equal: share of elements with the same bits.
        ulp: largest distance in units in the last place: how many floats lie between, plus one.
        relative_error: |a - b| / |a| in the Euclidean norm of all elements, taken in float64.
    """

    equal: float
    ulp: int
    relative_error: float


def distance(a: Tensor | Sequence[Tensor], b: Tensor | Sequence[Tensor]) -> Distance:
    """Measure ``b`` against ``a``: float32 or float64 tensors, or lists of them, of the same shapes."""
    x, y = _flat(a), _flat(b)
    if x.dtype != y.dtype or x.shape != y.shape:
        raise InputError(f"cannot compare {x.dtype} of {x.size} elements with {y.dtype} of {y.size}")
    bits = np.int32 if x.dtype == np.float32 else np.int64
    ordered_x, ordered_y = _ordered(x.view(bits)), _ordered(y.view(bits))
    # Unsigned, since two float64 of opposite signs can be more than 2^63 apart.
    apart = np.maximum(ordered_x, ordered_y).view(np.uint64) - np.minimum(ordered_x, ordered_y).view(
        np.uint64
    )
    wide_x, wide_y = x.astype(np.float64), y.astype(np.float64)
    scale = max(np.abs(wide_x).max(), np.abs(wide_y).max()) or 1.0  # or squares would overflow
    norm = max(float(np.linalg.norm(wide_x / scale)), 1e-300)
    return Distance(
        equal=float(np.mean(x.view(bits) == y.view(bits))),
        ulp=int(apart.max()),
        relative_error=float(np.linalg.norm(wide_x / scale - wide_y / scale)) / norm,
    )


def _flat(tensors: Tensor | Sequence[Tensor]) -> np.ndarray:
    tensors = [tensors] if isinstance(tensors, Tensor) else tensors
    return torch.cat([t.detach().cpu().flatten() for t in tensors]).numpy()


def _ordered(bits: np.ndarray) -> np.ndarray:
    """Map the bits of floats to int64 in the order of the floats, neighbours 1 apart and both zeros 0."""
    magnitude = bits & np.iinfo(bits.dtype).max
    return np.where(bits < 0, -magnitude.astype(np.int64), magnitude.astype(np.int64))


class Run(Protocol):
    """A search on one backend, advanced an iteration at a time."""

    model: Any

    def iterate(self, train: Batch, valid: Batch) -> Tensor:
        """Move the alphas, then the weights; return the training loss."""


def generator(seed: int, number: int) -> torch.Generator:
    """Return the random stream that batch ``number`` is drawn from."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number)


def part_row(name: str, a: Tensor | Sequence[Tensor], b: Tensor | Sequence[Tensor]) -> Row:
    """Return the row of a part of the first pass."""
    return {"name": name, **asdict(distance(a, b))}


def iteration_rows(runs: Sequence[Run], config: CommonConfig, batch: Callable[[int], Batch]) -> list[Row]:
    """Advance ``runs`` side by side on the batches 1, 2, ... and return three rows an iteration.

    Raises:
        DivergedError: a loss that is not finite.
    """
    rows: list[Row] = []
    for number in range(1, config.iterations + 1):
        train, valid = batch(2 * number - 1), batch(2 * number)
        losses = [run.iterate(train, valid) for run in runs]
        for loss, backend in zip(losses, config.backends, strict=True):
            if not math.isfinite(loss.item()):
                raise DivergedError(
                    f"the loss of backend {backend!r} is {loss.item()} at iteration {number}: the numbers "
                    "after it say nothing. Compare fewer iterations, or a larger batch"
                )
        quantities: dict[str, list[Any]] = {
            "loss": losses,
            "alphas": [run.model.arch_parameters() for run in runs],
            "weights": [list(run.model.parameters()) for run in runs],
        }
        for name, (a, b) in quantities.items():
            rows.append({"iteration": number, "quantity": name, **asdict(distance(a, b))})
        rows[-3]["values"] = [loss.item() for loss in losses]
    return rows


def comparison(
    config: CommonConfig, runs: Sequence[Run], parts: list[Row], iterations: list[Row], **conditions: str
) -> dict[str, Any]:
    """Return what two searches differ by, ready for JSON.

    Args:
        config: what was compared.
        runs: the searches after their last iteration.
        parts: rows of the first pass.
        iterations: rows of :func:`iteration_rows`.
        conditions: ``size`` and ``data``, the network and what it ran on in words.

    Returns:
        ``conditions``; ``parts`` and ``iterations``, rows of :class:`Distance`; ``first_divergence``,
        the first part and the first iteration that are not equal to the bit, or None; ``genotypes``.
    """
    genotypes = [genotype_to_json(run.model.genotype()) for run in runs]
    return {
        "conditions": {
            **asdict(config),
            "backends": [resolve_backend(backend) for backend in config.backends],
            **conditions,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
        },
        "parts": parts,
        "iterations": iterations,
        "first_divergence": {
            "part": next((row["name"] for row in parts if row["equal"] < 1), None),
            "iteration": next((row["iteration"] for row in iterations if row["equal"] < 1), None),
        },
        "genotypes": {"agree": genotypes[0] == genotypes[1], "first": genotypes[0], "second": genotypes[1]},
    }
