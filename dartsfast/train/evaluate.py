"""The test of a trained CNN (the original's ``cnn/test.py`` and ``cnn/test_imagenet.py``)."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dartsfast import ranks
from dartsfast.cnn.utils import accuracy
from dartsfast.data import Batches, image_sides, load_images
from dartsfast.errors import InputError
from dartsfast.genotypes import CNN, resolve_genotype
from dartsfast.runs.checkpoint import has_checkpoint, load_checkpoint
from dartsfast.runs.detail import VERBOSE, detail
from dartsfast.runs.device import resolve_device
from dartsfast.runs.fit import restored_config
from dartsfast.train.config import NETWORK_OPTIONS, TestCNNConfig, TrainCNNConfig
from dartsfast.train.count import network_size
from dartsfast.train.network import batches_of, build_network, check_images_fit
from dartsfast.train.weights import load_fitting, load_weights


@dataclass(frozen=True)
class TestResult:
    """Mean loss on ``images`` images of ``classes`` classes, and how many percent are right, or among the
    first five guesses."""

    __test__ = False  # no test of pytest's

    loss: float
    acc: float
    acc5: float
    images: int
    classes: int

    def __str__(self) -> str:
        errors = error_words(self.acc, self.acc5, self.classes)
        return f"test {errors}, loss {self.loss:.4f}, on {self.images} images"


def error_words(acc: float, acc5: float, classes: int) -> str:
    """Say how many percent are wrong; of more than five classes, with five guesses too."""
    five = f" ({100 - acc5:.2f} % with five guesses)" if classes > 5 else ""
    return f"error {100 - acc:.2f} %{five}"


@torch.no_grad()
def test_network(model: Any, batches: Batches, between: Callable[[], None] = lambda: None) -> TestResult:
    """Test a network of images, left in evaluation mode, on a pass of ``batches``.

    ``between`` is called before every batch. Ranks with a part of each batch have the same result.
    """
    model.eval()
    loss, right, right5 = 0.0, 0, 0
    for x, y in batches.iterate(0):
        between()
        if not len(y):  # the last batch has fewer images than there are ranks
            continue
        logits, _ = model(x)
        top1, top5 = accuracy(logits, y, (1, 5))
        loss += nn.functional.cross_entropy(logits, y).item() * len(y)
        right += round(top1.item() * len(y) / 100)
        right5 += round(top5.item() * len(y) / 100)
    count = len(batches.source)
    total = ranks.totals(loss, right, right5)
    means = total[0] / count, 100 * total[1] / count, 100 * total[2] / count
    return TestResult(*means, count, model.classifier.out_features)


test_network.__test__ = False  # type: ignore[attr-defined]  # no test of pytest's


def test_cnn(config: TestCNNConfig) -> TestResult:
    """Test the network whose weights are at ``config.model_path`` on the held-out images.

    Of a run's folder cell and network are its own; its data too, unless ``config`` was given others.

    Raises:
        InputError: no such weights, or not of this network.
    """
    config.check()
    if not config.model_path:
        raise InputError("nothing to test: name a run's folder or a file of weights with --model_path")
    config, weights = trained_weights(config)
    device = resolve_device(config.device)
    task = load_images(config.data, download=config.download, image_size=config.image_size)
    check_images_fit(config.network, False, *image_sides(task))
    model = trained_network(config, weights, len(task.classes))
    batches = batches_of(task.test, task, config, stream="test", seed=0, device=device, cutout=None)
    size = network_size(model, *image_sides(task))
    with timed(f"testing {config.model_path} on {config.data}, on {device}, {size}"):
        return test_network(model.to(device), batches)


test_cnn.__test__ = False  # type: ignore[attr-defined]


def trained_weights(config: TestCNNConfig) -> tuple[TestCNNConfig, dict[str, Tensor]]:
    """Return ``config`` with what a run's folder knows of itself, and the weights at its ``model_path``."""
    path = Path(os.path.expanduser(config.model_path))
    if not path.is_dir():
        return config, load_weights(path)
    config, state = tested_run(config, path, "train-cnn", TrainCNNConfig, NETWORK_OPTIONS)
    return config, state["model"]


def trained_network(config: TestCNNConfig, weights: dict[str, Tensor], classes: int) -> Any:
    """Return the network that ``config`` describes with ``weights``; InputError where they do not fit."""
    cell = resolve_genotype(config.arch, CNN)
    model = build_network(config, classes, cell)
    options = "--arch, --network, --init_channels, --layers, --auxiliary and the classes of --data"
    load_fitting(model, weights, Path(config.model_path), options)
    return model


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Where much is to be said, say what runs within, and how long it took."""
    if detail() != VERBOSE:
        yield
        return
    print(what, flush=True)
    began = time.perf_counter()
    yield
    print(f"  testing {time.perf_counter() - began:.3g} s", flush=True)


def tested_run(
    config: Any, folder: Path, kind: str, own_cls: Any, names: tuple[str, ...]
) -> tuple[Any, dict[str, Any]]:
    """Return ``config`` with what a training knows of network and data, and the training's checkpoint.

    Args:
        config: options of a test.
        folder: of the training.
        kind: of its checkpoint.
        own_cls: the class of its options.
        names: options of the network, which are the training's own.

    Raises:
        InputError: no such checkpoint, or options of the network beside it.
    """
    if not has_checkpoint(folder):
        raise InputError(
            f"no checkpoint in {folder}: give the folder of a training, of random or select that of a "
            "candidate's training, or a file of weights"
        )
    state = load_checkpoint(folder, kind)
    own = restored_config(own_cls, state["config"])
    if given := [name for name in names if name in config.given]:
        raise InputError(
            f"the training in {folder} knows its own network: leave out {', '.join('--' + n for n in given)}"
        )
    network = {name: getattr(own, name) for name in names}
    # Those of the network images; a text has none.
    followed = [name for name in ("data", "workers") if hasattr(own, name) and name not in config.given]
    network |= {name: getattr(own, name) for name in followed}
    return dataclasses.replace(config, **network), state
