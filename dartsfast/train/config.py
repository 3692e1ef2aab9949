"""Options of trainings and tests: the original's flag names and defaults.

``--help`` reads them, so this module imports no torch.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from dartsfast.errors import InputError
from dartsfast.genotypes import as_genotype
from dartsfast.names import BACKENDS
from dartsfast.runs.options import DATA, NETWORK, OPTIMISATION, Options, RunOptions, check_tied, option

IMAGES = (
    "photos: 32x32 crops of ten photographs that come with scikit-image and scikit-learn; cifar10:DIR, "
    "cifar100:DIR, fashion-mnist:DIR: as torchvision lays them out in DIR; imagefolder:DIR: "
    "DIR/train/CLASS/* and DIR/val/CLASS/*; a folder alone: this where it has a folder train, else CIFAR-10"
)
CELL = (
    'the cell: the folder of a run, a genotype.json, "Genotype(...)" as a search prints it, or a published '
    "cell such as DARTS_V1"
)
TEXTS = (
    "pydoc: the documentation topics of Python's standard library; a folder with train.txt, valid.txt "
    "and test.txt, or ptb.train.txt, ptb.valid.txt and ptb.test.txt, or wiki.train.tokens, "
    "wiki.valid.tokens and wiki.test.tokens"
)
PRECISIONS = ("float32", "bfloat16", "float16")
# Which network weights are of.
NETWORK_OPTIONS = ("arch", "network", "init_channels", "layers", "auxiliary", "image_size")
WORKERS = 4  # as the original has


@dataclass(frozen=True)
class _Protocols(Options):
    """Options whose values go together, as the original's scripts and command lines have them."""

    protocols: ClassVar[dict[str, dict[str, Any]]]
    protocol_prefix: ClassVar[str] = ""  # of the options that they set

    @classmethod
    def protocol(cls, name: str) -> dict[str, Any]:
        """Return what a protocol says of these options; InputError for an unknown one."""
        if name not in cls.protocols:
            raise InputError(f"unknown protocol {name!r}: choose one of {', '.join(cls.protocols)}")
        own = {field.name for field in dataclasses.fields(cls)}
        return {option: value for option, value in cls.protocols[name].items() if option in own}

    @classmethod
    def of(cls, protocol: str, **options: Any) -> Any:
        """Return the options of a protocol, but for those given; InputError for an unknown one."""
        return cls(**{**cls.protocol(protocol), **options})


@dataclass(frozen=True)
class _OneCell(Options):
    """The cell that is trained or tested; a genotype, in any form, stands for what it prints."""

    arch: str = option("DARTS", CELL, group=NETWORK)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.arch, str):
            object.__setattr__(self, "arch", repr(as_genotype(self.arch)))


@dataclass(frozen=True)
class _NetworkAndImages(_Protocols):
    """What trainings and a test of one share. Defaults are those for CIFAR; ``of("imagenet", ...)`` has
    ImageNet's (paper section 3.3; the original's ``train_imagenet.py``)."""

    protocols: ClassVar[dict[str, dict[str, Any]]] = {
        "cifar": {
            "network": "cifar", "image_size": 32, "batch_size": 96, "init_channels": 36, "layers": 20,
            "epochs": 600, "learning_rate": 0.025, "schedule": "cosine", "weight_decay": 3e-4,
            "label_smooth": 0.0, "drop_path_prob": 0.2, "report_freq": 50,
        },
        "imagenet": {
            "network": "imagenet", "image_size": 224, "batch_size": 128, "init_channels": 48, "layers": 14,
            "epochs": 250, "learning_rate": 0.1, "schedule": "step", "weight_decay": 3e-5,
            "label_smooth": 0.1, "drop_path_prob": 0.0, "report_freq": 100,
        },
    }  # fmt: skip

    network: str = option(
        "cifar",
        "cifar: images at full size, cropped at random from a padded image; imagenet: a stem that makes an "
        "eighth of images of 224x224, which are random parts of files in random colours",
        ("cifar", "imagenet"),
        group=NETWORK,
    )
    workers: int = option(
        WORKERS, "processes that decode the images of the network imagenet; 0: this one", group=DATA
    )
    data: str = option("photos", IMAGES, group=DATA)
    download: bool = option(False, "let torchvision fetch the data if it is not there", group=DATA)
    image_size: int = option(32, "side of the images of imagefolder, in pixels", group=DATA)
    batch_size: int = option(96, "images a batch, of several processes of each", group=DATA)
    init_channels: int = option(36, "channels of the first cells", group=NETWORK)
    layers: int = option(20, "number of cells", group=NETWORK)


