"""The test of a trained recurrent network (the original's ``rnn/test.py``)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dartsfast.cnn.utils import count_parameters_in_MB
from dartsfast.data import Corpus, resolve_corpus, text_fingerprint
from dartsfast.errors import InputError
from dartsfast.genotypes import RNN, resolve_genotype
from dartsfast.rnn.model import RNNModel
from dartsfast.rnn.utils import batchify, perplexity, text_loss
from dartsfast.runs.device import resolve_device
from dartsfast.train.config import TestRNNConfig, TrainRNNConfig
from dartsfast.train.evaluate import tested_run, timed
from dartsfast.train.weights import load_fitting, load_weights

TEST_BATCH_SIZE = 1


@dataclass(frozen=True)
class TextTestResult:
    """Mean negative log-likelihood and perplexity of ``words`` predicted words of a part of the data."""

    loss: float
    ppl: float
    words: int
    split: str

    def __str__(self) -> str:
        return f"{self.split} perplexity {self.ppl:.2f}, loss {self.loss:.4f}, on {self.words:,} words"


def text_columns(
    data: str, corpus: Corpus, split: str, columns: int, least: int = 2, remedy: str = ""
) -> Tensor:
    """Return a text as columns [rows, columns], of at least ``least`` rows.

    Raises:
        InputError: the text is shorter; ``remedy`` says what else than more text would help.
    """
    tokens = getattr(corpus, split)
    if len(tokens) < least * columns:
        raise InputError(
            f"{data}: the {split} text has {len(tokens)} tokens, too few for {columns} columns of {least}: "
            f"use {remedy}more text, at least {least * columns} tokens"
        )
    return batchify(tokens, columns)


def best_weights(state: dict[str, Any]) -> dict[str, Tensor] | None:
    """Return the weights of the best epoch in the checkpoint of a training; None before there is one."""
    extra = state["extra"]
    best = extra.get("best") if isinstance(extra, dict) else None
    return best.get("model") if isinstance(best, dict) else None


def test_rnn(config: TestRNNConfig) -> TextTestResult:
    """Test the network whose weights are at ``config.model_path`` on a text, word after word.

    As the original's last evaluation: one column, the hidden state goes through the whole text, and nothing
    is dropped. Of a run's folder, cell and network are its own, and the weights those of its best epoch; its
    data too, unless ``config`` was given others, which must have the same vocabulary.

    Raises:
        InputError: no such weights, or not of this network, or of another vocabulary.
    """
    config.check()
    if not config.model_path:
        raise InputError("nothing to test: name a run's folder or a file of weights with --model_path")
    path, vocabulary = Path(os.path.expanduser(config.model_path)), None
    if path.is_dir():
        names = ("arch", "emsize", "nhid", "nhidlast")
        config, state = tested_run(config, path, "train-rnn", TrainRNNConfig, names)
        found = best_weights(state)
        if found is None:
            raise InputError(
                f"the training in {path} has no weights to test yet: its first epoch is not over"
            )
        weights, vocabulary = found, state["data"].get("vocabulary")
    else:
        weights = load_weights(path)
    device = resolve_device(config.device)
    cell = resolve_genotype(config.arch, RNN)
    corpus = resolve_corpus(config.data)
    if vocabulary is not None and text_fingerprint(corpus)["vocabulary"] != vocabulary:
        raise InputError(
            f"the vocabulary of {config.data} is not that of the training in {path}: use the data that "
            "it was trained on"
        )
    text = text_columns(config.data, corpus, config.split, TEST_BATCH_SIZE)
    model = RNNModel(
        len(corpus.dictionary), config.emsize, config.nhid, config.nhidlast, genotype=cell,
        backend=config.backend,
    )  # fmt: skip
    load_fitting(model, weights, path, "--arch, --emsize, --nhid, --nhidlast and the vocabulary of --data")
    size = f"{count_parameters_in_MB(model):.2f} M parameters"
    with timed(f"testing {config.model_path} on {config.data}, on {device}, {size}"):
        loss = text_loss(model.to(device), text.to(device), config)
    return TextTestResult(loss, perplexity(loss), len(text) - 1, config.split)


test_rnn.__test__ = False  # type: ignore[attr-defined]  # no test of pytest's
