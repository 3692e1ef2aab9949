"""The random baseline of the CNN, and the selection among several searches (paper section 3.2)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dartsfast.candidates.compete import CandidatesResult, Measure, compete, competition, numbered, once
from dartsfast.candidates.config import RandomCNNConfig
from dartsfast.candidates.draw import draw_cnn
from dartsfast.data import absolute_images
from dartsfast.search.cnn import search_cnn
from dartsfast.train.cnn import TrainResult, train_cnn

_ACCURACY = Measure("valid_acc", " %", sign=1, last=True)


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
    these = competition(config, ("random", "cnn"), absolute_images, resume)
    config = these.config

    def train(number: int, folder: Path) -> TrainResult:
        arch = repr(draw_cnn(config.seed + number))
        return once(train_cnn, config.training(arch, str(folder)), folder)

    return compete(these, _ACCURACY, numbered(config.candidates, train))


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
    these = competition(config, ("select", "cnn"), absolute_images, resume)
    config = these.config

    def search_and_train(number: int, folder: Path) -> TrainResult:
        search, train = folder / "search", folder / "train"
        found = once(search_cnn, config.search(number, str(search)), search)
        return once(train_cnn, config.training(repr(found.genotype), str(train)), train)

    return compete(these, _ACCURACY, numbered(config.searches, search_and_train))