@dataclass(frozen=True)
class CNNTrainingOptions(RunOptions, _NetworkAndImages):
    """How a cell is trained on images, whichever it is."""

    max_images: int = option(
        0, "train on at most this many images, and validate on as many; 0: all", group=DATA
    )
    train_portion: float = option(
        1.0,
        "share of the training images to train on; below 1 the others are validated on, in place of a test",
        group=DATA,
    )
    cutout: bool = option(False, "zero a random square of each image", group=DATA)
    cutout_length: int = option(16, "side of that square, in pixels", group=DATA)
    auxiliary: bool = option(
        False, "with a second classifier at two thirds of the depth, while it is trained", group=NETWORK
    )
    auxiliary_weight: float = option(0.4, "weight of its loss", group=OPTIMISATION)
    drop_path_prob: float = option(
        0.2, "share of samples of which a path is dropped, reached from 0 in equal steps", group=OPTIMISATION
    )
    epochs: int = option(600, "passes over the training data", group=OPTIMISATION)
    sync_bn: bool = option(
        False, "of several processes, batch norms have the statistics of all of them", group=NETWORK
    )
    learning_rate: float = option(0.025, "initial learning rate", group=OPTIMISATION)
    schedule: str = option(
        "cosine", "cosine: the learning rate falls to 0; step: it is multiplied by gamma now and then",
        ("cosine", "step"), group=OPTIMISATION,
    )  # fmt: skip
    gamma: float = option(0.97, "what the schedule step multiplies with", group=OPTIMISATION)
    decay_period: int = option(1, "epochs between its steps", group=OPTIMISATION)
    label_smooth: float = option(
        0.0, "share of each label that is spread evenly over the classes, in training", group=OPTIMISATION
    )
    momentum: float = option(0.9, "momentum", group=OPTIMISATION)
    weight_decay: float = option(3e-4, "weight decay", group=OPTIMISATION)
    grad_clip: float = option(5.0, "clip the gradient to this norm", group=OPTIMISATION)
    seed: int = option(0, "seed of every random stream")
    precision: str = option(
        "float32", "of the network's operations where torch's autocast says so", PRECISIONS, group=NETWORK
    )
    channels_last: bool = option(False, "keep images in memory channel by channel of a pixel", group=NETWORK)
    compile: bool = option(False, "let torch.compile make kernels for the network", group=NETWORK)
    report_freq: int = option(50, "iterations between lines where the output is no terminal")

    def positive(self) -> tuple[str, ...]:
        """Return the names of the options that must be above zero."""
        names = "learning_rate", "init_channels", "layers", "grad_clip", "report_freq", "train_portion"
        return (*super().positive(), *names, "gamma", "decay_period")

    def check(self) -> None:
        """Raise InputError for the first option that cannot work."""
        super().check()
        if self.train_portion > 1:
            raise InputError(f"train_portion must be at most 1, got {self.train_portion}")
        if self.label_smooth > 1:
            raise InputError(f"label_smooth must be at most 1, got {self.label_smooth}")


@dataclass(frozen=True)
class TrainCNNConfig(CNNTrainingOptions, _OneCell):
    """Options of the training of a CNN cell (paper sections 3.2, 3.3; the original's ``cnn/train.py``)."""


@dataclass(frozen=True)
class TestCNNConfig(_NetworkAndImages, _OneCell):
    """Options of the test of a trained network (the original's ``cnn/test.py``).

    Of a run's folder nothing else need be given: its checkpoint knows cell, network and data.
    """

    __test__ = False  # no test of pytest's

    model_path: str = option(
        "", "the folder of a training, or weights: its weights.pt, or what the original's train.py saved",
        group=NETWORK,
    )  # fmt: skip
    auxiliary: bool = option(False, "the weights have a second classifier", group=NETWORK)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")

    def positive(self) -> tuple[str, ...]:
        """Return the names of the options that must be above zero."""
        return ("batch_size", "init_channels", "layers")


@dataclass(frozen=True)
class _OneRecurrentCell(_OneCell):
    """The cell that is trained or tested, a recurrent one."""

    arch: str = option("DARTS", f"{CELL}, here a recurrent one", group=NETWORK)


