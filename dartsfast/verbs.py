"""The commands that leave a run: what the command line says of each, and its options."""

from __future__ import annotations

from typing import Any, NamedTuple

from dartsfast.candidates.config import RandomCNNConfig, RandomRNNConfig, SelectCNNConfig, SelectRNNConfig
from dartsfast.search.config import CNNConfig, RNNConfig
from dartsfast.train.config import TestCNNConfig, TestRNNConfig, TrainCNNConfig, TrainRNNConfig

# Flags of the original command lines that never changed what it did; accepted so that those lines run.
WITHOUT_EFFECT: dict[tuple[str, str], dict[str, Any]] = {
    ("search", "cnn"): {"model_path": str, "drop_path_prob": float},
    ("search", "rnn"): {
        "nonmono": int, "alpha": float, "max_seq_len_delta": int, "cuda": None, "single_gpu": None,
    },
    ("train", "cnn"): {"model_path": str, "parallel": None},
    ("train", "rnn"): {"cuda": None, "single_gpu": None},
    ("test", "cnn"): {
        "report_freq": int, "cutout": None, "cutout_length": int, "drop_path_prob": float, "seed": int,
    },
    ("test", "rnn"): {
        "lr": float, "clip": float, "epochs": int, "batch_size": int, "dropout": float, "dropouth": float,
        "dropoutx": float, "dropouti": float, "dropoute": float, "seed": int, "nonmono": int, "cuda": None,
        "log-interval": int, "alpha": float, "beta": float, "wdecay": float, "continue_train": None,
        "n_experts": int, "small_batch_size": int, "max_seq_len_delta": int, "single_gpu": None,
    },
}  # fmt: skip


class Verb(NamedTuple):
    """A command that leaves a run.

    Attributes:
        help: what it does, ``{}`` standing for the kind of cell.
        noun: what messages call it.
        saved_as: how the original would call its folder.
        pictures: that it leaves.
        configs: its options, by the kind of cell.
    """

    help: str
    noun: str
    saved_as: str
    pictures: tuple[str, ...]
    configs: dict[str, Any]


VERBS = {
    "search": Verb(
        "search a {} cell", "search", "search", ("cell.png", "alphas.png", "curves.png"),
        {"cnn": CNNConfig, "rnn": RNNConfig},
    ),
    "train": Verb(
        "train a found {} cell from scratch", "training", "eval", ("cell.png", "curves.png"),
        {"cnn": TrainCNNConfig, "rnn": TrainRNNConfig},
    ),
    "random": Verb(
        "train random {} cells briefly, and keep the best", "competition", "random", ("cell.png",),
        {"cnn": RandomCNNConfig, "rnn": RandomRNNConfig},
    ),
    "select": Verb(
        "search {} cells with several seeds, train each briefly, and keep the best", "selection", "select",
        ("cell.png",), {"cnn": SelectCNNConfig, "rnn": SelectRNNConfig},
    ),
}  # fmt: skip
TESTS: dict[str, Any] = {"cnn": TestCNNConfig, "rnn": TestRNNConfig}
