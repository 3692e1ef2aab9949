"""How far two backends are from each other: part by part of a forward, then iteration by iteration.

Both run the same search from the same weights on the same data, which are seeded random images and
labels: what is compared is arithmetic, not learning.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dartsfast.backends import resolve_backend
from dartsfast.cnn.architect import Architect
from dartsfast.cnn.model_search import Network
from dartsfast.drawing import new_figure, save_figure
from dartsfast.errors import DivergedError, InputError
from dartsfast.genotypes import genotype_to_json
from dartsfast.search.config import option

DTYPES = {"float32": torch.float32, "float64": torch.float64}
CLASSES, IMAGE_SIZE = 10, 32
LEARNING_RATE, GRAD_CLIP = 0.025, 5.0
# The original's defaults.
ARCHITECT = {"momentum": 0.9, "weight_decay": 3e-4, "arch_learning_rate": 3e-4, "arch_weight_decay": 1e-3}


@dataclass(frozen=True)
class CompareConfig:
    """What is compared, and on which network."""

    backends: tuple[str, str] = option(
        ("reference", "cpu"), "yardstick of the relative errors, and the other; twice the same is allowed"
    )
    iterations: int = option(10, "iterations: a step of the alphas and one of the weights")
    order: int = option(1, "order of the alphas' gradient", (1, 2))
    dtype: str = option("float32", "of everything", tuple(DTYPES))
    batch_size: int = option(8, "images a batch")
    init_channels: int = option(16, "channels of the first cells")
    layers: int = option(8, "cells")
    seed: int = option(2, "of the weights and of the data")

    def check(self) -> None:
        """Raise InputError for a value that cannot work."""
        if len(self.backends) != 2:
            raise InputError(f"compare takes two backends, got {list(self.backends)}")
        for backend in self.backends:
            resolve_backend(backend)
        for field in dataclasses.fields(self):
            value, choices = getattr(self, field.name), field.metadata["choices"]
            if choices and value not in choices:
                raise InputError(f"{field.name} must be one of {', '.join(map(str, choices))}, got {value!r}")
        for name in ("iterations", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed must be from 0 to 2^32 - 1, got {self.seed}")


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


def compare_cnn(config: CompareConfig) -> dict[str, Any]:
    """Run two backends side by side and return what they differ by, ready for JSON.

    Returns:
        ``conditions``; ``parts`` and ``iterations``, rows of :class:`Distance`; ``first_divergence``,
        the first part and the first iteration that are not equal to the bit, or None; ``genotypes``.

    Raises:
        InputError: values that cannot work, a backend that is not available.
        DivergedError: a loss that is not finite.
    """
    config.check()
    backends = [resolve_backend(backend) for backend in config.backends]
    parts = _part_rows(*(_network(config, backend) for backend in backends), config=config)
    runs = [_Run(config, backend) for backend in backends]
    iterations = _iteration_rows(runs, config)
    genotypes = [genotype_to_json(run.model.genotype()) for run in runs]
    return {
        "conditions": {
            **asdict(config),
            "backends": backends,
            "data": f"seeded random images 3x{IMAGE_SIZE}x{IMAGE_SIZE} and labels, {CLASSES} classes",
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


def _network(config: CompareConfig, backend: str) -> Network:
    torch.manual_seed(config.seed)
    model = Network(
        config.init_channels, CLASSES, config.layers, nn.CrossEntropyLoss(), backend=backend, memory="store"
    )
    return model.to(DTYPES[config.dtype])


def _batch(config: CompareConfig, number: int) -> tuple[Tensor, Tensor]:
    """Return batch ``number``: images [N, 3, H, W] and labels [N]."""
    generator = torch.Generator().manual_seed(config.seed * 1_000_003 + number)
    images = torch.randn(config.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator)
    return images.to(DTYPES[config.dtype]), torch.randint(CLASSES, (config.batch_size,), generator=generator)


@torch.no_grad()
def _part_rows(first: Network, second: Network, *, config: CompareConfig) -> list[dict[str, Any]]:
    """Compare the parts of a first forward; each part of ``second`` gets the inputs that ``first``'s had."""
    images, _ = _batch(config, 0)
    calls, others = _recorded(first, images), _recorded(second, images)
    (stem, _, _), _ = calls["cell 0"]
    rows = [("stem", distance(stem, others["cell 0"][0][0]))]
    # An alpha_softmax a cell type; every cell of a type is given the same.
    kinds = {"reduce" if cell.reduction else "normal": f"cell {i}" for i, cell in enumerate(first.cells)}
    for kind, name in kinds.items():
        rows.append((f"mixing weights, {kind}", distance(calls[name][0][2], others[name][0][2])))
    parts = dict(_parts(second))
    for name, (inputs, output) in calls.items():
        rows.append((name, distance(output, parts[name](*inputs))))
    return [{"name": name, **asdict(found)} for name, found in rows]


def _parts(model: Network) -> list[tuple[str, nn.Module]]:
    cells = [(f"cell {i}", cell) for i, cell in enumerate(model.cells)]
    return [*cells, ("pooling", model.global_pooling), ("logits", model.classifier)]


