"""The random baseline of the RNN, and the selection among several searches (paper section 3.2)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from dartsfast.candidates.compete import CandidatesResult, Measure, compete, competition, numbered, once
from dartsfast.candidates.config import RandomRNNConfig
from dartsfast.candidates.draw import draw_rnn
from dartsfast.data import absolute_text
from dartsfast.search.rnn import search_rnn
from dartsfast.train.rnn import TrainResult, train_rnn

_PERPLEXITY = Measure("valid_ppl", "", sign=-1, last=False)


def random_rnn(config: RandomRNNConfig, *, resume: str | os.PathLike | None = None) -> CandidatesResult:
    """Draw cells at random, train each briefly, and keep the one with the lowest validation perplexity.

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
    these = competition(config, ("random", "rnn"), absolute_text, resume)
    config = these.config

    def train(number: int, folder: Path) -> TrainResult:
        arch = repr(draw_rnn(config.seed + number))
        return once(train_rnn, config.training(arch, str(folder)), folder)

    return compete(these, _PERPLEXITY, numbered(config.candidates, train))


def select_rnn(config: Any, *, resume: str | os.PathLike | None = None) -> CandidatesResult:
    """Search with several seeds, train each found cell briefly, and keep the best by validation perplexity.

    Args:
        config: a ``SelectRNNConfig``.
        resume: as in :func:`random_rnn`.

    Returns:
        The best cell, and what every candidate reached.

    Raises:
        InputError, RunStopped, OSError: as :func:`dartsfast.search.search_cnn`.
        DivergedError: all searches or trainings diverged.
    """
    these = competition(config, ("select", "rnn"), absolute_text, resume)
    config = these.config

    def search_and_train(number: int, folder: Path) -> TrainResult:
        search, train = folder / "search", folder / "train"
        found = once(search_rnn, config.search(number, str(search)), search)
        return once(train_rnn, config.training(repr(found.genotype), str(train)), train)

    return compete(these, _PERPLEXITY, numbered(config.searches, search_and_train))
