"""The random baseline, and the selection among several searches (paper section 3.2)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from dartsfast.candidates.compete import CandidatesResult, Measure, compete, competition, numbered, once
from dartsfast.candidates.config import RandomCNNConfig, RandomRNNConfig
from dartsfast.candidates.draw import draw_cnn, draw_rnn
from dartsfast.data import absolute_images, absolute_text
from dartsfast.search.cnn import search_cnn
from dartsfast.search.rnn import search_rnn
from dartsfast.train.cnn import train_cnn
from dartsfast.train.result import TrainResult
from dartsfast.train.rnn import train_rnn


class Cells(NamedTuple):
    """What competitions of one kind of cell are made of.

    Attributes:
        name: of the kind, as commands call it.
        measure: what decides.
        absolute: has the option ``data`` mean the same in any working directory.
        draw: returns the random cell of a seed.
        search, train: run a search, or a training.
    """

    name: str
    measure: Measure
    absolute: Callable[[str], str]
    draw: Callable[[int], Any]
    search: Callable[..., Any]
    train: Callable[..., TrainResult]


CNN = Cells(
    "cnn", Measure("valid_acc", " %", sign=1, last=True), absolute_images, draw_cnn, search_cnn, train_cnn
)
RNN = Cells(
    "rnn", Measure("valid_ppl", "", sign=-1, last=False), absolute_text, draw_rnn, search_rnn, train_rnn
)


def random_cnn(config: RandomCNNConfig, *, resume: str | os.PathLike | None = None) -> CandidatesResult:
    """Draw cells at random, train each briefly, and keep the one with the best validation accuracy.

    Args:
        config: options; those of the trainings as the original's ``train.py`` has them.
        resume: folder of a competition to go on with, under its own options; of ``config`` only ``device``,
            ``checkpoint_seconds`` and, other than its default, ``data`` are taken. Several processes may go
            on with one at a time: each takes what no other is at.

    Returns:
        The best cell, and what every candidate reached.

    Raises:
        InputError, RunStopped, OSError: as :func:`dartsfast.search.search_cnn`.
        DivergedError: all trainings diverged.
    """
    return _random(CNN, config, resume)


def random_rnn(config: RandomRNNConfig, *, resume: str | os.PathLike | None = None) -> CandidatesResult:
    """The same of recurrent cells, by the lowest perplexity of validation; see :func:`random_cnn`."""
    return _random(RNN, config, resume)


def select_cnn(config: Any, *, resume: str | os.PathLike | None = None) -> CandidatesResult:
    """Search with several seeds, train each found cell briefly, and keep the best by validation accuracy.

    Args:
        config: a ``SelectCNNConfig``.
        resume: as in :func:`random_cnn`.

    Returns:
        The best cell, and what every candidate reached.

    Raises:
        InputError, RunStopped, OSError: as :func:`dartsfast.search.search_cnn`.
        DivergedError: all searches or trainings diverged.
    """
    return _select(CNN, config, resume)


def select_rnn(config: Any, *, resume: str | os.PathLike | None = None) -> CandidatesResult:
    """The same of recurrent cells, by validation perplexity, with a ``SelectRNNConfig``."""
    return _select(RNN, config, resume)


def _random(cells: Cells, config: Any, resume: str | os.PathLike | None) -> CandidatesResult:
    these = competition(config, ("random", cells.name), cells.absolute, resume)
    config = these.config

    def train(number: int, folder: Path) -> TrainResult:
        arch = repr(cells.draw(config.seed + number))
        return once(cells.train, config.training(arch, str(folder)), folder)

    return compete(these, cells.measure, numbered(config.candidates, train))


def _select(cells: Cells, config: Any, resume: str | os.PathLike | None) -> CandidatesResult:
    these = competition(config, ("select", cells.name), cells.absolute, resume)
    config = these.config

    def search_and_train(number: int, folder: Path) -> TrainResult:
        search, train = folder / "search", folder / "train"
        found = once(cells.search, config.search(number, str(search)), search)
        return once(cells.train, config.training(repr(found.genotype), str(train)), train)

    return compete(these, cells.measure, numbered(config.searches, search_and_train))