def _recorded(model: Network, images: Tensor) -> dict[str, tuple[tuple[Tensor, ...], Tensor]]:
    """Run a forward and return inputs and output of every part."""
    calls: dict[str, tuple[tuple[Tensor, ...], Tensor]] = {}

    def keep(name: str) -> Any:
        return lambda module, inputs, output: calls.update({name: (inputs, output)})

    handles = [part.register_forward_hook(keep(name)) for name, part in _parts(model)]
    model(images)
    for handle in handles:
        handle.remove()
    return calls


class _Run:
    """A search on one backend, advanced an iteration at a time."""

    def __init__(self, config: CompareConfig, backend: str) -> None:
        self.order = config.order
        self.model = _network(config, backend)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            LEARNING_RATE,
            momentum=ARCHITECT["momentum"],
            weight_decay=ARCHITECT["weight_decay"],
        )
        self.architect = Architect(self.model, argparse.Namespace(**ARCHITECT))

    def iterate(self, train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]) -> Tensor:
        """Move the alphas, then the weights; return the training loss."""
        self.architect.step(*train, *valid, LEARNING_RATE, self.optimizer, unrolled=self.order == 2)
        self.optimizer.zero_grad()
        loss = self.model._loss(*train)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP)
        self.optimizer.step()
        return loss.detach()


def _iteration_rows(runs: Sequence[_Run], config: CompareConfig) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number in range(1, config.iterations + 1):
        train, valid = _batch(config, 2 * number - 1), _batch(config, 2 * number)
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


def write_comparison(result: dict[str, Any], out: str | Path) -> list[Path]:
    """Write ``compare.json``, ``compare.png`` and ``compare.svg`` to the folder ``out``; return the paths."""
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "compare.json"
    file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return [file, *_draw(result, folder / "compare")]


def _draw(result: dict[str, Any], path: Path) -> list[Path]:
    conditions = result["conditions"]
    figure = new_figure(figsize=(5.6, 3.6), layout="constrained")
    ax = figure.subplots()
    for quantity, color in (("alphas", "#c9701a"), ("weights", "#1f6fb4")):
        rows = [row for row in result["iterations"] if row["quantity"] == quantity]
        points = [(row["iteration"], row["relative_error"]) for row in rows if row["relative_error"]]
        label = quantity if points else f"{quantity}: no difference"
        ax.plot(
            *zip(*points or [(1, math.nan)], strict=True), label=label, color=color, marker="o", markersize=3
        )
    ax.set_yscale("log")
    ax.set(xlabel="iteration", ylabel="relative error")
    ax.set_title(
        f"{conditions['backends'][1]} against {conditions['backends'][0]}, {conditions['dtype']}, "
        f"order {conditions['order']}",
        parse_math=False,
        fontsize=10,
    )
    ax.set_xlim(0.5, conditions["iterations"] + 0.5)
    ax.locator_params(axis="x", integer=True, min_n_ticks=1)
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(alpha=0.3)
    ax.legend(frameon=False)
    return save_figure(figure, path)


def print_comparison(result: dict[str, Any]) -> None:
    """Print the tables and what follows from them; as rich tables where rich is installed."""
    conditions = result["conditions"]
    first, second = conditions["backends"]
    print(
        f"{second} against {first}: {conditions['dtype']}, order {conditions['order']}, "
        f"C={conditions['init_channels']}, {conditions['layers']} layers, batch {conditions['batch_size']}, "
        f"seed {conditions['seed']}, threads: {conditions['threads']}\ndata: {conditions['data']}"
    )
    columns = ["equal bits", "largest ULP", "relative error"]
    _print_table(
        "First forward, every part on the same inputs",
        ["part", *columns],
        [[row["name"], *_cells(row)] for row in result["parts"]],
    )
    _print_table(
        "After every iteration",
        ["iteration", "what", *columns],
        [[str(row["iteration"]), _what(row), *_cells(row)] for row in result["iterations"]],
    )
    found = result["first_divergence"]
    print(f"first part that differs       {found['part'] or 'none'}")
    print(f"first iteration that differs  {found['iteration'] or 'none'}")
    print(f"genotypes                     {'agree' if result['genotypes']['agree'] else 'DIFFER'}")


def _what(row: dict[str, Any]) -> str:
    return f"{row['quantity']} {row['values'][1]:.5f}" if "values" in row else row["quantity"]


def _cells(row: dict[str, Any]) -> list[str]:
    # 99.996 % must not read as 100 %.
    share = math.floor(row["equal"] * 1e4) / 100
    ulp = f"{row['ulp']:,}" if row["ulp"] < 1e9 else f"{row['ulp']:.2e}"
    return [f"{share:.2f} %", ulp, f"{row['relative_error']:.2e}"]


def _print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    if importlib.util.find_spec("rich") is None:
        widths = [max(len(line[i]) for line in [columns, *rows]) for i in range(len(columns))]
        print(f"\n{title}")
        for line in [columns, *rows]:
            print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i >= len(columns) - 3 else "left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