@dataclass(frozen=True)
class _NetworkAndText(_Protocols):
    """What trainings of recurrent cells and a test of one share. Defaults are those for Penn Treebank;
    ``of("wt2", ...)`` has WikiText-2's."""

    protocols: ClassVar[dict[str, dict[str, Any]]] = {
        "ptb": {"emsize": 850, "nhid": 850, "nhidlast": 850, "dropouth": 0.25, "wdecay": 8e-7},
        "wt2": {"emsize": 700, "nhid": 700, "nhidlast": 700, "dropouth": 0.15, "wdecay": 5e-7},
    }

    data: str = option("pydoc", TEXTS, group=DATA)
    emsize: int = option(850, "features of the word embeddings", group=NETWORK)
    nhid: int = option(850, "features of the hidden state", group=NETWORK)
    nhidlast: int = option(850, "features of the last layer; the three must be equal", group=NETWORK)
    bptt: int = option(35, "time steps a batch; in training on average", group=DATA)
    backend: str = option(
        "auto",
        "how the decoder and its loss are computed; the cell is stock PyTorch",
        ("auto", *BACKENDS),
        group=NETWORK,
    )

    def positive(self) -> tuple[str, ...]:
        """Return the names of the options that must be above zero."""
        return (*super().positive(), "emsize", "nhid", "nhidlast", "bptt")

    def check(self) -> None:
        """Raise InputError for the first option that cannot work."""
        super().check()
        check_tied(self)


@dataclass(frozen=True)
class RNNTrainingOptions(RunOptions, _NetworkAndText):
    """How a recurrent cell is trained, whichever it is."""

    lr: float = option(20.0, "learning rate, of a text of bptt time steps", group=OPTIMISATION)
    clip: float = option(0.25, "clip the gradient to this norm", group=OPTIMISATION)
    epochs: int = option(8000, "passes over the training text", group=OPTIMISATION)
    batch_size: int = option(64, "columns of text a batch, of several processes of each", group=DATA)
    small_batch_size: int = option(
        -1, "columns computed at once, which divide the batch; -1: all", group=OPTIMISATION
    )
    max_seq_len_delta: int = option(20, "a batch has at most this many time steps beyond bptt", group=DATA)
    dropout: float = option(0.75, "dropout of the cell's outputs", group=NETWORK)
    dropouth: float = option(0.25, "dropout of hidden states in the cell", group=NETWORK)
    dropoutx: float = option(0.75, "dropout of the cell's inputs", group=NETWORK)
    dropouti: float = option(0.2, "dropout of the embedded input", group=NETWORK)
    dropoute: float = option(0.0, "dropout of whole words", group=NETWORK)
    seed: int = option(1267, "seed of every random stream")
    nonmono: int = option(
        5, "average the weights once validation is worse than the best before so many epochs",
        group=OPTIMISATION,
    )  # fmt: skip
    log_interval: int = option(200, "iterations between lines where the output is no terminal")
    alpha: float = option(0.0, "activation regularisation of the dropped-out outputs", group=OPTIMISATION)
    beta: float = option(
        1e-3, "slowness (temporal activation) regularisation of the outputs", group=OPTIMISATION
    )
    wdecay: float = option(8e-7, "weight decay", group=OPTIMISATION)

    def positive(self) -> tuple[str, ...]:
        """Return the names of the options that must be above zero."""
        return (*super().positive(), "lr", "clip", "nonmono", "log_interval")

    def check(self) -> None:
        """Raise InputError for the first option that cannot work."""
        super().check()
        small = self.small_batch_size
        if small != -1 and not (small > 0 and self.batch_size % small == 0):
            raise InputError(
                f"small_batch_size must be -1 or divide the batch size {self.batch_size}, got {small}"
            )


@dataclass(frozen=True)
class TrainRNNConfig(RNNTrainingOptions, _OneRecurrentCell):
    """Options of the training of a recurrent cell (paper appendix A.4; the original's ``rnn/train.py``)."""


@dataclass(frozen=True)
class TestRNNConfig(_NetworkAndText, _OneRecurrentCell):
    """Options of the test of a trained recurrent network (the original's ``rnn/test.py``).

    Of a run's folder nothing else need be given: its checkpoint knows cell, network and data.
    """

    __test__ = False  # no test of pytest's

    model_path: str = option(
        "", "the folder of a training, or weights: its weights.pt, or a state_dict of the original's model",
        group=NETWORK,
    )  # fmt: skip
    split: str = option("test", "the text that is read", ("test", "valid", "train"), group=DATA)
    device: str = option("auto", "auto, cpu, cuda or cuda:N")
