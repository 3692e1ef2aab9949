"""``dartsfast compare cnn``: two backends on a CNN search, on random images and labels."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dartsfast.cnn.architect import Architect
from dartsfast.cnn.model_search import Network
from dartsfast.compare.config import CompareConfig
from dartsfast.compare.measure import Batch, Row, comparison, generator, iteration_rows, part_row

CLASSES, IMAGE_SIZE = 10, 32
LEARNING_RATE, GRAD_CLIP = 0.025, 5.0
# The original's defaults.
ARCHITECT = {"momentum": 0.9, "weight_decay": 3e-4, "arch_learning_rate": 3e-4, "arch_weight_decay": 1e-3}


def compare_cnn(config: CompareConfig) -> dict[str, Any]:
    """Run two backends side by side and return what they differ by, ready for JSON.

    Returns:
        What :func:`~dartsfast.compare.measure.comparison` does.

    Raises:
        InputError: values that cannot work, a backend that is not available.
        DivergedError: a loss that is not finite.
    """
    config.check()
    parts = _part_rows(*(_network(config, backend) for backend in config.backends), config=config)
    runs = [_Run(config, backend) for backend in config.backends]
    iterations = iteration_rows(runs, config, partial(_batch, config))
    return comparison(
        config,
        runs,
        parts,
        iterations,
        size=f"C={config.init_channels}, {config.layers} layers",
        data=f"seeded random images 3x{IMAGE_SIZE}x{IMAGE_SIZE} and labels, {CLASSES} classes",
    )


def _network(config: CompareConfig, backend: str) -> Network:
    torch.manual_seed(config.seed)
    model = Network(
        config.init_channels, CLASSES, config.layers, nn.CrossEntropyLoss(), backend=backend, memory="store"
    )
    return model.to(getattr(torch, config.dtype))


def _batch(config: CompareConfig, number: int) -> Batch:
    """Return batch ``number``: images [N, 3, H, W] and labels [N]."""
    drawn = generator(config.seed, number)
    images = torch.randn(config.batch_size, 3, IMAGE_SIZE, IMAGE_SIZE, generator=drawn)
    labels = torch.randint(CLASSES, (config.batch_size,), generator=drawn)
    return images.to(getattr(torch, config.dtype)), labels


@torch.no_grad()
def _part_rows(first: Network, second: Network, *, config: CompareConfig) -> list[Row]:
    """Compare the parts of a first forward; each part of ``second`` gets the inputs that ``first``'s had."""
    images, _ = _batch(config, 0)
    calls, others = _recorded(first, images), _recorded(second, images)
    (stem, _, _), _ = calls["cell 0"]
    rows = [part_row("stem", stem, others["cell 0"][0][0])]
    # An alpha_softmax a cell type; every cell of a type is given the same.
    kinds = {"reduce" if cell.reduction else "normal": f"cell {i}" for i, cell in enumerate(first.cells)}
    for kind, name in kinds.items():
        rows.append(part_row(f"mixing weights, {kind}", calls[name][0][2], others[name][0][2]))
    parts = dict(_parts(second))
    for name, (inputs, output) in calls.items():
        rows.append(part_row(name, output, parts[name](*inputs)))
    return rows


def _parts(model: Network) -> list[tuple[str, nn.Module]]:
    cells = [(f"cell {i}", cell) for i, cell in enumerate(model.cells)]
    return [*cells, ("pooling", model.global_pooling), ("logits", model.classifier)]


def _recorded(model: Network, images: Tensor) -> dict[str, tuple[tuple[Tensor, ...], Tensor]]:
    """Run a forward and return inputs and output of every part."""
    calls: dict[str, tuple[tuple[Tensor, ...], Tensor]] = {}

    def keep(name: str) -> Callable[..., None]:
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

    def iterate(self, train: Batch, valid: Batch) -> Tensor:
        """Move the alphas, then the weights; return the training loss."""
        self.architect.step(*train, *valid, LEARNING_RATE, self.optimizer, unrolled=self.order == 2)
        self.optimizer.zero_grad()
        loss = self.model._loss(*train)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), GRAD_CLIP)
        self.optimizer.step()
        return loss.detach()
