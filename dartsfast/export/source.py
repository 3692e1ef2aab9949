"""What is exported: the network of a training, of a file of weights, or of a cell alone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import dartsfast
from dartsfast.cnn import genotypes as cnn_genotypes
from dartsfast.data import image_sides, load_images
from dartsfast.errors import InputError
from dartsfast.export.formats import LOGITS
from dartsfast.files import is_archive
from dartsfast.genotypes import CNN, RNN, AnyGenotype, Kind, resolve_genotype
from dartsfast.genotypes.text import looks_like_genotype
from dartsfast.rnn import genotypes as rnn_genotypes
from dartsfast.rnn.model import RNNModel
from dartsfast.runs.checkpoint import load_checkpoint
from dartsfast.runs.config_file import CONFIG, load_config
from dartsfast.train.config import NETWORK_OPTIONS, TestCNNConfig
from dartsfast.train.evaluate import trained_network, trained_weights
from dartsfast.train.evaluate_rnn import best_weights
from dartsfast.train.network import check_images_fit
from dartsfast.train.weights import load_fitting, load_weights

CLASSES = 10  # of a cell alone, as CIFAR-10 has
WORDS, UNITS = 10_000, 850  # of a recurrent cell alone: those of Penn Treebank
SECOND = "auxiliary_head."  # names of weights that only training needs


class Source(NamedTuple):
    """A network to export.

    Attributes:
        kind: ``CNN`` or ``RNN``.
        genotype: its cell.
        network: in evaluation mode, on the CPU; one of ``LOGITS`` or an :class:`RNNModel`.
        sizes: what the plain file's ``Network`` takes: channels, classes and layers, or words and units.
        trained: its weights are of a training.
        about: what is said of it in files; values that JSON has.
        side: of its images, in pixels.
        images: which network of a CNN it is, a name of ``LOGITS``.
    """

    kind: Kind
    genotype: AnyGenotype
    network: Any
    sizes: tuple[int, ...]
    trained: bool
    about: dict[str, Any]
    side: int = 0
    images: str = ""


class Options(NamedTuple):
    """What is said of the network beside where it is; nothing where the network knows itself.

    Attributes:
        test: cell and sizes of the network, as its test takes them.
        data: images whose normalisation and classes go into files; "" for those of a training.
        classes: how many; 0 for those of the weights.
    """

    test: TestCNNConfig
    data: str = ""
    classes: int = 0

    def check(self) -> None:
        """Raise InputError for the first option that cannot work."""
        self.test.check()
        if self.classes < 0:
            raise InputError(f"classes must not be negative, got {self.classes}")

    def given(self) -> list[str]:
        """Return the names of the options that were given."""
        names = [name for name in NETWORK_OPTIONS if name in self.test.given]
        return names + [n for n in ("data", "classes") if getattr(self, n)]

    def refuse(self, what: str, names: Sequence[str]) -> None:
        """Raise InputError where one of ``names`` is given."""
        if given := [f"--{name}" for name in self.given() if name in names]:
            raise InputError(f"{what}: leave out {', '.join(given)}")


def find_source(what: str, options: Options) -> Source:
    """Return the network that ``what`` names: a run's folder, a file of weights, or a cell.

    Raises:
        InputError: there is none, or ``options`` that do not go with it.
    """
    options.check()
    path = Path(os.path.expanduser(what))
    if os.path.isdir(path) and (path / CONFIG).exists():  # a whole genotype is no path that Path.is_dir takes
        command, _ = load_config(path / CONFIG)
        if command == ("train", "cnn"):
            return _cnn_training(path, options)
        if command == ("train", "rnn"):
            return _rnn_training(path, options)
    if os.path.isfile(path) and is_archive(path):
        return _weights(path, options)
    return _cell(what, options)


def _rows(weights: dict[str, Tensor], name: str) -> int:
    """Return the rows of a matrix of weights; 0 where there is none."""
    return len(weights[name]) if name in weights and weights[name].ndim == 2 else 0


def _cnn_training(path: Path, options: Options) -> Source:
    options.refuse(f"the training in {path} knows its own network", ("classes",))
    config, weights = trained_weights(options.test.but(model_path=str(path)))
    return _trained_cnn(dataclasses.replace(config, data=options.data or config.data), weights, 0, True)


def _weights(path: Path, options: Options) -> Source:
    weights = load_weights(path)
    if _rows(weights, "encoder.weight"):
        others = [name for name in options.given() if name != "arch"]
        options.refuse(f"{path} are the weights of a recurrent network", others)
        return _trained_rnn(path, resolve_genotype(options.test.arch, RNN), weights)
    config = dataclasses.replace(options.test, model_path=str(path), data=options.data or options.test.data)
    return _trained_cnn(config, weights, options.classes, bool(options.data))


def _trained_cnn(config: TestCNNConfig, weights: dict[str, Tensor], classes: int, read: bool) -> Source:
    """Return the network of ``weights``; with ``read``, data say what its images and classes are."""
    about: dict[str, Any] = {}
    side = config.image_size
    if read:
        try:
            task = load_images(config.data, download=config.download, image_size=config.image_size)
        except InputError as error:
            raise InputError(
                f"{error}. The file says how images are normalised and what the classes are, which is read "
                "from the data of the training: if they lie elsewhere now, give --data"
            ) from error
        if classes not in (0, len(task.classes)):
            raise InputError(f"--classes {classes}, and {config.data} has {len(task.classes)}: leave one out")
        (side, _), classes = image_sides(task), len(task.classes)
        about = {"classes": task.classes, "mean": task.mean.tolist(), "std": task.std.tolist()}
    tested = trained_network(config, weights, classes or _rows(weights, "classifier.weight") or CLASSES)
    kept = {name: value for name, value in tested.state_dict().items() if not name.startswith(SECOND)}
    cell = resolve_genotype(config.arch, CNN)
    sizes = (config.init_channels, tested.classifier.out_features, config.layers)
    return _cnn(config.network, cell, sizes, side, kept, about)


def _cnn(
    images: str,
    cell: cnn_genotypes.Genotype,
    sizes: tuple[int, int, int],
    side: int,
    weights: dict[str, Tensor] | None,
    about: dict[str, Any],
) -> Source:
    channels, classes, layers = sizes
    check_images_fit(images, False, side, side)
    network = LOGITS[images](channels, classes, layers, False, cell)
    if weights is not None:
        network.load_state_dict(weights)
    said = {
        **_said(cell),
        "image_size": side,
        "input": "float32 [N, 3, H, W]: RGB from 0 to 1, less mean, over std",
        "output": "logits [N, classes]",
        **about,
    }
    return Source(CNN, cell, network.eval(), sizes, weights is not None, said, side, images)


def _said(cell: AnyGenotype) -> dict[str, Any]:
    return {"producer": f"dartsfast {dartsfast.__version__}", "genotype": repr(cell)}


def _rnn_training(path: Path, options: Options) -> Source:
    options.refuse(f"the training in {path} knows its own network", options.given())
    state = load_checkpoint(path, "train-rnn")
    weights = best_weights(state)
    if weights is None:
        raise InputError(f"the training in {path} has no weights yet: its first epoch is not over")
    return _trained_rnn(path, resolve_genotype(state["config"]["arch"], RNN), weights)


def _trained_rnn(path: Path, cell: rnn_genotypes.Genotype, weights: dict[str, Tensor]) -> Source:
    words, units = weights["encoder.weight"].shape
    network = RNNModel(words, units, units, units, genotype=cell)
    load_fitting(network, weights, path, "--arch")
    return Source(RNN, cell, network.eval(), (words, units), True, _said(cell))


def _cell(what: str, options: Options) -> Source:
    try:
        cell = resolve_genotype(what)
    except InputError as error:
        if os.path.lexists(os.path.expanduser(what)) or looks_like_genotype(what):
            raise
        raise InputError(f"there is no file or folder {what}, and {error}") from error
    if isinstance(cell, cnn_genotypes.Architecture):
        raise InputError(f"{what} is a cell of NAS-Bench-201, whose network is not exported")
    alone = f"{what} is a cell, without weights"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if isinstance(cell, cnn_genotypes.Genotype):
            options.refuse(alone, ("arch", "auxiliary", "data"))
            sizes = (options.test.init_channels, options.classes or CLASSES, options.test.layers)
            return _cnn(options.test.network, cell, sizes, options.test.image_size, None, {})
        options.refuse(alone, options.given())
        network = RNNModel(WORDS, UNITS, UNITS, UNITS, genotype=cell).eval()
    return Source(RNN, cell, network, (WORDS, UNITS), False, _said(cell))
